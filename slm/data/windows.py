"""Windows over a token store.

A window is up to context + 1 consecutive ids: inputs, and targets shifted by one. `Windows` divides a split into
pieces of equal length; `Documents` has one document per window, `Aligned` several. All have `targets` (N,): their
number in each window.

Shapes: B windows of a microbatch, N windows of a split.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slm.corpora import Split
from slm.data.order import Name, Order, make_order
from slm.data.packing import best_fit
from slm.data.store import TokenStore
from slm.errors import UserError
from slm.loss import IGNORE

Layout = Literal["packed", "documents", "aligned"]  # of data.layout

# Lengths of batches of documents are multiples of it: with each new length, a CPU keeps memory for its products in
# bfloat16, and a GPU prepares kernels.
ROUNDED = 16


class Windows(Dataset):
    """All windows of a split: window i starts at id i * stride (None: context). The ids after the last are not used.

    Index o * N + i with an offset o is window i moved by o ids; ids after the split's last one are its first ones.
    Raises: UserError: if the split is shorter than one window.
    """

    def __init__(self, store: TokenStore, split: Split, context: int, stride: int | None = None):
        self.arguments = store, split, context, stride
        self.shards, self.context = store.shards(split), context
        self.starts = np.cumsum([0, *map(len, self.shards)])  # of each shard, in ids of the split
        self.stride = stride or context
        self.count = (int(self.starts[-1]) - 1 - context) // self.stride + 1
        if self.count < 1:
            raise UserError(
                f"the {split} split has {int(self.starts[-1]):,} tokens, fewer than one window of "
                f"model.context={context} + 1; give more text or a smaller model.context"
            )
        self.longest, self.targets = context, np.broadcast_to(context, self.count)

    def __reduce__(self):
        """Pickles the arguments: a spawned loader process maps the files itself and receives no content."""
        return Windows, self.arguments

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        """Ids (context + 1,), int64."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Ids (B, context + 1), int64. A DataLoader calls it with the indices of a microbatch."""
        rows = np.stack([self._window(index) for index in indices])
        return torch.from_numpy(rows.astype(np.int64))

    def start(self, index: int) -> int:
        """The place of a window's first id in the split."""
        offset, number = divmod(index, self.count)
        return number * self.stride + offset

    def _window(self, index: int) -> np.ndarray:
        start, length = self.start(index), self.context + 1
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        window = self.shards[shard][start - self.starts[shard] :][:length]
        while len(window) < length:  # continued in the next shard, or in the first one
            shard = (shard + 1) % len(self.shards)
            window = np.concatenate([window, self.shards[shard][: length - len(window)]])
        return window


class Documents(Dataset):
    """One document per window: eos, its ids, eos, then IGNORE up to the longest window of the batch and a little more.

    A document longer than the context is truncated; `longest` is the smallest context that truncates none.
    Raises: UserError: if a shard contains no eos.
    """

    def __init__(self, store: TokenStore, split: Split, context: int, eos: int):
        self.arguments = store, split, context, eos
        self.shards, self.context, self.eos = store.shards(split), context, eos
        ends = [np.flatnonzero(shard == eos) for shard in self.shards]
        if not all(map(len, ends)):
            raise UserError(f"the {split} split has a shard without an end of a document; delete {store.folder}")
        self.ends = np.concatenate(ends)  # the position of each document's eos in its shard
        self.starts = np.concatenate([np.append(0, part[:-1] + 1) for part in ends])
        self.shard = np.repeat(np.arange(len(ends)), [len(part) for part in ends])
        self.lengths = self.ends - self.starts + 1  # with one eos
        self.longest, self.targets = int(self.lengths.max()), np.minimum(self.lengths, context)

    def __reduce__(self):
        return Documents, self.arguments

    def __len__(self) -> int:
        return len(self.targets)

    def first_document(self, index: int) -> int:
        """The document that a window begins with."""
        return index

    def _document(self, index: int) -> np.ndarray:
        """Its ids and eos, up to the context."""
        return self.shards[self.shard[index]][self.starts[index] :][: min(self.lengths[index], self.context)]

    def __getitem__(self, index: int) -> Tensor:
        """Ids (targets + 1,), int64."""
        return self.__getitems__([index])[0, : self.targets[index] + 1]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Ids (B, T + 1), int64, where T is the number of targets of the longest, rounded up (ROUNDED)."""
        lengths = self.targets[indices]
        targets = min(ceil(lengths.max() / ROUNDED) * ROUNDED, self.context)
        rows = np.full((len(indices), 1 + targets), IGNORE, dtype=np.int64)
        rows[:, 0] = self.eos
        for row, index, length in zip(rows, indices, lengths):
            row[1 : 1 + length] = self._document(index)
        return torch.from_numpy(rows)


class Aligned(Documents):
    """Several documents per window: eos, then the ids of each and eos, then IGNORE up to the context.

    A document is in one window as a whole, or truncated if it is longer than the context.
    """

    def __init__(self, store: TokenStore, split: Split, context: int, eos: int):
        super().__init__(store, split, context, eos)
        self.order, self.bins = best_fit(self.targets, context)
        self.targets = np.add.reduceat(self.targets[self.order], self.bins[:-1])

    def __reduce__(self):
        return Aligned, self.arguments

    def first_document(self, index: int) -> int:
        return int(self.order[self.bins[index]])

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Ids (B, context + 1), int64."""
        rows = np.full((len(indices), 1 + self.context), IGNORE, dtype=np.int64)
        rows[:, 0] = self.eos
        for row, index in zip(rows, indices):
            ids = [self._document(document) for document in self.order[self.bins[index] : self.bins[index + 1]]]
            row[1 : 1 + self.targets[index]] = np.concatenate(ids)
        return torch.from_numpy(rows)


@dataclass(frozen=True)
class Splits:
    """The windows of both splits of a store; those of train that are read are `chosen`.

    `offsets`: how many places a window may be moved to (see slm.data.order.Passes).
    """

    store: TokenStore
    train: Windows | Documents
    validation: Windows | Documents
    chosen: list[int]
    order_name: Name = "shuffle"
    offsets: int = 1

    @cached_property
    def targets(self) -> np.ndarray:
        """The number of targets in each chosen window."""
        return self.train.targets[self.chosen]

    @property
    def targets_per_window(self) -> float:
        return float(self.targets.mean())

    def by_source(self) -> dict[str, "Splits"]:
        """The splits of each source of a mixture by name; these by "" for any other data."""
        return {"": self}

    def over(self, positions: int) -> Self:
        """The splits for a run of so many windows, on which the order of a mixture may depend."""
        return self

    def order(self, seed: int) -> Order:
        """Which of the chosen windows each position of a training reads."""
        return make_order(self.order_name, self.targets, seed, self.offsets)


KINDS = {"documents": Documents, "aligned": Aligned}


def split_windows(
    store: TokenStore,
    eos: int,
    *,
    context: int,
    layout: Layout = "packed",
    train_windows: int | None = None,
    order: Name = "shuffle",
    stride: int | None = None,
) -> Splits:
    """All windows in this layout; of the train split so many are chosen, evenly spaced (None: all).

    `stride` in ids is for order="strided" (None: context). Raises: UserError: if a split has no window.
    """
    if layout != "packed" and order != "shuffle":
        raise UserError(f"data.order={order} needs data.layout=packed, not {layout}")
    train, validation = (
        KINDS[layout](store, split, context, eos) if layout in KINDS else Windows(store, split, context, step)
        for split, step in (("train", stride), ("validation", None))
    )
    movable = layout == "packed" and order != "strided" and train_windows is None
    chosen = evenly_spaced(len(train), train_windows)
    return Splits(store, train, validation, chosen, order, context if movable else 1)


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """At most `limit` of `total` indices (None: all), evenly spaced from 0 on. Deterministic."""
    if limit is None or limit >= total:
        return list(range(total))
    return [index * total // limit for index in range(limit)]
