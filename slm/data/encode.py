"""Documents to shards of token ids."""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from slm import tokenizers
from slm.corpora import Split
from slm.errors import UserError, file_operation
from slm.files import atomic
from slm.tokenizers import Tokenizer

SHARD_TOKENS = 2**27  # 256 MiB of uint16
BATCH_CHARACTERS = 2**20  # encoded at a time: bounds memory, feeds the tokenizer's threads


def write_split(documents: Iterator[str], tokenizer: Tokenizer, folder: Path, split: Split, dtype: np.dtype) -> dict:
    """Tokenizes documents into shards in a folder. Returns the counts and the shards, for the manifest.

    Raises: UserError: without documents.
    """
    counts = {"documents": 0, "bytes": 0, "tokens": 0, "lost_bytes": 0}
    shards: list[dict] = []
    eos, pieces = np.array([tokenizer.eos], dtype=np.int32), tokenizers.pieces(tokenizer)
    start, line = time.perf_counter(), f"tokenizing {split}"
    with Live(line, console=Console(stderr=True), transient=True, auto_refresh=False) as live:  # on a terminal
        for batch in batches(documents):
            arrays = tokenizer.encode_batch(batch)
            ids = np.concatenate([part for array in arrays for part in (array, eos)]).astype(dtype)
            if not shards or shards[-1]["tokens"] + len(ids) > SHARD_TOKENS:
                shards.append({"file": f"{split}-{len(shards):05d}.bin", "tokens": 0})
            path = folder / shards[-1]["file"]
            with file_operation("write", path), open(path, "ab") as file:
                file.write(ids.tobytes())
            shards[-1]["tokens"] += len(ids)
            counts["documents"] += len(batch)
            counts["bytes"] += sum(len(text.encode("utf-8")) for text in batch)
            counts["tokens"] += len(ids)
            counts["lost_bytes"] += tokenizers.lost_bytes(pieces, batch, arrays)
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
