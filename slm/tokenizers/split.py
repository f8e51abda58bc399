"""The split patterns of GPT-2 and GPT-4: a text is cut into words, and byte-pair merges never cross their borders.

Python's `re` has no classes of Unicode's categories, so `splitter` writes the patterns with those that it has. Every
character is part of a word, so the words of a text concatenate to it.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Literal

Pattern = Literal["gpt2", "gpt4"]

PATTERNS: dict[Pattern, str] = {  # as published, for libraries with \p{L} (letters) and \p{N} (numbers)
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+",
    "gpt4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
    r"\s+(?!\S)|\s+",
}
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's; \s has \x1c-\x1f, too
MAX_CHARACTERS = 2**14  # of a word: a longer one is cut, which bounds the memory of its merges


def splitter(pattern: Pattern) -> Callable[[str], list[str]]:
    """The function from a text to its words."""
    find = re.compile(translated(PATTERNS[pattern])).findall

    def split(text: str) -> list[str]:
        words = find(text)
        if len(text) <= MAX_CHARACTERS or max(map(len, words)) <= MAX_CHARACTERS:
            return words
        cuts = range(0, len(text), MAX_CHARACTERS)
        return [word[cut : cut + MAX_CHARACTERS] for word in words for cut in cuts[: -(-len(word) // MAX_CHARACTERS)]]

    return split


def translated(pattern: str) -> str:
    r"""The pattern for `re`: \w is a letter, a number or "_", and \d the decimal numbers."""
    other = _other_numbers()
    for published, own in (
        (r"[^\s\p{L}\p{N}]", rf"(?:[^\w{SPACE}]|_)"),
        (r"[^\r\n\p{L}\p{N}]", r"(?:[^\w\r\n]|_)"),
        (r"\p{L}", rf"[^\W\d_{other}]"),
        (r"\p{N}", rf"[\d{other}]"),
        (r"\S", rf"[^{SPACE}]"),
        (r"\s", rf"[{SPACE}]"),
    ):
        pattern = pattern.replace(published, own)
    return pattern


@cache
def _other_numbers() -> str:
    """The numbers of Unicode that are not decimal, such as \u00bd and \u2167, as ranges for a class of `re`."""
    codes = [code for code in range(0x110000) if unicodedata.category(chr(code)) in ("Nl", "No")]
    ends = [0, *(place for place, (left, right) in enumerate(pairwise(codes), 1) if right != left + 1), len(codes)]
    return "".join(rf"\U{codes[first]:08x}-\U{codes[last - 1]:08x}" for first, last in pairwise(ends))
