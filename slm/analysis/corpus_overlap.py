"""What documents have in common: word n-grams of validation that train has, and nearly equal documents by MinHash."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from slm.analysis.corpus_batches import Batch, batches

NGRAMS = (8, 13)  # words; 13: as in GPT-3's report (arXiv:2005.14165), appendix C
MAX_HASHES = 2**22  # n-grams of validation in memory for each n; beyond, those whose hash ends in zeros are taken
BITMAP_BITS = 24
SHINGLE = 5  # words of a shingle of MinHash
SIMILAR = 0.8  # Jaccard similarity of the shingles from which on documents are nearly equal
PERMUTATIONS = 128
COMPARED = 20_000  # characters of a document, from its start
MAX_CANDIDATES = 50_000  # documents for which MinHash is computed: bounds the time


class Index:
    """A set of 64-bit hashes: 8 bytes each, and 16 MiB that tell most absent ones quickly."""

    def __init__(self, hashes: np.ndarray):
        self.hashes = np.unique(hashes)
        self.bitmap = np.zeros(2**BITMAP_BITS, bool)
        self.bitmap[self.hashes >> np.uint64(64 - BITMAP_BITS)] = True

    def places(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the hashes are in the set, and their places in `self.hashes`."""
        asked = np.flatnonzero(self.bitmap[hashes >> np.uint64(64 - BITMAP_BITS)])
        places = np.searchsorted(self.hashes, hashes[asked])
        places[places == len(self.hashes)] = 0
        found = self.hashes[places] == hashes[asked] if len(self.hashes) else np.zeros(len(asked), bool)
        return asked[found], places[found]


class Overlap:
    """n-grams of the validation split that occur in train: first `add` validation, then `look` at train."""

    def __init__(self, n: int):
        self.n, self.zeros = n, 0  # bits at the end of the hashes that are taken
        self.parts: list[np.ndarray] = []
        self.index: Index | None = None
        self.counts = np.zeros(5, np.int64)

    def add(self, batch: Batch):
        self.parts.append(np.unique(self._taken(batch)[0]))
        while sum(map(len, self.parts)) > MAX_HASHES:
            self.parts = [np.unique(np.concatenate(self.parts))]
            if len(self.parts[0]) > MAX_HASHES // 2:
                self.zeros += 1
                self.parts = [part[part & np.uint64(2**self.zeros - 1) == 0] for part in self.parts]

    def look(self, batch: Batch):
        if self.index is None:
            self.index = Index(np.concatenate([*self.parts, np.empty(0, np.uint64)]))
            self.found = np.zeros(len(self.index.hashes), bool)
            self.parts.clear()
        self.found[self.index.places(self._taken(batch)[0])[1]] = True

    def tally(self, batch: Batch):
        """Counts, of validation read once more, the n-grams that train has, and the documents by their first piece."""
        hashes, pieces = self._taken(batch)
        asked, places = self.index.places(hashes)
        known = asked[self.found[places]]
        having, own = (np.bincount(pieces[rows], minlength=len(batch.starts)) for rows in (slice(None), known))
        one = batch.first & (having > 0)
        self.counts += [len(hashes), len(known), one.sum(), (one & (own > 0)).sum(), (one & (own * 2 >= having)).sum()]

    def result(self) -> dict[str, Any]:
        """`sampled`: the share of the n-grams that was taken; below 1, documents with one are not known."""
        total, hits, documents, one, half = self.counts.tolist()
        taken = {"ngrams": total, "in_train": hits, "sampled": 2.0**-self.zeros}
        return {**taken, "documents": documents, "documents_with_one": one, "documents_with_half": half}

    def _taken(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        hashes, pieces = batch.ngrams(self.n)
        if self.zeros:
            taken = hashes & np.uint64(2**self.zeros - 1) == 0
            return hashes[taken], pieces[taken]
        return hashes, pieces


class NearDuplicates:
    """Which documents of a sample have a nearly equal one in the whole split, by MinHash and LSH of datasketch.

    A document is a candidate if most of its shingles occur in the sample, which a similarity of SIMILAR implies; for
    candidates MinHash is computed. Raises: ModuleNotFoundError: without datasketch.
    """

    def __init__(self, sample: dict[int, str]):
        from datasketch import MinHashLSH

        # below SIMILAR, so that few similar pairs are missed; MinHash itself decides
        self.lsh = MinHashLSH(threshold=SIMILAR - 0.1, num_perm=PERMUTATIONS)
        self.sample, self.sketches, shingles = sample, {}, [np.empty(0, np.uint64)]
        numbers = list(sample)
        for batch in batches(sample.values()):
            batch = batch.beginnings(COMPARED)
            for piece, hashes in per_piece(*batch.ngrams(SHINGLE)):
                number = numbers[batch.numbers[piece]]
                shingles.append(hashes)
                self.sketches[number] = sketch(hashes)
                self.lsh.insert(number, self.sketches[number])
        self.index = Index(np.concatenate(shingles))
        self.similar: dict[int, str] = {}  # by the number of a sampled document: the beginning of the other one
        self.candidates = self.documents = 0

    def look(self, batch: Batch):
        """Compares the documents of a batch, unless there have been MAX_CANDIDATES."""
        if self.candidates >= MAX_CANDIDATES:
            return
        batch = batch.beginnings(COMPARED)
        hashes, pieces = batch.ngrams(SHINGLE)
        known = np.zeros(len(hashes), bool)
        known[self.index.places(hashes)[0]] = True
        totals, hits = (np.bincount(pieces[rows], minlength=len(batch.starts)) for rows in (slice(None), known))
        chosen = (hits >= SIMILAR * np.maximum(totals, 1)) & batch.first
        self.documents += int(batch.first.sum())
        kept = chosen[pieces]
        for piece, own in per_piece(hashes[kept], pieces[kept]):
            self._compare(int(batch.numbers[piece]), sketch(own), batch, piece)

    def _compare(self, number: int, own, batch: Batch, piece: int):
        self.candidates += 1
        for other in self.lsh.query(own):
            if other != number and other not in self.similar and own.jaccard(self.sketches[other]) >= SIMILAR:
                text = batch.part(piece)
                if text != self.sample[other]:
                    self.similar[other] = text[:200]

    def result(self) -> dict[str, Any]:
        from scipy.stats import binomtest

        size, found = len(self.sketches), len(self.similar)
        interval = binomtest(found, size).proportion_ci(0.95, "wilson") if size else (None, None)
        first = next(iter(self.similar.items()), None)
        example = first and [self.sample[first[0]][:200], first[1]]
        settings = {"words": SHINGLE, "similarity": SIMILAR, "permutations": PERMUTATIONS, "characters": COMPARED}
        known = {"sample": size, "similar": found, "low": interval[0], "high": interval[1], "compared": self.documents}
        return {**settings, **known, "example": example}


def per_piece(hashes: np.ndarray, pieces: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(piece, its distinct hashes)."""
    cuts = np.flatnonzero(np.diff(pieces)) + 1
    for part, own in zip(np.split(hashes, cuts), np.split(pieces, cuts)):
        if len(part):
            yield int(own[0]), np.unique(part)


@cache
def empty_sketch():
    """The MinHash of no shingle, with the permutations that all share."""
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, hashfunc=int, scheme="affine32")


def sketch(hashes: np.ndarray):
    """The MinHash of a document."""
    found = empty_sketch().copy()
    found.update_batch((hashes >> np.uint64(32)).tolist())
    return found
