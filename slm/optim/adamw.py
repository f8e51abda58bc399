"""AdamW (arXiv:1711.05101): torch's own, with weight decay by role."""

from typing import Literal

import torch

from slm.errors import UserError
from slm.model import GPT
from slm.optim.roles import roles

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
    if not (0 < lr < float("inf")):
        raise UserError(f"optimizer.lr={lr} must be above 0 and finite")
    if not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise UserError(f"optimizer.betas={list(betas)} must be two numbers, at least 0 and below 1")
    if not (0 < eps < 1):
        raise UserError(f"optimizer.eps={eps} must be above 0 and below 1")
    if not (0 <= weight_decay < float("inf")):
        raise UserError(f"optimizer.weight_decay={weight_decay} must be at least 0 and finite")
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    role = roles(model)
    for name, parameter in model.named_parameters():
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
