"""The times of a short training that is thrown away: of its steps, and of what happens once at its end."""

from collections.abc import Callable

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from slm.training.callbacks import step_ends

LEAST_STEPS, WARM_STEPS = 5, 2  # steps after the warm ones, of which the first may compile
STRETCHES = 5  # of equally many steps; not above LEAST_STEPS


class Stopwatch(Callback):
    """The first of the callbacks. Ends the training after `seconds`, or LEAST_STEPS if they take longer.

    `clock` gives seconds. After the training: `step`, the seconds of a step; `begin`, those from the making of this
    object to the first step; `samples`, those between the last step and its validation; `validation`, those of the
    validation itself; `saved`, when the last checkpoint began.
    """

    def __init__(self, seconds: float, clock: Callable[[], float], steps: int | None = None):
        self.seconds, self.clock, self.steps = seconds, clock, steps
        self.started, self.begin = clock(), 0.0
        self.marks: list[float] = []  # the ends of the warm steps and of those after them

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if not self.begin:
            self.begin = self._now(module) - self.started

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not step_ends(trainer, batch_idx):
            return
        self.marks.append(self._now(module))
        done = len(self.marks) - WARM_STEPS
        enough = self.marks[-1] - self.marks[0] >= self.seconds if self.steps is None else done >= self.steps
        if done >= LEAST_STEPS and enough:
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step

    def on_validation_start(self, trainer, module):
        self.samples = self._now(module) - self.marks[-1]

    def on_validation_end(self, trainer, module):
        self.validated = self._now(module)
        self.validation = self.validated - self.marks[-1] - self.samples

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.saved = self._now(module)

    @property
    def step(self) -> float:
        """The median over stretches of their mean, which one pause of the machine does not change. Of the second half
        of the steps: a process becomes faster in its first second or two."""
        steps = np.diff(self.marks[WARM_STEPS - 1 :])[-max(STRETCHES, (len(self.marks) - WARM_STEPS) // 2) :]
        stretches = np.array_split(steps, STRETCHES)
        return float(np.median([stretch.mean() for stretch in stretches]))

    def _now(self, module) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        return self.clock()
