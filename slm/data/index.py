"""Where the documents of a token store begin: a file beside its shards, written once."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from slm.files import atomic

PIECE = 2**24  # ids that are searched at a time


def bounds(path: Path, shards: Sequence[np.ndarray], eos: int) -> np.ndarray:
    """The places of a split, in ids, at which its documents begin, and the last one ends (D + 1,), int64.

    Mapped from the file `path`, which is written if it is missing or damaged. Where it cannot be written, the array is
    in memory.
    """
    with contextlib.suppress(OSError):
        if not atomic.is_intact(path):
            atomic.remove_partial(path)
            with atomic.replacing(path, digest=True) as file:
                for ends in _ends(shards, eos):
                    file.write(ends.tobytes())
        return np.memmap(path, np.int64, "r")
    return np.concatenate([*_ends(shards, eos)])


def _ends(shards: Sequence[np.ndarray], eos: int) -> Iterator[np.ndarray]:
    """A first 0, then the ends of documents. The last one is that of the split."""
    start, end = 0, 0
    yield np.array([0])
    for shard in shards:
        for place in range(0, len(shard), PIECE):
            ends = np.flatnonzero(shard[place : place + PIECE] == eos) + start + place + 1
            end = ends[-1] if len(ends) else end
            yield ends
        start += len(shard)
    if end < start:
        yield np.array([start])
