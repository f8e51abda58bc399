"""A model of one's own in place of GPT: any class of torch modules from token ids (B, T) to logits (B, T, V).

`model._target_` names it. Its constructor takes those of `vocab_size`, `context` and `document_start` that it names,
and its settings. Here it gets the methods of GPT; without a cache, decoding reads all ids again for each new one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from slm.errors import UserError
from slm.model import GPT, GPTConfig

FACTS = ("vocab_size", "context", "document_start")


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """What fixes such a model. Stored in every checkpoint, but for the class, which a file can only name."""

    target: str  # its dotted path
    make: Callable[..., nn.Module] = field(repr=False, compare=False)
    settings: dict[str, Any]
    vocab_size: int
    context: int  # most positions of one forward pass
    document_start: int | None = None  # id with which a document begins, whose tokens see only each other; None: all
    gradient_checkpointing = False  # for the plan: no setting

    def __post_init__(self):
        if type(self.context) is not int or self.context < 1:
            raise UserError(f"model.context={self.context} must be a whole number from 1")
        if self.document_start is not None and "document_start" not in signature(self.make).parameters:
            raise UserError(
                f"data.attention_across_documents=false needs a model that takes document_start, which {self.target} "
                "does not"
            )

    @property
    def width(self) -> int | None:
        """Of the residual stream, if a setting has this name."""
        width = self.settings.get("width")
        return width if isinstance(width, int) else None

    def plain(self) -> dict[str, Any]:
        """Without the class, for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "make"}

    def net(self) -> nn.Module:
        """A new module. Raises: UserError: if it is none."""
        facts = {name: getattr(self, name) for name in FACTS if name in signature(self.make).parameters}
        if not isinstance(net := self.make(**facts, **self.settings), nn.Module):
            raise UserError(f"model._target_={self.target} must make a torch.nn.Module, not {type(net).__name__}")
        return net


class OwnModel(nn.Module):
    """A module of one's own with the methods of GPT: its logits are the features, and their readout is done."""

    def __init__(self, config: OwnConfig):
        super().__init__()
        self.config, self.net = config, config.net()

    @property
    def readout(self) -> dict[str, Any]:
        return {"weight": None}

    def features(self, tokens: Tensor, cache: "Ids | None" = None) -> Tensor:
        """Tokens (B, T) to logits (B, T, V). A cache supplies, and receives, the ids before."""
        if cache is None:
            return self.net(tokens)
        cache.ids = torch.cat([cache.ids, tokens], dim=1)
        return self.net(cache.ids)[:, -tokens.size(1) :]

    def logits(self, features: Tensor) -> Tensor:
        return features

    def forward(self, tokens: Tensor, cache: "Ids | None" = None) -> Tensor:
        return self.features(tokens, cache)


class Ids:
    """In place of a cache of keys and values: the ids (B, S) that were read."""

    def __init__(self, rows: int, device: torch.device):
        self.ids = torch.zeros(rows, 0, dtype=torch.long, device=device)

    @property
    def length(self) -> int:
        return self.ids.size(1)

    @length.setter
    def length(self, kept: int):
        self.ids = self.ids[:, :kept]

    def keep(self, rows: list[int]):
        """Drops the other rows of the batch."""
        self.ids = self.ids[rows]


AnyConfig = GPTConfig | OwnConfig


def build(config: AnyConfig) -> GPT | OwnModel:
    """The model with new weights."""
    return OwnModel(config) if isinstance(config, OwnConfig) else GPT(config)


def shape(config: AnyConfig) -> str:
    """Its size in blocks, or its name."""
    return config.target if isinstance(config, OwnConfig) else f"{config.depth} x {config.width}"


@torch.no_grad()
def check(config: OwnConfig):
    """Raises UserError if a small one does not map ids (B, T) to logits (B, T, V), or sees the ids after a position."""
    where = f"model._target_={config.target}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OwnModel(config).eval()
        tokens = torch.randint(config.vocab_size, (2, min(config.context, 8)))
        logits, expected = model(tokens), (*tokens.shape, config.vocab_size)
        if not isinstance(logits, Tensor) or logits.shape != expected or not logits.is_floating_point():
            given = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"{where}: forward must map ids {tuple(tokens.shape)} to logits {expected}, of floating point, "
                f"but returns {given}"
            )
        changed = tokens.clone()
        changed[:, -1] = (changed[:, -1] + 1) % config.vocab_size
        if not torch.allclose(model(changed)[:, :-1], logits[:, :-1], atol=1e-4):
            raise UserError(
                f"{where} sees the future: the logits of earlier positions change with the last id, which they are to "
                "predict; mask its attention"
            )
