"""Finished and unfinished runs in Python: one run, and a table of runs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from slm.errors import UserError
from slm.files import jsonl, run_folder
from slm.security import is_number, leaves
from slm.tables import columns

COLUMNS = ("name", "status", "objective", "steps", "parameters")  # of run.json, in a printed table
IDENTITY = ("run_id", "name", "seed", "steps", "attempts", "device", "precision", "git_commit")
MEASURED = re.compile("val/|sample/|train/loss$")  # the metrics that a run is judged by


def higher_is_better(metric: str) -> bool:
    """True for shares of samples; all other metrics are losses."""
    return metric.startswith("sample/")


@dataclass(frozen=True)
class Run:
    """A run folder. Each of its files is read once, when it is needed first: take another Run for what came later."""

    folder: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json: id, status, objective, configuration, versions, device. Raises UserError if it is damaged."""
        return run_folder.require_run_json(self.folder)

    @property
    def status(self) -> str:
        """running, done, stopped or failed."""
        return self.info["status"]

    @property
    def objective(self) -> float | None:
        """The lowest value of optimized_metric; the last for train/loss."""
        return self.info.get("objective")

    def number(self, name: str) -> float | None:
        """A number of run.json; None for any other value, and if it is missing."""
        return value if is_number(value := self.info.get(name)) else None

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return list(jsonl.lines(self.folder / "metrics.jsonl"))

    def series(self, name: str) -> dict[int, float]:
        """Step -> finite value of one metric, such as train/loss."""
        found = {line["step"]: line[name] for line in self.metrics if is_number(line.get(name))}
        return dict(sorted(found.items()))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration by dotted keys, such as optimizer.lr."""
        return dict(leaves(self.info["config"]))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The run in numbers, from its files alone, also of a run that was killed.

        status, objective, failure (one line), parameters, tokens, flops, tokens_per_second (median), seconds (of all
        attempts), energy_joules; and under metrics, by name, final, best (the highest of sample/, the lowest of any
        other) and best_step. None for what is not known.
        """
        info, series = self.info, dict[str, list[tuple[float, int]]]()
        for line in self.metrics:
            for name, value in line.items():
                if is_number(value):
                    series.setdefault(name, []).append((value, line["step"]))
        metrics = {}
        for name in filter(MEASURED.match, series):
            best = max(series[name], key=itemgetter(0)) if higher_is_better(name) else min(series[name])
            metrics[name] = {"final": series[name][-1][0], "best": best[0], "best_step": best[1]}
        last = {name: values[-1][0] for name, values in series.items()}
        tokens, flops_per_token = last.get("train/tokens"), self.number("flops_per_token")
        rates = [rate for rate, _ in series.get("tokens_per_second", ())]
        return {
            **{name: info.get(name) for name in ("status", "objective", "failure")},
            "parameters": self.number("parameters"),
            "tokens": tokens,
            "flops": tokens * flops_per_token if tokens and flops_per_token else None,
            "tokens_per_second": median(rates) if rates else None,
            **{name: self.number(name) if name in info else last.get(name) for name in ("seconds", "energy_joules")},
            "metrics": metrics,
        }

    def load(self, **settings):
        """The best model of the run, a LanguageModel. Settings and errors as in slm.load."""
        from slm.generation.language_model import load

        return load(self.folder, **settings)


class RunTable(list[Run]):
    """Runs, sorted by creation, that print as a table."""

    def rows(self, *keys: str) -> list[dict[str, Any]]:
        """Per run the folder, columns of run.json, and dotted configuration keys such as optimizer.lr."""
        return [
            {"folder": str(run.folder)} | {key: _value(run.info, key) for key in (*COLUMNS[1:], *keys)} for run in self
        ]

    def best(self) -> Run:
        """The finished run with the lowest objective. Raises UserError if there is none."""
        finished = [run for run in self if run.objective is not None]
        if not finished:
            raise UserError("no run has an objective yet")
        return min(finished, key=lambda run: run.objective)

    def __repr__(self) -> str:
        return columns([COLUMNS, *([_value(run.info, key) for key in COLUMNS] for run in self)], width=80)


def runs(*folders: str | Path) -> RunTable:
    """The runs below the folders, `runs` and `sweeps` unless given.

    Raises UserError for a folder that does not exist or a damaged run.json.
    """
    if missing := [folder for folder in folders if not Path(folder).is_dir()]:
        raise UserError(f"{missing[0]} is not a folder; slm.runs() looks into runs and sweeps")
    roots: Iterable[Path] = map(Path, folders or ("runs", "sweeps"))
    found = {path.parent for root in roots for path in root.rglob("run.json")}
    return RunTable(sorted(map(Run, found), key=lambda run: (run.info["created"], run.folder.name)))


def _value(info: dict[str, Any], key: str) -> Any:
    """A field of run.json, or a value of its configuration by dotted key; None if there is none."""
    value = info[key] if key in info else dict(leaves(info["config"])).get(key)
    return round(value, 4) if isinstance(value, float) and key in info else value


def facts(folder: Path) -> dict[str, Any]:
    """Folder, identity and numbers of a run, for print=json; the folder alone if it holds none."""
    run = Run(folder)
    try:
        return {"folder": str(folder), **{name: run.info.get(name) for name in IDENTITY}, **run.summary}
    except UserError:
        return {"folder": str(folder)}
