"""Conversion of text to token ids and back, without torch.

A tokenizer class has the methods of `Tokenizer` and two constructors: `build(documents, **settings)`, which may learn
from the documents, and `load(folder)`, the inverse of `save`.
"""

import json
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from slm.errors import UserError
from slm.files import atomic

KINDS = {  # the "kind" in tokenizer.json -> module:class
    "sentencepiece": "slm.tokenizers.sentencepiece:SentencePieceTokenizer",
    "characters": "slm.tokenizers.characters:CharacterTokenizer",
    "bytes": "slm.tokenizers.bytes:ByteTokenizer",
    "gpt2": "slm.tokenizers.gpt2:GPT2Tokenizer",
}


class Damaged(UserError):
    """A folder without a tokenizer that can be loaded."""


class UnknownKind(Damaged):
    """A saved tokenizer whose kind is not in KINDS. Only its own class can load it."""


class Tokenizer(Protocol):
    """The interface of a tokenizer. `encode` never returns control ids: text that spells a special token stays text.
    Only the token store adds `eos`, and only a model generates it."""

    vocab_size: int
    eos: int  # the id that ends a document

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids per text, equal to `encode` of each; may use several threads."""
        return [np.array(self.encode(text), dtype=np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Control ids have no text; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one id, empty for a control id. Raises IndexError or ValueError above the vocabulary."""

    def save(self, folder: Path) -> None:
        """Writes all files that `load` needs; the KINDS write their kind into tokenizer.json. Deterministic."""


def load(folder: Path) -> Tokenizer:
    """Loads a saved tokenizer of one of the KINDS; imports nothing that the folder names.

    Raises: Damaged: if a file is missing or damaged; UnknownKind: for a tokenizer class that is not part of slm.
    """
    kind = read_settings(folder).get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnknownKind(f"{folder} holds a tokenizer of kind {kind!r}, not {', '.join(KINDS)}; give its own class")
    module, name = KINDS[kind].split(":")
    return getattr(import_module(module), name).load(folder)


def write_settings(folder: Path, settings: dict) -> None:
    """Writes tokenizer.json; creates the folder if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8", newline="\n")


def read_settings(folder: Path) -> dict:
    """The inverse of `write_settings`. Raises: Damaged: if tokenizer.json is missing or not a JSON object."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise Damaged(f"{folder} has no tokenizer.json; give the folder of a saved tokenizer")
    if (settings := atomic.read_object(path)) is None:
        raise damaged(folder, path.name)
    return settings


def damaged(folder: Path, file: str) -> Damaged:
    """The exception for a missing or damaged file of a saved tokenizer."""
    return Damaged(f"{folder / file} is missing or damaged; delete the folder to build the tokenizer again")
