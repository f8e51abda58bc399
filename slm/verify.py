"""Whether a run is whole, and whether two runs are the same to the bit.

python -m slm.verify RUN        hashes, opens every checkpoint, checks that metrics and windows are complete and unique
python -m slm.verify RUN RUN    compares weights, optimizer, metrics, samples and windows
"""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from slm import checkpoint
from slm.data.windows import InfiniteShuffle
from slm.errors import UserError, report
from slm.files import atomic, jsonl, run_folder

CLOCK = ("tokens_per_second", "mfu", "device/memory_gb", "device/utilization")  # what no resume can repeat
LOGS = ("windows.jsonl", "metrics.jsonl", "samples.jsonl")


def main() -> int:
    """0 if all is well, 1 if something is wrong, 2 for a mistake in the arguments."""
    parser = argparse.ArgumentParser(prog="python -m slm.verify", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("other", type=Path, nargs="?", help="a run folder to compare it with, bit for bit")
    arguments = parser.parse_args()
    try:
        if arguments.other:
            difference = first_difference(arguments.run, arguments.other)
            print(f"first difference: {difference}" if difference else "the same to the bit")
            return int(difference is not None)
        faults = list(find_problems(arguments.run))
    except UserError as error:
        return report(error)
    for fault in faults:
        print(f"fault: {fault}")
    if not faults:
        print(whole(arguments.run))
    return int(bool(faults))


def whole(folder: Path) -> str:
    """What was found in order, in a sentence."""
    card, steps = (
        run_folder.read_run_json(folder),
        [run_folder.step_of(path) for path in run_folder.checkpoints(folder)],
    )
    counts = {name: sum(1 for _ in jsonl.lines(folder / name)) for name in LOGS}
    logs = ", ".join(f"{count} lines of {name}" for name, count in counts.items() if count)
    return (
        f"{folder} is whole: status {card['status']}, {card['lives']} lives, checkpoints of steps "
        f"{', '.join(map(str, sorted(steps)))} open and match their sha256; {logs} complete and unique"
    )


def find_problems(folder: Path) -> Iterator[str]:
    """Each thing that is wrong with a run folder, in a sentence. Raises UserError if it is none."""
    card = run_folder.read_run_json(folder)
    if card is None:
        raise UserError(f"{folder} is no run folder: it has no run.json")
    yield from damaged_checkpoints(folder, card)
    saved = [run_folder.step_of(path) for path in run_folder.checkpoints(folder)]
    if not saved:
        yield "there is no checkpoint"
        return
    last, config = max(saved), card["config"]
    for name in LOGS:
        lines = (folder / name).read_bytes().splitlines(keepends=True) if (folder / name).exists() else []
        if (read := sum(1 for _ in jsonl.lines(folder / name))) < len(lines):
            yield f"{name} cannot be read from line {read + 1} on"
    metrics, first = list(jsonl.lines(folder / "metrics.jsonl")), card.get("first_step", 0)
    end, stopped_early = {last} if last == card["steps"] else set(), card["status"] == "done" and last < card["steps"]
    ends = {"train/loss": end, "val/loss": {last} if stopped_early else end}
    for name, every, start in (("train/loss", 0, {1}), ("val/loss", 1, set())):
        steps = [line["step"] for line in metrics if name in line]
        expected: set[int] = set()
        if len(card.get("intervals", [])) == 1 and config["callbacks"].get("metrics"):  # in all of its lives
            interval = card["intervals"][0][every]
            expected = start | ends[name] | set(range(interval, last + 1, interval))
        yield from irregular(name, steps, {step for step in expected if first < step})
    yield from wrong_windows(list(jsonl.lines(folder / "windows.jsonl")), card, last)


def damaged_checkpoints(folder: Path, card: dict[str, Any]) -> Iterator[str]:
    for path in run_folder.checkpoints(folder):
        if not atomic.intact(path):
            yield f"{path.name} does not match its sha256"
            continue
        try:
            loaded = checkpoint.load(path)
        except UserError as error:
            yield str(error)
            continue
        if loaded.run_id != card["run_id"]:
            yield f"{path.name} is another run's, {loaded.run_id}"
        if loaded.step != run_folder.step_of(path):
            yield f"{path.name} holds step {loaded.step}"
        if bad := [name for name, value in loaded.model.state_dict().items() if not value.isfinite().all()]:
            yield f"{path.name} holds numbers that are not finite in {bad[0]}"
    for pointer in ("last.json", "best.json"):
        path = folder / "checkpoints" / pointer
        try:
            if path.exists() and not run_folder.pointed(path).exists():
                yield f"{pointer} names a checkpoint that is not there"
        except UserError as error:
            yield str(error)


def irregular(what: str, steps: list[int], expected: Iterable[int]) -> Iterator[str]:
    """What is missing, doubled or out of order in a series of steps."""
    if doubled := sorted(step for step, count in Counter(steps).items() if count > 1):
        yield f"{what} is there more than once at steps {shown(doubled)}"
    if missing := sorted(set(expected) - set(steps)):
        yield f"{what} is missing at steps {shown(missing)}"
    if steps != sorted(steps):
        yield f"{what} is out of order"


def wrong_windows(lines: list[dict[str, Any]], card: dict[str, Any], last: int) -> Iterator[str]:
    """Each step from the first logged one on must have consumed what the endless order says, no more and no less."""
    if not lines or "windows" not in card:
        return
    last = last if card["config"]["debug"]["log_windows"] else lines[-1]["step"]
    yield from irregular("windows", [line["step"] for line in lines], range(lines[0]["step"], last + 1))
    batch, seed = card["config"]["data"]["batch_windows"], card["config"]["seed"]
    for line in lines:
        rewound = [rewind["skipped"] for rewind in card["rewinds"] if rewind["to"] < line["step"]]
        passed_over = max([card.get("first_skipped", 0), *rewound])
        order = InfiniteShuffle(card["windows"], seed, (line["step"] - 1) * batch + passed_over)
        if line["windows"] != list(itertools.islice(order, batch)):
            yield f"step {line['step']} consumed other windows than the order has there"
            return


def shown(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:5])) + (f" and {len(steps) - 5} more" if len(steps) > 5 else "")


def first_difference(one: Path, other: Path) -> str | None:
    """Where two run folders first differ in what they consumed, logged and learned; None if they do not.

    Raises UserError for a folder that is none.
    """
    for folder in (one, other):
        if run_folder.read_run_json(folder) is None:
            raise UserError(f"{folder} is no run folder: it has no run.json")
    for name in LOGS:
        pairs = itertools.zip_longest(*(comparable(folder / name) for folder in (one, other)))
        for number, (a, b) in enumerate(pairs, start=1):
            if a != b:
                return f"{name}, line {number}: {a} and {b}"
    newest = [next(iter(run_folder.checkpoints(folder)), None) for folder in (one, other)]
    if None in newest:
        return None if newest == [None, None] else "only one of them has a checkpoint"
    states = [checkpoint.read(path) for path in newest]
    for key in ("global_step", "state_dict", "optimizer_states", "callbacks"):
        if place := unequal(states[0].get(key), states[1].get(key), key):
            return place
    return None


def comparable(log: Path) -> Iterator[dict[str, Any]]:
    for line in jsonl.lines(log):
        yield {key: value for key, value in line.items() if key not in CLOCK}


def unequal(a: Any, b: Any, place: str) -> str | None:
    """The place at which two nested values first differ in a bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes():
            return None
        apart = f", by up to {(a.double() - b.double()).abs().max():.3g}" if a.shape == b.shape else ""
        return f"{place}{apart}"
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((found for key in a if (found := unequal(a[key], b[key], f"{place}.{key}"))), None)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((found for i, (x, y) in pairs if (found := unequal(x, y, f"{place}[{i}]"))), None)
    return None if a == b else f"{place}: {a} and {b}"


if __name__ == "__main__":
    sys.exit(main())
