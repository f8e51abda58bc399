"""A model of one's own in place of GPT: any class of torch modules from token ids (B, T) to logits (B, T, V).

`model._target_` names it. Its constructor takes those of `vocab_size`, `context` and `document_start` that it names,
and its settings. Here it gets the methods of GPT; without a cache, decoding reads all ids again for each new one.
What it may offer is `blocks`, modules in a ModuleList that return the residual stream (B, T, C), alone or first in a
tuple: callbacks observe them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from traceback import extract_tb
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from slm.errors import UserError, is_out_of_memory, one_line
from slm.model import GPT, GPTConfig

FACTS = ("vocab_size", "context", "document_start")
NOT_THEIRS = tuple(str(Path(file).parent) for file in (__file__, torch.__file__))  # folders of slm and of torch


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

    @property
    def blocks(self) -> nn.ModuleList:
        """Those of the module, as in GPT, each once; none if it does not offer any."""
        found = getattr(self.net, "blocks", None)
        return nn.ModuleList(dict.fromkeys(found) if isinstance(found, nn.ModuleList) else [])

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


def check_weights(path: Path, config: AnyConfig, weights: dict[str, Tensor]):
    """Raises UserError with the first three missing, unknown or wrongly shaped tensors of such a model."""
    if isinstance(config, GPTConfig) and config.depth > len(weights):
        raise UserError(f"{path} holds {len(weights)} tensors, too few for model.depth={config.depth}")
    try:
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in build(config).state_dict().items()}
    except (RuntimeError, TypeError, OverflowError):  # of torch, for tensors larger than any memory
        raise UserError(f"{path} is damaged: its model is too large to be built; take another checkpoint") from None
    found = {name: tuple(tensor.shape) for name, tensor in without_prefix(weights).items()}
    wrong = [f"{name} {expected[name]} is missing" for name in expected if name not in found]
    wrong += [f"{name} {found[name]} is not the model's" for name in found if name not in expected]
    both = [name for name in expected if name in found]
    wrong += [f"{name} is {found[name]}, not {expected[name]}" for name in both if found[name] != expected[name]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not hold the weights of its model: {', '.join(wrong[:3])}{more}")


def without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as in the model, without that of the LightningModule's field."""
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def shape(config: AnyConfig) -> str:
    """Its size in blocks, or its name."""
    return config.target if isinstance(config, OwnConfig) else f"{config.depth} x {config.width}"


def is_dense(value: Any) -> bool:
    """True for a tensor of real numbers whose elements lie in memory one after the other, as checkpoints hold them."""
    return isinstance(value, Tensor) and not value.is_complex() and value.is_contiguous()


def stream_of(output: Any) -> Tensor:
    """The residual stream (B, T, C) of what a block returns. Raises UserError if there is none."""
    stream = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(stream, Tensor) or stream.ndim != 3:
        given = f"a tensor {tuple(stream.shape)}" if isinstance(stream, Tensor) else type(stream).__name__
        raise UserError(f"a block of the model must return (B, T, C), alone or first in a tuple, not {given}")
    return stream


@torch.no_grad()
def check(config: OwnConfig):
    """Raises UserError if a small one cannot be made, does not map ids (B, T) of any T to logits (B, T, V), is random
    in evaluation, or sees the ids after a position."""
    where = f"model._target_={config.target}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = OwnModel(config).eval()
            if any(map(is_lazy, model.parameters())) or not len([*model.parameters()]):
                raise UserError(f"{where} must have parameters, and make them in its constructor, with their sizes")
            if odd := [name for name, value in model.state_dict().items() if not is_dense(value)]:
                name = odd[0].removeprefix("net.")
                raise UserError(f"{where}: {name} cannot be saved; it must be a contiguous tensor of real numbers")
            tokens = torch.randint(config.vocab_size, (2, min(config.context, 8)))
            logits = _logits(model, tokens, where)
            parts = [_logits(model, tokens[:, :length], where) for length in (1, tokens.size(1) // 2 + 1)]
            again = model(tokens)
        except Exception as error:
            fail(config, error)
    if not torch.equal(again, logits):
        raise UserError(
            f"{where} gives other logits for the same ids: in evaluation (self.training) it must not be random"
        )
    for part in parts:
        if not torch.allclose(part, logits[:, : part.size(1)], atol=1e-4):
            raise UserError(
                f"{where} sees the future: the logits of earlier positions change with later ids, which they are to "
                "predict; mask its attention"
            )


def _logits(model: OwnModel, tokens: Tensor, where: str) -> Tensor:
    logits, expected = model(tokens), (*tokens.shape, model.config.vocab_size)
    if not isinstance(logits, Tensor) or logits.shape != expected or not logits.is_floating_point():
        given = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{where}: forward must map ids {tuple(tokens.shape)} to logits {expected}, of floating point, but returns "
            f"{given}"
        )
    return logits


def fail(config: OwnConfig, error: Exception) -> NoReturn:
    """Raises UserError with an error of the model's own code, and the last line outside of slm and torch before it."""
    if isinstance(error, UserError) or is_out_of_memory(error):
        raise error
    frames = extract_tb(error.__traceback__)
    last = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)] or frames
    text = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
    raise UserError(
        f"model._target_={config.target} fails on a small try: {text} ({last[-1].filename}, line {last[-1].lineno}); "
        "SLM_DEBUG=1 shows the traceback"
    ) from error
