"""Rows of ids in, logits after their last ids out; what was read before is in a cache."""

import contextlib
import platform
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from slm.model import GPT, Cache


class Reader:
    """Reads `rows` texts in step, of which the longest will have `positions` ids."""

    worth_dropping = 1.0  # rows are dropped once at most this share of them is left
    make_cache = Cache

    def __init__(self, model: GPT, rows: int, positions: int):
        self.model = model
        weight = model.tokens.weight
        self.device = weight.device
        self.cache = self.make_cache(model.config, rows, positions, weight.device, weight.dtype)

    def begin(self, end: int) -> int:
        """From where every row must be read to be read up to `end`: the window's start, if that has moved."""
        start = window_start(end, self.model.config.context)
        if start + self.cache.length != end - 1:
            self.cache.length = 0
        return start + self.cache.length

    def read(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """The next ids of every row, equally many. Logits (B, V) after the last."""
        return self.step(torch.tensor(ids, device=self.device))

    def step(self, tokens: Tensor) -> Tensor:
        with small_kernels(self.model.tokens.weight):
            return self.model.head(self.model.features(tokens, self.cache)[:, -1])

    def keep(self, rows: list[int]):
        self.cache.keep(rows)


@contextlib.contextmanager
def small_kernels(like: Tensor) -> Iterator[None]:
    """Without oneDNN, where it multiplies no matrices: setting up its GELU takes ten times as long as that of a row."""
    before = torch.backends.mkldnn.enabled
    if like.device.type == "cpu" and like.dtype == torch.float32 and platform.machine() in ("x86_64", "AMD64"):
        torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def window_start(end: int, context: int) -> int:
    """Where the context begins when `end` ids are read: 0 until it is full, then on by half a context at a time."""
    half = context - context // 2
    return max(0, -(-(end - context) // half) * half)


class StaticCache(Cache):
    """For steps of one token that a CUDA graph repeats: shapes are fixed, and the position is on the device.

    Every slot takes part in attention, those not filled behind a mask. Longer steps are a plain cache's.
    """

    def __init__(self, config, batch, positions, device, dtype):
        super().__init__(config, batch, positions, device, dtype)
        self.slots = torch.arange(self.layers[0][0].size(2), device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)  # to be set before each step of one token

    def begin(self, new: int) -> slice | Tensor:
        if new > 1:
            self.mask = None
            return super().begin(new)
        self.mask = (self.slots <= self.position).unsqueeze(0)
        return self.position

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.mask is None:
            return super().append(layer, k, v)
        keys, values = self.layers[layer]
        return keys.index_copy_(2, self.position, k), values.index_copy_(2, self.position, v)


class GraphReader(Reader):
    """On CUDA: launches a step's hundreds of kernels as one graph, since launching takes longer than computing."""

    worth_dropping = 0.5  # with every other number of rows comes another graph
    make_cache = StaticCache

    def __init__(self, model: GPT, rows: int, positions: int):
        super().__init__(model, rows, positions)
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, tokens: Tensor) -> Tensor:
        if tokens.size(1) > 1:
            return super().step(tokens)
        self.cache.position.fill_(self.cache.length)
        if not self.graph:
            self.capture(tokens)
        self.tokens.copy_(tokens)
        self.graph.replay()
        self.cache.length += 1
        return self.logits

    def capture(self, tokens: Tensor):
        """What it computes goes into the slot that the step itself will fill."""
        length, self.tokens = self.cache.length, tokens.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # what libraries set up at first must not be in the graph
                super().step(self.tokens)
                self.cache.length = length
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # others may pin memory meanwhile
            self.logits = super().step(self.tokens)
        self.cache.length = length

    def keep(self, rows: list[int]):
        super().keep(rows)
        self.graph = None
