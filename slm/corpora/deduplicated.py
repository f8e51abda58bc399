"""data.deduplicate=exact: a corpus in which every document occurs once, on one side only."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from slm.corpora import Corpus, Place, Split
from slm.corpora.wrapped import Wrapped, wrapped
from slm.errors import UserError


class Digests:
    """A set of 64-bit digests: 8 bytes each, and as much again for a moment while new ones are sorted in.

    That two different documents have one digest is expected for 0.03 pairs among a billion documents.
    """

    def __init__(self, numbers: np.ndarray | None = None):
        self._sorted = np.unique(numbers) if numbers is not None else np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def __contains__(self, number: int) -> bool:
        if number in self._recent:
            return True
        place = self._sorted.searchsorted(np.uint64(number))
        return place < len(self._sorted) and int(self._sorted[place]) == number

    def add(self, number: int) -> bool:
        """True if the digest is new."""
        if number in self:
            return False
        self._recent.add(number)
        if len(self._recent) > max(2**14, len(self._sorted) // 64):
            self._sorted = np.concatenate([self._sorted, np.fromiter(self._recent, np.uint64)])
            self._sorted.sort(kind="stable")
            self._recent.clear()
        return True


def digest(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


class Deduplicated(Wrapped):
    """The documents of `corpus`, each at its first place. What validation has is dropped from train.

    Read in order, validation first; if train is read alone, validation is read before it.
    """

    setting = "deduplicate=exact"

    def __init__(self, corpus: Corpus):
        super().__init__(corpus)
        self.known: dict[Split, Digests] = {}
        self.dropped: Counter[str] = Counter()  # train: earlier in train; held_out: in validation; validation
        self._complete: set[Split] = set()

    def documents(self, split: Split) -> Iterator[str]:
        """Raises: UserError: from the corpus; if all train documents are in validation."""
        self._begin(split)
        empty = True
        for text in self._first(split, self.corpus.documents(split)):
            empty = False
            yield text
        if split == "train" and self.dropped["held_out"] and empty:
            raise UserError("data.deduplicate=exact leaves no train document: validation has all of them, too")
        self._complete.add(split)

    def _begin(self, split: Split):
        if split == "train" and "validation" not in self._complete:
            for _ in self.documents("validation"):
                pass
        self.known[split] = Digests()
        for name in ("train", "held_out") if split == "train" else ("validation",):
            self.dropped[name] = 0

    def _first(self, split: Split, documents: Iterator[str]) -> Iterator[str]:
        known, held_out = self.known[split], self.known["validation"] if split == "train" else ()
        for text in documents:
            number = digest(text)
            if number in held_out:
                self.dropped["held_out"] += 1
            elif known.add(number):
                yield text
            else:
                self.dropped[split] += 1


class DeduplicatedParts(Deduplicated):
    """The same of a corpus that is read part by part. What was `known` and `dropped` before `place` must be set."""

    def parts(self, split: Split, place: Place) -> Iterator[Iterator[str]]:
        """As of the corpus, see `Hub.parts`."""
        if place.file == 0:
            self._begin(split)
        for part in self.corpus.parts(split, place):
            yield self._first(split, part)
        self._complete.add(split)


def deduplicated(corpus: Corpus) -> Corpus:
    """The corpus without repeated documents; of a mixture, each source for itself."""
    return wrapped(corpus, _deduplicated)


def _deduplicated(corpus: Corpus) -> Deduplicated:
    if hasattr(corpus, "store"):
        raise UserError("data.deduplicate=exact compares texts, and data=litdata holds token ids: give none")
    return (DeduplicatedParts if hasattr(corpus, "parts") else Deduplicated)(corpus)
