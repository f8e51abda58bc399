"""Random documents of planned sizes, with which a plan measures a training before its data is prepared.

A token is one character from FIRST on, so the random ids of a vocabulary of any size are a text that a tokenizer
restores.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slm.corpora import Split
from slm.tokenizers import Tokenizer, write_settings

FIRST = 0x20000  # above it Unicode has 983,040 characters without a gap


@dataclass(frozen=True)
class RandomText:
    """Documents of `length` ids below `vocab_size` - 1 in the mean, from half of it to half more, at most `longest`.

    `train` and `validation`: numbers of documents.
    """

    vocab_size: int
    length: float
    longest: int
    train: int
    validation: int

    def documents(self, split: Split) -> Iterator[str]:
        rng, most = np.random.default_rng(0), max(self.longest - 1, 1)  # with eos not longer than `longest`
        for _ in range(self.train if split == "train" else self.validation):
            count = int(np.clip(rng.uniform(0.5, 1.5) * (self.length - 1), 1, most))
            ids = rng.integers(self.vocab_size - 1, size=count, dtype=np.uint32)
            yield (ids + FIRST).tobytes().decode(f"utf-32-{sys.byteorder[0]}e")

    def fingerprint(self) -> str:
        return "random"


class RandomTokenizer(Tokenizer):
    """The tokenizer of a RandomText: an id for each character, eos the last one. Other text has arbitrary ids."""

    def __init__(self, vocab_size: int):
        self.vocab_size, self.eos = vocab_size, vocab_size - 1

    def save(self, folder: Path) -> None:
        write_settings(folder, {"kind": "random", "vocab_size": self.vocab_size})

    def encode(self, text: str) -> list[int]:
        return [(ord(character) - FIRST) % self.eos for character in text]

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == self.eos else chr(FIRST + token).encode()
