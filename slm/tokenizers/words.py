"""Encodes a text word by word and each distinct word only once, because most words of a text are repeated."""

from collections.abc import Callable, Hashable, Sequence
from itertools import chain

import numpy as np

MAX_WORDS = 2**17  # kept between calls: bounds memory
MAX_TOKENS = 64  # of a word that is kept


class WordEncoder:
    """A cache in front of an encoder whose tokens never cross the start of a space.

    A text is split before every space: each word but the first begins with its space, and may be only the space.
    `encode` maps such a word to ids.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]]):
        self.cache = WordCache(lambda word: encode(" " + word if isinstance(word, str) else word[0]))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array per text, equal to `encode` of the complete text."""
        self.cache.limit()
        return [self._encoded(text) for text in texts]

    def _encoded(self, text: str) -> np.ndarray:
        words: list[str | tuple[str]] = text.split(" ")
        words[0] = (words[0],)  # a different key from the same word after a space
        return np.fromiter(chain.from_iterable(map(self.cache.__getitem__, words)), dtype=np.int32)


class WordCache(dict):
    """Word -> its ids."""

    def __init__(self, encode: Callable[[Hashable], Sequence[int]]):
        self.encode = encode

    def __missing__(self, word: Hashable) -> Sequence[int]:
        ids = self.encode(word)
        if len(ids) <= MAX_TOKENS:
            self[word] = ids
        return ids

    def limit(self):
        """Empties a cache of more than MAX_WORDS words."""
        if len(self) > MAX_WORDS:
            self.clear()
