"""Which window each position of a training reads: a pure function of (seed, position).

So the state of the data in a checkpoint is one integer. Rank r of `world` takes every `world`-th position, and the
windows of a step do not depend on the number of ranks.

Shapes: N windows of a pass.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Name = Literal["shuffle", "replacement", "strided"]  # of data.order


class Order(Protocol):
    """An infinite sequence of indices, of which each stands for a window of a Dataset (its `__getitems__`)."""

    def indices(self, start: int, rank: int = 0, world: int = 1) -> Iterator[int]:
        """The indices at the positions start + rank, start + rank + world, ... without end."""
        ...

    def targets_before(self, position: int) -> int:
        """All targets of the windows before a position."""
        ...


class Passes(ABC):
    """An order that consists of passes of N windows each.

    `targets` (N,) has the number of targets of each window. Index a * N + i stands for window i in arrangement a of the
    text, with as many targets; what that is, the Dataset defines. `arrangements` is their number, 1 for fixed windows.
    """

    def __init__(self, targets: np.ndarray, seed: int, arrangements: int = 1):
        self.targets, self.seed, self.arrangements = targets, seed, arrangements

    @abstractmethod
    def drawn(self, number: int, generator: torch.Generator) -> Tensor:
        """The indices (N,) of a pass in their order, from its own generator."""

    def indices(self, start: int, rank: int = 0, world: int = 1) -> Iterator[int]:
        return itertools.islice(self._from(start), rank, None, world)

    def _from(self, start: int) -> Iterator[int]:
        number, done = divmod(start, len(self.targets))
        while True:
            yield from self.of_pass(number)[done:].tolist()
            number, done = number + 1, 0

    def of_pass(self, number: int) -> Tensor:
        """The indices (N,) of a pass in their order."""
        return self.drawn(number, torch.Generator().manual_seed(self.seed * 1_000_003 + number))

    @abstractmethod
    def targets_before(self, position: int) -> int: ...


class InfiniteShuffle(Passes):
    """Every window once in each pass, in a new permutation. From the second pass on each pass has an arrangement of its
    own, in which the text is cut at other places."""

    counted: tuple[int, np.ndarray] = -1, np.empty(0)  # a pass, and the targets before each of its windows

    def drawn(self, number: int, generator: torch.Generator) -> Tensor:
        permutation = torch.randperm(len(self.targets), generator=generator)
        arrangement = int(torch.randint(self.arrangements, (), generator=generator)) if number else 0
        return permutation + arrangement * len(self.targets)

    def targets_before(self, position: int) -> int:
        number, done = divmod(position, len(self.targets))
        if self.counted[0] != number:
            windows = self.of_pass(number).numpy() % len(self.targets)
            self.counted = number, np.append(0, self.targets[windows].cumsum())
        return int(number * self.counted[1][-1] + self.counted[1][done])


class Replacement(Passes):
    """Windows of equal length, drawn at any offset with replacement: the order of nanoGPT (Karpathy 2022).

    A pass has as many windows as one without replacement, but misses about 37 % of the text.
    """

    def drawn(self, number: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.targets) * self.arrangements, (len(self.targets),), generator=generator)

    def targets_before(self, position: int) -> int:
        return position * int(self.targets[0])


def make_order(name: Name, targets: np.ndarray, seed: int, arrangements: int) -> Order:
    """The order of this name. Strided windows are shuffled, and cut at the same places in every pass."""
    kind = Replacement if name == "replacement" else InfiniteShuffle
    return kind(targets, seed, arrangements)
