"""Faults of the loss, of memory and of loader processes at a chosen step; slm has those that are signals."""

import errno
import os
import signal
import time
from typing import Literal

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import Dataset

from slm.errors import UserError
from slm.training.callbacks import fault

Kind = Literal["nonfinite", "spike", "out-of-memory", "loader-killed", "loader-raises", "loader-hangs"]


def override(kind: str, step: int = 7) -> str:
    """The override that injects a fault at an optimizer step, counted from 1."""
    owner = "slm.training.callbacks.fault" if kind in fault.SIGNALS else "faults"
    return f"+callbacks.fault={{_target_: {owner}.Fault, kind: {kind}, step: {step}}}"


class Fault(Callback):
    """Injects a fault at optimizer step `step`, counted from 1, in every process that reaches it.

    `nonfinite` and `spike` change the loss; faults of a loader process need data.workers above 0, except
    loader-raises. Raises UserError otherwise.
    """

    def __init__(self, *, kind: Kind, step: int):
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
                raise UserError(f"{self.kind} is a fault of a loader process; give data.workers=1")
            consumed = data.position_at(self.step - 1)
            first = next(data.order.indices(consumed))
            data.train = FaultyWindows(data.train, self.kind, first)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if not self._is_now(trainer) or batch_idx % trainer.accumulate_grad_batches:
            return
        if self.kind == "out-of-memory":
            raise torch.OutOfMemoryError("an injected fault")

    def _is_now(self, trainer) -> bool:
        return trainer.global_step + 1 == self.step


class SignalOfCluster(Callback):
    """SLURM's signal, which the second of several processes receives at step `step`, and the first one never."""

    def __init__(self, *, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


class FaultyWindows(Dataset):
    """Windows of which one index ends, fails or blocks the process that asks for it."""

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
