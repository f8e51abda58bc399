"""AdamW (arXiv:1711.05101): torch's own, with weight decay by role."""

from collections.abc import Collection
from typing import Literal

import torch

from slm.errors import UserError
from slm.model import GPT
from slm.optim.roles import ROLES, Role, roles

DECAYED = {"matrices": {"embedding", "readout", "hidden"}, "all": {"embedding", "readout", "hidden", "vector"}}


def adamw(
    model: GPT,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decay: Literal["matrices", "all"],
) -> torch.optim.AdamW:
    """Two groups, decayed and not. `lr` is the peak: the schedule multiplies it."""
    return adamw_on(model, ROLES, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decay=decay)


def adamw_on(
    model: GPT,
    chosen: Collection[Role],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decay: Literal["matrices", "all"],
    prefix: str = "",
) -> torch.optim.AdamW:
    """AdamW on the parameters of the chosen roles; its settings are called `prefix` + name in messages."""
    if not (0 < lr < float("inf")):
        raise UserError(f"optimizer.{prefix}lr={lr} must be above 0 and finite")
    if not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise UserError(f"optimizer.{prefix}betas={list(betas)} must be two numbers, at least 0 and below 1")
    if not (0 < eps < 1):
        raise UserError(f"optimizer.{prefix}eps={eps} must be above 0 and below 1")
    if not (0 <= weight_decay < float("inf")):
        raise UserError(f"optimizer.{prefix}weight_decay={weight_decay} must be at least 0 and finite")
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    role = roles(model)
    for name, parameter in model.named_parameters():
        if role[name] in chosen:
            groups[role[name] in DECAYED[decay]].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": weight_decay if decayed else 0.0}
            for decayed, parameters in groups.items()
            if parameters
        ],
        lr=lr,
        betas=tuple(betas),
        eps=eps,
        fused=True,
    )
    # A fused optimizer offers to unscale float16 gradients inside its step, which is too late for clipping:
    # declining makes Lightning and GradScaler unscale before, and lets them clip.
    optimizer._step_supports_amp_scaling = False
    return optimizer
