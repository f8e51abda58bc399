"""Early stopping that survives a resume."""

import math

import lightning.pytorch as L

from slm.errors import UserError


class EarlyStopping(L.callbacks.EarlyStopping):
    """Stops after `patience` validations in which val/loss did not fall by `min_delta`. None: never stops.

    Raises UserError for a patience below 1 or a min_delta below 0.
    """

    def __init__(self, *, patience: int | None, min_delta: float):
        if patience is not None and patience < 1:
            raise UserError(f"callbacks.early_stopping.patience={patience} must be at least 1, or null for never")
        if not 0 <= min_delta < math.inf:
            raise UserError(f"callbacks.early_stopping.min_delta={min_delta} must be at least 0 and finite")
        self.enabled = patience is not None
        super().__init__(
            "val/loss", min_delta, patience or 1, mode="min", check_finite=False, check_on_train_epoch_end=False
        )

    def load_state_dict(self, state):
        if self.enabled:
            super().load_state_dict(state)

    def on_train_start(self, trainer, module):
        if self.enabled and self.wait_count >= self.patience:  # stopped before the resume, which Lightning forgets
            trainer.should_stop = True

    def _run_early_stopping_check(self, trainer):
        if self.enabled:
            super()._run_early_stopping_check(trainer)
            if trainer.should_stop and self.wait_count >= self.patience and trainer.is_global_zero:
                print(f"no lower val/loss in {self.patience} validations: stopping at step {trainer.global_step}")
