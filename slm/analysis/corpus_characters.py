"""Which characters a corpus has: scripts, signs of damage, and documents that a model of them finds strange."""

import heapq
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from unicodedata import category, name

import numpy as np

from slm.analysis.corpus_batches import CODES, Batch
from slm.data.permutation import mixed

WIDTHS = ("FULLWIDTH", "HALFWIDTH", "MODIFIER", "MATHEMATICAL", "SMALL", "SQUARED", "CIRCLED")  # before a script's name
KINDS = {"M": "marks", "N": "digits", "P": "punctuation", "S": "symbols", "Z": "spaces", "C": "control and other"}
CONTROL = [*range(9), 11, 12, *range(14, 32), *range(127, 160)]
WINDOWS = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"  # characters of bytes 0x80 to 0x9f in Windows-1252
SIGNS = {  # name -> code points without which there is none, and a pattern
    "control characters": (CONTROL, "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f]"),
    "U+FFFD, in place of damaged bytes": ([0xFFFD], "\ufffd"),
    "byte order marks in the text": ([0xFEFF], "\ufeff"),
    "UTF-8 read as another encoding": (list(map(ord, "ÂÃâ")), f"[ÂÃ][\x80-\xbf{WINDOWS}]|â€[\x80-\xbf{WINDOWS}]"),
    "HTML tags": ([ord("<")], r"</?[a-zA-Z][^<>\n]{0,200}>"),
    "HTML entities": ([ord("&")], r"&(?:[a-zA-Z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,5});"),
    "marks of document ends": ([ord("<")], r"<\|end_?of_?text\|>|</s>"),
    "web addresses": ([ord(":")], r"https?://"),
    "line ends \\r\\n or \\r": ([ord("\r")], r"\r\n?"),
}
PATTERNS = {sign: re.compile(pattern) for sign, (_, pattern) in SIGNS.items()}
TABLE_BITS = 20  # of the counts of trigrams and of their contexts, by hash
BACKOFF = 5.0  # characters by their frequency alone that each context counts as seen
SHORTEST = 50  # characters of a document that is compared


@dataclass
class Sign:
    """How often a sign occurs, in how many documents, and the first place."""

    count: int = 0
    documents: int = 0
    example: str = ""
    newest: int = -1  # document


@dataclass
class Characters:
    """Counts by code point, and of signs and empty lines."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(CODES, np.int64))
    signs: defaultdict[str, Sign] = field(default_factory=lambda: defaultdict(Sign))
    empty_lines: int = 0

    def add(self, batch: Batch):
        codes = batch.codes
        counts = np.bincount(codes, minlength=CODES)
        self.counts += counts
        ends = codes == ord("\n")
        begins = np.zeros(len(codes) + 1, bool)  # of lines
        begins[1:] = ends
        begins[batch.starts[batch.first]] = True
        self.empty_lines += int((ends & begins[:-1]).sum())
        for sign, (needed, _) in SIGNS.items():
            if counts[needed].any():
                self._find(sign, batch)

    def _find(self, sign: str, batch: Batch):
        spans = np.array([found.span() for found in PATTERNS[sign].finditer(batch.text)]).reshape(-1, 2)
        pieces = batch.piece_of(spans[:, 0])
        spans, pieces = (part[pieces == batch.piece_of(spans[:, 1] - 1)] for part in (spans, pieces))
        if len(spans):
            its, (start, end) = self.signs[sign], spans[0]
            its.count += len(spans)
            numbers = np.unique(batch.numbers[pieces])
            its.documents += len(numbers) - int(numbers[0] == its.newest)
            its.newest = int(numbers[-1])
            begin = max(int(batch.starts[pieces[0]]), start - 30)
            its.example = its.example or batch.text[begin : end + 30]

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def scripts(self) -> dict[str, int]:
        """Letters by script, other characters by kind, the most frequent first."""
        found: Counter[str] = Counter()
        for code in np.flatnonzero(self.counts).tolist():
            found[script_of(chr(code))] += int(self.counts[code])
        return dict(found.most_common())


def script_of(character: str) -> str:
    """The script of a letter, by the first word of its name in Unicode; the kind of any other character."""
    kind = category(character)
    if character in "\n\r\t":
        return "spaces"
    if kind[0] != "L":
        return "emoji" if kind in ("So", "Sk") and ord(character) >= 0x1F000 else KINDS[kind[0]]
    words = [word for word in name(character, "OTHER").replace("-", " ").split() if word not in WIDTHS]
    return {"CJK": "Han"}.get(words[0], words[0].capitalize())


class Trigrams:
    """A character trigram model of the train split: counts by hash, mixed with the frequencies of characters."""

    def __init__(self):
        self.trigrams, self.contexts = (np.zeros(2**TABLE_BITS, np.int64) for _ in range(2))

    def add(self, batch: Batch):
        for table, places in zip((self.trigrams, self.contexts), self._places(batch)):
            table += np.bincount(places, minlength=2**TABLE_BITS)

    def bits(self, batch: Batch, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bits per character of each first piece from its third character on, and which of them are long enough."""
        places, contexts = self._places(batch)
        shares = (counts[batch.codes[2:]] + 0.5) / counts.sum()
        bits = -np.log2((self.trigrams[places] + BACKOFF * shares) / (self.contexts[contexts] + BACKOFF))
        sums = np.concatenate([[0.0], np.cumsum(bits)])
        long = np.flatnonzero(batch.first & (batch.ends - batch.starts >= SHORTEST))
        starts, ends = batch.starts[long], batch.ends[long]
        return (sums[ends - 2] - sums[starts]) / (ends - starts - 2), long

    def _places(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        codes, shift = batch.codes.astype(np.uint64), np.uint64(64 - TABLE_BITS)
        context = codes[:-2] * np.uint64(2**42) + codes[1:-1] * np.uint64(2**21)
        return mixed(context + codes[2:]) >> shift, mixed(context + np.uint64(2**63)) >> shift


class Extremes:
    """The few items with the lowest and the highest values."""

    def __init__(self, size: int):
        self.size = size
        self.lowest: list[tuple[float, int, str]] = []  # negated
        self.highest: list[tuple[float, int, str]] = []

    def add(self, value: float, number: int, text: str):
        for heap, item in ((self.highest, value), (self.lowest, -value)):
            if len(heap) < self.size:
                heapq.heappush(heap, (item, number, text[:200]))
            elif item > heap[0][0]:
                heapq.heapreplace(heap, (item, number, text[:200]))

    def bounds(self) -> tuple[float, float]:
        """Between these values nothing is taken any more."""
        full = len(self.highest) >= self.size
        return (-self.lowest[0][0], self.highest[0][0]) if full else (np.inf, -np.inf)
