"""Muon (https://kellerjordan.github.io/posts/muon/, arXiv:2502.16982) on the matrices of the blocks, AdamW on the rest.

Muon moves a matrix by its momentum with all singular values near 1, so that no direction dominates the update.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from slm.errors import UserError
from slm.hardware import has_fast_bfloat16
from slm.model import GPT
from slm.optim.adamw import AdamW, check_adamw
from slm.optim.changing import WeightDecay, decay_cautiously, evaluated
from slm.optim.neurons import normalized
from slm.optim.roles import roles, stacked
from slm.optim.shares import is_divided, own, own_rows, shared, shared_by_rows, stacked_cost

# Coefficients of x, x^3 and x^5 in each iteration. newton_schulz: Keller Jordan's. polar_express: the best for singular
# values from 1e-3 to 1 (arXiv:2505.16932, algorithm 1), whose safety factor for rounding divides x before each.
SAFETY = 1.01
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
ITERATIONS = {
    "newton_schulz": ((3.4445, -4.7750, 2.0315),) * 5,
    "polar_express": tuple((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS),
}
FIRST_MOMENTUM = 0.85  # of its warm-up, as in github.com/KellerJordan/modded-nanogpt


@dataclass(frozen=True, kw_only=True)
class Muon(WeightDecay):
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
    momentum_warmup: int = 0  # updates in which the momentum rises from 0.85 on a line
    iteration: Literal["newton_schulz", "polar_express"] = "newton_schulz"
    neuron_normalization: bool = False  # NorMuon: rows of an update get about the same size (slm.optim.neurons)

    def __post_init__(self):
        super().__post_init__()
        if not (0 < self.lr < float("inf")):
            raise UserError(f"optimizer.lr={self.lr} must be above 0 and finite")
        if not (0 <= self.momentum < 1):
            raise UserError(f"optimizer.momentum={self.momentum} must be at least 0 and below 1")
        if not (0 <= self.weight_decay < float("inf")):
            raise UserError(f"optimizer.weight_decay={self.weight_decay} must be at least 0 and finite")
        if self.momentum_warmup < 0:
            raise UserError(f"optimizer.momentum_warmup={self.momentum_warmup} must be at least 0 (updates)")
        if self.momentum_warmup and self.momentum < FIRST_MOMENTUM:
            raise UserError(
                f"optimizer.momentum_warmup={self.momentum_warmup} begins at a momentum of {FIRST_MOMENTUM}, so "
                f"optimizer.momentum={self.momentum} must be at least that; or give optimizer.momentum_warmup=0"
            )
        if self.iteration not in ITERATIONS:
            raise UserError(f"optimizer.iteration={self.iteration} is not one of {', '.join(ITERATIONS)}")
        check_adamw(self.adamw_lr, self.adamw_betas, self.adamw_eps, self.adamw_weight_decay, prefix="adamw_")

    def changes(self, group: Mapping[str, Any], step: int, steps: int, lr_factor: float) -> dict[str, float]:
        changed = super().changes(group, step, steps, lr_factor)
        if self.momentum_warmup and "momentum" in group:
            risen = min(1.0, step / self.momentum_warmup)
            changed["momentum"] = FIRST_MOMENTUM * (1 - risen) + group["momentum"] * risen
        return changed

    def __call__(self, model: GPT, *, bfloat16: bool = False) -> "MuonWithAdamW":
        adamw = AdamW(
            lr=self.adamw_lr,
            betas=self.adamw_betas,
            eps=self.adamw_eps,
            weight_decay=self.adamw_weight_decay,
            decay="matrices",
            cautious=self.cautious,
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
        return MuonWithAdamW(matrices, adamw(model, {"embedding", "readout", "vector"}), self, bfloat16)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on one group, and an AdamW with groups of its own; to its caller one optimizer with one state.

    `rows` of the first group are, for each parameter, the rows of each matrix stacked in it: each is orthogonalised
    alone.
    """

    def __init__(self, matrices: dict, rest: torch.optim.AdamW, settings: Muon, bfloat16: bool):
        self.rest, self.settings, self.bfloat16, self.changes = rest, settings, bfloat16, settings.changes
        super().__init__([matrices, *rest.param_groups], {})
        self.defaults = dict.fromkeys(("lr", "momentum", "weight_decay", "betas", "eps"))  # names of the settings

    @torch.no_grad()
    def step(self, closure=None):
        loss = evaluated(closure)
        matrices, *self.rest.param_groups = self.param_groups  # anew: load_state_dict replaces groups and state
        self.rest.state = self.state
        self.rest.step()
        self._step_matrices(matrices)
        return loss

    def state_shapes(self, parameter: Tensor) -> dict[str, tuple[int, ...]]:
        """Name and shape of what a step keeps of a parameter, without the count of steps."""
        shape = tuple(parameter.shape)
        if not any(parameter is matrix for matrix in self.param_groups[0]["params"]):
            return {"exp_avg": shape, "exp_avg_sq": shape}
        return {"momentum": shape, **({"row_squares": (shape[0], 1)} if self.settings.neuron_normalization else {})}

    def _step_matrices(self, group: dict):
        """Each of several processes, whose gradients are equal, orthogonalises a share of the matrices."""
        rows = {p: sizes for p, sizes in zip(group["params"], group["rows"], strict=True) if p.grad is not None}
        for parameter in rows:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                if self.settings.neuron_normalization:
                    self.state[parameter]["row_squares"] = torch.zeros_like(parameter[:, :1])
        if not rows:
            return
        gradients, averages = [p.grad for p in rows], [self.state[p]["momentum"] for p in rows]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, averages, group["momentum"])  # Nesterov's look ahead
        if not self.settings.cautious:
            torch._foreach_mul_(list(rows), 1 - group["lr"] * group["weight_decay"])
        step = self._step_divided if is_divided(updates[0]) else self._step_whole
        step(rows, updates, group, arithmetic(updates[0], self.bfloat16))

    def _step_whole(self, rows: dict[Tensor, list[int]], updates: list[Tensor], group: dict, dtype: torch.dtype):
        moves = [move for sizes, update in zip(rows.values(), updates) for move in update.split(sizes)]
        steps = self._steps(moves, lambda wide: shared(wide, self._orthogonalized, dtype))
        if self.settings.neuron_normalization:
            squares = [its for p, sizes in rows.items() for its in self.state[p]["row_squares"].split(sizes)]
            steps = ((1.0, normalized([factor * step], [its])[0]) for its, (factor, step) in zip(squares, steps))
        weights = [weight for parameter, sizes in rows.items() for weight in parameter.split(sizes)]
        for weight, (factor, step) in zip(weights, steps, strict=True):
            self._move(weight, step, factor, group)

    def _step_divided(self, rows: dict[Tensor, list[int]], updates: list[Tensor], group: dict, dtype: torch.dtype):
        """Each process gathers a few matrices at a time, and sends their steps to those that keep the rows."""
        parameters, sizes = list(rows), list(rows.values())
        costs = [stacked_cost(its, parameter.size(1)) for parameter, its in rows.items()]

        def work(places: list[int], gathered: list[Tensor]) -> list[Tensor]:
            moves = [move for place, matrix in zip(places, gathered) for move in matrix.split(sizes[place])]
            steps = self._steps(moves, self._orthogonalized)
            return [torch.cat([factor * step for _, (factor, step) in zip(sizes[place], steps)]) for place in places]

        steps = shared_by_rows(updates, costs, work, dtype)
        if not self.settings.neuron_normalization:
            for place, step in steps:
                self._move(parameters[place].to_local(), step, 1.0, group)
            return
        parts, squares, weights = [], [], []
        for place, step in steps:
            parameter, counts = parameters[place], own_rows(parameters[place], sizes[place])
            parts += step.split(counts)
            squares += own(self.state[parameter]["row_squares"]).split(counts)
            weights += parameter.to_local().split(counts)
        for weight, step in zip(weights, normalized(parts, squares, updates[0].device_mesh.get_group()), strict=True):
            self._move(weight, step, 1.0, group)

    def _move(self, weight: Tensor, step: Tensor, factor: float, group: dict):
        if self.settings.cautious:
            decay_cautiously(weight, step, group["lr"] * group["weight_decay"])
        weight.add_(step, alpha=-group["lr"] * factor)

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
            results |= zip(places, orthogonalized(stacked, self.bfloat16, self.settings.iteration), strict=True)
        return [results[place] for place in range(len(matrices))]


def orthogonalized(matrices: Tensor, bfloat16: bool, iteration: str = "newton_schulz") -> Tensor:
    """(N, rows, columns), rows <= columns, with the same singular vectors and nearly all values at 0.7 to 1.2, or with
    polar_express at 0.8 to 1.2.

    In the precision of `arithmetic`. Values of almost no size stay below: five iterations do not lift them so far.
    """
    x = matrices.to(arithmetic(matrices, bfloat16))
    safety = 1.0 if iteration == "newton_schulz" else SAFETY
    x = x / (x.norm(dim=(1, 2), keepdim=True) * safety).clamp(min=1e-7)
    for a, b, c in ITERATIONS[iteration]:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def arithmetic(matrices: Tensor, bfloat16: bool) -> torch.dtype:
    """bfloat16 where that is allowed and fast, else at least float32."""
    fast = bfloat16 and has_fast_bfloat16(matrices.device)
    return torch.bfloat16 if fast else torch.promote_types(matrices.dtype, torch.float32)
