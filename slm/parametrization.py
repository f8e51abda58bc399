"""How the start of a model, its multipliers and the settings of its optimizer change with its size.

m is width / base_width and L is depth / base_depth; s is init_std, and all else is a factor of a setting of AdamW:

| kind of weight | start (std) | forward | lr | weight decay | eps |
|---|---|---|---|---|---|
| embedding, also a tied one | s | | 1 | 1 | 1 / m, in a block 1 / (m L) |
| bigram embedding | 0 | | 1 | 1 | 1 / m |
| reader of the stream | s / sqrt(m) | | 1 / m | m | 1 / (m L) |
| writer to the stream | s / sqrt(m) / sqrt(2 depth) | its branch / L | 1 / m | m | 1 / (m L) |
| narrow: reads as many channels at every width | s; LoRA 0 | | 1 | 1 | 1 / (m L) |
| readout: a head of its own | s | | 1 | 1 | 1 / m |
| vector: gain, bias or scalar | | | 1 | | 1 / m, in a block 1 / (m L) |

Features are divided by m before any head. `mup` (arXiv:2203.03466, github.com/microsoft/mup and
github.com/EleutherAI/nanoGPT-mup) has L = 1; `completep` (arXiv:2505.01618, alpha = 1) has both, and its sqrt(2 depth)
is that of base_depth; `standard` has neither. torch's AdamW shrinks weights by lr * weight_decay, which m keeps the
same. Gradients are smaller by m, and in a block by L, too; eps follows them. Muon moves a matrix by sqrt(rows /
columns) where that is above 1, at every width (arXiv:2310.17813), and needs no factor. head_dim is to be the same at
every width: then the scale of attention's logits is, too.
"""

import math
from dataclasses import dataclass
from typing import Literal

from slm.attention import AttentionConfig
from slm.errors import UserError

Kind = Literal["embedding", "bigram", "reader", "writer", "narrow", "readout", "vector"]
PARAMETRIZATIONS = {  # name -> what it needs
    "standard": (),
    "mup": ("base_width",),
    "completep": ("base_width", "base_depth"),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The numbers of a kind of weight: at the base size all factors are 1."""

    std: float | None = None  # of the normal distribution at the start; None: gains are 1, biases 0
    forward: float = 1.0  # factor of a writer's branch, or of the features before the head
    lr: float = 1.0  # factors of the settings of AdamW
    weight_decay: float = 1.0
    eps: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(AttentionConfig):
    """The choices that fix where a model's weights start, and how that and its training change with its size.

    Raises: UserError: if a value is impossible, alone or beside another.
    """

    init_std: float = 0.02  # of the normal distribution that all matrices start from
    init_residual_scale: bool = True  # matrices that write to the residual stream start smaller by sqrt(2 * depth)
    zero_init_residual: bool = False  # residual branches start at zero, so blocks start as identities
    parametrization: str = "standard"  # of PARAMETRIZATIONS
    base_width: int | None = None  # the width and the depth at which settings were found
    base_depth: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.init_std < math.inf:
            raise UserError(f"model.init_std={self.init_std} must be above 0 and finite")
        if self.parametrization not in PARAMETRIZATIONS:
            known = ", ".join(PARAMETRIZATIONS)
            raise UserError(f"model.parametrization={self.parametrization} is not one of {known}")
        for name in ("base_width", "base_depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"model.{name}={value} must be at least 1, or null")
            if value is None and name in PARAMETRIZATIONS[self.parametrization]:
                size, example = name.removeprefix("base_"), {"base_width": 64, "base_depth": 2}[name]
                raise UserError(
                    f"model.parametrization={self.parametrization} needs model.{name}, the {size} of the small model "
                    f"whose settings are to fit this one, such as model.{name}={example}"
                )

    @property
    def tuned_width(self) -> int:
        """The width that settings such as the learning rate are for."""
        return self.base_width if "base_width" in PARAMETRIZATIONS[self.parametrization] else self.width

    @property
    def tuned_depth(self) -> int:
        return self.base_depth if "base_depth" in PARAMETRIZATIONS[self.parametrization] else self.depth

    def rules(self, in_block: bool = True) -> dict[Kind, Rule]:
        """The table, for weights in the blocks or outside of them."""
        wider, deeper = self.width / self.tuned_width, self.depth / self.tuned_depth
        std, eps = self.init_std, 1 / (wider * deeper if in_block else wider)
        hidden = {"lr": 1 / wider, "weight_decay": wider, "eps": eps}
        smaller = math.sqrt(2 * self.tuned_depth) if self.init_residual_scale else 1.0
        writer = 0.0 if self.zero_init_residual else std / smaller / math.sqrt(wider)
        return {
            "embedding": Rule(std=std, eps=eps),
            "bigram": Rule(std=0.0, eps=eps),
            "reader": Rule(std=std / math.sqrt(wider), **hidden),
            "writer": Rule(std=writer, forward=1 / deeper, **hidden),
            "narrow": Rule(std=std, eps=eps),
            "readout": Rule(std=std, forward=1 / wider, eps=eps),
            "vector": Rule(eps=eps),
        }
