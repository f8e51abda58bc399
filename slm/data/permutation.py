"""A permutation of many indices in closed form: each is computed from its place, with memory for none."""

import math

import numpy as np

ROUNDS = 6


class Permutation:
    """A permutation of 0 to `length` - 1, plus `first`, by its keys (ROUNDS,); a slice is computed when it is read.

    A Feistel network (Luby and Rackoff 1988) on two digits to the base ceil(sqrt(length)). It permutes base^2 indices;
    those that leave the range are permuted again until they are in it.
    """

    def __init__(self, length: int, keys: np.ndarray, first: int = 0):
        self.length, self.keys, self.first = length, keys.astype(np.uint64), first
        self.base = np.uint64(math.isqrt(length - 1) + 1)

    def __getitem__(self, places: slice) -> np.ndarray:
        """The indices at these places, int64."""
        indices = self._network(np.arange(*places.indices(self.length), dtype=np.uint64))
        while len(outside := np.flatnonzero(indices >= self.length)):
            indices[outside] = self._network(indices[outside])
        return indices.astype(np.int64) + self.first

    def _network(self, indices: np.ndarray) -> np.ndarray:
        left, right = np.divmod(indices, self.base)
        for key in self.keys:
            left, right = right, (left + mixed(right ^ key) % self.base) % self.base
        return left * self.base + right


def mixed(bits: np.ndarray) -> np.ndarray:
    """A hash of each uint64: the last steps of SplitMix64 (Steele, Lea and Flood 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
