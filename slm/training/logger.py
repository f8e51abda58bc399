"""metrics.jsonl: one line of JSON per event, appended, never rewritten while a run lives. All else is derived from it."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """Lightning's logger interface over the file. `step` counts optimizer updates done."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args, **kwargs):
        """Nothing: config.yaml and run.json hold them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None):
        append(self.path, {"step": step, **metrics})


class CSVFile(MetricsFile):
    """The same numbers as a table, written from metrics.jsonl when a run ends, however it ends."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None):
        """Nothing: metrics.jsonl is written by its own logger."""

    @rank_zero_only
    def finalize(self, status: str):
        rows = list(lines(self.path))
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(self.path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def append(path: Path, event: dict[str, Any]):
    """One line; numbers that JSON has no word for become null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(plain, ensure_ascii=False) + "\n")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The events of the file; a last line that a kill cut short is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def cut(path: Path, step: int):
    """Forgets what was written after the checkpoint of `step`, since it will be written again."""
    if path.exists():
        kept = [event for event in lines(path) if event["step"] <= step]
        temporary = path.with_suffix(".partial")
        temporary.unlink(missing_ok=True)
        temporary.touch()
        for event in kept:
            append(temporary, event)
        temporary.replace(path)
