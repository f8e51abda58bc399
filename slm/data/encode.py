"""Documents to shards of token ids."""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from slm import tokenizers
from slm.corpora import Split
from slm.data.processes import cores, mapped
from slm.errors import UserError, file_operation
from slm.files import atomic
from slm.tokenizers import Tokenizer

SHARD_TOKENS = 2**27  # 256 MiB of uint16
BATCH_CHARACTERS = 2**20  # encoded at a time: bounds memory, feeds the tokenizer's threads
SMALL_BATCHES = 8  # of a corpus, before it is large enough for several processes


@dataclass(frozen=True)
class Encoded:
    """The ids of a batch of documents, eos after each, in the type of the store; and its counts."""

    ids: np.ndarray
    documents: int
    bytes: int
    lost_bytes: int


class Encoder:
    """The function from a batch of documents to its ids."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype):
        self.tokenizer, self.dtype = tokenizer, dtype
        self.pieces, self.eos = tokenizers.pieces(tokenizer), np.array([tokenizer.eos], dtype=np.int32)

    def __call__(self, batch: list[str]) -> Encoded:
        """Raises: UserError: for half of a surrogate pair, which is no text."""
        size = sum(map(utf8_bytes, batch))
        arrays = self.tokenizer.encode_batch(batch)
        ids = np.concatenate([part for array in arrays for part in (array, self.eos)]).astype(self.dtype)
        return Encoded(ids, len(batch), size, tokenizers.lost_bytes(self.pieces, batch, arrays))

    def over(self, documents: Iterable[str]) -> Iterator[Encoded]:
        """All documents in order, in several processes if the corpus is large and the tokenizer uses one core."""
        stream, processes = batches(documents), cores()
        if not self.tokenizer.in_processes or processes == 1:
            yield from map(self, stream)
            return
        yield from map(self, islice(stream, SMALL_BATCHES))
        if following := next(stream, None):
            yield from mapped(self, chain([following], stream), processes)


def utf8_bytes(text: str) -> int:
    """The size of a text. Raises: UserError: if it has none, since half of a surrogate pair is no text."""
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        start = max(0, error.start - 20)
        raise UserError(f"a document has half of a surrogate pair: {text[start : error.end + 20]!r}") from None


def write_split(documents: Iterator[str], tokenizer: Tokenizer, folder: Path, split: Split, dtype: np.dtype) -> dict:
    """Tokenizes documents into shards in a folder. Returns the counts and the shards, for the manifest.

    Raises: UserError: without documents, or for one that is no text.
    """
    counts = {"documents": 0, "bytes": 0, "tokens": 0, "lost_bytes": 0}
    shards: list[dict] = []
    start, line = time.perf_counter(), f"tokenizing {split}"
    with Live(line, console=Console(stderr=True), transient=True, auto_refresh=False) as live:  # on a terminal
        for encoded in Encoder(tokenizer, dtype).over(documents):
            if not shards or shards[-1]["tokens"] + len(encoded.ids) > SHARD_TOKENS:
                shards.append({"file": f"{split}-{len(shards):05d}.bin", "tokens": 0})
            path = folder / shards[-1]["file"]
            with file_operation("write", path), open(path, "ab") as file:
                file.write(encoded.ids.tobytes())
            shards[-1]["tokens"] += len(encoded.ids)
            counts["tokens"] += len(encoded.ids)
            for name in ("documents", "bytes", "lost_bytes"):
                counts[name] += getattr(encoded, name)
            line = _progress(split, counts, time.perf_counter() - start)
            live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
    if not shards:
        raise UserError(f"the {split} split has no documents")
    print(line, file=sys.stderr)
    return {**counts, "shards": [{**shard, "sha256": atomic.sha256(folder / shard["file"])} for shard in shards]}


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


def _progress(split: Split, counts: dict, seconds: float) -> str:
    """A line of less than 80 characters."""
    megabytes = counts["bytes"] / 1e6
    return (
        f"tokenizing {split}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {megabytes:,.1f} MB, "
        f"{megabytes / seconds:.1f} MB/s"
    )
