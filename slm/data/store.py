"""Text to token ids on disk, once: a trained tokenizer, memory-mapped shards, a manifest that says what they hold.

A folder in the cache is named by what determines its content. It is written under a temporary name and renamed when
it is complete, so a folder with the final name can be trusted, whatever was killed before.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn

from slm import durable, tokenizers
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
                    raise UserError(
                        f"token shard {path} is missing or not {expected} bytes; delete {folder} to rebuild"
                    )
        return store

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest["dtype"])

    def tokens(self, split: Split) -> int:
        return self.manifest["splits"][split]["tokens"]

    def shards(self, split: Split) -> list[np.memmap]:
        files = [shard["file"] for shard in self.manifest["splits"][split]["shards"]]
        return [np.memmap(self.folder / file, dtype=self.dtype, mode="r") for file in files]


def prepare_tokenizer(
    settings: Mapping[str, Any], build: Callable[..., Tokenizer], corpus: Corpus, cache: Path
) -> tuple[Tokenizer, Path]:
    """The tokenizer of these settings for this corpus, and its folder: from the cache, or built now."""

    def write(folder: Path):
        build(documents=corpus.documents("train")).save(folder)

    identity = {"format": FORMAT, "corpus": corpus.fingerprint(), "settings": dict(settings)}
    folder = _cached(cache / "tokenizers", identity, write)
    return tokenizers.load(folder), folder


def prepare(corpus: Corpus, tokenizer: Tokenizer, tokenizer_fingerprint: str, cache: Path) -> TokenStore:
    """The store of this corpus in this tokenizer: from the cache, or tokenized now.

    Memory is constant in the size of the corpus, its longest document apart.
    """
    identity = {"format": FORMAT, "corpus": corpus.fingerprint(), "tokenizer": tokenizer_fingerprint}

    def write(folder: Path):
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        splits = {
            split: _write_split(corpus.documents(split), tokenizer, folder, split, dtype)
            for split in ("train", "validation")
        }
        manifest = {**identity, "dtype": dtype.name, "vocab_size": tokenizer.vocab_size, "splits": splits}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    return TokenStore.open(_cached(cache / "tokens", identity, write))


def fingerprint(folder: Path) -> str:
    """Identity of a tokenizer: the digest of the files that it saved."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _cached(parent: Path, identity: dict, write: Callable[[Path], None]) -> Path:
    """The folder of this identity, written now if it is not there; one process writes, the others wait for it."""
    folder = parent / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache folder {parent} cannot be made: {error.strerror}; give another cache_dir") from None
    with durable.locked(folder.with_suffix(".lock"), wait=True):
        if not folder.is_dir():
            temporary = folder.with_suffix(".partial")
            shutil.rmtree(temporary, ignore_errors=True)  # a killed process's: the lock says that nobody lives in it
            temporary.mkdir()
            try:
                write(temporary)
                for path in temporary.iterdir():
                    durable.flush(path)
                temporary.rename(folder)
                durable.flush(parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    return folder


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
        self.path, self.hash, self.tokens = path, hashlib.sha256(), 0
        self.file = open(path, "wb")  # noqa: SIM115 (closed by close)

    def write(self, ids: np.ndarray):
        data = ids.tobytes()
        self.file.write(data)
        self.hash.update(data)
        self.tokens += len(ids)

    def close(self) -> dict:
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
