"""The learning rates of model=dial against half and twice of them: is the rule's within a grid step of the best?

    python benchmarks/dial.py [--sizes 200k 700k 2M] [--factors 0.5 0.707 1 1.41 2] [--seeds 1 2] [--share 1]

Trains on storyworld's tiny stories, as experiment=quickstart does. `--share` of the tokens of the rule shortens runs;
the rates are those of the whole one, batch and schedule too. All rates of the optimizer are multiplied together.
"""

import sys
import tempfile
from statistics import mean

from measure import argument_parser, machine, one_line_errors, parsed, table

import slm
from slm.run import cli


def main():
    parser = argument_parser(__doc__, rounds=None)
    parser.add_argument("--sizes", nargs="+", default=["200k", "700k", "2M"])
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 0.707, 1.0, 1.41, 2.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--share", type=float, default=1.0, help="of the tokens of the rule")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    arguments = parsed(parser)
    rows, factors = [], arguments.factors
    for size in arguments.sizes:
        dial = ["experiment=quickstart", f"optimizer={arguments.optimizer}", "model=dial", f"model.size={size}"]
        config = cli.compose(dial).plain
        words = [*dial, *fixed(config, arguments)]
        found = {
            factor: [loss([*words, *rates(config, factor), f"seed={seed}"]) for seed in arguments.seeds]
            for factor in factors
        }
        means = [mean(found[factor]) for factor in factors]
        best = factors[means.index(min(means))]
        shape = f"{config['model']['depth']} x {config['model']['width']}"
        rows.append([size, shape, f"{config['optimizer']['lr']:g}", *(f"{value:.4f}" for value in means), f"{best:g}"])
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    print(machine(arguments.device))
    print(f"{arguments.optimizer}, {arguments.share:g} of the tokens, seeds {arguments.seeds}: val/loss at each factor")
    print(table(["size", "depth x width", "lr", *(f"x {factor:g}" for factor in factors), "best factor"], rows))


def rates(config, factor: float) -> list[str]:
    """So many times the rates of the rule."""
    given = config["optimizer"]
    return [f"optimizer.{key}={factor * given[key]}" for key in ("lr", "adamw_lr") if key in given]


def fixed(config, arguments) -> list[str]:
    """Overrides that all runs of a size share: batch and weight decays of the rule, the budget, and no output."""
    decays = {key: value for key, value in config["optimizer"].items() if key.endswith("decay")}
    return [
        *(f"optimizer.{key}={value}" for key, value in decays.items()),
        f"data.batch_windows={config['data']['batch_windows']}",
        f"budget.tokens={round(arguments.share * config['budget']['tokens'])}",
        "trainer=cpu" if arguments.device == "cpu" else "trainer=gpu",
        *("callbacks.samples=null", "callbacks.stories=null", "callbacks.progress=null"),
        *("report=false", "lint=false", "val_every_n_steps=100000", "log_every_n_steps=100"),
    ]


def loss(words: list[str]) -> float:
    """val/loss at the end of a run."""
    with tempfile.TemporaryDirectory() as folder:
        return slm.train([*words, f"run_dir={folder}/run"]).objective


if __name__ == "__main__":
    with one_line_errors():
        main()
