"""One id per character: 0 is <PAD>, 1 is <UNK>, then the alphabet. A character outside the alphabet becomes <UNK>.

The alphabet "ascii" is that of the first SmallLM: 32-126 in order (so 'H' is 42), then newline and tab, 99 ids.
That vocabulary has no end-of-document id, so <PAD>, which no text encodes to, is `eos`.
"""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Literal, Self

from slm.errors import UserError
from slm.tokenizers import Tokenizer, damaged, read_settings, write_settings

PAD, UNK = 0, 1
ASCII = "".join(map(chr, range(32, 127))) + "\n\t"


class CharacterTokenizer(Tokenizer):
    eos = PAD
    in_processes = True

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = 2 + len(characters)
        self._ids = {character: token for token, character in enumerate(characters, start=2)}
        self._bytes = [b"", "\ufffd".encode(), *(character.encode() for character in characters)]

    @classmethod
    def build(cls, documents: Iterable[str], *, alphabet: Literal["ascii", "corpus"]) -> Self:
        """ "ascii" reads no document; "corpus" reads all documents and takes their characters, sorted.

        Raises: UserError: for another alphabet, or if the documents are empty.
        """
        if alphabet == "ascii":
            return cls(ASCII)
        if alphabet != "corpus":
            raise UserError(f"tokenizer.alphabet={alphabet}: must be ascii or corpus")
        characters = set(chain.from_iterable(documents))
        if not characters:
            raise UserError("tokenizer.alphabet=corpus found no character in the documents; give text, or use ascii")
        return cls("".join(sorted(characters)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The inverse of `save`. Raises: Damaged: if the saved alphabet is not a string of distinct characters."""
        characters = read_settings(folder).get("characters")
        if not (isinstance(characters, str) and 0 < len(characters) == len(set(characters))):
            raise damaged(folder, "tokenizer.json")
        return cls(characters)

    def save(self, folder: Path) -> None:
        write_settings(folder, {"kind": "characters", "characters": self.characters})

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(character, UNK) for character in text]
