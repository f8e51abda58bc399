"""The ids of a text from those of its words, each of which is encoded once: text repeats its words."""

from array import array
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

MAX_WORDS = 2**17  # kept from one call to the next: bounds memory
MAX_IDS = 2**20  # of the kept words


class Words:
    """For an encoder of which no token goes across the start of a space.

    A text is cut before every space. `encode` gives the ids of what lies between two cuts: a word, or nothing, behind
    its space; only at the start of a text is there none.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]]):
        self.encode = encode
        self.known = _Known(encode)

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array per text, equal to `encode` of the whole text."""
        if not texts:
            return []
        if len(self.known) > MAX_WORDS or len(self.known.flat) > MAX_IDS:
            self.known = _Known(self.encode)
        cut = [text.split(" ") for text in texts]
        for words in cut:
            words[0] = (words[0],)  # another key than that of the same word behind a space
        numbers = np.fromiter(map(self.known.__getitem__, chain.from_iterable(cut)), dtype=np.int64)
        flat, ends = np.frombuffer(self.known.flat, np.int32), np.frombuffer(self.known.ends, np.int64)
        starts = ends[numbers]
        lengths = ends[numbers + 1] - starts
        stops = lengths.cumsum()
        ids = flat[np.arange(stops[-1]) + np.repeat(starts - stops + lengths, lengths)]
        return np.split(ids, stops[np.cumsum([len(words) for words in cut[:-1]], dtype=np.int64) - 1])


class _Known(dict):
    """Word -> its number. The ids of word n are flat[ends[n] : ends[n + 1]]."""

    def __init__(self, encode: Callable[[str], Sequence[int]]):
        self.encode = encode
        self.flat, self.ends = array("i"), array("q", [0])

    def __missing__(self, word: str | tuple[str]) -> int:
        self.flat.extend(self.encode(" " + word if isinstance(word, str) else word[0]))
        self.ends.append(len(self.flat))
        self[word] = number = len(self)
        return number
