"""Which window each position of a training reads: a pure function of (seed, position).

So the state of the data in a checkpoint is one integer. Rank r of `world` takes every `world`-th position, and the
windows of a step do not depend on the number of ranks.

Shapes: N windows of a pass.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from slm.data.permutation import ROUNDS, Permutation

Name = Literal["shuffle", "sequential", "nearby", "replacement", "strided"]  # of data.order
ANY_LAYOUT = "shuffle", "sequential"  # the others need windows of equal length

STRETCH, TOGETHER = 2**25, 8  # of order "nearby": targets of a stretch, and the stretches that are shuffled together

LARGE = 2**24  # the most windows of a pass that is drawn as a whole; a longer one is computed in closed form
BLOCK = 2**12  # indices that are computed, or drawn with replacement from a large store, at a time


class Order(ABC):
    """An infinite sequence of indices, of which each stands for a window of a Dataset (its `__getitems__`)."""

    @abstractmethod
    def _from(self, start: int) -> Iterator[int]:
        """The indices from a position on."""

    def indices(self, start: int, rank: int = 0, world: int = 1) -> Iterator[int]:
        """The indices at the positions start + rank, start + rank + world, ... without end."""
        return itertools.islice(self._from(start), rank, None, world)

    @abstractmethod
    def targets_before(self, position: int) -> int:
        """All targets of the windows before a position."""


class Passes(Order):
    """An order that consists of passes of N windows each.

    `targets` (N,) has the number of targets of each window. Index a * N + i stands for window i in arrangement a of the
    text, with as many targets; what that is, the Dataset defines. `arrangements` is their number, 1 for fixed windows.
    """

    counted: tuple[int, np.ndarray] = -1, np.empty(0)  # a pass, and the targets before each of its windows

    def __init__(self, targets: np.ndarray, seed: int, arrangements: int = 1):
        self.targets, self.seed, self.arrangements = targets, seed, arrangements
        self.length = len(targets)  # of a pass

    @abstractmethod
    def drawn(self, number: int, generator: torch.Generator) -> Tensor | Permutation:
        """The indices (length,) of a pass in their order, from its own generator."""

    def _from(self, start: int) -> Iterator[int]:
        number, done = divmod(start, self.length)
        while True:
            for block in self.of_pass(number, done):
                yield from block.tolist()
            number, done = number + 1, 0

    def generator(self, number: int) -> torch.Generator:
        """That of a pass."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)

    def of_pass(self, number: int, start: int = 0) -> Iterator[np.ndarray]:
        """The indices of a pass in their order from a place on, in blocks."""
        indices = self.drawn(number, self.generator(number))
        return (np.asarray(indices[place : place + BLOCK]) for place in range(start, self.length, BLOCK))

    def targets_before(self, position: int) -> int:
        if are_equal(self.targets):
            return position * int(self.targets[0])
        number, done = divmod(position, self.length)
        if self.counted[0] != number:
            lengths = [self.targets[block % self.length] for block in self.of_pass(number)]
            self.counted = number, np.append(0, np.concatenate(lengths).cumsum())
        return int(number * self.counted[1][-1] + self.counted[1][done])


class InfiniteShuffle(Passes):
    """Every window once in each pass, in a new permutation. From the second pass on each pass has an arrangement of its
    own, in which the text is cut at other places.

    Only windows of unequal lengths need memory for each to count their targets, 8 bytes; and up to LARGE of them, for
    their permutation."""

    def drawn(self, number: int, generator: torch.Generator) -> Tensor | Permutation:
        permutation = torch.randperm(self.length, generator=generator) if self.length <= LARGE else None
        first = self.length * (int(torch.randint(self.arrangements, (), generator=generator)) if number else 0)
        if permutation is not None:
            return permutation + first
        keys = torch.randint(2**63 - 1, (ROUNDS,), generator=generator)
        return Permutation(self.length, keys.numpy(), first)


class Sequential(Passes):
    """Every window once in each pass, in the order of the text."""

    def drawn(self, number: int, generator: torch.Generator) -> Tensor:
        return torch.arange(self.length)


class Replacement(Passes):
    """Windows of equal length, drawn at any offset with replacement: the order of nanoGPT (Karpathy 2022).

    N windows miss about 37 % of the text. Those of a large store are drawn in short passes.
    """

    def __init__(self, targets: np.ndarray, seed: int, arrangements: int = 1):
        super().__init__(targets, seed, arrangements)
        self.length = len(targets) if len(targets) <= LARGE else BLOCK

    def drawn(self, number: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.targets) * self.arrangements, (self.length,), generator=generator)


class Nearby(Passes):
    """Every window of equal length once in each pass, shuffled among those of TOGETHER stretches of the text.

    For text that is fetched while it is read: only these stretches are needed at a time, drawn anew in each pass. From
    the second pass on, all windows are moved by an offset; `arrangements` is the number of targets of a window.
    """

    def drawn(self, number: int, generator: torch.Generator) -> Tensor:
        return torch.cat([*self.groups(number, generator)])

    def of_pass(self, number: int, start: int = 0) -> Iterator[np.ndarray]:
        return (group.numpy() for group in self.groups(number, self.generator(number), start))

    def groups(self, number: int, generator: torch.Generator, start: int = 0) -> Iterator[Tensor]:
        """The indices of a pass from a place on, of one group of stretches after another."""
        length = max(STRETCH // self.arrangements, 1)  # windows of a stretch
        first = self.length * (int(torch.randint(self.arrangements, (), generator=generator)) if number else 0)
        stretches = torch.randperm(-(-self.length // length), generator=generator).split(TOGETHER)
        seeds = torch.randint(2**62, (len(stretches),), generator=generator).tolist()
        for group, seed in zip(stretches, seeds):
            parts = [torch.arange(at * length, min((at + 1) * length, self.length)) for at in group.tolist()]
            windows = sum(map(len, parts))
            if start < windows:
                shuffled = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))
                yield torch.cat(parts)[shuffled][start:] + first
            start = max(start - windows, 0)


def make_order(name: Name, targets: np.ndarray, seed: int, arrangements: int) -> Order:
    """The order of this name. Strided windows are shuffled, and cut at the same places in every pass."""
    kind = {"sequential": Sequential, "nearby": Nearby, "replacement": Replacement}.get(name, InfiniteShuffle)
    return kind(targets, seed, arrangements)


def are_equal(targets: np.ndarray) -> bool:
    """True for windows that are known to have equally many targets: one number, broadcast to N."""
    return targets.strides == (0,)


def total(targets: np.ndarray) -> int:
    """Their sum, at once if they are known to be equal."""
    return len(targets) * int(targets[0]) if are_equal(targets) else int(targets.sum())
