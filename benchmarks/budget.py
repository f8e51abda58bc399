"""The minutes of a budget against the time that the command takes, each in a process of its own.

    python benchmarks/budget.py [--minutes 1 3] [--set experiment=quickstart] [--set ...]

A first run of one step fills the cache with prepared data. The machine should do nothing else.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import ROOT, argument_parser, machine, one_line_errors, parsed, table

from slm.errors import UserError

CONFIGURATIONS = [["experiment=quickstart"], ["experiment=quickstart", "model.width=32", "model.depth=1"]]


def main():
    parser = argument_parser(__doc__, rounds=None)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--set", nargs="*", action="append", help="overrides of train.py; again for each configuration")
    arguments = parsed(parser)
    trainer = {"cpu": "trainer=cpu", "cuda": "trainer.accelerator=gpu"}[arguments.device]
    lines = []
    for overrides in arguments.set or CONFIGURATIONS:
        seconds([*overrides, trainer, "budget.steps=1"])
        for minutes in arguments.minutes:
            asked, (taken, steps) = 60 * minutes, seconds([*overrides, trainer, f"budget.minutes={minutes:g}"])
            lines.append(
                [" ".join(overrides), f"{asked:.0f}", f"{taken:.1f}", f"{taken / asked - 1:+.1%}", f"{steps:,}"]
            )
            print(*lines[-1], sep="  ", flush=True)
    print(machine(arguments.device))
    print(table(["", "asked, s", "taken, s", "difference", "steps"], lines))


def seconds(overrides: list[str]) -> tuple[float, int]:
    """Of `python train.py`, from the start to the end of its process, and the steps of the run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *overrides, f"run_dir={folder}/run"]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        taken = time.perf_counter() - begin
        if done.returncode:
            raise UserError(f"{' '.join(overrides)} ends with {done.returncode}: {done.stderr.strip()[-300:]}")
        return taken, json.loads(Path(folder, "run", "run.json").read_text())["steps"]


if __name__ == "__main__":
    with one_line_errors():
        main()
