"""A signal to its own process at a chosen step, for verify_resume=true and tests. No file of conf/ names it."""

import signal
from typing import Literal

from lightning.pytorch.callbacks import Callback

from slm.system import signal_self

SIGNALS = {"kill": 9, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}


class Fault(Callback):
    """Sends a signal at the beginning of optimizer step `step`, counted from 1, in every process that reaches it."""

    def __init__(self, *, kind: Literal["kill", "terminate", "interrupt"], step: int):
        self.kind, self.step = kind, step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step + 1 == self.step and batch_idx % trainer.accumulate_grad_batches == 0:
            signal_self(SIGNALS[self.kind])
