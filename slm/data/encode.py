"""Documents to shards of token ids."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from slm import tokenizers
from slm.corpora import Corpus, Place, Split
from slm.data.preparation import Preparation
from slm.data.processes import Processes, cores
from slm.errors import UserError, notice
from slm.tables import clock
from slm.tokenizers import Tokenizer

LINE_SECONDS = 60  # between two lines of progress where the output is not a terminal
BATCH_CHARACTERS = 2**18  # encoded at a time: bounds memory
SMALL_BATCHES = 4  # the first of a corpus, encoded before it is large enough for several processes


@dataclass(frozen=True)
class Encoded:
    """The ids of a batch of documents, eos after each that is not joined, in the type of the store; and its counts."""

    ids: np.ndarray
    documents: int
    bytes: int
    lost_bytes: int


class Encoder:
    """The function from a batch of documents to its ids, and the `processes` that compute it for a large corpus."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype, has_ends: bool = True):
        self.tokenizer, self.dtype = tokenizer, dtype
        self.pieces = tokenizers.pieces(tokenizer)
        self.end = np.array([tokenizer.eos] if has_ends else [], dtype=np.int32)  # after each document
        self.processes = Processes(self, cores() if tokenizer.in_processes else 1)
        self.few = SMALL_BATCHES  # that are still encoded here
        if self.processes.count > 1:
            tokenizer.threads = 1  # a process with threads of a library cannot be forked safely

    def __call__(self, batch: list[str]) -> Encoded:
        """Raises: UserError: for half of a surrogate pair, which is no text."""
        size = sum(map(utf8_bytes, batch))
        arrays = self.tokenizer.encode_batch(batch)
        ids = np.concatenate([part for array in arrays for part in (array, self.end)]).astype(self.dtype)
        return Encoded(ids, len(batch), size, tokenizers.lost_bytes(self.pieces, batch, arrays))

    def over(self, documents: Iterable[str]) -> Iterator[Encoded]:
        """All documents in order; after the first ones of the corpus, in several processes."""
        stream = batches(documents)
        for batch in islice(stream, self.few):
            self.few -= 1
            yield self(batch)
        if self.processes.count == 1:
            yield from map(self, stream)
        elif following := next(stream, None):
            yield from self.processes.map(chain([following], stream))


def utf8_bytes(text: str) -> int:
    """The size of a text. Raises: UserError: if it has none, since half of a surrogate pair is no text."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        start = max(0, error.start - 20)
        raise UserError(f"a document has half of a surrogate pair: {text[start : error.end + 20]!r}") from None


def write_split(corpus: Corpus, encoder: Encoder, preparation: Preparation, split: Split) -> dict:
    """Tokenizes the documents of a split that are still missing. Returns counts and shards, for the manifest.

    Raises: UserError: from the corpus; without documents, or for one that is no text.
    """
    counts, place = preparation.start(split)
    pace = Pace(place, counts)
    with progress(lambda: pace.line(split)) as show:
        for part in preparation.documents(corpus, split):
            for encoded in encoder.over(part):
                preparation.add(split, encoded.ids)
                for name in ("documents", "bytes", "lost_bytes"):
                    counts[name] += getattr(encoded, name)
                show()
        if not counts["shards"]:
            raise UserError(f"the {split} split has no documents")
    return preparation.sealed(split)


@contextlib.contextmanager
def progress(line: Callable[[], str]) -> Iterator[Callable[[], None]]:
    """A function that writes the line on stderr anew: on a terminal in place, twice a second, elsewhere every
    LINE_SECONDS. It is written once more at the end, unless the block raises."""
    said = time.perf_counter()
    with Live(line(), console=Console(stderr=True, force_jupyter=False), transient=True, auto_refresh=False) as live:
        seconds = 0.5 if live.console.is_terminal else LINE_SECONDS

        def show():
            nonlocal said
            if (now := time.perf_counter()) - said > seconds:
                said = now
                live.update(Text(line(), no_wrap=True, overflow="ellipsis"), refresh=True)  # on a terminal
                if not live.console.is_terminal:
                    notice(line())

        yield show
    notice(line())


def batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Lists of documents with a total of BATCH_CHARACTERS or a little more."""
    batch, characters = [], 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Pace:
    """How far a split is, how fast it is, and how long it takes."""

    def __init__(self, place: Place, counts: Mapping[str, int]):
        self.place, self.counts = place, counts
        self.begin = time.perf_counter()
        self.bytes, self.share = counts["bytes"], self._share()  # at the start

    def line(self, split: Split) -> str:
        """Counts and speed; share and time left where the end is known. Less than 100 characters."""
        counts, seconds, share = self.counts, time.perf_counter() - self.begin, self._share()
        speed = (counts["bytes"] - self.bytes) / 1e6 / max(seconds, 1e-9)
        ahead = self.share < share < 1
        left = f", {share:.0%}, ETA {clock(seconds * (1 - share) / (share - self.share))}" if ahead else ""
        return (
            f"tokenizing {split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['bytes'] / 1e6:,.1f} MB, {speed:.1f} MB/s{left}"
        )

    def _share(self) -> float:
        """By documents or bytes, if the corpus states how many there are, else by its files; 0 if nothing is known."""
        done = self.counts["documents"], self.counts["bytes"]
        stated = [count / total for count, total in zip(done, self.place.totals) if total]
        return max(stated, default=self.place.file / max(self.place.files, 1))
