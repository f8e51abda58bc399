"""Checks that a run folder is complete, or that two runs are equal bit for bit.

python -m slm.verify RUN        checks hashes, opens every checkpoint, and finds missing or repeated metrics and windows
python -m slm.verify RUN RUN    says which parts differ: windows, metrics, samples, weights, optimizer, callbacks
"""

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slm import checkpoint
from slm.data.mixture import recorded_order
from slm.data.order import make_order
from slm.errors import UserError, one_line, printable
from slm.files import atomic, json_line, jsonl, run_folder
from slm.files.stdio import make_stdio_robust
from slm.security import leaves

OWN = "name", "tags", "run_dir", "runs_dir", "sweep_dir", "cache_dir", "resume"  # settings of a folder, not of a run
STATES = {  # part -> its keys in a checkpoint
    "weights": ("global_step", "state_dict", "current_model_state"),
    "optimizer": ("optimizer_states",),
    "callbacks": ("callbacks",),
}
# metrics that differ from attempt to attempt
CLOCK = (
    *("tokens_per_second", "seconds", "energy_joules", "mfu", "device/memory_gb", "device/utilization"),
    *("slowest_process", "slowest_over_others"),
)


@json_line.command
def main() -> int:
    """Exit code: 0 without problems, 1 with problems, 2 for a mistake in the arguments, 4 for unreadable files."""
    parser = json_line.Parser(prog="python -m slm.verify", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=lambda text: Path(run_folder.named(text)), help="a run folder")
    parser.add_argument("other", type=Path, nargs="?", help="a run folder to compare it with, bit for bit")
    parser.add_argument("--common", action="store_true", help="ignore metrics and callbacks that one of two runs lacks")
    arguments = parser.parse_args()
    if arguments.other:
        return print_comparison(arguments.run, arguments.other, arguments.common)
    if arguments.common:
        raise UserError("--common is for two runs: python -m slm.verify RUN RUN --common")
    problems = list(find_problems(arguments.run))
    json_line.note(folder=str(arguments.run), problems=problems)
    for problem in problems:
        print(f"problem: {printable(problem, 1000)}")
    if not problems:
        print(printable(summary(arguments.run), 1000))
    return int(bool(problems))


def summary(folder: Path) -> str:
    """A description of a folder without problems, in one line."""
    info, checkpoints = run_folder.require_run_json(folder), run_folder.checkpoints(folder)
    steps = ", ".join(str(run_folder.step_of(path)) for path in reversed(checkpoints))
    counts = {name: len(list(jsonl.lines(folder / name))) for name in run_folder.LOGS}
    logs = ", ".join(f"{count} lines of {name}" for name, count in counts.items() if count)
    newest = run_folder.step_of(checkpoints[0])
    state = "finished" if info["status"] == "done" else f"not finished, status {info['status']}"
    return (
        f"{folder}: {state}, step {newest} of {info['steps']}, {info['attempts']} attempt(s); no problems: checkpoints "
        f"of steps {steps} open and match their sha256; {logs} complete and unique"
    )


def find_problems(folder: Path) -> Iterator[str]:
    """Yields a sentence for each problem of a run folder. Raises UserError if it is not a run folder."""
    info = require_facts(folder)
    yield from damaged_checkpoints(folder, info)
    checkpoints = run_folder.checkpoints(folder)
    if not checkpoints:
        yield "there is no checkpoint"
        return
    last, first = run_folder.step_of(checkpoints[0]), info.get("first_step", 0)
    logs = {name: list(jsonl.lines(folder / name)) for name in run_folder.LOGS}
    for name, records in logs.items():
        written = (folder / name).read_bytes().splitlines() if (folder / name).exists() else []
        if len(records) < sum(bool(line.strip()) for line in written):
            yield f"{name} cannot be read from line {len(records) + 1} on"
    end, stopped_early = {last} if last == info["steps"] else set(), info["status"] == "done" and last < info["steps"]
    extra = {"train/loss": end | {1}, "val/loss": {last} if stopped_early else end}
    for every, name in enumerate(extra):
        steps = [line["step"] for line in logs["metrics.jsonl"] if name in line]
        expected: set[int] = set()
        if len(info["intervals"]) == 1 and info["config"]["callbacks"].get("metrics"):  # as in all attempts
            interval = info["intervals"][0][every]
            expected = extra[name] | set(range(interval, last + 1, interval))
        yield from check_series(name, steps, {step for step in expected if first < step})
    yield from wrong_windows(logs["windows.jsonl"], info, last)


def require_facts(folder: Path) -> dict[str, Any]:
    """run.json with the fields that are checked here. Raises UserError if some are missing, as in another version."""
    info = run_folder.require_run_json(folder)
    config, intervals = info["config"], info.get("intervals")
    try:
        numbers = [info["steps"], info["windows"], info["seed"], config["data"]["batch_windows"]]
        numbers.append(info.get("arrangements", 1))
        numbers += [number for pair in intervals for number in (pair[0], pair[1])]
        valid = isinstance(config["callbacks"], dict) and all(isinstance(n, int) and n >= 0 for n in numbers)
        valid = valid and all(number > 0 for number in numbers[1:2] + numbers[3:])
    except (KeyError, TypeError, IndexError):
        valid = False
    if not valid:
        raise UserError(
            f"{folder / 'run.json'} is of another version of slm, or damaged: it lacks what is checked here"
        )
    return info


def damaged_checkpoints(folder: Path, info: dict[str, Any]) -> Iterator[str]:
    """Yields a sentence for each checkpoint that is damaged or of another run, and each pointer without a file."""
    for path in run_folder.checkpoints(folder):
        if not atomic.is_intact(path):
            there = atomic.digest_path(path).exists()
            yield f"{path.name} does not match its sha256" if there else f"{path.name} has no .sha256 beside it"
            continue
        try:
            run_id, step, weights = checkpoint.facts(path)
        except UserError as error:
            yield str(error)
            continue
        if run_id != info["run_id"]:
            yield f"{path.name} belongs to another run ({run_id})"
        if step != run_folder.step_of(path):
            yield f"{path.name} holds step {step}"
        if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
            yield f"{path.name} holds numbers that are not finite in {bad[0]}"
    for pointer in ("last.json", "best.json"):
        path = folder / "checkpoints" / pointer
        try:
            if path.exists() and not run_folder.pointed(path).exists():
                yield f"{pointer} names a checkpoint that is not there"
        except UserError as error:
            yield str(error)


def check_series(what: str, steps: list[int], expected: Iterable[int]) -> Iterator[str]:
    """Yields a sentence for each kind of problem in a series of steps: missing, repeated or out of order."""
    if doubled := sorted(step for step, count in Counter(steps).items() if count > 1):
        yield f"{what} is repeated at steps {shown(doubled)}"
    if missing := sorted(set(expected) - set(steps)):
        yield f"{what} is missing at steps {shown(missing)}"
    if steps != sorted(steps):
        yield f"{what} is out of order"


def wrong_windows(lines: list[dict[str, Any]], info: dict[str, Any], last: int) -> Iterator[str]:
    """Yields a sentence if a step, from the first logged one on, has other windows than the endless order."""
    if not lines:
        return
    last = last if info["config"].get("log_windows") else lines[-1]["step"]
    yield from check_series("windows", [line["step"] for line in lines], range(lines[0]["step"], last + 1))
    batch, ones = info["config"]["data"]["batch_windows"], np.broadcast_to(1, info["windows"])
    name = info["config"]["data"].get("order", "shuffle")
    order = make_order(name, ones, info["config"]["seed"], info.get("arrangements", 1))
    if "sources" in info:
        order = recorded_order(info["sources"], info["config"]["seed"])
    first = info.get("fork", run_folder.NO_FORK)["step"]  # the lines until there are those of the trunk
    for line in (line for line in lines if line["step"] > first):
        indices = order.indices(run_folder.windows_until(info, line["step"] - 1))
        if line["windows"] != list(itertools.islice(indices, batch)):
            yield f"step {line['step']} consumed other windows than the endless order has there"
            return


def shown(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:5])) + (f" and {len(steps) - 5} more" if len(steps) > 5 else "")


def print_comparison(one: Path, other: Path, common: bool) -> int:
    """Prints the parts of two runs that are equal, and how the others differ. Returns 1 if a result differs, else 0."""
    results, causes = differences(one, other, common), causes_of_difference(one, other)
    equal = [part for part, found in results.items() if not found]
    different = {part: found for part, found in (results | causes).items() if found}
    json_line.note(equal=equal, different=different)
    every = len(equal) == len(results)
    print(f"equal bit for bit: {', '.join(equal)}" if every else f"equal: {', '.join(equal) or 'nothing'}")
    for part, found in different.items():
        print(printable(f"different {part}: {found}", 600))
    return int(not every)


def first_difference(one: Path, other: Path) -> str | None:
    """The first difference in windows, metrics, samples or the state of training; None if there is none.

    Raises UserError for a folder that is not a run folder.
    """
    return next((found for found in differences(one, other).values() if found), None)


def differences(one: Path, other: Path, common: bool = False) -> dict[str, str | None]:
    """The first difference of each part of the results of two runs; None for an equal one.

    `common` leaves out metrics and states of callbacks that one of them lacks. Raises UserError for a folder that is
    not a run folder.
    """
    for folder in (one, other):
        run_folder.require_run_json(folder)
    found = {log.partition(".")[0]: log_difference(one, other, log, common) for log in run_folder.LOGS}
    newest = [path for folder in (one, other) for path in run_folder.checkpoints(folder)[:1]]
    if len(newest) < 2:
        return found | {"weights": "only one of them has a checkpoint" if newest else None}
    a, b = map(checkpoint.read, newest)
    if common:
        a["callbacks"], b["callbacks"] = (
            {k: x["callbacks"][k] for k in a["callbacks"].keys() & b["callbacks"]} for x in (a, b)
        )
    for part, keys in STATES.items():
        places = (difference_in(a.get(key), b.get(key), key) for key in keys)
        found[part] = next(filter(None, places), None)
    return found


def log_difference(one: Path, other: Path, log: str, common: bool) -> str | None:
    """The first line in which a file of JSON lines differs, with the values that do, but for those of the clock."""
    names = [{name for line in jsonl.lines(run / log) for name in line} for run in (one, other) if common]

    def kept(run: Path) -> Iterator[dict[str, Any]]:
        for line in jsonl.lines(run / log):
            values = {k: v for k, v in line.items() if k not in CLOCK and all(k in its for its in names)}
            if values.keys() - {"step"} or not common:
                yield values

    for number, (a, b) in enumerate(itertools.zip_longest(kept(one), kept(other), fillvalue={}), start=1):
        if a != b:
            step = a.get("step", b.get("step"))
            return f"{log}, line {number}: step {step}: {listed(a, b)}"
    return None


def causes_of_difference(one: Path, other: Path) -> dict[str, str | None]:
    """What may explain a difference: settings, and the code of the two runs. None: equal, or not recorded in both."""
    infos = [run_folder.require_run_json(run) for run in (one, other)]
    settings = [{key: v for key, v in leaves(info["config"]) if key.partition(".")[0] not in OWN} for info in infos]
    names = ("git_commit", "git_dirty", "classes")
    code = [dict(leaves({name: info.get(name) for name in names})) for info in infos]
    recorded = code[0].keys() & code[1].keys()
    code = [{key: value for key, value in its.items() if key in recorded} for its in code]
    found = {"configuration": listed(*settings), "code": listed(*code)}
    return {part: text or None for part, text in found.items()}


def listed(a: dict[str, Any], b: dict[str, Any], limit: int = 5) -> str:
    """The entries that differ in two mappings, at most `limit` of them."""
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    shown = [f"{key} {one_line(a.get(key), 60)} and {one_line(b.get(key), 60)}" for key in keys[:limit]]
    return ", ".join(shown) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def difference_in(a: Any, b: Any, place: str) -> str | None:
    """The first place where two nested values differ in a bit; None if they are equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes():
            return None
        apart = f", by up to {(a.double() - b.double()).abs().max():.3g}" if a.shape == b.shape else ""
        return f"{place}{apart}"
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((found for key in a if (found := difference_in(a[key], b[key], f"{place}.{key}"))), None)
    return None if a == b else f"{place}: {a} and {b}"


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
