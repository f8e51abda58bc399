"""Groups of runs that differ in their seed only, from run folders, sweep folders and folders that hold runs."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slm.errors import UserError
from slm.files import atomic, run_folder, sweep_folder
from slm.results import Run, higher_is_better
from slm.security import is_number

IDENTITY = (  # keys that name a run, its folders and its observers, not what it learns
    *("name", "tags", "run_dir", "runs_dir", "sweep_dir", "cache_dir", "resume", "allow_changes", "logger", "plan"),
    *("prepare", "lint", "report", "price_per_hour", "verify_resume", "log_windows"),
    *("data.path", "data.corpus.path", "data.corpus.cache"),
)
OPTIONS = ("model", "data", "tokenizer", "optimizer", "schedule")  # groups whose option is shown where it differs
VARIANT = "variant"  # the key of an ablation
WORD = re.compile(r"[A-Za-z_][\w.+-]*")


@dataclass(frozen=True)
class FinishedRun(Run):
    """A run to be compared."""

    @property
    def seed(self) -> int:
        return self.info["config"].get("seed", 0)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration by dotted keys, without null, the seed and IDENTITY."""
        kept = {key: value for key, value in self.config.items() if value is not None}  # a later version may add keys
        return {key: value for key, value in kept.items() if not is_identity(key, value, self.info)}

    def value(self, name: str, best: bool = False) -> float:
        """The last value of a metric, or the best one: the highest of sample/, the lowest of any other."""
        values = list(self.series(name).values())
        return values[-1] if not best else max(values) if higher_is_better(name) else min(values)

    def ends_finite(self, name: str) -> bool:
        """True if the newest value of a metric is a finite number."""
        return is_number(next((line[name] for line in reversed(self.metrics) if name in line), None))


@dataclass
class Group:
    """Runs that differ in their seed only, one for each seed."""

    name: str
    runs: list[FinishedRun]
    identity: dict[str, str] = field(default_factory=dict)  # swept key -> value

    @cached_property
    def by_seed(self) -> dict[int, FinishedRun]:
        return {run.seed: run for run in sorted(self.runs, key=lambda run: run.seed)}


def read_groups(folders: Sequence[str]) -> tuple[list[Group], list[str]]:
    """The groups that the folders hold, in their order, and one line for each run that is left out.

    Single runs of one configuration and code form one group. Raises UserError for a folder without finished runs.
    """
    groups: list[Group] = []
    left_out: list[str] = []
    for folder in dict.fromkeys(map(atomic.expanded, folders)):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give run folders, sweep folders or folders that hold runs")
        found = split(folder, read_runs(folder, left_out))
        if not found:
            reasons = f" ({'; '.join(left_out)})" if left_out else ""
            raise UserError(f"{folder} holds no finished run{reasons}")
        if len(folders) > 1:
            for group in found:
                group.name = f"{folder.name}: {group.name}" if len(found) > 1 else folder.name
        groups += found
    groups = merged(groups)
    names = [group.name for group in groups]
    for group in groups:
        if names.count(group.name) > 1:  # folders of one name
            group.name = str(group.runs[0].folder)
    return groups, left_out


def read_runs(folder: Path, left_out: list[str]) -> list[FinishedRun]:
    """The finished runs in a folder; the reasons why others are left out are appended to `left_out`."""
    files = [folder / "run.json"] if (folder / "run.json").exists() else sorted(folder.rglob("run.json"))
    found = []
    for run in (FinishedRun(file.parent) for file in files):
        try:
            check_complete(run)
            found.append(run)
        except UserError as error:
            left_out.append(str(error))
    return found


def is_identity(key: str, value: Any, info: dict[str, Any]) -> bool:
    """True for the seed, for values that follow it, and for the keys of IDENTITY."""
    follows = re.fullmatch(r"callbacks\..*\.seed", key) and value == info["config"].get("seed")
    return key == "seed" or bool(follows) or f"{key}.".startswith(tuple(f"{name}." for name in IDENTITY))


def check_complete(run: FinishedRun):
    """Raises UserError for a run that is not finished, whose seed is no number, or whose last validation is missing in
    metrics.jsonl or not finite: an earlier one would count."""
    if run.status != "done":
        raise UserError(f"{run.folder} is not finished: status {run.status}")
    if not (isinstance(run.seed, int) and is_number(run.seed)):
        raise UserError(f"{run.folder}: run.json is damaged: its seed is not a whole number")
    validations = [line for line in run.metrics if any(name.startswith("val/") for name in line)]
    steps = [line["step"] for line in validations]
    newest = atomic.read_object(run.folder / "checkpoints" / "last.json") or {}
    name = run_folder.STEP_FILE.fullmatch(str(newest.get("file")))
    end = int(name[1]) if name else run.info.get("steps")
    if not steps or steps[-1] != end:
        at = f"its last validation is that of step {steps[-1]}" if steps else "it has no validation"
        raise UserError(f"{run.folder}: metrics.jsonl is damaged: {at}, and the run ended at step {end}")
    if not is_number(validations[-1].get("val/loss", 0)):
        raise UserError(f"{run.folder} has diverged: its last val/loss is not finite")


def split(folder: Path, runs: Iterable[FinishedRun]) -> list[Group]:
    """The runs of a folder as groups: by the swept keys other than the seed, else by their configurations."""
    sweep = sweep_folder.read(folder)
    values = {job.folder: job.values for job in sweep.jobs} if sweep else {}
    place = {name: number for number, name in enumerate(values)}  # as typed, so the base of an ablation is the first
    groups: dict[Any, Group] = {}
    for run in sorted(runs, key=lambda run: place.get(run.folder.name, len(place))):
        swept = values.get(run.folder.name)
        identity = {k: v for k, v in swept.items() if k != "seed"} if swept is not None else {}
        key = tuple(identity.items()) if swept is not None else repr(sorted(run.settings.items()))
        groups.setdefault(key, Group(folder.name, [], identity)).runs.append(run)
    found = list(groups.values())
    if len(found) > 1:
        for group, name in zip(found, names(found)):
            group.name = name
    return found


def names(groups: Sequence[Group]) -> list[str]:
    """Short names: the variant of an ablation, the value of one key with words for values, else key=value."""
    identities = [group.identity or {k: str(v) for k, v in group.runs[0].settings.items()} for group in groups]
    keys = [key for key in dict.fromkeys(k for i in identities for k in i) if len({i.get(key) for i in identities}) > 1]
    if not keys or len(keys) > 4:
        return [group.runs[0].folder.name for group in groups]
    if VARIANT in keys:
        keys = [VARIANT]
    short = sweep_folder.short_keys(keys)
    if len(keys) == 1 and all(WORD.fullmatch(str(i.get(keys[0]))) for i in identities):
        return [str(i.get(keys[0])) for i in identities]
    return [" ".join(f"{short[key]}={i[key]}" for key in keys if key in i) for i in identities]


def merged(groups: Sequence[Group]) -> list[Group]:
    """Single runs of one configuration and code as one group, named by what tells it from the others."""
    result: dict[Any, Group] = {}
    for number, group in enumerate(groups):
        run = group.runs[0]
        alone = len(group.runs) == 1 and not group.identity
        facts = [run.info.get(key) for key in ("corpus", "tokenizer", "device")], run.info.get("commits", [])[-1:]
        first = result.setdefault(repr((facts, sorted(run.settings.items()))) if alone else number, group)
        if first is not group and run.seed in {other.seed for other in first.runs}:
            result[number] = group
        elif first is not group:
            first.runs += group.runs
    found = list(result.values())
    if len(found) < len(groups) and len(found) > 1:
        for group, name in zip(found, names(found)):
            group.name = name if not group.identity and len(group.runs) > 1 else group.name
    return found


def options(run: FinishedRun) -> dict[str, Any]:
    """Group -> option of the configuration, such as model: tiny."""
    choices = run.info.get("choices")
    return {key: choices.get(key) for key in OPTIONS} if isinstance(choices, dict) else {}


def differing_settings(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Key -> value in each group, for the keys of the configuration that differ; a missing key is None."""
    settings = [group.runs[0].settings for group in groups]
    if all(found := [options(group.runs[0]) for group in groups]):
        settings = [option | each for option, each in zip(found, settings)]
    keys = sorted({key for each in settings for key in each} - {VARIANT})
    table = {key: [each.get(key) for each in settings] for key in keys}
    return {key: row for key, row in table.items() if any(value != row[0] for value in row)}
