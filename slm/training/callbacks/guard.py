"""Stops a run on a non-finite loss, and handles loss spikes."""

import json
import math
import sys
from collections import deque
from pathlib import Path
from typing import Literal

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from slm.errors import Diverged, UserError
from slm.files import atomic, jsonl
from slm.training.callbacks import step_ends
from slm.training.loggers import write_metrics

SMALLER_STEPS = "lower optimizer.lr, or start with +recipe=stable"
OTHER_PRECISION = "use trainer.precision=bf16-mixed, or 32-true on a GPU without bfloat16"


def flush_checks(trainer: L.Trainer):
    """Runs the pending check of each Guard, before metrics, samples or checkpoints use the step. Raises Diverged."""
    for callback in trainer.callbacks:
        if isinstance(callback, Guard):
            callback.flush()


class Guard(Callback):
    """Checks the loss and gradient norm of each step before its update.

    A loss or norm that is not finite stops the run (`stop`) or skips the update (`skip`). A loss more than
    `spike_threshold` standard deviations above the mean of the last `spike_window` losses is logged (`warn`) or skips
    the update (`skip`). More than `max_skips` skipped updates in a row stop the run. Float16 overflows are left to the
    loss scaling, which skips the update and lowers the scale, up to `max_skips` in a row; train/overflows counts them.
    A run that stops here writes crash.json and raises Diverged.

    On one GPU, where no update can be skipped, the check runs one step late to avoid a device synchronisation; a bad
    update is made, but never saved, sampled or validated. Raises UserError for settings out of range.
    """

    def __init__(
        self,
        *,
        on_nonfinite: Literal["stop", "skip"],
        on_spike: Literal["warn", "skip"],
        max_skips: int,
        spike_window: int,
        spike_threshold: float,
        folder: Path,
    ):
        if max_skips < 1:
            raise UserError(f"callbacks.guard.max_skips={max_skips} must be at least 1")
        if spike_window < 2:
            raise UserError(f"callbacks.guard.spike_window={spike_window} must be at least 2 steps")
        if not spike_threshold > 0:
            raise UserError(f"callbacks.guard.spike_threshold={spike_threshold} must be above 0")
        self.on_nonfinite, self.on_spike, self.max_skips = on_nonfinite, on_spike, max_skips
        self.spike_threshold, self.folder = spike_threshold, folder
        self.losses: deque[float] = deque(maxlen=spike_window)  # of the last steps with an update
        self.in_a_row = self.skipped = self.overflows = 0
        self.news: dict[str, float] = {}  # counts to log at the end of the current step
        self.pending: PendingStats | None = None

    def state_dict(self) -> dict:
        self.flush()
        counts = {"in_a_row": self.in_a_row, "skipped": self.skipped, "overflows": self.overflows}
        return {"losses": list(self.losses), **counts, "news": dict(self.news)}

    def load_state_dict(self, state: dict):
        self.losses.extend(state["losses"])
        self.in_a_row, self.skipped = state["in_a_row"], state["skipped"]
        self.overflows, self.news = state.get("overflows", 0), state.get("news", {})

    def setup(self, trainer, module, stage):
        self.trainer = trainer

    def teardown(self, trainer, module, stage):
        self.trainer = None

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.flush()
        sums = trainer.strategy.reduce(torch.stack([module.nats, module.targets]), reduce_op="sum")
        numbers = torch.stack([*sums, module.gradient_norm().to(sums)])
        self.pending = PendingStats(trainer.global_step + 1, numbers, tuple(trainer.datamodule.indices))
        if not self.is_deferred():
            self.flush()

    def is_deferred(self) -> bool:
        """True if checks run one step late."""
        never_skips = self.on_nonfinite == "stop" and self.on_spike == "warn"
        return never_skips and self.trainer.strategy.root_device.type == "cuda" and self.trainer.world_size == 1

    def on_validation_start(self, trainer, module):
        self.flush()

    def flush(self):
        """Checks the pending step. Raises Diverged."""
        if pending := self.pending:
            self.pending = None
            self._check(pending)

    def _check(self, stats: "PendingStats"):
        nats, targets, norm = stats.numbers()
        loss, scaler = nats / targets, getattr(self.trainer.precision_plugin, "scaler", None)
        facts = f"loss {loss:.4g}, gradient norm {norm:.4g}"
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaler):
            self._refuse(stats, facts, skip=self.on_nonfinite == "skip")
            return
        if self._spikes(loss):
            spike = f"loss {loss:.4g} after a mean of {np.mean(self.losses):.4g}"
            if self.on_spike == "skip":
                self._refuse(stats, spike, skip=True)
                return
            self._log_event(stats.step, "spike", spike)
        if math.isfinite(norm):
            self.losses.append(loss)
            self.in_a_row = 0
        elif self.in_a_row < self.max_skips:  # the scaler skips this update and lowers its scale
            self.in_a_row, self.overflows = self.in_a_row + 1, self.overflows + 1
            self.news = {"train/overflows": self.overflows}
        else:
            self._stop(stats, facts, f" after {self.in_a_row} float16 overflows", OTHER_PRECISION)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.news and step_ends(trainer, batch_idx):
            if "train/overflows" in self.news:
                self.news["train/loss_scale"] = trainer.precision_plugin.scaler.get_scale()
            write_metrics(trainer, self.news)
            self.news = {}

    def _spikes(self, loss: float) -> bool:
        if len(self.losses) < max(self.losses.maxlen // 2, 2):
            return False
        recent = np.array(self.losses)
        return loss > recent.mean() + self.spike_threshold * recent.std()

    def _refuse(self, stats: "PendingStats", facts: str, skip: bool):
        """Skips the update, or stops the run."""
        if skip and self.in_a_row < self.max_skips:
            self.trainer.lightning_module.skip_update()
            self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
            self.news = {"train/skipped": self.skipped}
            windows = self.trainer.datamodule.step_windows(stats.indices)
            self._log_event(stats.step, "skipped", facts, windows=windows)
        elif skip:
            self._stop(stats, facts, f" after {self.in_a_row} skipped steps", SMALLER_STEPS)
        else:
            self._stop(stats, facts, "", f"{SMALLER_STEPS}, or go on with on_nonfinite=skip")

    def _stop(self, stats: "PendingStats", facts: str, after: str, remedy: str):
        """Writes crash.json. Raises Diverged."""
        windows = self.trainer.datamodule.step_windows(stats.indices)
        crash = {"step": stats.step, "reason": facts, "skipped_in_a_row": self.in_a_row, "windows": windows}
        if self.trainer.is_global_zero:
            atomic.write_text(self.folder / "crash.json", json.dumps(crash) + "\n")
        what = "its result was saved" if self.is_deferred() else "the update"
        raise Diverged(
            f"{facts} at step {stats.step}{after}: stopped before {what}; its windows are in "
            f"{self.folder / 'crash.json'}; {remedy}"
        )

    def _log_event(self, step: int, event: str, facts: str, **details):
        if self.trainer.is_global_zero:
            jsonl.append(self.folder / "events.jsonl", {"step": step, "event": event, "facts": facts, **details})
            print(f"warning: step {step}: {event}: {facts}", file=sys.stderr)


class PendingStats:
    """Nats, targets and gradient norm of a step, being copied from the device, and the indices of its windows."""

    def __init__(self, step: int, numbers: Tensor, indices: tuple[Tensor, ...]):
        self.step, self.indices = step, indices
        self.host = numbers.to("cpu", non_blocking=True)
        self.copied = torch.cuda.Event() if numbers.is_cuda else None
        if self.copied:
            self.copied.record()

    def numbers(self) -> list[float]:
        if self.copied:
            self.copied.synchronize()
        return self.host.tolist()
