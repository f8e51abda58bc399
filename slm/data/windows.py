"""Windows over a token store.

A window is up to context + 1 consecutive ids: inputs, and targets shifted by one. `Windows` divides a split into
pieces of equal length; `Documents` has one document per window. Both have `targets` (N,): their number in each window.
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
from slm.data.order import InfiniteShuffle, Order
from slm.data.store import TokenStore
from slm.errors import UserError
from slm.loss import IGNORE

# Lengths of batches of documents are multiples of it: with each new length, a CPU keeps memory for its products in
# bfloat16, and a GPU prepares kernels.
ROUNDED = 16


class Windows(Dataset):
    """All windows of a split: window i starts at id i * context. The remaining ids at the end are not used.

    Raises: UserError: if the split is shorter than one window.
    """

    def __init__(self, store: TokenStore, split: Split, context: int):
        self.arguments = store, split, context
        self.shards, self.context = store.shards(split), context
        self.starts = np.cumsum([0, *map(len, self.shards)])  # of each shard, in ids of the split
        self.count = (int(self.starts[-1]) - 1) // context
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

    def _window(self, index: int) -> np.ndarray:
        start = index * self.context
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        window = self.shards[shard][start - self.starts[shard] :][: self.context + 1]
        while len(window) < self.context + 1:  # continued in the next shard
            shard += 1
            window = np.concatenate([window, self.shards[shard][: self.context + 1 - len(window)]])
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
        return len(self.ends)

    def __getitem__(self, index: int) -> Tensor:
        """Ids (length + 2,), int64."""
        return self.__getitems__([index])[0, : self.targets[index] + 1]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Ids (B, T + 1), int64, where T is the number of targets of the longest, rounded up (ROUNDED)."""
        lengths = self.targets[indices]
        targets = min(ceil(lengths.max() / ROUNDED) * ROUNDED, self.context)
        rows = np.full((len(indices), 1 + targets), IGNORE, dtype=np.int64)
        rows[:, 0] = self.eos
        for row, index, length in zip(rows, indices, lengths):
            row[1 : 1 + length] = self.shards[self.shard[index]][self.starts[index] :][:length]
        return torch.from_numpy(rows)


@dataclass(frozen=True)
class Splits:
    """The windows of both splits of a store; those of train that are read are `chosen`."""

    store: TokenStore
    train: Windows | Documents
    validation: Windows | Documents
    chosen: list[int]

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
        return InfiniteShuffle(self.targets, seed)


def split_windows(
    store: TokenStore,
    eos: int,
    *,
    context: int,
    layout: Literal["packed", "documents"] = "packed",
    train_windows: int | None = None,
) -> Splits:
    """All windows in this layout; of the train split so many are chosen, evenly spaced (None: all).

    Raises: UserError: if a split has no window.
    """
    train, validation = (
        Documents(store, split, context, eos) if layout == "documents" else Windows(store, split, context)
        for split in ("train", "validation")
    )
    return Splits(store, train, validation, evenly_spaced(len(train), train_windows))


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """At most `limit` of `total` indices (None: all), evenly spaced from 0 on. Deterministic."""
    if limit is None or limit >= total:
        return list(range(total))
    return [index * total // limit for index in range(limit)]
