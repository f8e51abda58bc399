"""Encodes a text word by word and each distinct word only once, because most words of a text are repeated."""

from array import array
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

MAX_WORDS = 2**17  # kept between calls: bounds memory
MAX_IDS = 2**20  # of the kept words


class WordEncoder:
    """A cache in front of an encoder whose tokens never cross the start of a space.

    A text is split before every space: each word but the first begins with its space, and may be only the space.
    `encode` maps such a word to ids.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]]):
        self.encode = encode
        self.cache = _WordCache(encode)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array per text, equal to `encode` of the complete text."""
        if not texts:
            return []
        if len(self.cache) > MAX_WORDS or len(self.cache.flat) > MAX_IDS:
            self.cache = _WordCache(self.encode)
        split = [text.split(" ") for text in texts]
        for words in split:
            words[0] = (words[0],)  # a different key from the same word after a space
        numbers = np.fromiter(map(self.cache.__getitem__, chain.from_iterable(split)), dtype=np.int64)
        flat, ends = np.frombuffer(self.cache.flat, np.int32), np.frombuffer(self.cache.ends, np.int64)
        starts = ends[numbers]
        lengths = ends[numbers + 1] - starts
        stops = lengths.cumsum()
        ids = flat[np.arange(stops[-1]) + np.repeat(starts - stops + lengths, lengths)]
        return np.split(ids, stops[np.cumsum([len(words) for words in split[:-1]], dtype=np.int64) - 1])


class _WordCache(dict):
    """Word -> its number. The ids of word n are flat[ends[n] : ends[n + 1]]."""

    def __init__(self, encode: Callable[[str], Sequence[int]]):
        self.encode = encode
        self.flat, self.ends = array("i"), array("q", [0])

    def __missing__(self, word: str | tuple[str]) -> int:
        self.flat.extend(self.encode(" " + word if isinstance(word, str) else word[0]))
        self.ends.append(len(self.flat))
        self[word] = number = len(self)
        return number
