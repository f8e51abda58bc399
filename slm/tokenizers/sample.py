"""A seeded sample of the documents that a tokenizer learns from."""

import random
from collections.abc import Iterable
from itertools import islice
from typing import Any

from slm.errors import UserError


def sample(documents: Iterable[str], size: int, seed: int) -> list[str]:
    """`size` documents, sampled from the first 4 x `size`; no others are read. Raises: UserError: if `size` < 1."""
    if size < 1:
        raise UserError(f"tokenizer.sample_documents={size}: must be at least 1")
    reservoir = Reservoir(size, seed)
    for text in islice(documents, 4 * size):
        reservoir.add(text)
    return reservoir.items


class Reservoir:
    """A uniform sample of `size` of the added items without replacement (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, seed: int):
        self.size, self.seen, self.random = size, 0, random.Random(seed)
        self.items: list[Any] = []

    def add(self, item: Any):
        self.seen += 1
        if self.seen <= self.size:
            self.items.append(item)
        elif (slot := self.random.randrange(self.seen)) < self.size:
            self.items[slot] = item
