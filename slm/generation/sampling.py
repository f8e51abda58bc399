"""From logits to the next id: filters, which are pure functions logits -> logits, one sampling function, the chain.

A filter sets logits to -inf, but never that of the most likely id. Of equal logits the lower id comes first, as in
argmax, so the narrowest setting of each filter is greedy decoding. Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slm.errors import UserError


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Makes the ids in `seen`, bool (B, V), less likely if the penalty is above 1 (CTRL, arXiv:1909.05858)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divides the logits after subtracting the largest: no overflow, the order is kept. 1 is off."""
    if value == 1:
        return logits
    return (logits - logits.amax(-1, keepdim=True)) / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps exactly the k most likely ids, or all if k exceeds the vocabulary (as Hugging Face does)."""
    if k >= logits.size(-1):
        return logits
    smallest = logits.topk(k).values[..., -1:]
    above, equal = logits > smallest, logits == smallest
    missing = k - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | (equal & (equal.cumsum(-1) <= missing))), -math.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the smallest set of most likely ids whose probability reaches p (nucleus sampling, arXiv:1904.09751)."""
    if p >= 1:
        return logits  # rounding in the sum must not cut the tail
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    ahead = probabilities.cumsum(-1) - probabilities
    return torch.empty_like(logits).scatter(-1, ids, ordered.masked_fill(ahead >= p, -math.inf))


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the ids at least p times as likely as the most likely one (arXiv:2407.01082)."""
    lowest = logits.amax(-1, keepdim=True) + (math.log(p) if p else -math.inf)
    return logits.masked_fill(logits < lowest, -math.inf)


def choose(logits: Tensor, uniform: Tensor) -> Tensor:
    """One id per row, (B, V) and uniform (B,) in [0, 1] -> (B,), by inverting the cumulative distribution.

    Never returns an id of probability zero. (torch.multinomial takes half of a decoding step on a CPU at V 16,000.)
    """
    probabilities = logits.softmax(-1)
    cumulative = probabilities.cumsum(-1)
    ids = torch.searchsorted(cumulative, uniform.to(cumulative).unsqueeze(-1) * cumulative[..., -1:], right=True)
    ids = ids.clamp(max=logits.size(-1) - 1)
    # rounding may reach the sum itself, and the parallel cumsum of a GPU is not monotonic over ids of probability zero
    impossible = probabilities.gather(-1, ids) == 0
    if logits.device.type != "cpu" or impossible.any():  # on a CPU any() is cheaper than an argmax
        ids = torch.where(impossible, probabilities.argmax(-1, keepdim=True), ids)
    return ids.squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Samples the next id. The filters apply in the order of Hugging Face, which is that of `__call__`.

    The defaults are the model's own distribution. Raises: UserError: for a value of the wrong type or range.
    """

    temperature: float = 1.0  # below 1 sharpens
    top_k: int | None = None  # ids; None is off
    top_p: float | None = None  # probability; None is off
    min_p: float | None = None  # fraction of the largest probability; None is off
    repetition_penalty: float = 1.0  # above 1 discourages ids that the prompt and the text already contain
    greedy: bool = False  # the most likely id, after the repetition penalty; the other filters are off

    def __post_init__(self):
        scale = "a number from 1e-6 to 1e6"
        zero = "; for the most likely token use greedy=true" if self.temperature == 0 else ""
        self._check("temperature", (int, float), lambda t: 1e-6 <= t <= 1e6, scale + zero)
        self._check("top_k", (int, type(None)), lambda k: k is None or k >= 1, "a whole number from 1, or null")
        self._check("top_p", (int, float, type(None)), lambda p: p is None or 0 < p <= 1, "above 0, at most 1, or null")
        self._check("min_p", (int, float, type(None)), lambda p: p is None or 0 <= p <= 1, "from 0 to 1, or null")
        self._check("repetition_penalty", (int, float), lambda r: 1e-6 <= r <= 1e6, f"{scale}; 1 is off")
        self._check("greedy", (bool,), lambda _: True, "true or false")

    def _check(self, field: str, types: tuple[type, ...], holds: Callable[[Any], bool], rule: str):
        value = getattr(self, field)
        if type(value) not in types or not holds(value):  # excludes bool; NaN fails every comparison
            raise UserError(f"{field}={value!r} must be {rule}")

    def __call__(self, logits: Tensor, seen: Tensor, uniform: Tensor) -> Tensor:
        """Logits (B, V), seen bool (B, V) (ids of the prompt and the text), uniform (B,) in [0, 1] -> ids (B,)."""
        logits = logits.float()
        if self.repetition_penalty != 1:
            logits = repetition_penalty(logits, seen, self.repetition_penalty)
        if self.greedy:
            return logits.argmax(-1)
        logits = temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        return choose(logits, uniform)
