"""Token ids of several texts to the logits after their last ids; keys and values of earlier ids are in a cache.

Shapes: B batch, V vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from slm.attention import Cache, visible
from slm.hardware import is_x86
from slm.model import GPT
from slm.own_model import Ids, OwnModel


class Reader:
    """Reads `rows` texts, all up to the same position, with a cache for at most `positions` ids of each."""

    worth_dropping = 1.0  # finished rows are dropped once at most this share of the rows is left
    make_cache = Cache

    def __init__(self, model: GPT, rows: int, positions: int):
        self.model = model
        self.weight = weight = next(model.parameters())
        self.device = weight.device
        if isinstance(model, OwnModel):
            self.cache = Ids(rows, self.device)
        else:
            # torch's attention of one token takes five times as long in bfloat16 on a CPU
            dtype = torch.promote_types(weight.dtype, torch.float32) if self.device.type == "cpu" else weight.dtype
            self.cache = self.make_cache(model.config, rows, positions, self.device, dtype)

    def begin(self, end: int) -> int:
        """The first position to read next, so that all rows are read up to `end`: the start of the context's window
        if that has moved, else the first one not cached."""
        start = window_start(end, self.model.config.context)
        if start + self.cache.length != end - 1:
            self.cache.length = 0
        return start + self.cache.length

    def read(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """The next ids of every row, equally many, to the logits (B, V) after the last."""
        return self.step(torch.tensor(ids, device=self.device))

    def step(self, tokens: Tensor) -> Tensor:
        """Ids (B, T) to logits (B, V)."""
        with small_kernels(self.weight):
            return self.model.logits(self.model.features(tokens, self.cache)[:, -1])

    def keep(self, rows: list[int]):
        """Drops the other rows."""
        self.cache.keep(rows)


@contextlib.contextmanager
def small_kernels(like: Tensor) -> Iterator[None]:
    """Disables oneDNN in torch's own operators for float32 on x86, where it serves GELU only: its setup takes ten times
    as long as one row."""
    before = torch.backends.mkldnn.enabled
    if like.device.type == "cpu" and like.dtype == torch.float32 and is_x86():
        torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def window_start(end: int, context: int) -> int:
    """First position in the context when `end` ids are read: 0 until it is full, then half a context later each time
    that it is full again."""
    half = context - context // 2
    return max(0, -(-(end - context) // half) * half)


class StaticCache(Cache):
    """A cache for steps of one token that a CUDA graph repeats: shapes are fixed, the position is on the device.

    Attention computes all slots, and a mask, which is added to the scores, hides those that are not visible. Steps of
    more tokens are as in Cache.
    """

    def __init__(self, config, batch, positions, device, dtype):
        super().__init__(config, batch, positions, device, dtype)
        self.slots = torch.arange(self.layers[0][0].size(2), device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)  # to be set before each step of one token
        self.windows = set(config.windows)

    def begin(self, new: int) -> slice | Tensor:
        if new > 1:
            self.masks = {}
            return super().begin(new)
        shown = self.layers[0][0].new_zeros(())  # in this type: of bools, torch would make such numbers in each block
        seen = {window: visible(self.position, self.slots, window) for window in self.windows}
        self.masks = {window: torch.where(mask, shown, -math.inf) for window, mask in seen.items()}
        return self.position

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if not self.masks:
            return super().append(layer, k, v)
        keys, values = self.layers[layer]
        return keys.index_copy_(2, self.position, k), values.index_copy_(2, self.position, v)

    def preceding(self, tokens: Tensor) -> Tensor:
        if not self.masks:
            return super().preceding(tokens)
        return self.ids.index_copy_(1, self.position + 1, tokens).index_select(1, self.position)


class GraphReader(Reader):
    """A reader for CUDA: it launches the hundreds of kernels of a step as one graph, since their launch takes longer
    than their computation."""

    worth_dropping = 0.5  # each number of rows needs a graph of its own
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
        """Records the graph. Its keys and values go into the slot that the step itself fills afterwards."""
        length, self.tokens = self.cache.length, tokens.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # the first calls of libraries allocate, which must not be in the graph
                super().step(self.tokens)
                self.cache.length = length
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may pin memory
            self.logits = super().step(self.tokens)
        self.cache.length = length

    def keep(self, rows: list[int]):
        super().keep(rows)
        self.graph = None
