"""A seeded sample of the documents that a tokenizer learns from."""

import random
from collections.abc import Iterable
from itertools import islice

from slm.errors import UserError


def sample(documents: Iterable[str], size: int, seed: int) -> list[str]:
    """`size` documents, sampled from the first 4 x `size`; no others are read. Raises: UserError: if `size` < 1."""
    if size < 1:
        raise UserError(f"tokenizer.sample_documents={size}: must be at least 1")
    return reservoir(islice(documents, 4 * size), size, random.Random(seed))


def reservoir(stream: Iterable[str], size: int, rng: random.Random) -> list[str]:
    """A uniform sample of `size` items without replacement (Vitter 1985, algorithm R)."""
    sample = []
    for seen, item in enumerate(stream):
        if seen < size:
            sample.append(item)
        elif (slot := rng.randrange(seen + 1)) < size:
            sample[slot] = item
    return sample
