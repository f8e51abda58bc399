"""A sweep as a table: jobs, swept keys, means over seeds, optima."""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slm.analysis.groups import IDENTITY
from slm.analysis.optimum import AT_THE_EDGE, Optimum, optimum
from slm.analysis.statistics import pooled_deviation
from slm.errors import UserError
from slm.files import atomic, sweep_folder
from slm.files.sweep_folder import SweepJob, short_keys
from slm.results import Run
from slm.security import is_number

LEARNING_RATE = re.compile(r"(^|[._])(lr|learning_rate)$")
RATE = re.compile(r"(^|[._])(lr|rate|learning_rate|weight_decay|eps)$")
MAX_PANELS = 6  # of a picture
MAX_RUNS, MAX_KEYS = 2000, 8  # of a folder of runs
BESIDE_FAILURES = "beside failed jobs"  # why a line has no interval
SEED = "seed"  # the key whose values are repetitions


@dataclass(frozen=True)
class Cell:
    """The jobs that differ in their seed alone."""

    values: dict[str, Any]
    jobs: list[SweepJob]

    @cached_property
    def objectives(self) -> list[float]:
        return [job.objective for job in self.jobs if job.objective is not None]

    @property
    def failed(self) -> bool:
        """True if any seed has failed."""
        return any(job.status == "failed" for job in self.jobs)

    @property
    def count(self) -> int | str:
        """The number of seeds with an objective; `2 of 3` if some lack it, without which the mean looks better."""
        found, whole = len(self.objectives), len(self.jobs)
        return found if found == whole else f"{found} of {whole}"

    @property
    def mean(self) -> float:
        """Over the seeds that have an objective; infinite without one."""
        return float(np.mean(self.objectives)) if self.objectives else math.inf


@dataclass(kw_only=True)
class Sweep(sweep_folder.Sweep):
    """A folder of runs that differ in the keys `swept`. The values of its jobs are as typed, or numbers."""

    folder: Path

    @property
    def factors(self) -> list[str]:
        """The swept keys but for the seed."""
        return [key for key in self.swept if key != SEED]

    @cached_property
    def short(self) -> dict[str, str]:
        """Key -> its last parts, as many as tell it from the others."""
        return short_keys(self.swept)

    @cached_property
    def cells(self) -> list[Cell]:
        """The combinations of the factors, those with the lowest mean first."""
        found: dict[tuple, list[SweepJob]] = {}
        for job in self.jobs:
            found.setdefault(tuple(str(job.values.get(key)) for key in self.factors), []).append(job)
        cells = [Cell({key: jobs[0].values.get(key) for key in self.factors}, jobs) for jobs in found.values()]
        return sorted(cells, key=lambda cell: cell.mean)

    @property
    def seeds(self) -> int:
        """The largest number of repetitions of a cell."""
        return max((len(cell.jobs) for cell in self.cells), default=0)

    @cached_property
    def noise(self) -> float | None:
        """Standard deviation over seeds; None without repetitions."""
        return pooled_deviation([cell.objectives for cell in self.cells])

    def in_errors(self, cell: Cell) -> float | None:
        """The difference of a mean to the lowest one in standard errors of such a difference; None if unknown."""
        if not (self.noise and cell.objectives):
            return None
        error = self.noise * math.sqrt(1 / len(cell.objectives) + 1 / len(self.cells[0].objectives))
        return (cell.mean - self.cells[0].mean) / error

    def levels(self, key: str) -> list[Any]:
        """The distinct values of a key, sorted; numbers before texts."""
        found = {str(job.values.get(key)): job.values.get(key) for job in self.jobs}
        return sorted(found.values(), key=lambda v: (0, v, "") if is_number(v) else (1, 0, str(v)))

    @cached_property
    def ranks(self) -> dict[str, dict[str, int]]:
        """Key -> text of a value -> its place among the levels."""
        return {key: {str(level): place for place, level in enumerate(self.levels(key))} for key in self.swept}

    @cached_property
    def numeric(self) -> list[str]:
        """The factors with at least two numbers, learning rates first, other rates, then those with the most values."""
        keys = [key for key in self.factors if len(found := self.levels(key)) > 1 and all(map(is_number, found))]
        order = {key: (not LEARNING_RATE.search(key), not RATE.search(key), -len(self.levels(key))) for key in keys}
        return sorted(keys, key=order.get)

    @cached_property
    def panels(self) -> list[tuple[str, "Sweep"]]:
        """Name and part of the sweep for each combination of the factors beyond two: the first number, which is the x
        axis, and the next number or text, which makes the lines. The whole sweep without a number or a grid."""
        texts = [key for key in self.factors if key not in self.numeric and len(self.levels(key)) > 1]
        axes = [*self.numeric, *texts][:2] if self.numeric else self.factors
        others = [key for key in self.factors if key not in axes]
        found: dict[tuple, list[SweepJob]] = {}
        for job in self.jobs:
            found.setdefault(tuple(self.ranks[key][str(job.values.get(key))] for key in others), []).append(job)
        parts = []
        for place, jobs in sorted(found.items()):
            name = ", ".join(f"{self.short[key]} {self.levels(key)[rank]}" for key, rank in zip(others, place))
            parts.append((name, replace(self, jobs=jobs, swept=[key for key in self.swept if key not in others])))
        grids = [math.prod(len(part.levels(key)) for key in axes) for _, part in parts]
        is_grid = all(2 * len(part.cells) > size for (_, part), size in zip(parts, grids))
        return parts if len(parts) == 1 or (is_grid and len(parts) <= MAX_PANELS) else [("", self)]

    def is_log(self, key: str) -> bool:
        """True for rates, and for positive values over more than a decade."""
        values = self.levels(key)
        return values[0] > 0 and bool(RATE.search(key) or values[-1] > 10 * values[0])

    def lines(self, key: str) -> Iterator[tuple[str, list[Cell]]]:
        """Per combination of the other factors its name and its cells, sorted by `key`."""
        others = [other for other in self.factors if other != key]
        found: dict[tuple, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(tuple(str(cell.values[other]) for other in others), []).append(cell)
        for names in sorted(found, key=lambda names: [self.ranks[other][name] for other, name in zip(others, names)]):
            label = ", ".join(f"{self.short[other]} {name}" for other, name in zip(others, names)) or self.objective
            yield label, sorted(found[names], key=lambda cell: cell.values[key])


def read(folder: Path) -> Sweep:
    """The sweep of a folder: by its sweep.json, or of any runs in it. Raises UserError for a folder without runs."""
    recorded = sweep_folder.read(folder)
    return of_runs(folder) if recorded is None else typed(recorded, folder)


def typed(recorded: sweep_folder.Sweep, folder: Path) -> Sweep:
    """What sweep.json records, with numbers for values that are numbers."""
    values = typed_values([job.values for job in recorded.jobs])
    jobs = [
        replace(job, values=row, objective=job.objective if is_number(job.objective) else None)
        for job, row in zip(recorded.jobs, values)
    ]
    return Sweep(**{**vars(recorded), "jobs": jobs, "objective": recorded.objective or ""}, folder=folder)


def of_runs(folder: Path) -> Sweep:
    """The runs in a folder as a sweep over the keys in which they differ."""
    runs = [Run(path) for path in atomic.entries(folder) if (path / "run.json").is_file()][:MAX_RUNS]
    if not runs:
        raise UserError(f"{folder} is neither a run nor a sweep: it has no run.json, sweep.json or folders of runs")
    columns: dict[tuple, str] = {}  # values in all runs -> key; a key that repeats another one's is left out
    for key in dict.fromkeys(key for run in runs for key in run.config):
        column = tuple(str(run.config.get(key)) for run in runs)
        if key.split(".")[0] not in IDENTITY and len(set(column)) > 1:
            columns.setdefault(column, key)
    keys = list(columns.values())[:MAX_KEYS]
    values = typed_values([{key: run.config.get(key) for key in keys} for run in runs])
    jobs = []
    for run, row in zip(runs, values):
        facts = {"status": run.status, "objective": run.objective, "failure": run.info.get("failure")}
        jobs.append(SweepJob(folder=run.folder.name, values=row, **facts))
    first = runs[0].info
    objective = str(first["config"].get("optimized_metric", ""))
    return Sweep(folder=folder, objective=objective, swept=keys, jobs=jobs, created=first["created"])


def line_optimum(key: str, cells: Sequence[Cell], log: bool) -> Optimum | None:
    """The optimum of a line; None for fewer than three values, or without an objective."""
    points = [
        (cell.values[key], job.objective, job.values.get(SEED))
        for cell in cells
        for job in cell.jobs
        if job.objective is not None
    ]
    if len({x for x, _, _ in points}) < 3:
        return None
    found = optimum(*zip(*points), log=log or all(x > 0 for x, _, _ in points))
    failed = [cell.values[key] for cell in cells if cell.failed and not cell.objectives]
    lowest, highest = min(x for x, _, _ in points), max(x for x, _, _ in points)
    beyond = found.x == lowest and min(failed, default=found.x) < lowest
    beyond |= found.x == highest and max(failed, default=found.x) > highest
    return replace(found, problem=BESIDE_FAILURES) if found.problem == AT_THE_EDGE and beyond else found


def typed_values(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, with numbers for the texts of every key whose texts are all numbers."""
    keys = {key for row in rows for key in row}
    numbers = {key for key in keys if all(_number(row.get(key)) is not None for row in rows)}
    return [{key: _number(value) if key in numbers else value for key, value in row.items()} for row in rows]


def _number(value: Any) -> float | int | None:
    if isinstance(value, str) and len(value) < 40:
        with contextlib.suppress(ValueError):
            value = int(value) if re.fullmatch(r"[+-]?\d{1,15}", value) else float(value)
    return value if is_number(value) else None
