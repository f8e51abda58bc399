"""Windows over a token store.

A window is up to context + 1 consecutive ids: inputs, and targets shifted by one. `Windows` divides a split into
pieces of equal length; `Documents` has one document per window, `Aligned` several. All have `targets` (N,): their
number in each window.

Shapes: B windows of a microbatch, N windows of a split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from slm.corpora import Split
from slm.data.documents import Aligned, Documents
from slm.data.instructions import Answers, Conversations
from slm.data.order import ANY_LAYOUT, LARGE, Name, Order, make_order, total
from slm.data.store import TokenStore
from slm.errors import UserError

Layout = Literal["packed", "documents", "aligned", "instructions"]  # of data.layout

ARRANGEMENTS = 2**20  # of documents, of which each pass draws one


class Windows(Dataset):
    """All windows of a split: window i starts at id i * stride (None: context). The ids after the last are not used.

    In arrangement a, windows are moved by a ids; ids after the split's last one are its first ones.
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
        return type(self), self.arguments

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
        arrangement, number = divmod(index, self.count)
        return number * self.stride + arrangement

    def _window(self, index: int) -> np.ndarray:
        return self._ids(self.start(index), self.context + 1)

    def _ids(self, start: int, length: int) -> np.ndarray:
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        first = start - int(self.starts[shard])
        window = self.shards[shard][first : first + length]
        while len(window) < length:  # continued in the next shard, or in the first one
            shard = (shard + 1) % len(self.shards)
            window = np.concatenate([window, self.shards[shard][: length - len(window)]])
        return window


class Rearranged(Windows):
    """In every arrangement but 0, the documents are in another order, and the windows are moved by less than a window.

    Both follow from the number of the arrangement.
    """

    def __init__(self, store: TokenStore, split: Split, context: int, eos: int):
        super().__init__(store, split, context)
        self.arguments = store, split, context, eos
        self.arrangements: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}  # the newest one

    @cached_property
    def bounds(self) -> np.ndarray:
        """The ids at which the documents begin, and the last one ends (D + 1,), when they are first needed."""
        store, split, _, eos = self.arguments
        return store.bounds(split, eos)

    def arrangement(self, number: int) -> tuple[int, np.ndarray, np.ndarray]:
        """By how much windows are moved, the documents (D,) in their order, and where each of them begins (D + 1,)."""
        if number not in self.arrangements:
            generator = torch.Generator().manual_seed(number)
            documents = torch.randperm(len(self.bounds) - 1, generator=generator).numpy()
            moved = int(torch.randint(self.context, (), generator=generator))
            if number == 0:
                documents, moved = np.arange(len(documents)), 0
            begins = np.append(0, np.diff(self.bounds)[documents].cumsum())
            self.arrangements = {number: (moved, documents, begins)}
        return self.arrangements[number]

    def place(self, index: int) -> tuple[int, int]:
        """The document of a window's first id, and the place of that id in it."""
        number, window = divmod(index, self.count)
        moved, documents, begins = self.arrangement(number)
        start = window * self.context + moved
        first = int(np.searchsorted(begins, start, side="right")) - 1
        return int(documents[first]), int(start - begins[first])

    def _window(self, index: int) -> np.ndarray:
        number, window = divmod(index, self.count)
        if number == 0:
            return super()._window(index)
        moved, documents, begins = self.arrangement(number)
        start, found, missing = window * self.context + moved, [], self.context + 1
        position = int(np.searchsorted(begins, start, side="right")) - 1
        offset = int(start - begins[position])
        while missing:
            document = documents[position % len(documents)]  # after the last one, the first one
            first, end = int(self.bounds[document]) + offset, int(self.bounds[document + 1])
            found.append(self._ids(first, min(end - first, missing)))
            position, offset, missing = position + 1, 0, missing - len(found[-1])
        return np.concatenate(found)


class Chosen(Subset):
    """Some of the windows of a split."""

    def __init__(self, windows: Windows | Documents, chosen: Sequence[int]):
        super().__init__(windows, chosen)
        self.context, self.longest = windows.context, windows.longest


@dataclass(frozen=True)
class Splits:
    """The windows of both splits of a store; those of train that are read are `chosen`.

    `arrangements` is their number for the order, see slm.data.order.Passes.
    """

    store: TokenStore
    train: Windows | Documents
    validation: Windows | Documents
    chosen: Sequence[int]
    order_name: Name = "shuffle"
    arrangements: int = 1

    @property
    def chosen_windows(self) -> Dataset:
        """The chosen windows of train."""
        return self.train if len(self.chosen) == len(self.train) else Chosen(self.train, self.chosen)

    @cached_property
    def targets(self) -> np.ndarray:
        """The number of targets in each chosen window."""
        return self.train.targets[slice(len(self.chosen)) if isinstance(self.chosen, range) else self.chosen]

    @property
    def targets_per_window(self) -> float:
        return total(self.targets) / len(self.targets)

    def by_source(self) -> dict[str, "Splits"]:
        """The splits of each source of a mixture by name; these by "" for any other data."""
        return {"": self}

    def over(self, positions: int) -> Self:
        """The splits for a run of so many windows, on which the order of a mixture may depend."""
        return self

    def order(self, seed: int) -> Order:
        """Which of the chosen windows each position of a training reads."""
        return make_order(self.order_name, self.targets, seed, self.arrangements)


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
    batch_windows: int = 1,
    answers: Answers | None = None,
) -> Splits:
    """All windows in this layout; of the train split so many are chosen, evenly spaced (None: all).

    A pass over more than LARGE windows moves all of them by one offset, and keeps the documents in their order.
    `stride` in ids is for order="strided" (None: context). A pass of order="sequential" leaves out the last windows
    that do not fill a batch of `batch_windows`. Joined documents keep their order, too. `answers` are for the layout
    instructions. Raises: UserError: if a split has no window.
    """
    if layout != "packed" and order not in ANY_LAYOUT:
        raise UserError(f"data.order={order} needs data.layout=packed, not {layout}")
    fixed = layout != "packed" or order in ("strided", "sequential") or train_windows is not None
    if layout in KINDS:
        train, validation = (KINDS[layout](store, split, context, eos) for split in ("train", "validation"))
    elif layout == "instructions":
        train, validation = (Conversations(store, split, context, eos, answers) for split in ("train", "validation"))
    else:
        train, validation = Windows(store, "train", context, stride), Windows(store, "validation", context)
    arrangements = 1 if fixed else context
    if order == "shuffle" and not fixed and len(train) <= LARGE and store.has_ends:
        train, arrangements = Rearranged(store, "train", context, eos), ARRANGEMENTS
    chosen = evenly_spaced(len(train), train_windows)
    if order == "sequential" and len(chosen) >= batch_windows:
        chosen = chosen[: len(chosen) - len(chosen) % batch_windows]
    return Splits(store, train, validation, chosen, order, arrangements)


def evenly_spaced(count: int, limit: int | None) -> Sequence[int]:
    """At most `limit` of `count` indices (None: all), evenly spaced from 0 on. Deterministic."""
    if limit is None or limit >= count:
        return range(count)
    return [index * count // limit for index in range(limit)]
