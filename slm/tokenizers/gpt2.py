"""The vocabulary of GPT-2, which tokenizer=gpt2 names without a setting."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from slm.tokenizers.tiktoken import ENCODINGS, Ranks, TiktokenTokenizer, fetch_ranks, read_ranks


class GPT2Tokenizer(TiktokenTokenizer):
    def __init__(self, ranks: Ranks):
        super().__init__("gpt2", ranks)

    @classmethod
    def build(cls, documents: Iterable[str]) -> Self:
        """Does not read the documents. Raises: UserError: without tiktoken, or without network and cache."""
        return cls(fetch_ranks("gpt2"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`. Raises: Damaged: if the ranks are missing or changed; UserError: without tiktoken."""
        return cls(read_ranks(folder, ENCODINGS["gpt2"].sha256))

    def save(self, folder: Path) -> None:
        self._write(folder, {"kind": "gpt2"})
