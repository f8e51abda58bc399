"""One id per UTF-8 byte and one end-of-document id. Lossless, without training or a library."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from slm.tokenizers import Tokenizer, write_settings


class ByteTokenizer(Tokenizer):
    vocab_size = 257
    eos = 256

    @classmethod
    def build(cls, documents: Iterable[str]) -> Self:
        """Does not read the documents."""
        return cls()

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls()

    def save(self, folder: Path) -> None:
        write_settings(folder, {"kind": "bytes"})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]

    def token_bytes(self, token: int) -> bytes:
        return b"" if token == self.eos else bytes([token])
