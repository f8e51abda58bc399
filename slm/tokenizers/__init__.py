"""Text to ids and back. No torch here: a tokenizer works in any notebook.

A kind of tokenizer is a class with the methods of `Tokenizer` and two constructors:
`build(documents, **settings)`, which may learn from the documents, and `load(folder)`, the inverse of `save`.
"""

import json
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from slm.errors import UserError

KINDS = {  # the kind written into tokenizer.json -> where its class lives
    "sentencepiece": "slm.tokenizers.sentencepiece:SentencePieceTokenizer",
    "characters": "slm.tokenizers.characters:CharacterTokenizer",
    "bytes": "slm.tokenizers.bytes:ByteTokenizer",
    "gpt2": "slm.tokenizers.gpt2:GPT2Tokenizer",
}


class Damaged(UserError):
    """A folder that holds no tokenizer that can be loaded."""


class Tokenizer(Protocol):
    """What the rest of the code may ask of a tokenizer. Text never contains control ids: `eos` is only ever added
    by the token store and produced by a model, and text that spells a special token stays text."""

    vocab_size: int
    eos: int  # the id that ends a document

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array of ids per text, equal to `encode` of each, on the library's own threads where it has
        them."""
        return [np.array(self.encode(text), dtype=np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Control ids have no text; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one id stands for, empty for a control id; their concatenation is the UTF-8 of `decode`."""

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json (with the kind) and whatever else `load` needs. Same tokenizer, same bytes."""


def load(folder: Path) -> Tokenizer:
    """The tokenizer that `save` wrote into the folder."""
    kind = read_settings(folder).get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise Damaged(f"{folder} holds a tokenizer of kind {kind!r}; known are {', '.join(KINDS)}")
    module, name = KINDS[kind].split(":")
    return getattr(import_module(module), name).load(folder)


def write_settings(folder: Path, settings: dict) -> None:
    """tokenizer.json, in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8", newline="\n")


def read_settings(folder: Path) -> dict:
    """The inverse of `write_settings`."""
    try:
        settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Damaged(f"no tokenizer.json in {folder}; a saved tokenizer is a folder that holds one") from None
    except (ValueError, RecursionError):
        raise damaged(folder, "tokenizer.json") from None
    if not isinstance(settings, dict):
        raise damaged(folder, "tokenizer.json")
    return settings


def damaged(folder: Path, file: str) -> Damaged:
    return Damaged(f"{folder / file} is missing or damaged; delete the folder to build the tokenizer again")
