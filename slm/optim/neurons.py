"""NorMuon (arXiv:2510.05491): each row of an orthogonal update is divided by the average size that it had so far."""

import torch
import torch.distributed as dist
from torch import Tensor

BETA, EPS = 0.95, 1e-8  # of the average of squares, and beside its root


def normalized(updates: list[Tensor], averages: list[Tensor], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """The updates with rows of about the same size, and the norm of each matrix as before.

    `averages` (rows, 1) of the mean squares of rows are brought up to date. With `group`, whose processes have rows of
    each matrix, the norms are those of whole matrices. A collective then.
    """
    sizes = [update.to(torch.promote_types(update.dtype, torch.float32)) for update in updates]
    squares = [size.square().mean(1, keepdim=True) for size in sizes]
    for average, square in zip(averages, squares, strict=True):
        average.lerp_(square.to(average.dtype), 1 - BETA)
    scales = [1 / (average.to(square.dtype).sqrt() + EPS) for average, square in zip(averages, squares)]
    sums = torch.stack([torch.stack([s.sum(), (s * scale.square()).sum()]) for s, scale in zip(squares, scales)])
    if group is not None:
        dist.all_reduce(sums, group=group)
    before, after = sums.unbind(1)
    factors = (before / after.clamp(min=torch.finfo(after.dtype).tiny)).sqrt()
    return [size * (scale * factor) for size, scale, factor in zip(sizes, scales, factors)]
