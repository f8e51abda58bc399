"""Muon (https://kellerjordan.github.io/posts/muon/, arXiv:2502.16982) on the matrices of the blocks, AdamW on the rest.

Muon moves a matrix by its momentum with all singular values near 1, so that no direction dominates the update.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.errors import UserError
from slm.hardware import has_fast_bfloat16
from slm.model import GPT
from slm.optim.adamw import AdamW, check_adamw
from slm.optim.roles import roles, stacked
from slm.optim.shares import is_divided, shared, shared_by_rows, stacked_cost

NEWTON_SCHULZ = 5, (3.4445, -4.7750, 2.0315)  # iterations and coefficients of Keller Jordan's quintic


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Settings that, called with a model, make its optimizer: a group of hidden matrices, then the two of AdamW.

    `bfloat16` of the call allows the orthogonalisation in bfloat16, where that is fast.
    Raises: UserError: if a setting is impossible.
    """

    lr: float  # peak: the schedule multiplies both
    momentum: float
    weight_decay: float
    adamw_lr: float
    adamw_betas: tuple[float, float]
    adamw_eps: float
    adamw_weight_decay: float

    def __post_init__(self):
        if not (0 < self.lr < float("inf")):
            raise UserError(f"optimizer.lr={self.lr} must be above 0 and finite")
        if not (0 <= self.momentum < 1):
            raise UserError(f"optimizer.momentum={self.momentum} must be at least 0 and below 1")
        if not (0 <= self.weight_decay < float("inf")):
            raise UserError(f"optimizer.weight_decay={self.weight_decay} must be at least 0 and finite")
        check_adamw(self.adamw_lr, self.adamw_betas, self.adamw_eps, self.adamw_weight_decay, prefix="adamw_")

    def __call__(self, model: GPT, *, bfloat16: bool = False) -> "MuonWithAdamW":
        adamw = AdamW(
            lr=self.adamw_lr,
            betas=self.adamw_betas,
            eps=self.adamw_eps,
            weight_decay=self.adamw_weight_decay,
            decay="matrices",
        )
        role, rows = roles(model), stacked(model)
        hidden = {name: parameter for name, parameter in model.named_parameters() if role[name] == "hidden"}
        matrices = {
            "params": list(hidden.values()),
            "rows": [rows.get(name, [parameter.size(0)]) for name, parameter in hidden.items()],
            "lr": self.lr,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
        }
        return MuonWithAdamW(matrices, adamw(model, {"embedding", "readout", "vector"}), bfloat16)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on one group, and an AdamW with groups of its own; to its caller one optimizer with one state.

    `rows` of the first group are, for each parameter, the rows of each matrix stacked in it: each is orthogonalised
    alone.
    """

    def __init__(self, matrices: dict, rest: torch.optim.AdamW, bfloat16: bool):
        self.rest, self.bfloat16 = rest, bfloat16
        super().__init__([matrices, *rest.param_groups], {})
        self.defaults = dict.fromkeys(("lr", "momentum", "weight_decay", "betas", "eps"))  # names of the settings

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices, *self.rest.param_groups = self.param_groups  # anew: load_state_dict replaces groups and state
        self.rest.state = self.state
        self.rest.step()
        self._step_matrices(matrices)
        return loss

    def _step_matrices(self, group: dict):
        """Each of several processes, whose gradients are equal, orthogonalises a share of the matrices."""
        rows = {p: sizes for p, sizes in zip(group["params"], group["rows"], strict=True) if p.grad is not None}
        for parameter in rows:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        if not rows:
            return
        gradients, averages = [p.grad for p in rows], [self.state[p]["momentum"] for p in rows]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, averages, group["momentum"])  # Nesterov's look ahead
        torch._foreach_mul_(list(rows), 1 - group["lr"] * group["weight_decay"])
        step = self._step_divided if is_divided(updates[0]) else self._step_whole
        step(rows, updates, group["lr"], arithmetic(updates[0], self.bfloat16))

    def _step_whole(self, rows: dict[Tensor, list[int]], updates: list[Tensor], lr: float, dtype: torch.dtype):
        moves = [move for sizes, update in zip(rows.values(), updates) for move in update.split(sizes)]
        steps = self._steps(moves, lambda wide: shared(wide, self._orthogonalized, dtype))
        for parameter, sizes in rows.items():
            for weight, (factor, step) in zip(parameter.split(sizes), steps):
                weight.add_(step, alpha=-lr * factor)

    def _step_divided(self, rows: dict[Tensor, list[int]], updates: list[Tensor], lr: float, dtype: torch.dtype):
        """Each process gathers a few matrices at a time, and sends their steps to those that keep the rows."""
        parameters, sizes = list(rows), list(rows.values())
        costs = [stacked_cost(its, parameter.size(1)) for parameter, its in rows.items()]

        def work(places: list[int], gathered: list[Tensor]) -> list[Tensor]:
            moves = [move for place, matrix in zip(places, gathered) for move in matrix.split(sizes[place])]
            steps = self._steps(moves, self._orthogonalized)
            return [torch.cat([factor * step for _, (factor, step) in zip(sizes[place], steps)]) for place in places]

        for place, step in shared_by_rows(updates, costs, work, dtype):
            parameters[place].to_local().add_(step, alpha=-lr)

    def _steps(
        self, moves: list[Tensor], orthogonalize: Callable[[list[Tensor]], list[Tensor]]
    ) -> Iterator[tuple[float, Tensor]]:
        """Factor and orthogonal matrix of each; tall matrices are orthogonalised as wide ones, and move more."""
        wide = [move.mT if move.size(0) > move.size(1) else move for move in moves]
        for move, result in zip(moves, orthogonalize(wide), strict=True):
            tall = move.size(0) / move.size(1)
            yield (math.sqrt(tall), result.mT) if tall > 1 else (1.0, result)

    def _orthogonalized(self, matrices: list[Tensor]) -> list[Tensor]:
        """Those of one shape go through Newton-Schulz together."""
        alike = defaultdict(list)
        for place, matrix in enumerate(matrices):
            alike[matrix.shape].append(place)
        results = {}
        for places in alike.values():
            stacked = torch.stack([matrices[place] for place in places])
            results |= zip(places, orthogonalized(stacked, self.bfloat16), strict=True)
        return [results[place] for place in range(len(matrices))]


def orthogonalized(matrices: Tensor, bfloat16: bool) -> Tensor:
    """(N, rows, columns), rows <= columns, with the same singular vectors and nearly all values at 0.7 to 1.2.

    In the precision of `arithmetic`. Values of almost no size stay below: five iterations do not lift them so far.
    """
    steps, (a, b, c) = NEWTON_SCHULZ
    x = matrices.to(arithmetic(matrices, bfloat16))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def arithmetic(matrices: Tensor, bfloat16: bool) -> torch.dtype:
    """bfloat16 where that is allowed and fast, else at least float32."""
    fast = bfloat16 and has_fast_bfloat16(matrices.device)
    return torch.bfloat16 if fast else torch.promote_types(matrices.dtype, torch.float32)
