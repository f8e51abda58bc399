"""A fault at every file operation of a small run, and what must hold afterwards: `python driver.py --operations`.

A run without faults is the reference. Each case then begins in a new folder, or in that of a killed run, has its fault,
and is started again without one.
"""

import csv
import itertools
import os
import random
import re
import shutil
import time
from ast import literal_eval
from collections.abc import Iterator, Sequence
from pathlib import Path

from forked import MODES, Area, Attempt, import_all, preload
from PIL import Image

from slm import verify
from slm.files import atomic, run_folder

SMALL = (  # a run of a second with everything that writes a file
    *("data=text", "data.separator=<|endoftext|>", "data.train_ratio=0.8", "data.batch_windows=2"),
    *("data.validation_windows=4", "trainer=cpu", "name=small", "budget.steps=7", "log_windows=true", "logger=csv"),
    *("model.width=16", "model.depth=1", "model.head_dim=8", "model.kv_heads=null", "model.mlp_width=16"),
    *("model.context=32", "log_every_n_steps=1", "val_every_n_steps=3", "callbacks.checkpoints.every_n_steps=2"),
    *("callbacks.samples.every_n_steps=3", "callbacks.samples.max_new_tokens=3", "callbacks.progress=null"),
    "report=false",
)
SCENARIOS = {"new": None, "resumed": 0.6}  # the share of the operations after which an earlier attempt was killed


def durable_checkpoint(operations: list[tuple[str, str]]) -> str | None:
    """The name of the newest checkpoint that was written, renamed and flushed."""
    renamed = durable = None
    for kind, path in operations[:-1]:
        if kind == "rename" and path.endswith(".ckpt"):
            renamed = Path(path)
        if kind == "fsync" and renamed and path == str(renamed.parent):
            durable = renamed.name
    return durable


def problems_of_fault(area: Area, name: str, attempt: Attempt) -> Iterator[str]:
    """Yields a sentence for each rule that the attempt with the fault broke."""
    if attempt.code not in MODES[name].codes:
        yield f"exit code {attempt.code}"
    if "Traceback" in attempt.output:
        yield "a traceback"
    if attempt.code == 4 and attempt.fault:
        words = map(without_process, re.split(r"[\s:;,]+", attempt.errors[0] if attempt.errors else ""))
        if len(attempt.errors) != 1:
            yield f"{len(attempt.errors)} lines of errors"
        elif os.strerror(MODES[name].value) not in attempt.errors[0]:
            yield "the line does not say the reason"
        elif not set(words) & set(map(without_process, attempt.failed)):
            yield "the line does not name the file"
        elif attempt.fault[0] in ("read", "list") and not re.search("read|list", attempt.errors[0]):
            yield "the line does not say that reading failed"
    newest = durable_checkpoint(attempt.operations)
    if newest and not atomic.is_intact(area.run / "checkpoints" / newest):
        yield f"{newest} is lost"


def without_process(path: str) -> str:
    """The name of a file without that of its temporary file, which holds a process id."""
    return re.sub(r"\.\d+\.partial", "", path)


def problems_of_resume(area: Area) -> Iterator[str]:
    """Runs the command without fault. Yields a sentence for each rule that it breaks."""
    start = run_folder.newest_intact(area.run)
    attempt = area.attempt()
    if attempt.code:
        yield f"the next attempt ends with {attempt.code}: {' '.join(attempt.errors)}"
    if "Traceback" in attempt.output:
        yield "the next attempt prints a traceback"
    if start and " is done: " not in attempt.output and f", from {start.name}" not in attempt.output:
        yield f"the next attempt does not start from {start.name}"


def problems_at_end(area: Area, reference: Area, output: str) -> Iterator[str]:
    """Yields a sentence for each difference between a finished run and the reference."""
    if difference := verify.first_difference(reference.run, area.run):
        yield f"differs: {difference}"
    yield from verify.find_problems(area.run)
    yield from (f"{path.relative_to(area.files)} is left" for path in area.files.rglob("*.partial"))
    if names := {path.name for path in (area.run / "checkpoints").iterdir()} ^ {
        path.name for path in (reference.run / "checkpoints").iterdir()
    }:
        yield f"checkpoints/ has or lacks {sorted(names)}"
    for name in ("samples.md", "tokenizer", "checkpoints/last.json", "checkpoints/best.json"):
        if contents(reference.run / name) != contents(area.run / name):
            yield f"{name} differs"
    if run_folder.require_run_json(area.run)["status"] != "done":
        yield "the run is not done"
    if "metrics.csv was not written" not in output and table(reference.run / "metrics.csv") != table(
        area.run / "metrics.csv"
    ):
        yield "metrics.csv differs"
    if "loss.png was not written" not in output:
        try:
            with Image.open(area.run / "loss.png") as image:
                image.load()
        except OSError as error:
            yield f"loss.png: {error}"
    if contents(reference.run) != contents(area.run.with_name("other")):
        yield "another run was changed"
    made = {path.relative_to(area.files) for path in area.files.glob("cache/*/*")}
    if made != {path.relative_to(reference.files) for path in reference.files.glob("cache/*/*")}:
        yield f"the cache holds {sorted(map(str, made))}"


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of all files of a folder by name."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a .csv file without what the clock decides; none if it is missing."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key not in verify.CLOCK} for row in csv.DictReader(file)]


class Campaign:
    """The cases of one command, each in a copy of a template folder.

    `killed`: the share of its operations after which an earlier attempt was killed there; None: there was none.
    """

    def __init__(self, folder: Path, overrides: Sequence[str], killed: float | None):
        self.folder, self.overrides = folder, overrides
        self.reference, self.template = Area(folder / "reference", overrides), Area(folder / "template", overrides)
        first = self.reference.attempt()
        assert first.code == 0, first.output
        shutil.copytree(self.reference.run, self.template.run.with_name("other"))
        if killed:
            self.template.attempt(MODES["kill"], round(killed * len(first.operations)))
        self.operations = self.area("counted").attempt().operations

    def area(self, name: str) -> Area:
        shutil.copytree(self.template.files, self.folder / name / "files")
        return Area(self.folder / name, self.overrides)

    def cases(self, modes: Sequence[str]) -> list[tuple[str, int]]:
        """Every mode at every operation where it can happen."""
        return [
            (mode, at) for mode in modes for at, (kind, _) in enumerate(self.operations) if kind in MODES[mode].kinds
        ]

    def result(self, mode: str, at: int) -> tuple[str, list[str]]:
        """A description of the case, and the rules that it broke. Its folder stays if there are any."""
        area = self.area(f"{mode}-{at}")
        attempt = area.attempt(MODES[mode], at)
        found = [f"with the fault: {problem}" for problem in problems_of_fault(area, mode, attempt)]
        if attempt.code:
            found += problems_of_resume(area)
        found += problems_at_end(area, self.reference, attempt.output if not attempt.code else "")
        if not found:
            shutil.rmtree(area.folder)
        operation = " ".join(attempt.fault or ["no operation"]).replace(str(area.files), "")
        return f"{mode} {at}, {operation}: exit code {attempt.code} {' '.join(attempt.errors)}", found


def evenly(cases: Sequence[tuple[str, int]], rng: random.Random) -> list[tuple[str, int]]:
    """The cases in random order, but with each mode equally often in every beginning."""
    of_mode: dict[str, list[tuple[str, int]]] = {}
    for mode, at in rng.sample(cases, len(cases)):
        of_mode.setdefault(mode, []).append((mode, at))
    return [case for row in itertools.zip_longest(*of_mode.values()) for case in row if case]


def results(campaign: Campaign, cases: Sequence[tuple[str, int]], processes: int) -> Iterator[tuple[str, list[str]]]:
    """The results of the cases, each in a forked process, in the order of their ends."""
    running: dict[int, Path] = {}
    waiting = list(cases)
    while waiting or running:
        while waiting and len(running) < processes:
            mode, at = waiting.pop(0)
            file = campaign.folder / f"{mode}-{at}.result"
            if not (process := os.fork()):
                try:
                    file.write_text(repr(campaign.result(mode, at)))
                except BaseException as error:
                    file.write_text(repr((f"{mode} {at}", [f"{type(error).__name__}: {error}"])))
                finally:
                    os._exit(0)
            running[process] = file
        file = running.pop(os.wait()[0])
        yield literal_eval(file.read_text())
        file.unlink()


def check_operations(folder: Path, overrides: Sequence[str], modes: Sequence[str], sample: int, seed: int) -> int:
    """Prints each case that broke a rule. Returns their number. `sample`: cases per scenario, 0: all."""
    preload(folder)
    begin, total, broken = time.monotonic(), 0, 0
    overrides = [*SMALL, *overrides]
    import_all(folder, overrides)
    for name, killed in SCENARIOS.items():
        campaign = Campaign(folder / name, overrides, killed)
        cases = campaign.cases(modes)
        if sample:
            cases = evenly(cases, random.Random(seed))[:sample]
        print(f"{name}: {len(campaign.operations)} operations, {len(cases)} cases", flush=True)
        for description, problems in results(campaign, cases, processes=os.cpu_count() or 1):
            total, broken = total + 1, broken + bool(problems)
            if problems:
                print("\n    ".join([f"  {description}", *problems]), flush=True)
            if total % 100 == 0:
                print(f"  {total} faults, after {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{total} faults, {broken} broke a rule, after {time.monotonic() - begin:.0f} s")
    return broken
