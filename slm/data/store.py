"""Text to token ids on disk, once: memory-mapped shards plus a manifest that says what they hold.

A store is a folder named by what determines its content (corpus, tokenizer, format). It is written under a temporary
name and renamed when it is complete, so a folder with the final name can be trusted, whatever was killed before.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn

from slm.corpora import Corpus, Split
from slm.errors import UserError
from slm.tokenizers import Tokenizer

FORMAT = 1
SHARD_TOKENS = 2**27  # 256 MiB of uint16
BATCH_CHARACTERS = 2**20  # encoded at a time: bounds memory, feeds the tokenizer's threads


@dataclass(frozen=True)
class TokenStore:
    """What `prepare` left on disk. Ids of a split are the documents in order, each ended by eos."""

    folder: Path
    manifest: dict

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        store = cls(folder, manifest)
        for split in manifest["splits"].values():
            for shard in split["shards"]:
                path, expected = folder / shard["file"], shard["tokens"] * store.dtype.itemsize
                if not path.is_file() or path.stat().st_size != expected:
                    raise UserError(f"token shard {path} is missing or not {expected} bytes; delete {folder} to rebuild")
        return store

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest["dtype"])

    @property
    def fingerprint(self) -> str:
        """Identity of the ids, the same on every machine."""
        shards = [shard["sha256"] for split in self.manifest["splits"].values() for shard in split["shards"]]
        return hashlib.sha256("".join(shards).encode()).hexdigest()

    def tokens(self, split: Split) -> int:
        return self.manifest["splits"][split]["tokens"]

    def shards(self, split: Split) -> list[np.memmap]:
        files = [shard["file"] for shard in self.manifest["splits"][split]["shards"]]
        return [np.memmap(self.folder / file, dtype=self.dtype, mode="r") for file in files]


def prepare(corpus: Corpus, tokenizer: Tokenizer, tokenizer_fingerprint: str, cache: Path) -> TokenStore:
    """The store of this corpus in this tokenizer: from the cache, or tokenized now.

    Memory is constant in the size of the corpus. One process at a time prepares a store; the others wait for it.
    """
    identity = {"format": FORMAT, "corpus": corpus.fingerprint(), "tokenizer": tokenizer_fingerprint}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "tokens" / key
    if not (folder / "manifest.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_suffix(".lock")):
            if not (folder / "manifest.json").exists():
                _write(corpus, tokenizer, identity, folder)
    return TokenStore.open(folder)


def _write(corpus: Corpus, tokenizer: Tokenizer, identity: dict, folder: Path):
    temporary = folder.with_suffix(".partial")
    shutil.rmtree(temporary, ignore_errors=True)  # a killed preparation's; ours alone, by the lock
    temporary.mkdir()
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    try:
        splits = {
            split: _write_split(corpus.documents(split), tokenizer, temporary, split, dtype)
            for split in ("train", "validation")
        }
        manifest = {**identity, "dtype": dtype.name, "vocab_size": tokenizer.vocab_size, "splits": splits}
        with open(temporary / "manifest.json", "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_split(documents: Iterator[str], tokenizer: Tokenizer, folder: Path, split: Split, dtype: np.dtype) -> dict:
    counts, shards, shard = {"documents": 0, "bytes": 0, "tokens": 0}, [], None
    with _meter(f"tokenizing {split}") as show:
        for batch in _batches(documents):
            arrays = tokenizer.encode_batch(batch)
            ids = np.concatenate([part for array in arrays for part in (array, [tokenizer.eos])]).astype(dtype)
            if shard is None or shard.tokens + len(ids) > SHARD_TOKENS:
                shards += [shard.close()] if shard else []
                shard = _Shard(folder / f"{split}-{len(shards):05d}.bin")
            shard.write(ids)
            counts["documents"] += len(batch)
            counts["bytes"] += sum(len(text.encode("utf-8")) for text in batch)
            counts["tokens"] += len(ids)
            show(counts)
    if shard is None:
        raise UserError(f"the {split} split has no documents")
    return {**counts, "shards": [*shards, shard.close()]}


class _Shard:
    """A file of ids, hashed as it is written."""

    def __init__(self, path: Path):
        self.path, self.file, self.hash, self.tokens = path, open(path, "wb"), hashlib.sha256(), 0

    def write(self, ids: np.ndarray):
        data = ids.tobytes()
        self.file.write(data)
        self.hash.update(data)
        self.tokens += len(ids)

    def close(self) -> dict:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"file": self.path.name, "tokens": self.tokens, "sha256": self.hash.hexdigest()}


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextlib.contextmanager
def _meter(what: str):
    """Yields a function that shows counts: a live line on a terminal, one line at the end elsewhere."""
    start, line = time.perf_counter(), what
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what)

        def show(counts: dict):
            nonlocal line
            seconds, megabytes = time.perf_counter() - start, counts["bytes"] / 1e6
            line = (
                f"{what}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, {megabytes:.1f} MB"
                f" ({counts['documents'] / seconds:,.0f} documents/s, {megabytes / seconds:.1f} MB/s)"
            )
            progress.update(task, description=line)

        yield show
    if not sys.stderr.isatty():
        print(line, file=sys.stderr)


@contextlib.contextmanager
def _lock(path: Path):
    """Held by one process; released by the system when that process ends, however it ends."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
