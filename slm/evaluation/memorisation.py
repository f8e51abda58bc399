"""How much of a text occurs word for word in the training text: n-grams of ids, looked up in one pass over the shards.

Memory does not depend on the size of train: what is looked up is in it, train is mapped. Hashes have 64 bits, and each
hit is compared with the ids at its place.

Shapes: P ids of a piece of train, D documents that begin in it.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from slm.analysis.corpus_overlap import Index
from slm.data.encode import progress
from slm.data.store import TokenStore
from slm.evaluation.intervals import Bootstrap, share
from slm.tables import clock

NGRAMS = 4, 8, 16, 32
LONGER = 64, 128, 256, 512, 1024  # lengths between which the longest copy is sought
PIECE = 2**20  # ids of train that are hashed at a time
BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse


class Hashes:
    """The hashes of all stretches of ids: the sum of 64 random bits for each id times powers of BASE, modulo 2^64."""

    powers = inverses = np.empty(0, np.uint64)

    def __init__(self, ids: np.ndarray):
        if len(ids) > len(self.powers):
            Hashes.powers, Hashes.inverses = (_powers(base, len(ids)) for base in (BASE, pow(BASE, -1, 2**64)))
        self.sums = np.concatenate([[np.uint64(0)], np.cumsum(_mixed(ids) * self.powers[: len(ids)])])

    def ngrams(self, n: int) -> np.ndarray:
        """Of the n ids from each place on (P - n + 1,)."""
        count = max(0, len(self.sums) - n)
        return (self.sums[n:] - self.sums[:count]) * self.inverses[:count]

    def between(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Of the ids from each start to each end."""
        return (self.sums[ends] - self.sums[starts]) * self.inverses[starts]


def _powers(base: int, count: int) -> np.ndarray:
    return np.concatenate([[np.uint64(1)], np.cumprod(np.full(count, base, np.uint64))])


def _mixed(ids: np.ndarray) -> np.ndarray:
    """64 random bits for each id: splitmix64 (Steele et al. 2014)."""
    x = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(BASE)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Lookup:
    """The n-grams of texts that train has: `found`, one array of booleans for each text."""

    def __init__(self, texts: Sequence[np.ndarray], n: int):
        self.texts, self.n, self.reach = texts, n, n
        self._keep([Hashes(ids).ngrams(n) for ids in texts])

    def _keep(self, own: Sequence[np.ndarray]):
        self.ends, self.own = np.cumsum([0, *map(len, own)]), np.concatenate([*own, np.empty(0, np.uint64)])
        self.index = Index(self.own)
        self.place = np.full(len(self.index.hashes), -1, np.int64)  # in train, of one occurrence

    def look(self, hashes: Hashes, start: int, bounds: np.ndarray):
        """Takes note of what occurs in a piece of train that begins at id `start`; `bounds` of documents in it."""
        asked, places = self.index.places(hashes.ngrams(self.n))
        self.place[places] = asked + start

    def finish(self, shards: Sequence[np.ndarray]):
        """Compares each hit with train."""
        starts, hit = np.cumsum([0, *map(len, shards)]), np.zeros(len(self.own), bool)
        place = self.place[np.searchsorted(self.index.hashes, self.own)] if len(self.own) else self.own
        for number in np.flatnonzero(place >= 0).tolist() if len(self.own) else ():
            text = int(np.searchsorted(self.ends, number, side="right")) - 1
            ids = self._ids(text, number - int(self.ends[text]))
            hit[number] = np.array_equal(ids_at(shards, starts, int(place[number]), len(ids)), ids)
        self.found = [hit[begin:end] for begin, end in zip(self.ends, self.ends[1:])]

    def _ids(self, text: int, first: int) -> np.ndarray:
        return self.texts[text][first : first + self.n]


class Whole(Lookup):
    """Whether texts are whole documents of train."""

    def __init__(self, texts: Sequence[np.ndarray], eos: int):
        self.texts, self.eos, self.reach = texts, np.array([eos]), max(map(len, texts)) + 1
        self._keep([Hashes(ids).ngrams(len(ids)) for ids in texts])

    def look(self, hashes: Hashes, start: int, bounds: np.ndarray):
        starts, ends = bounds[:-1], bounds[1:] - 1  # without eos
        short = ends - starts < self.reach
        asked, places = self.index.places(hashes.between(starts[short], ends[short]))
        self.place[places] = starts[short][asked] + start

    def _ids(self, text: int, first: int) -> np.ndarray:
        return np.concatenate([self.texts[text], self.eos])


def ids_at(shards: Sequence[np.ndarray], starts: np.ndarray, place: int, count: int) -> np.ndarray:
    """`count` ids of train from a place on, which may reach into the next shard."""
    parts, shard = [np.empty(0, np.int64)], int(np.searchsorted(starts, place, side="right")) - 1
    while count > 0 and shard < len(shards):
        first = place - int(starts[shard])
        parts.append(np.asarray(shards[shard][first : first + count], np.int64))
        place, count, shard = int(starts[shard + 1]), count - len(parts[-1]), shard + 1
    return np.concatenate(parts)


def read_train(store: TokenStore, eos: int, lookups: Sequence[Lookup], action: str = ""):
    """One pass over train for all lookups, with a line of progress if the `action` has a name."""
    shards = store.shards("train")
    starts = np.cumsum([0, *map(len, shards)])
    bounds = store.bounds("train", eos) if store.has_ends else np.zeros(1, np.int64)
    total, done, begin = int(starts[-1]), 0, time.perf_counter()
    overlap = max(lookup.reach for lookup in lookups) - 1

    def line() -> str:
        read = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} million train tokens"
        return f"{action}: {read}, {clock(time.perf_counter() - begin)}"

    with progress(line) if action else nullcontext(lambda: None) as show:
        for start in range(0, total, PIECE):
            ids = ids_at(shards, starts, start, min(PIECE + overlap, total - start))
            first, last = np.searchsorted(bounds, [start, start + len(ids)], side="left")
            inside = np.asarray(bounds[first : last + 1]) - start
            hashes = Hashes(ids)
            for lookup in lookups:
                lookup.look(hashes, start, inside[inside <= len(ids)])
            done = min(start + PIECE, total)
            show()
    for lookup in lookups:
        lookup.finish(shards)


def measure(
    rows: Mapping[str, Sequence[np.ndarray]], store: TokenStore, eos: int, seed: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The measures of each row of texts (ids without eos), and the ids of the longest copy of each."""
    texts = [ids for row in rows.values() for ids in row]
    longest = max(map(len, texts))
    lookups = [Lookup(texts, n) for n in (*NGRAMS, *LONGER) if n <= longest]
    whole = [Whole(texts, eos)] if store.has_ends else []
    read_train(store, eos, [*lookups, *whole], "memorisation")
    found, quoted, start = {}, {}, 0
    for name, row in rows.items():
        part = slice(start, start := start + len(row))
        hits = {lookup.n: lookup.found[part] for lookup in lookups}
        quoted[name] = longest_copy(row, hits, store, eos)
        found[name] = {"n": len(row), "ngrams": _shares(hits, seed), "longest_copy": len(quoted[name])}
        for lookup in whole:
            found[name]["duplicates"] = share(sum(int(hit.any()) for hit in lookup.found[part]), len(row))
    return {"train_tokens": store.tokens("train"), "rows": found}, quoted


def _shares(hits: Mapping[int, Sequence[np.ndarray]], seed: int) -> dict[str, Any]:
    """The share of the n-grams of all texts that train has, with its interval over texts."""
    shares = {}
    for n in NGRAMS:
        found = [hit for hit in hits.get(n, ()) if len(hit)]
        if not found:
            continue
        above, below = (np.array([count(hit) for hit in found], float) for count in (np.sum, len))
        if 0 < above.sum() < below.sum():
            shares[str(n)] = Bootstrap(len(found), seed).ratio(above, below)
        else:  # nothing to resample; by texts, since the n-grams of a text depend on one another
            shares[str(n)] = share(int(above.any()) * len(found), len(found))
    return shares


def longest_copy(
    texts: Sequence[np.ndarray], hits: Mapping[int, Sequence[np.ndarray]], store: TokenStore, eos: int
) -> np.ndarray:
    """The ids of the longest stretch of a text that train has, by bisection between two lengths of `hits`."""
    low = max((n for n, found in hits.items() if any(hit.any() for hit in found)), default=0)
    if not low:
        return np.empty(0, np.int64)
    found = hits[low]
    texts, found = zip(*((ids, hit) for ids, hit in zip(texts, found) if hit.any()))
    high = min(2 * low, max(map(len, texts)) + 1)
    while high - low > 1:
        middle = Lookup(texts, (low + high) // 2)
        read_train(store, eos, [middle])
        if any(hit.any() for hit in middle.found):
            low, found = middle.n, middle.found
        else:
            high = middle.n
    return next(ids[hit.argmax() :][:low] for ids, hit in zip(texts, found) if hit.any())
