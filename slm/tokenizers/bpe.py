"""Byte-level byte-pair encoding, learned here: bytes, merges as learned, then an id for the end of a document.

Lossless. No text is encoded as the last id, since no merge produces it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Self, get_args

import numpy as np

from slm.errors import UserError
from slm.tokenizers import Tokenizer, read_saved, write_saved
from slm.tokenizers.merges import BYTES, IDS, apply, learn
from slm.tokenizers.sample import sample
from slm.tokenizers.split import Pattern, splitter
from slm.tokenizers.words import WordCache

MERGES = "merges.txt"  # a line per merge, in the notation of GPT-2's vocab.bpe
CHARACTERS = "".join(map(chr, [*BYTES[:188], *range(256, 324)]))  # GPT-2's, of the ids 0-255
NOTATION = dict(zip(CHARACTERS, BYTES))
SMALLEST = 256 + 1 + 1  # ids: the bytes, a merge, eos


class BPETokenizer(Tokenizer):
    in_processes = True

    def __init__(self, merges: Sequence[tuple[bytes, bytes]], settings: dict):
        """`merges` are pairs of pieces, each a byte or made by an earlier merge. Raises: KeyError: for another one."""
        self.merges, self.settings = merges, settings  # the latter: the arguments of `build`
        ids = {bytes([byte]): token for token, byte in enumerate(BYTES)}
        table = {}
        for rank, (left, right) in enumerate(merges):
            table.setdefault((ids[left], ids[right]), (rank, ids.setdefault(left + right, len(ids))))
        self._bytes = [*ids, b""]
        self.eos, self.vocab_size = len(ids), len(ids) + 1
        self._split = splitter(settings["pattern"])
        self._words = WordCache(lambda word: apply(table, word.encode()))

    @classmethod
    def build(
        cls, documents: Iterable[str], *, vocab_size: int, pattern: Pattern, sample_documents: int, seed: int
    ) -> Self:
        """Learns from `sample_documents` documents, sampled from the first 4 x `sample_documents`; reads no others.

        Raises: UserError: for a vocabulary size that these documents do not allow, or documents without text.
        """
        check_settings(vocab_size, pattern)
        words = count_words(sample(documents, sample_documents, seed), pattern)
        settings = {"vocab_size": vocab_size, "pattern": pattern, "sample_documents": sample_documents, "seed": seed}
        tokenizer = cls(learn(words, vocab_size - 1), settings)
        if tokenizer.vocab_size < vocab_size:
            raise too_large(vocab_size, tokenizer.vocab_size)
        return tokenizer

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`. Raises: Damaged: if the merges are missing, changed, or not in an order of merges."""
        settings, content = read_saved(folder, MERGES)
        lines = [line.split(" ") for line in content.decode().splitlines()]
        return cls([(in_bytes(left), in_bytes(right)) for left, right in lines], settings)

    def save(self, folder: Path) -> None:
        lines = (f"{in_characters(left)} {in_characters(right)}\n" for left, right in self.merges)
        write_saved(folder, {"kind": "bpe", **self.settings}, MERGES, "".join(lines).encode())

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        self._words.limit()
        words = (map(self._words.__getitem__, self._split(text)) for text in texts)
        return [np.fromiter(chain.from_iterable(ids), dtype=np.int32) for ids in words]


def check_settings(vocab_size: int, pattern: str):
    """Raises: UserError: for an unknown pattern or too few ids."""
    if pattern not in get_args(Pattern):
        raise UserError(f"tokenizer.pattern={pattern}: must be {' or '.join(get_args(Pattern))}")
    if vocab_size < SMALLEST:
        raise UserError(f"tokenizer.vocab_size={vocab_size} is too small: 256 bytes, eos and a merge need {SMALLEST}")


def count_words(documents: Iterable[str], pattern: Pattern) -> Counter[bytes]:
    """How often each word occurs. Raises: UserError: for documents without text."""
    words = Counter(chain.from_iterable(map(splitter(pattern), documents)))
    if not words:
        raise UserError("the documents contain no text to train the tokenizer on; check the corpus")
    return Counter({word.encode(): count for word, count in words.items()})


def too_large(vocab_size: int, largest: int) -> UserError:
    if largest < SMALLEST:
        return UserError("no pair of bytes occurs twice in the documents; give more text, or tokenizer=bytes")
    return UserError(
        f"tokenizer.vocab_size={vocab_size} is too large for these documents; "
        f"use tokenizer.vocab_size={largest} or less, or more text"
    )


def in_characters(piece: bytes) -> str:
    """Bytes in the notation of GPT-2, a visible character for each: "\u0120the" for " the"."""
    return piece.translate(IDS).decode("latin-1").translate(CHARACTERS)


def in_bytes(notation: str) -> bytes:
    """The inverse of `in_characters`. Raises: KeyError: for a character that is not part of the notation."""
    return bytes(NOTATION[character] for character in notation)
