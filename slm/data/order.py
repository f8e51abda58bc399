"""Which window each position of a training reads: a pure function of (seed, position).

So the state of the data in a checkpoint is one integer. Rank r of `world` takes every `world`-th position, and the
windows of a step do not depend on the number of ranks.

Shapes: N windows of a pass.
"""

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Order(Protocol):
    """An infinite sequence of indices, of which each stands for a window of a Dataset (its `__getitems__`)."""

    def indices(self, start: int, rank: int = 0, world: int = 1) -> Iterator[int]:
        """The indices at the positions start + rank, start + rank + world, ... without end."""
        ...

    def targets_before(self, position: int) -> int:
        """All targets of the windows before a position."""
        ...


class InfiniteShuffle:
    """Passes over the same windows, each in a new permutation. `targets` (N,): the number of targets in each window."""

    def __init__(self, targets: np.ndarray, seed: int):
        self.targets, self.seed = targets, seed
        self.counted: tuple[int, np.ndarray] = -1, np.empty(0)  # a pass, and the targets before each of its windows

    def indices(self, start: int, rank: int = 0, world: int = 1) -> Iterator[int]:
        return itertools.islice(self._from(start), rank, None, world)

    def _from(self, start: int) -> Iterator[int]:
        number, offset = divmod(start, len(self.targets))
        while True:
            yield from self.of_pass(number)[offset:].tolist()
            number, offset = number + 1, 0

    def of_pass(self, number: int) -> Tensor:
        """The indices (N,) of a pass in their order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return torch.randperm(len(self.targets), generator=generator)

    def targets_before(self, position: int) -> int:
        number, offset = divmod(position, len(self.targets))
        if self.counted[0] != number:
            self.counted = number, np.append(0, self.targets[self.of_pass(number).numpy()].cumsum())
        return int(number * self.counted[1][-1] + self.counted[1][offset])
