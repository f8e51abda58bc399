"""Settings of both optimizers for weight decay: which weights it spares, and how it changes during a training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from slm.errors import UserError

SCHEDULES = ("constant", "lr", "linear")


@dataclass(frozen=True, kw_only=True)
class WeightDecay:
    """Raises: UserError: if a setting is impossible."""

    cautious: bool = False  # decay only weights that the update moves towards zero (arXiv:2510.12402)
    weight_decay_schedule: Literal["constant", "lr", "linear"] = "constant"  # lr: with its schedule; linear: to zero

    def __post_init__(self):
        if self.weight_decay_schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise UserError(f"optimizer.weight_decay_schedule={self.weight_decay_schedule} is not one of {known}")

    def changes(self, group: Mapping[str, Any], step: int, steps: int, lr_factor: float) -> dict[str, float]:
        """Those settings of a group, as configured, that are others in update number `step` (the first: 0) of `steps`.

        `lr_factor` is the multiplier of the learning rate. A function of the step: nothing must be restored.
        """
        if self.weight_decay_schedule == "constant":
            return {}
        if self.weight_decay_schedule == "linear" and steps < 1:
            raise UserError(
                "optimizer.weight_decay_schedule=linear needs the number of steps; give Trainer(max_steps=...)"
            )
        factor = lr_factor if self.weight_decay_schedule == "lr" else max(0.0, 1 - step / steps)
        return {"weight_decay": group["weight_decay"] * factor}


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss of the closure that a step of an optimizer was given, with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def decay_cautiously(weight: Tensor, update: Tensor, share: float):
    """Shrinks by a share, in place, the weights whose sign is that of the update that will be subtracted, or of which
    one is zero."""
    weight.copy_(torch.where(update.sign() * weight >= 0, weight * (1 - share), weight))
