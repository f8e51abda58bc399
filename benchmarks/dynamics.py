"""The cost of callbacks=dynamics: training steps without it, and with it at every step, alternating.

    python benchmarks/dynamics.py [--model small] [--steps 6] [--rounds 5] [--microbatch 4] [--device cpu]

Both train the same model on the same windows. A logged step costs what a step takes longer when each is logged; the
cost at every 50 steps is a fiftieth of it. Prints the medians, and the cost in percent of the time of a run.
"""

import statistics
import tempfile
from pathlib import Path

from measure import argument_parser, in_turn, machine, one_line_errors, parsed
from training import make_job, train_seconds

EVERY = 50  # optimizer steps between logged ones, as in conf/callbacks/dynamics.yaml


def main():
    parser = argument_parser(__doc__, vocab_size=4096)
    parser.add_argument("--model", default="small")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps per measurement")
    parser.add_argument("--microbatch", type=int, default=4, help="of the 8 windows of a step")
    arguments = parsed(parser)
    common = [f"model={arguments.model}", "data.batch_windows=8", f"trainer.microbatch={arguments.microbatch}"]
    sizes = {"vocab_size": arguments.vocab_size, "steps": arguments.steps + 1, "device": arguments.device}
    ways = {
        "without": [*common, "callbacks=default"],
        "every step logged": [*common, "callbacks=dynamics", "callbacks.dynamics.every_n_steps=1"],
    }

    def seconds_per_step(overrides: list[str]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return train_seconds(make_job(Path(folder), overrides, **sizes)) / arguments.steps

    measured = {name: lambda given=given: seconds_per_step(given) for name, given in ways.items()}
    seconds = in_turn(measured, arguments.rounds)
    extra = statistics.median(b - a for a, b in zip(*seconds.values(), strict=True))
    step = statistics.median(seconds["without"])
    print(machine(arguments.device))
    print(f"a step takes {step:.4f} s, a logged one {extra:.4f} s more ({extra / step:.1%})")
    print(f"at every {EVERY} steps: {extra / step / EVERY:.2%} of the time")


if __name__ == "__main__":
    with one_line_errors():
        main()
