"""Documents in batches of code points, and hashes of their word n-grams: what the measurements of a corpus read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from unicodedata import category

import numpy as np

from slm.data.permutation import mixed

CHARACTERS = 2**20  # of a batch; longer documents are read in pieces, and no n-gram goes from one to the next
CODES = 0x110000  # of Unicode
ALONE = (  # scripts without spaces between words: each character counts as a word
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x9FFF)),
    *((0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 2**64) for power in range(64)], np.uint64)


@dataclass(frozen=True)
class Batch:
    """Pieces of documents one after another: `text`, and the number and place in `text` of each (pieces,)."""

    text: str
    numbers: np.ndarray
    starts: np.ndarray
    first: np.ndarray  # (pieces,) True for the first piece of a document

    @classmethod
    def of(cls, pieces: list[tuple[int, bool, str]]) -> "Batch":
        numbers, first, texts = zip(*pieces)
        lengths = np.array([len(text) for text in texts])
        return cls("".join(texts), np.array(numbers), np.cumsum(lengths) - lengths, np.array(first))

    @cached_property
    def codes(self) -> np.ndarray:
        """Code points (characters,)."""
        return np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), np.uint32)

    @cached_property
    def ends(self) -> np.ndarray:
        """The places in `text` at which the pieces end (pieces,)."""
        return np.append(self.starts[1:], len(self.text))

    def part(self, piece: int) -> str:
        """The text of a piece."""
        return self.text[self.starts[piece] : self.ends[piece]]

    def beginnings(self, limit: int) -> "Batch":
        """The first `limit` characters of each document, without later pieces."""
        if self.first.all() and (self.ends - self.starts).max() <= limit:
            return self
        rows = enumerate(zip(self.numbers.tolist(), self.first.tolist()))
        return Batch.of([(number, first, self.part(piece)[: limit * first]) for piece, (number, first) in rows])

    def piece_of(self, places: np.ndarray) -> np.ndarray:
        """The piece in which each place of the text is."""
        return np.searchsorted(self.starts, places, "right") - 1

    @cached_property
    def words(self) -> tuple[np.ndarray, np.ndarray]:
        """The hash of each word (words,), without case and punctuation, and its piece (words,)."""
        lowered, alone = word_tables()
        low = lowered[self.codes]
        inside = np.flatnonzero(low)
        if not len(inside):
            return np.empty(0, np.uint64), np.empty(0, int)
        begins = alone[self.codes[inside]]
        begins[1:] |= (np.diff(inside) > 1) | begins[:-1]
        begins[0] = True
        at_start = np.searchsorted(inside, self.starts)  # the first part of a word in each piece
        begins[at_start[at_start < len(inside)]] = True
        words = np.flatnonzero(begins)
        within = np.arange(len(inside)) - np.repeat(words, np.diff([*words, len(inside)]))
        hashes = np.add.reduceat(low[inside] * FACTORS[np.minimum(within, 63)], words)
        return mixed(hashes), self.piece_of(inside[words])

    def ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The hash of each n-gram of words (n-grams,), within one piece, and the piece (n-grams,)."""
        words, pieces = self.words
        count = len(words) - n + 1
        if count <= 0:
            return np.empty(0, np.uint64), np.empty(0, int)
        hashes = np.zeros(count, np.uint64)
        for place in range(n):
            hashes += words[place : place + count] * FACTORS[place + 1]
        whole = pieces[:count] == pieces[n - 1 :]
        return mixed(hashes[whole]), pieces[:count][whole]


def batches(documents: Iterable[str]) -> Iterator[Batch]:
    """The documents, numbered from 0, in batches of about CHARACTERS."""
    pieces, characters = [], 0
    for number, text in enumerate(documents):
        for start in range(0, len(text) or 1, CHARACTERS):
            pieces.append((number, start == 0, text[start : start + CHARACTERS]))
            characters += len(pieces[-1][2])
            if characters >= CHARACTERS:
                yield Batch.of(pieces)
                pieces, characters = [], 0
    if pieces:
        yield Batch.of(pieces)


@cache
def word_tables() -> tuple[np.ndarray, np.ndarray]:
    """By code point: itself in small letters if it is part of a word, else 0; and whether it is a word alone."""
    characters = map(chr, range(CODES))
    lowered = [ord(c.lower()[0]) if c.isalnum() or category(c)[0] == "M" else 0 for c in characters]
    alone = np.zeros(CODES, bool)
    for begin, end in ALONE:
        alone[begin : end + 1] = True
    return np.array(lowered, np.uint64), alone
