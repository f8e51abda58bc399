"""Seconds from the start of a command to its first result.

    python benchmarks/startup.py --text input.txt [--rounds 5]

python train.py --help; a misspelt key; and the first step of a small training whose data is in the cache; beside them
the imports of the libraries that take most of the time. Each is a process of its own.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import ROOT, machine, one_line_errors, parsed, table

from slm.errors import UserError

IMPORTS = {
    "import torch": "import torch",
    "import lightning, which imports torch, torchmetrics and torch._dynamo": "import torch, lightning.pytorch",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="a UTF-8 file of a megabyte or so")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parsed(parser)
    script = str(ROOT / "train.py")
    with tempfile.TemporaryDirectory() as folder:
        run = [
            *(script, "model=tiny", "data=text", f"data.path={arguments.text}", "tokenizer.vocab_size=1024"),
            *("budget.steps=1", "data.batch_windows=8", "callbacks.samples=null", f"cache_dir={folder}/cache"),
        ]
        commands = {name: ["-c", code] for name, code in IMPORTS.items()}
        commands["python train.py --help"] = [script, "--help"]
        commands["python train.py model.wdth=3"] = [script, "model.wdth=3"]
        times = {name: [] for name in [*commands, "the first step of a small run"]}
        first_step(run, Path(folder) / "warm-up")
        for number in range(arguments.rounds):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                times[name].append(time.perf_counter() - start)
            times["the first step of a small run"].append(first_step(run, Path(folder) / str(number)))
    rows = [[name, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}"] for name, seconds in times.items()]
    print(machine("cpu"))
    print(table(["", "median, s", "least, s"], rows))


def first_step(run: list[str], folder: Path) -> float:
    """Seconds until the line of the first step is printed."""
    start = time.perf_counter()
    command = [sys.executable, "-u", *run, f"run_dir={folder}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 1/"):
                seconds = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"a training failed; to see why: python {shlex.join(run)}")
    return seconds


if __name__ == "__main__":
    with one_line_errors():
        main()
