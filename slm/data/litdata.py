"""Token ids that `litdata.optimize` wrote, as a corpus and a token store: data=litdata."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slm.cache import cached
from slm.corpora import Split, digest_of
from slm.data.chunks import Chunks, index_of, is_remote
from slm.data.store import TokenStore, store_identity
from slm.errors import UserError, notice
from slm.files import atomic
from slm.tokenizers import Tokenizer

FORMAT = 1  # of the fingerprint


class Litdata:
    """A corpus of token ids; the settings are explained in `conf/data/litdata.yaml`."""

    def __init__(
        self, *, path: str | None, validation_path: str | None, validation_share: float, keep_chunks: int | None
    ):
        if not 0 < validation_share < 1:
            raise UserError(f"data.validation_share={validation_share} must be between 0 and 1")
        if keep_chunks is not None and keep_chunks < 1:
            raise UserError(f"data.keep_chunks={keep_chunks} must be at least 1, or null for all")
        given = {"train": path, "validation": validation_path}
        self.paths = {split: located(place) for split, place in given.items() if place}
        self.share, self.keep_chunks = validation_share, keep_chunks

    def documents(self, split: Split) -> Iterator[str]:
        """Raises: UserError: when they are read."""
        raise UserError(
            "data=litdata holds token ids and no text, neither to learn a tokenizer nor for a report: give the "
            "tokenizer that made them, such as tokenizer=gpt2, or tokenizer=huggingface tokenizer.path=tokenizer.json"
        )
        yield

    def fingerprint(self) -> str:
        """Hex digest of each index.json, and of the split; the chunks are known by their names and sizes.

        Raises: UserError: if an index cannot be read.
        """
        if "train" not in self.paths:
            raise UserError("data.path is missing: give data.path=<folder or URL of what litdata.optimize wrote>")
        found = [hashlib.sha256(index_of(path)).hexdigest() for path in self.paths.values()]
        return digest_of([FORMAT, found, self.share if len(found) == 1 else None])

    def is_local(self) -> bool:
        return not any(map(is_remote, self.paths.values()))

    def store(self, tokenizer: Tokenizer, cache: Path) -> TokenStore:
        """The ids as a store. Its folder in the cache has the index, and chunks that are fetched.

        Raises: UserError: if a folder is damaged, or holds anything but ids of this tokenizer.
        """
        identity = store_identity(self, tokenizer)
        expected = {**identity, "vocab_size": tokenizer.vocab_size}
        places = {"paths": self.paths, "keep_chunks": self.keep_chunks}

        def write(folder: Path):
            for split, path in self.paths.items():
                (folder / split).mkdir()
                (folder / split / "index.json").write_bytes(index_of(path))
            chunks = {split: Chunks(path, folder / split, self.keep_chunks) for split, path in self.paths.items()}
            manifest = {**expected, "dtype": "uint32", "repeated": 0, "splits": divided(chunks, self.share)}
            atomic.write_text(folder / "manifest.json", json.dumps({**manifest, "litdata": places}))

        folder = cached(cache, "tokens", self, identity, write)
        manifest = atomic.read_object(folder / "manifest.json") or {}
        if manifest.get("litdata", places) != places:  # the folder was moved
            atomic.write_text(folder / "manifest.json", json.dumps({**manifest, "litdata": places}))
        store = TokenStore.open(folder, expected)
        if tokenizer.eos not in store.shards("train")[0][:]:
            notice(
                f"warning: eos (id {tokenizer.eos}), which ends a document, is not in the first chunk of "
                f"{self.paths['train']}: give the tokenizer that made the ids, or write them with eos"
            )
        return store


class ChunkStore(TokenStore):
    """A store whose shards are litdata's chunks, or parts of them. Their content has no digest."""

    def __reduce__(self):
        return ChunkStore, (self.folder, self.manifest)

    @cached_property
    def chunks(self) -> dict[str, Chunks]:
        """By the split of which they are the folder."""
        places = self.manifest["litdata"]
        return {
            split: Chunks(path, self.folder / split, places["keep_chunks"], self.manifest["vocab_size"])
            for split, path in places["paths"].items()
        }

    def check(self):
        """Checks that all chunks on this machine have their sizes, and the ids of the first one.

        Raises: UserError: for the first problem.
        """
        for chunks in self.chunks.values():
            chunks.check_files()
            chunks.ids(0, 0, int(chunks.lengths[0]))

    def shards(self, split: Split) -> list["Shard"]:
        chunks = self.chunks.get(split, self.chunks["train"])
        return [Shard(chunks, its) for its in self.manifest["splits"][split]["shards"]]


class Shard:
    """The ids of a part of a chunk, as an array that is read when it is sliced."""

    def __init__(self, chunks: Chunks, its: Mapping[str, Any]):
        self.chunks, self.number, self.first, self.tokens = chunks, its["chunk"], its["first"], its["tokens"]

    def __len__(self) -> int:
        return self.tokens

    def __getitem__(self, part: slice | int) -> np.ndarray | np.integer:
        if isinstance(part, int):
            at = range(self.tokens)[part]
            return self[at : at + 1][0]
        start, stop, _ = part.indices(self.tokens)
        return self.chunks.ids(self.number, self.first + start, self.first + max(start, stop))


def located(path: str) -> str:
    """The absolute path of a folder, or the URL."""
    path = path.removeprefix("file://")
    return path if is_remote(path) else str(atomic.expanded(path).absolute())


def divided(chunks: Mapping[str, Chunks], share: float) -> dict[str, dict[str, Any]]:
    """Both splits. Without chunks of its own, validation is the last items of train, at least `share` of the ids."""
    train = chunks["train"]
    ends = train.lengths.cumsum()
    total, cut, items = int(ends[-1]), int(ends[-1]), int(train.items.sum())
    if "validation" in chunks:
        other = chunks["validation"]
        validation = described(other, 0, int(other.lengths.sum()), int(other.items.sum()))
    else:
        cut = min(int(total * (1 - share)), total - 1)
        number = int(np.searchsorted(ends, cut, side="right"))
        begin, starts = int(ends[number] - train.lengths[number]), train.starts(number)
        item = int(np.searchsorted(starts, cut - begin, side="right")) - 1
        cut = begin + int(starts[item]) or cut  # a single item is divided
        before = int(train.items[:number].sum()) + item
        validation = described(train, cut, total, items - before)
        items = before
    return {"validation": validation, "train": described(train, 0, cut, max(items, 1))}


def described(chunks: Chunks, start: int, stop: int, items: int) -> dict[str, Any]:
    """The ids of a folder from one place to another as a split of a manifest; its bytes of text are not known."""
    shards, begin = [], 0
    for number, (its, length) in enumerate(zip(chunks.chunks, chunks.lengths.tolist())):
        first, last = max(start - begin, 0), min(stop - begin, length)
        if first < last:
            shards.append({"file": its["filename"], "chunk": number, "first": first, "tokens": last - first})
        begin += length
    return {"documents": items, "bytes": 0, "lost_bytes": 0, "tokens": stop - start, "shards": shards}
