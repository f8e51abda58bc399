"""AdamW (arXiv:1711.05101): torch's own, with weight decay by role."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from slm.errors import UserError
from slm.model import GPT
from slm.optim.changing import WeightDecay, decay_cautiously, evaluated
from slm.optim.roles import ROLES, Role, roles, rules
from slm.optim.shares import own

DECAYED = {"matrices": {"embedding", "readout", "hidden"}, "all": {"embedding", "readout", "hidden", "vector"}}


@dataclass(frozen=True, kw_only=True)
class AdamW(WeightDecay):
    """Settings that, called with a model, make its optimizer: two groups, decayed and not, before those of parameters
    whose learning rate follows the model's size (slm.parametrization).

    Raises: UserError: if a setting is impossible.
    """

    lr: float  # peak: the schedule multiplies it
    betas: tuple[float, float]
    eps: float
    weight_decay: float  # decayed weights shrink by lr * weight_decay per step
    decay: Literal["matrices", "all"]  # matrices: all parameters but gains, biases and scalars

    def __post_init__(self):
        super().__post_init__()
        check_adamw(self.lr, self.betas, self.eps, self.weight_decay)
        if self.decay not in DECAYED:
            raise UserError(f"optimizer.decay={self.decay} is not one of {', '.join(DECAYED)}")

    def __call__(self, model: GPT, chosen: Collection[Role] = ROLES) -> torch.optim.AdamW:
        """The optimizer of the parameters whose roles are chosen."""
        groups: dict[tuple, list[torch.nn.Parameter]] = defaultdict(list)
        role, rule = roles(model), rules(model)
        for name, parameter in model.named_parameters():
            if role[name] in chosen and parameter.requires_grad:
                plain, its = role[name] not in DECAYED[self.decay], rule[name]
                decay = 0.0 if plain else self.weight_decay * its.weight_decay
                groups[its.lr != 1, plain, self.lr * its.lr, decay, self.eps * its.eps].append(parameter)
        optimizer = (CautiousAdamW if self.cautious else torch.optim.AdamW)(
            [
                {"params": parameters, "lr": lr, "weight_decay": decay, "eps": eps}
                for (_, _, lr, decay, eps), parameters in sorted(groups.items(), key=lambda group: group[0])
            ],
            lr=self.lr,
            betas=tuple(self.betas),
            eps=self.eps,
            fused=True,
        )
        # A fused optimizer offers to unscale float16 gradients inside its step, which is too late for clipping:
        # without the offer Lightning and GradScaler unscale before, and can clip.
        optimizer._step_supports_amp_scaling = False
        optimizer.changes = self.changes
        return optimizer


class CautiousAdamW(torch.optim.AdamW):
    """torch's AdamW, in which only those weights decay that the update moves towards zero."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = evaluated(closure)
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group, decay in zip(self.param_groups, decays):
                for parameter in (p for p in group["params"] if decay and p.grad is not None):
                    self._decay(parameter, group["betas"][0], group["lr"] * decay)
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay
        return loss

    def _decay(self, parameter: torch.Tensor, beta: float, share: float):
        """Before the step, as torch: the sign of the update is that of the average of gradients, this one included."""
        weight, gradient = own(parameter), own(parameter.grad)
        average = self.state.get(parameter, {}).get("exp_avg")
        decay_cautiously(weight, gradient if average is None else own(average).lerp(gradient, 1 - beta), share)


def check_adamw(lr: float, betas: tuple[float, float], eps: float, weight_decay: float, prefix: str = ""):
    """Raises UserError for an impossible setting, under its key: `prefix` + name."""
    if not (0 < lr < float("inf")):
        raise UserError(f"optimizer.{prefix}lr={lr} must be above 0 and finite")
    if not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise UserError(f"optimizer.{prefix}betas={list(betas)} must be two numbers, at least 0 and below 1")
    if not (0 < eps < 1):
        raise UserError(f"optimizer.{prefix}eps={eps} must be above 0 and below 1")
    if not (0 <= weight_decay < float("inf")):
        raise UserError(f"optimizer.{prefix}weight_decay={weight_decay} must be at least 0 and finite")
