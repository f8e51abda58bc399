"""Low-rank adaptation (LoRA, arXiv:2106.09685): a matrix W is frozen, and a product of two thin matrices beside it is
trained: W x + alpha / rank * B A x. B starts at zero, so the model starts as the one that is adapted.

Shapes: I inputs, O outputs, R rank.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.errors import UserError

TARGETS = ("attention.qkv", "attention.out", "mlp.gate", "mlp.up", "mlp.out")  # linear layers of a block


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """conf/model: `model.lora`. Raises: UserError: if a value is impossible."""

    rank: int
    alpha: float | None = None  # the product's factor is alpha / rank; None: twice the rank
    targets: list[str] | None = None  # of TARGETS, or attention or mlp; None: all

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"model.lora.rank={self.rank} must be at least 1, or null for no LoRA")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise UserError(f"model.lora.alpha={self.alpha} must be above 0 and finite, or null for twice the rank")
        if self.targets == []:
            raise UserError("model.lora.targets=[] adapts nothing; null stands for all linear layers of the blocks")
        for target in self.targets or ():
            if not any(f"{name}.".startswith(f"{target}.") for name in TARGETS):
                known = ", ".join(("attention", "mlp", *TARGETS))
                raise UserError(f"model.lora.targets={self.targets}: {target} is not one of {known}")

    @property
    def scale(self) -> float:
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank

    def adapts(self, name: str) -> bool:
        """True for the name of a linear layer within a block that is among the targets."""
        return name in TARGETS and any(f"{name}.".startswith(f"{target}.") for target in self.targets or TARGETS)


class LoRALinear(nn.Linear):
    """A linear layer, of which only the thin matrices are trained. Its own weights keep their names."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.scale = linear.weight, linear.bias, config.scale
        self.lora_a = nn.Parameter(self.weight.new_empty(config.rank, self.in_features))  # (R, I)
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, config.rank))  # (O, R)
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as the paper's code, and as nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The same function as one plain layer, up to rounding."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        product = self.lora_b.double() @ self.lora_a.double()  # rounded once
        linear.weight = nn.Parameter((self.weight.double() + self.scale * product).to(self.weight.dtype))
        linear.bias = self.bias
        return linear


def add_lora(model: nn.Module, config: LoRAConfig):
    """Adapts the layers of a model's blocks that are targets, and freezes every other parameter."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name in filter(config.adapts, _names(block)):
            block.set_submodule(name, LoRALinear(block.get_submodule(name), config))


def merge(model: nn.Module) -> nn.Module:
    """The model with each product added to its matrix, as a plain GPT; a model without LoRA as it is. In place."""
    if getattr(model.config, "lora", None) is None:
        return model
    for block in model.blocks:
        for name in _names(block):
            if isinstance(layer := block.get_submodule(name), LoRALinear):
                block.set_submodule(name, layer.merged())
    model.config = replace(model.config, lora=None)
    return model.requires_grad_(True)


def _names(block: nn.Module) -> list[str]:
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
