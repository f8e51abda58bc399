"""Whole documents of a token store as windows: one in each, or several side by side.

Shapes: B windows of a microbatch, D documents, N windows of a split.
"""

from math import ceil

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slm.corpora import Split
from slm.data.packing import best_fit
from slm.data.store import TokenStore
from slm.errors import UserError
from slm.loss import IGNORE

# Lengths of batches of documents are multiples of it: with each new length, a CPU keeps memory for its products in
# bfloat16, and a GPU prepares kernels.
ROUNDED = 16


class Documents(Dataset):
    """One document per window: eos, its ids, eos, then IGNORE up to the longest window of the batch and a little more.

    A document longer than the context is truncated; `longest` is the smallest context that truncates none.
    Raises: UserError: if a shard does not end with eos.
    """

    rounded = ROUNDED

    def __init__(self, store: TokenStore, split: Split, context: int, eos: int):
        self.arguments = store, split, context, eos
        self.shards, self.context, self.eos = store.shards(split), context, eos
        if any(shard[-1] != eos for shard in self.shards):
            problem = f"the {split} split has a shard without an end of a document"
            raise UserError(f"{problem}; delete {store.folder}, or give data.layout=packed")
        self.starts = np.cumsum([0, *map(len, self.shards)])  # of each shard, in ids of the split
        self.bounds = store.bounds(split, eos)
        lengths = self.lengths
        self.longest, self.targets = int(lengths.max()), np.minimum(lengths, context).astype(np.int32)

    def __reduce__(self):
        return type(self), self.arguments

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> np.ndarray:
        """Of the documents, with one eos (D,)."""
        return np.diff(self.bounds)

    def place(self, index: int) -> tuple[int, int]:
        """The document of a window's first id, and the place of that id in it."""
        return index, 0

    def _document(self, index: int, most: int | None = None) -> np.ndarray:
        """Its ids and eos, up to `most`, by default the context."""
        first, end = self.bounds[index : index + 2]
        shard = int(np.searchsorted(self.starts, first, side="right")) - 1
        length, first = min(end - first, most or self.context), first - self.starts[shard]
        return self.shards[shard][first : first + length]

    def _ids(self, index: int) -> np.ndarray:
        """Those of a window behind its first eos."""
        return self._document(index)

    def __getitem__(self, index: int) -> Tensor:
        """Ids (targets + 1,), int64."""
        row = self.__getitems__([index])[0]
        return row[row != IGNORE]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Ids (B, T + 1), int64, where T is the length of the longest window, rounded up (ROUNDED)."""
        windows = [self._ids(index) for index in indices]
        length = min(ceil(max(map(len, windows)) / self.rounded) * self.rounded, self.context)
        rows = np.full((len(windows), 1 + length), IGNORE, dtype=np.int64)
        rows[:, 0] = self.eos
        for row, ids in zip(rows, windows):
            row[1 : 1 + len(ids)] = ids
        return torch.from_numpy(rows)


class Aligned(Documents):
    """Several documents per window: eos, then the ids of each and eos, then IGNORE up to the context.

    A document is in one window as a whole, or truncated if it is longer than the context.
    """

    def __init__(self, store: TokenStore, split: Split, context: int, eos: int):
        super().__init__(store, split, context, eos)
        self.rounded = context
        self.order, self.bins = best_fit(self.targets, context)
        self.targets = np.add.reduceat(self.targets[self.order], self.bins[:-1])

    def place(self, index: int) -> tuple[int, int]:
        return int(self.order[self.bins[index]]), 0

    def _ids(self, index: int) -> np.ndarray:
        return np.concatenate([*map(self._document, self.order[self.bins[index] : self.bins[index + 1]])])
