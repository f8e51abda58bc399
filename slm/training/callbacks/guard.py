"""What stands between a gradient and the weights: updates that would spoil them are not made."""

import json
import math
import sys
from collections import deque
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from slm.errors import Diverged, Rewind, UserError
from slm.files import atomic, jsonl
from slm.training.callbacks.checkpoints import step_ends
from slm.training.callbacks.metrics import write_metrics
from slm.training.datamodule import WindowsData


class Guard(Callback):
    """Looks at each step's loss and gradient norm before the update, or, where no update can be left out, a step later.

    The latter, on one GPU, spares it the wait: the update is made, but what it has spoilt is never saved, shown or
    validated.

    A loss or norm that is not finite stops the run (`stop`) or only this update (`skip`); so does a loss more than
    `spike_threshold` standard deviations above the mean of the last `spike_window` ones, where `warn` lets it pass
    and `rewind` raises Rewind. Float16 overflows are no fault: its loss scaling skips them. More than `max_skips` in
    a row stop the run in any case. A run that is stopped so writes crash.json and raises Diverged.
    """

    def __init__(
        self,
        *,
        on_nonfinite: Literal["stop", "skip"],
        on_spike: Literal["warn", "skip", "rewind"],
        max_skips: int,
        spike_window: int,
        spike_threshold: float,
        folder: Path,
        data: WindowsData,
    ):
        if max_skips < 1:
            raise UserError(f"callbacks.guard.max_skips={max_skips} must be at least 1")
        if spike_window < 2:
            raise UserError(f"callbacks.guard.spike_window={spike_window} must be at least 2 steps")
        if not spike_threshold > 0:
            raise UserError(f"callbacks.guard.spike_threshold={spike_threshold} must be above 0")
        self.on_nonfinite, self.on_spike, self.max_skips = on_nonfinite, on_spike, max_skips
        self.spike_threshold, self.folder, self.data = spike_threshold, folder, data
        self.losses: deque[float] = deque(maxlen=spike_window)  # of the last steps that were taken
        self.in_a_row = self.skipped = 0
        self.skipping = False  # the step under way
        self.look: Look | None = None  # at a step that is not judged yet

    def state_dict(self) -> dict:
        self.settle()
        return {"losses": list(self.losses), "in_a_row": self.in_a_row, "skipped": self.skipped}

    def load_state_dict(self, state: dict):
        self.losses.extend(state["losses"])
        self.in_a_row, self.skipped = state["in_a_row"], state["skipped"]

    def setup(self, trainer, module, stage):
        self.trainer, self.module = trainer, module
        module.before_update.append(self.check)
        module.before_use.append(self.settle)

    def check(self):
        self.settle()
        sums = self.trainer.strategy.reduce(torch.stack([self.module.nats, self.module.targets]), reduce_op="sum")
        numbers = torch.stack([*sums, self.module.grad_norm.to(sums)])
        self.look = Look(self.trainer.global_step + 1, numbers, tuple(self.data.indices))
        if not self.may_be_late():
            self.settle()

    def may_be_late(self) -> bool:
        stays = self.on_nonfinite == "stop" and self.on_spike == "warn"
        return stays and self.module.device.type == "cuda" and self.data.devices == 1

    def on_validation_start(self, trainer, module):
        self.settle()

    def settle(self):
        """Judges the step that was looked at."""
        if look := self.look:
            self.look = None
            self._judge(look)

    def _judge(self, look: "Look"):
        nats, targets, norm = look.numbers()
        step, loss = look.step, nats / targets
        if not (math.isfinite(loss) and math.isfinite(norm)):
            scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None and math.isfinite(loss)
            if scaled and self.in_a_row < self.max_skips:
                self.in_a_row += 1  # the scaler leaves the update out and scales less from now on
                return
            facts = f"loss {loss:.4g}, gradient norm {norm:.4g}"
            if scaled:
                facts += f" after {self.in_a_row} float16 overflows (bfloat16 has none: trainer.precision=bf16-mixed)"
            self._refuse(look, facts, skip=self.on_nonfinite == "skip")
            return
        if self._spikes(loss):
            facts = f"loss {loss:.4g} after a mean of {np.mean(self.losses):.4g}"
            if self.on_spike == "skip":
                self._refuse(look, facts, skip=True)
                return
            self._note(step, "spike", facts)
            if self.on_spike == "rewind":
                raise Rewind(step, facts, self.data.skipped)
        self.losses.append(loss)
        self.in_a_row = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.skipping and step_ends(trainer, batch_idx):
            self.skipping = False
            write_metrics(trainer, {"train/skipped": self.skipped})

    def _spikes(self, loss: float) -> bool:
        if len(self.losses) < max(self.losses.maxlen // 2, 2):
            return False
        recent = np.array(self.losses)
        return loss > recent.mean() + self.spike_threshold * recent.std()

    def _refuse(self, look: "Look", facts: str, skip: bool):
        step, windows = look.step, self.data.step_windows(look.indices)
        self.in_a_row += 1
        if skip and self.in_a_row <= self.max_skips:
            self.module.no_update()
            self.skipped, self.skipping = self.skipped + 1, True
            self._note(step, "skipped", facts, windows=windows)
            return
        crash = {"step": step, "reason": facts, "skipped_in_a_row": self.in_a_row - 1, "windows": windows}
        if self.trainer.is_global_zero:
            atomic.write_text(self.folder / "crash.json", json.dumps(crash) + "\n")
        remedy = "lower optimizer.lr" if skip else "lower optimizer.lr, or go on with on_nonfinite=skip"
        what = "anything of it was saved" if self.may_be_late() else "the update"
        after = f" after {self.max_skips} skipped steps" if skip else ""
        raise Diverged(
            f"{facts} at step {step}{after}: stopped before {what}; its windows are in "
            f"{self.folder / 'crash.json'}; {remedy}"
        )

    def _note(self, step: int, event: str, facts: str, **details):
        if self.trainer.is_global_zero:
            jsonl.append(self.folder / "events.jsonl", {"step": step, "event": event, "facts": facts, **details})
            print(f"warning: step {step}: {event}: {facts}", file=sys.stderr)


class Look:
    """Nats, targets and gradient norm of a step on their way from the device, and the indices of its windows."""

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
