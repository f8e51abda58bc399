"""Byte-pair encoding (Sennrich et al. 2016) over bytes: which pairs to merge, and the merges of one word.

The ids of the bytes are in the order of GPT-2's vocabulary, the printable ones first; each merge adds an id. A
vocabulary of this order equals the one that Hugging Face's `tokenizers` learns from the same words.
"""

import heapq
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

BYTES = bytes([*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173])  # id -> byte
IDS = bytes(np.argsort(np.frombuffer(BYTES, dtype=np.uint8)).astype(np.uint8))  # byte -> id
BORDER = -1  # between the words of a training
ONCE = 1  # a pair that occurs once is not worth an id

Merges = Mapping[tuple[int, int], tuple[int, int]]  # a pair of ids -> its rank, and the id that replaces it


def learn(words: Mapping[bytes, int], size: int) -> list[tuple[bytes, bytes]]:
    """The pairs of pieces to merge for `size` ids, each time the most frequent, of several that with the smallest ids.

    `words` maps each word to its count. Ends early if no pair occurs twice. The memory is 12 bytes per byte of the
    distinct words, and a merge takes one pass over their ids (0.3 ms per million); the counts are updated only where
    the merge changed a neighbour.
    """
    ids = np.frombuffer(b"".join(words).translate(IDS), dtype=np.uint8).astype(np.int32)
    lengths = np.fromiter(map(len, words), dtype=np.int64)
    counts = np.repeat(np.fromiter(words.values(), dtype=np.int64), lengths)
    borders = np.concatenate([[0], np.cumsum(lengths)])
    ids, counts = np.insert(ids, borders, BORDER), np.insert(counts, borders, 0)
    pairs, merges = PairCounts(), []
    pairs.add(*keys(ids, counts, np.arange(len(ids) - 1)))
    pieces = [bytes([byte]) for byte in BYTES]
    known = {piece: token for token, piece in enumerate(pieces)}
    while len(pieces) < size and (pair := pairs.most_frequent()):
        merges.append((pieces[pair[0]], pieces[pair[1]]))
        piece = b"".join(merges[-1])
        if (new := known.setdefault(piece, len(pieces))) == len(pieces):
            pieces.append(piece)
        ids, counts = merge(ids, counts, pair, new, pairs)
    return merges


def merge(ids: np.ndarray, counts: np.ndarray, pair: tuple[int, int], new: int, pairs: "PairCounts"):
    """`ids` and `counts` (T,) with the pair replaced by the new id everywhere, from left to right; updates `pairs`."""
    hits = np.flatnonzero(ids == pair[0])
    hits = hits[ids[hits + 1] == pair[1]]
    if pair[0] == pair[1]:  # in a run such as "aaaa" every second hit overlaps with the one before
        starts = np.diff(hits, prepend=-2) != 1
        hits = hits[(hits - hits[starts][np.cumsum(starts) - 1]) % 2 == 0]
    before = keys(ids, counts, np.unique(np.concatenate([hits - 1, hits, hits + 1])))
    ids[hits] = new
    kept = np.ones(len(ids), dtype=bool)
    kept[hits + 1] = False
    ids, counts = ids[kept], counts[kept]
    hits -= np.arange(len(hits))  # each hit before this one has removed an id
    after = keys(ids, counts, np.unique(np.concatenate([hits - 1, hits])))
    pairs.add(np.concatenate([before[0], after[0]]), np.concatenate([-before[1], after[1]]))
    return ids, counts


def keys(ids: np.ndarray, counts: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that begin at these places, each as one number in the order of pairs, and the counts of their words."""
    left, right = ids[places].astype(np.int64), ids[places + 1].astype(np.int64)
    inside = (left != BORDER) & (right != BORDER)
    return (left << 32 | right)[inside], counts[places][inside]


class PairCounts:
    """How often each pair occurs, and a heap of (-count, pair), in which a count may be one of earlier."""

    def __init__(self):
        self.counts: dict[int, int] = {}
        self.heap: list[tuple[int, int]] = []

    def add(self, keys: np.ndarray, changes: np.ndarray):
        """Changes the counts of pairs, which may be repeated."""
        unique, places = np.unique(keys, return_inverse=True)
        totals = np.bincount(places, weights=changes, minlength=len(unique)).astype(np.int64)  # exact below 2^53
        for key, change in zip(unique.tolist(), totals.tolist()):
            self.counts[key] = count = self.counts.get(key, 0) + change
            if change > 0:  # a smaller count is found when the old one reaches the top
                heapq.heappush(self.heap, (-count, key))

    def most_frequent(self) -> tuple[int, int] | None:
        """The most frequent pair, None if none occurs twice."""
        while self.heap:
            count, key = heapq.heappop(self.heap)
            if (now := self.counts[key]) == -count > ONCE:
                return key >> 32, key & 0xFFFFFFFF
            if ONCE < now < -count:
                heapq.heappush(self.heap, (-now, key))
        return None


def apply(merges: Merges, word: bytes) -> list[int]:
    """The ids of a word: the merge of the lowest rank first, from left to right; O(n log n) in its n bytes."""
    ids, end = [*word.translate(IDS), BORDER], len(word)
    before, after = list(range(-1, end)), list(range(1, end + 2))
    found = ((merges.get(pair), place) for place, pair in enumerate(pairwise(ids)))
    heap = [(known[0], place) for known, place in found if known]
    heapq.heapify(heap)
    while heap:
        rank, place = heapq.heappop(heap)
        gone = after[place]
        known = merges.get((ids[place], ids[gone])) if ids[place] != BORDER else None
        if known is None or known[0] != rank:  # one of the two has been merged with another neighbour
            continue
        ids[place], ids[gone] = known[1], BORDER
        following = after[place] = after[gone]
        before[following] = place
        for first, second in ((before[place], place), (place, following)):
            if first >= 0 and (known := merges.get((ids[first], ids[second]))):
                heapq.heappush(heap, (known[0], first))
    return [token for token in ids if token != BORDER]
