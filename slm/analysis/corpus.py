"""What a corpus holds. Train is read twice, validation twice, with memory for 8 bytes per document and a few tables.

First reading: counts, lengths, characters, repeated documents, n-grams of validation in train. Second reading: nearly
equal documents, and the strangest ones by a model of the characters of train.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from slm.analysis.corpus_batches import batches
from slm.analysis.corpus_characters import SHORTEST, Characters, Extremes, Trigrams
from slm.analysis.corpus_overlap import COMPARED, NGRAMS, NearDuplicates, Overlap
from slm.corpora import Corpus
from slm.corpora.deduplicated import Digests, digest
from slm.data.encode import utf8_bytes
from slm.errors import UserError
from slm.tokenizers.sample import Reservoir

PER_OCTAVE = 64  # bins of the lengths: quantiles are exact to 1 %
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
EXTREMES = 5
SAMPLE = 2000  # train documents that are compared with all others
MAX_REPEATED = 10_000  # different repeated documents whose occurrences are counted one by one
Shown = Callable[[Iterable[str], str], Iterator[str]]  # documents and what is done with them -> the same documents


@dataclass
class Repeated:
    """Documents that occur again in their split."""

    known: Digests = field(default_factory=Digests)
    count: int = 0
    most: dict[int, list] = field(default_factory=dict)  # digest -> occurrences, beginning

    def add(self, number: int, text: str):
        if self.known.add(number):
            return
        self.count += 1
        if number in self.most or len(self.most) < MAX_REPEATED:
            self.most.setdefault(number, [1, text[:200]])[0] += 1


class Reading:
    """The first reading of a split."""

    def __init__(self):
        self.documents = self.bytes = 0
        self.lengths = np.zeros(48 * PER_OCTAVE, np.int64)  # documents by length in bytes, up to 2^48
        self.shortest, self.longest = 2**63, Extremes(EXTREMES)
        self.characters, self.repeated, self.sample = Characters(), Repeated(), Reservoir(SAMPLE, seed=0)

    def over(self, documents: Iterable[str]) -> Iterator[str]:
        """The documents, counted."""
        for text in documents:
            size = utf8_bytes(text)
            self.longest.add(size, self.documents, text)
            self.bytes += size
            self.shortest = min(self.shortest, size)
            self.lengths[int(np.log2(size or 1) * PER_OCTAVE)] += 1
            self.repeated.add(digest(text), text)
            self.sample.add((self.documents, text[:COMPARED]))
            self.documents += 1
            yield text

    def quantiles(self) -> dict[str, int]:
        """Lengths in bytes."""
        ranks = np.searchsorted(np.cumsum(self.lengths), np.array(QUANTILES) * self.documents)
        longest = round(max(self.longest.highest)[0])
        middles = np.clip(2 ** ((ranks + 0.5) / PER_OCTAVE), self.shortest, longest)
        found = {f"{share:.0%}": round(middle) for share, middle in zip(QUANTILES, middles)}
        return {"shortest": self.shortest, **found, "longest": longest}

    def result(self) -> dict[str, Any]:
        its, octaves = self.characters, self.lengths.reshape(-1, PER_OCTAVE // 4).sum(1)  # four bins per octave
        most = sorted(self.repeated.most.values(), reverse=True)[:EXTREMES]
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "characters": its.total,
            "empty_lines": its.empty_lines,
            "length_bytes": self.quantiles(),
            "histogram": [[round(2 ** (place / 4)), int(octaves[place])] for place in np.flatnonzero(octaves)],
            "repeated_documents": self.repeated.count,
            "most_repeated": [{"times": times, "text": text} for times, text in most],
            "scripts": its.scripts(),
            "signs": {sign: {k: v for k, v in asdict(one).items() if k != "newest"} for sign, one in its.signs.items()},
            "longest": extremes(self.longest.highest, "bytes"),
        }


def measure(
    corpus: Corpus, shown: Shown = lambda documents, action: iter(documents)
) -> tuple[dict[str, Any], list[str]]:
    """All that the report holds of a corpus but the tokens, as JSON, and a sample of the beginnings of train documents.

    Raises: UserError: from the corpus; if a split has no documents.
    """
    overlaps, trigrams, readings = [Overlap(n) for n in NGRAMS], Trigrams(), {}
    for split in ("validation", "train"):
        reading = readings[split] = Reading()
        for batch in batches(reading.over(shown(corpus.documents(split), f"reading {split}"))):
            reading.characters.add(batch)
            for overlap in overlaps:
                overlap.look(batch) if split == "train" else overlap.add(batch)
            if split == "train":
                trigrams.add(batch)
        if not reading.documents:
            raise UserError(f"the {split} split has no documents")
    train = readings["train"]
    sample = dict(sorted(train.sample.items))  # number of a document -> its beginning
    found = {
        "splits": {split: readings[split].result() for split in ("train", "validation")},
        "overlap": validation_in_train(shown(corpus.documents("validation"), "comparing validation"), train, overlaps),
        **second_reading(shown(corpus.documents("train"), "comparing train"), train, sample, trigrams),
    }
    return found, list(sample.values())


def validation_in_train(documents: Iterable[str], train: Reading, overlaps: list[Overlap]) -> dict[str, Any]:
    """Validation documents that train has as a whole, and n-grams of words that train has."""
    equal = 0

    def compared() -> Iterator[str]:
        nonlocal equal
        for text in documents:
            equal += digest(text) in train.repeated.known
            yield text

    for batch in batches(compared()):
        for overlap in overlaps:
            overlap.tally(batch)
    return {"documents": equal, **{f"{overlap.n}_grams": overlap.result() for overlap in overlaps}}


def second_reading(
    documents: Iterable[str], train: Reading, sample: dict[int, str], trigrams: Trigrams
) -> dict[str, Any]:
    """Documents that are nearly equal to others, and those that a model of the characters finds strange."""
    strange = Extremes(EXTREMES)
    try:
        near = NearDuplicates(sample)
    except ModuleNotFoundError:
        near = None
    for batch in batches(documents):
        if near:
            near.look(batch)
        bits, pieces = trigrams.bits(batch, train.characters.counts)
        low, high = strange.bounds()
        for row in np.flatnonzero((bits < low) | (bits > high)).tolist():
            strange.add(float(bits[row]), int(batch.numbers[pieces[row]]), batch.part(pieces[row]))
    ends = {"highest": extremes(strange.highest, "bits"), "lowest": extremes(strange.lowest, "bits")}
    return {"near_duplicates": near and near.result(), "strange": {"shortest_characters": SHORTEST, **ends}}


def extremes(items: list[tuple[float, int, str]], unit: str) -> list[dict[str, Any]]:
    """The most extreme first."""
    return [{unit: abs(value), "document": number, "text": text} for value, number, text in sorted(items, reverse=True)]
