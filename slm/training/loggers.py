"""metrics.jsonl as Lightning's logger, from which every other view is derived; and what all loggers have in common."""

import csv
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import lightning.pytorch as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from slm.errors import one_line
from slm.files import atomic, jsonl, run_folder
from slm.security import has_wandb_key


def write_metrics(trainer: L.Trainer, values: dict[str, float]):
    """Writes values to every logger at the optimizer steps done, now: a checkpoint must not precede its metrics."""
    for_each_logger(trainer, lambda logger: logger.log_metrics(dict(values), step=trainer.global_step - 1))


def for_each_logger(trainer: L.Trainer, call: Callable[[Logger], None]):
    """Calls a function on each logger; disables one that raises, except metrics.jsonl."""
    for logger in list(trainer.loggers):
        try:
            call(logger)
        except Exception as error:
            if type(logger) is MetricsFile:
                raise
            trainer.loggers = [other for other in trainer.loggers if other is not logger]
            name, reason = type(logger).__name__, one_line(error, 300)
            print(f"warning: {name} failed ({reason}); going on without it, metrics.jsonl has all", file=sys.stderr)


def adapt(logger: Logger, trainer: L.Trainer):
    """Changes `log_metrics` of a logger to count steps as a run does, and to be disabled if it raises.

    Lightning numbers a step by the steps before it, a run by the steps done. The `epoch` that Lightning adds is always
    0, and a line that it repeats is left out.
    """
    log_metrics, previous = logger.log_metrics, None

    def log(metrics: dict[str, float], step: int | None = None):
        nonlocal previous
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if values and (step, repr(values)) != previous:  # repr: NaN is not equal to itself
            previous = step, repr(values)
            log_metrics(values, step=None if step is None else step + 1)

    def log_or_disable(metrics: dict[str, float], step: int | None = None):
        if logger in trainer.loggers:
            for_each_logger(trainer, lambda other: log(metrics, step) if other is logger else None)

    logger.log_metrics = log_or_disable


class MetricsFile(Logger):
    """metrics.jsonl: a line for each call of `log_metrics`."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return ""  # so that ModelCheckpoint writes into checkpoints/ of the run folder

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args, **kwargs):
        """Does nothing: config.yaml and run.json hold them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None):
        jsonl.append(self.path, {"step": step, **metrics})


class CSVFile(MetricsFile):
    """metrics.csv: the same numbers as a table, written from metrics.jsonl when a run ends."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None):
        """Does nothing: metrics.jsonl has its own logger."""

    @rank_zero_only
    def finalize(self, status: str):
        rows = list(jsonl.lines(self.path))
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, names)
        writer.writeheader()
        writer.writerows(rows)
        try:
            atomic.write_text(self.path.with_suffix(".csv"), table.getvalue())
        except OSError as error:  # Lightning would raise it instead of the error that ended the training
            print(f"warning: {error.filename} was not written: {error.strerror}", file=sys.stderr)


class WandB(WandbLogger):
    """Lightning's W&B logger; its settings, such as project, group and tags, are those of Lightning and wandb.init.

    With log_model=best, or true, the best checkpoint is an artifact once the run is done. Offline too: `wandb sync`
    sends it with the rest. `path` is metrics.jsonl of the run folder.
    """

    def __init__(
        self,
        *,
        path: Path,
        save_dir: str,
        project: str,
        name: str | None = None,
        id: str | None = None,
        offline: bool = False,
        log_model: Literal["best"] | bool = False,
        **settings,
    ):
        super().__init__(save_dir=save_dir, project=project, name=name, id=id, offline=offline, **settings)
        self.folder, self.sends_best = path.parent, bool(log_model)

    @rank_zero_only
    def finalize(self, status: str):
        super().finalize(status)
        pointer = self.folder / "checkpoints" / "best.json"
        if status == "success" and self.sends_best and pointer.exists():
            best, step = run_folder.pointed(pointer), run_folder.step_of(run_folder.pointed(pointer))
            facts = {"name": f"model-{self.experiment.id}", "type": "model"}
            try:
                self.experiment.log_artifact(str(best), aliases=["best", f"step-{step}"], **facts)
            except Exception as error:  # the run is done, whatever becomes of its copy
                print(f"warning: {best.name} is no artifact of W&B ({one_line(error, 300)})", file=sys.stderr)


def why_offline() -> str | None:
    """The reason why Weights & Biases cannot be reached; None if it can."""
    import requests  # as W&B does: with its certificates and proxies

    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:  # W&B itself takes minutes to give up
        if not has_wandb_key(urlsplit(address).hostname):
            return "no key"
        requests.get(address, timeout=3, stream=True).close()  # any answer will do
    except (requests.RequestException, ValueError) as error:
        return one_line(f"no answer from {address} ({error})", 300)
    return None
