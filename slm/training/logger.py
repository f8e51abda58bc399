"""metrics.jsonl, from which every other view is derived, as Lightning's logger; and one such view."""

import csv
from pathlib import Path

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from slm import events


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
        events.append(self.path, {"step": step, **metrics})


class CSVFile(MetricsFile):
    """The same numbers as a table, written from metrics.jsonl when a run ends, however it ends."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None):
        """Nothing: metrics.jsonl is written by its own logger."""

    @rank_zero_only
    def finalize(self, status: str):
        rows = list(events.lines(self.path))
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(self.path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
