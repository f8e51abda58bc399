"""metrics.jsonl, from which every other view is derived, as Lightning's logger; and one such view."""

import csv
import netrc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from slm.files import jsonl


def for_each_logger(trainer, act: Callable[[Logger], None]):
    """Lets `act` loose on each; one that fails is done without from then on, but for metrics.jsonl."""
    for logger in list(trainer.loggers):
        try:
            act(logger)
        except Exception as error:
            if type(logger) is MetricsFile:
                raise
            trainer.loggers = [other for other in trainer.loggers if other is not logger]
            name, said = type(logger).__name__, " ".join(str(error).split())
            print(f"warning: {name} failed ({said}); going on without it, metrics.jsonl has all", file=sys.stderr)


def why_offline() -> str | None:
    """Why a run can only be kept for Weights & Biases and not be sent, None if it can."""
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not has_wandb_key(urlsplit(address).hostname):
        return "no key"
    try:  # before W&B itself does, which takes minutes to give up
        urlopen(address, timeout=3).close()
    except HTTPError:
        return None  # which is an answer, too
    except (OSError, ValueError) as error:
        return f"no answer from {address} ({getattr(error, 'reason', error)})"
    return None


def has_wandb_key(host: str | None) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


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
        jsonl.append(self.path, {"step": step, **metrics})


class CSVFile(MetricsFile):
    """The same numbers as a table, written from metrics.jsonl when a run ends, however it ends."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None):
        """Nothing: metrics.jsonl is written by its own logger."""

    @rank_zero_only
    def finalize(self, status: str):
        rows = list(jsonl.lines(self.path))
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(self.path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
