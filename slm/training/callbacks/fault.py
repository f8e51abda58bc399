"""For looking into a run and for breaking it on purpose: which windows each step took, and faults at a given step."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import Dataset

from slm.data.windows import InfiniteShuffle
from slm.errors import UserError
from slm.files import jsonl
from slm.training.callbacks.checkpoints import step_ends
from slm.training.datamodule import WindowsData

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
Kind = Literal[
    *("nonfinite", "spike", "out-of-memory", "kill", "terminate", "interrupt"),
    *("loader-killed", "loader-raises", "loader-hangs"),
]


class WindowLog(Callback):
    """windows.jsonl: the indices of the windows that each step consumed, in their order."""

    def __init__(self, path: Path, data: WindowsData):
        self.path, self.data = path, data

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if step_ends(trainer, batch_idx):
            windows = self.data.step_windows(self.data.indices)
            if trainer.is_global_zero:
                jsonl.append(self.path, {"step": trainer.global_step, "windows": windows})


class Fault(Callback):
    """Does something bad at optimizer step `step`, counted from 1, each time that a process gets there.

    `nonfinite` and `spike` concern the loss; the loader's faults need data.workers above 0, but for loader-raises.
    """

    def __init__(self, *, kind: Kind, step: int):
        if step < 1:
            raise UserError(f"debug.fault.step={step} must be at least 1")
        self.kind, self.step = kind, step

    def setup(self, trainer, module, stage):
        if self.kind in ("nonfinite", "spike"):
            take_step = module.training_step

            def spoiled(*batch) -> Tensor:
                factor = {"nonfinite": float("nan"), "spike": 10.0}[self.kind] if self._is_now(trainer) else 1.0
                loss = take_step(*batch) * factor
                module.nats = module.nats * factor
                return loss

            module.training_step = spoiled
        elif self.kind.startswith("loader"):
            data = trainer.datamodule
            if not data.workers and self.kind != "loader-raises":
                raise UserError(f"debug.fault.kind={self.kind} happens to a loader process; give data.workers=1")
            consumed = (self.step - 1) * data.microbatch * data.devices * trainer.accumulate_grad_batches
            first = next(iter(InfiniteShuffle(len(data.train), data.seed, consumed)))
            data.train = FaultyWindows(data.train, self.kind, first)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if not self._is_now(trainer) or batch_idx % trainer.accumulate_grad_batches:
            return
        if self.kind == "out-of-memory":
            raise torch.OutOfMemoryError("a fault on purpose")
        if self.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.kind])

    def _is_now(self, trainer) -> bool:
        return trainer.global_step + 1 == self.step


class FaultyWindows(Dataset):
    """Windows whose one index ends, stops or blocks the process that asks for it."""

    def __init__(self, windows: Dataset, kind: Kind, index: int):
        self.windows, self.kind, self.index = windows, kind, index

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, indices: list[int]) -> Tensor:
        if self.index in indices:
            if self.kind == "loader-killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "loader-raises":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            time.sleep(3600)
        return self.windows.__getitems__(indices)
