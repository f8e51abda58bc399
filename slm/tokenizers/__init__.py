"""Text to ids and back. No torch here: a tokenizer works in any notebook.

A kind of tokenizer is a class with the methods of `Tokenizer` and two constructors:
`build(documents, **settings)`, which may learn from the documents, and `load(folder)`, the inverse of `save`.
"""

import json
from collections.abc import Sequence
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


class Tokenizer(Protocol):
    """What the rest of the code may ask of a tokenizer. Text never contains control ids: `eos` is only ever added
    by the token store and produced by a model, and text that spells a special token stays text."""

    vocab_size: int
    eos: int  # the id that ends a document

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of ids per text, equal to `encode` of each, on the library's own threads where it has them."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids. Control ids have no text; bytes that are no UTF-8 become U+FFFD."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one id stands for, empty for a control id; their concatenation is the UTF-8 of `decode`."""

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json (with the kind) and whatever else `load` needs. Same tokenizer, same bytes."""


def load(folder: Path) -> Tokenizer:
    """The tokenizer that `save` wrote into the folder."""
    try:
        kind = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["kind"]
    except FileNotFoundError:
        raise UserError(f"no tokenizer.json in {folder}; a saved tokenizer is a folder that holds one") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'tokenizer.json'} is damaged; delete the folder to build it again") from None
    if kind not in KINDS:
        raise UserError(f"{folder} holds a tokenizer of kind {kind!r}; known are {', '.join(KINDS)}")
    module, name = KINDS[kind].split(":")
    return getattr(import_module(module), name).load(folder)
