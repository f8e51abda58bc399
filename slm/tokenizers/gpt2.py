"""The vocabulary of GPT-2, which tokenizer=gpt2 names without a setting."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from slm.files import atomic
from slm.tokenizers import write_settings
from slm.tokenizers.tiktoken import ENCODINGS, RANKS, Ranks, TiktokenTokenizer, fetch_ranks, read_ranks


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
        return cls(read_ranks(folder, ENCODINGS["gpt2"].sha256)[1])

    def save(self, folder: Path) -> None:
        write_settings(folder, {"kind": "gpt2"})
        atomic.write(folder / RANKS, self._content())
