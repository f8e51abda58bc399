"""Kills train.py with all its processes, again and again, and compares the run with an uninterrupted one.

python tests/chaos/driver.py --kills 20 --seed 0 FOLDER key=value ...
python tests/chaos/driver.py --operations kill,torn,power FOLDER data.path=FILE key=value ...

A kill comes at a random time (imports, preparation, steps, validations), after a printed line, or at a change in the
checkpoint folder. With --operations, a kill, a power cut, an error of the disk or a signal (all of forked.MODES if none
is named) comes at every file operation of a small run, or at a random `--sample` of them.
"""

import argparse
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forked import MODES
from operations import check_operations

from slm import verify
from slm.files import atomic, run_folder

ROOT = Path(__file__).parents[2]
LINES = {  # printed at the start of each phase
    "tokenizer": "building the tokenizer",
    "tokenizing": "tokenizer:",
    "start": "budget:",
    "training": "device:",
    "validated": ": val/loss",
}
CHANGES = {  # in checkpoints/, from one look to the next
    "writing": lambda before, now: any(name.endswith(".partial") for name, _ in now - before),
    "digest": lambda before, now: any(name.endswith(".sha256") for name, _ in now - before),
    "published": lambda before, now: any(name.endswith(".ckpt") for name, _ in now - before),
    "named": lambda before, now: any(name == "last.json" for name, _ in now - before),
    "pruned": lambda before, now: bool(names(before, ".ckpt") - names(now, ".ckpt")),
}
MOMENTS = ("import", "any", *LINES, *CHANGES)


def new_process(arguments: list[str], *, stdout: int, stderr: int, env: dict[str, str]) -> subprocess.Popen:
    command, env = [sys.executable, str(ROOT / "train.py"), *arguments], {**os.environ, **env}
    return subprocess.Popen(command, env=env, stdout=stdout, stderr=stderr, start_new_session=True)


@dataclass
class Chaos:
    """A run folder, its command, and the observations of all attempts.

    `start` starts the command, if the kill does not come during its imports.
    """

    folder: Path
    overrides: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    start: Callable = new_process
    saved: set[str] = field(default_factory=set)  # names of checkpoints seen so far
    killed: list[str] = field(default_factory=list)  # the moments of kills

    def attempt(self, moment: str | None, rng: random.Random, *more: str) -> int:
        """Runs the command and kills it at the moment, if that comes. Returns the exit code, -9 if killed."""
        read, write = os.pipe()
        start, arguments = new_process if moment == "import" else self.start, [*self.overrides, *more]
        env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **self.environment}
        process = start([*arguments, f"run_dir={self.folder}"], stdout=write, stderr=write, env=env)
        os.close(write)
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.extend(lines_of(read)), daemon=True)
        reader.start()
        if moment:
            self._wait(process, moment, printed, rng)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait(timeout=120)
        reader.join(timeout=10)
        if code == -signal.SIGKILL:
            self.killed.append(moment)
        elif code:
            raise AssertionError("".join(printed))
        self.check()
        return code

    def check(self):
        """Asserts the guarantees at any moment: every checkpoint is intact, and after two saves there are two."""
        there = run_folder.checkpoints(self.folder)
        torn = [path.name for path in there if not atomic.is_intact(path)]
        assert not torn, f"{torn} torn"
        assert len(there) >= min(len(self.saved), 2), f"only {len(there)} checkpoints are there"

    def _wait(self, process, moment: str, printed: list[str], rng: random.Random):
        """Returns when the moment comes or the process ends."""
        if moment in ("import", "any"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 9 if moment == "any" and self.start is new_process else 4))
            return
        before, past, passed = self._look(), 0, rng.randrange(4)  # changes to let pass
        while process.poll() is None:
            started = [line for line in printed[:] if any(start in line for start in LINES.values())]
            now = self._look()
            self.saved |= names(now, ".ckpt")
            if moment in CHANGES:
                past += CHANGES[moment](before, now)
                if past > passed:
                    return
            elif any(LINES[moment] in line for line in started):
                time.sleep(rng.uniform(0, 0.3))
                return
            elif moment.startswith("token") and any(LINES["training"] in line for line in started):
                time.sleep(rng.uniform(0, 2))  # tokenizer and tokens came from the cache
                return
            before = now
            time.sleep(0.0005)

    def _look(self) -> set[tuple[str, int]]:
        """Names and modification times of the files in checkpoints/."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder / "checkpoints") as entries:
            return {(entry.name, entry.stat().st_mtime_ns) for entry in entries}  # raises if one vanishes
        return set()


def lines_of(descriptor: int) -> Iterator[str]:
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        yield from file


def names(entries: set[tuple[str, int]], suffix: str) -> set[str]:
    return {name for name, _ in entries if name.endswith(suffix)}


def moments(kills: int, rng: random.Random) -> Iterator[str]:
    """Moments in random order, each kind about equally often."""
    return itertools.islice(itertools.chain.from_iterable(iter(lambda: rng.sample(MOMENTS, len(MOMENTS)), None)), kills)


def compare(reference: Path, chaotic: Chaos):
    """Asserts that the killed run equals the reference bit for bit, and is complete."""
    difference = verify.first_difference(reference, chaotic.folder)
    assert difference is None, difference
    problems = list(verify.find_problems(chaotic.folder))
    assert not problems, problems
    left = [path for path in chaotic.folder.rglob("*") if path.suffix == ".partial"]
    assert not left, left


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--operations", nargs="?", const=",".join(MODES), metavar="MODE,...")
    parser.add_argument("--sample", type=int, default=0, help="faults per scenario; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="+")
    arguments = parser.parse_args()
    if arguments.operations:
        modes = arguments.operations.split(",")
        broken = check_operations(arguments.folder, arguments.overrides, modes, arguments.sample, arguments.seed)
        sys.exit(broken > 0)
    rng = random.Random(arguments.seed)

    def chaos(name: str) -> Chaos:
        return Chaos(arguments.folder / name, [*arguments.overrides, f"cache_dir={arguments.folder / f'cache-{name}'}"])

    reference, killed = chaos("reference"), chaos("killed")
    assert reference.attempt(None, rng) == 0
    for moment in moments(arguments.kills, rng):
        begin, code = time.monotonic(), killed.attempt(moment, rng)
        print(f"{moment:10} {'killed' if code else 'ended'} after {time.monotonic() - begin:.1f} s", flush=True)
        if code == 0:
            break
    else:
        killed.attempt(None, rng)
    compare(reference.folder, killed)
    print(f"{len(killed.killed)} kills, equal bit for bit")


if __name__ == "__main__":
    main()
