"""Token stores: memory-mapped shards of token ids and a manifest that describes them, in the cache."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from slm import system, tokenizers
from slm.cache import cached, keep, place
from slm.classes import file_hash
from slm.corpora import Corpus, Split
from slm.data import index
from slm.data.encode import Encoder, write_split
from slm.data.preparation import PROGRESS, Preparation
from slm.errors import UserError, notice
from slm.files import atomic
from slm.tokenizers import Tokenizer

FORMAT = 2  # of token stores
TOKENIZER_FORMAT = 1
REPEATED = 0.01  # share of the validation documents from which on it is worth a warning that train has them, too
VERIFIED = "verified.json"  # beside the manifest: the stamps of the shards that were verified


@dataclass(frozen=True)
class TokenStore:
    """Token ids on disk. A split is its documents in order, each followed by eos unless they are joined."""

    folder: Path
    manifest: dict

    @classmethod
    def open(cls, folder: Path, expected: Mapping[str, Any]) -> Self:
        """Opens and verifies a store. A shard is read in full, at about 1.5 GB/s, unless it was verified before and
        has not changed since.

        Raises: UserError: for a manifest without the `expected` keys and values; for a missing or damaged file.
        """
        manifest = _read_manifest(folder, expected)
        if "litdata" in manifest:
            from slm.data.litdata import ChunkStore  # which imports this module

            cls = ChunkStore
        store = cls(folder, manifest)
        keep(folder, store)
        store.check()
        return store

    def check(self):
        """Verifies the shards that have changed since they were. Raises: UserError: for the first problem."""
        known = atomic.read_object(self.folder / VERIFIED) or {}
        shards = [shard for split in self.manifest["splits"].values() for shard in split["shards"]]
        stamps = {shard["file"]: self._verify(shard, known) for shard in shards}
        if stamps != known:
            with contextlib.suppress(OSError):  # a read-only cache is verified again the next time
                atomic.remove_partial(self.folder / VERIFIED)
                atomic.write_text(self.folder / VERIFIED, json.dumps(stamps))

    @classmethod
    def cached(cls, corpus: Corpus, tokenizer: Tokenizer, cache: str) -> Self | None:
        """The tokenized corpus, if the cache has it. Raises: UserError: if it is damaged."""
        names = corpus.fingerprint(), fingerprint(tokenizer)
        return cls.find(*names, type(tokenizer), tokenizer.vocab_size, Path(cache))

    @classmethod
    def find(cls, corpus: str, tokenizer: str, kind: type, vocab_size: int, cache: Path) -> Self | None:
        """The store of these fingerprints, if the cache has it. Raises: UserError: if it is damaged."""
        identity = {"format": FORMAT, "corpus": corpus, "tokenizer": tokenizer, **code_of(kind)}
        folder = place(cache, "tokens", identity)
        return cls.open(folder, {**identity, "vocab_size": vocab_size}) if folder.is_dir() else None

    def _verify(self, shard: Mapping[str, Any], known: Mapping[str, Any], *, hashed: bool = False) -> list:
        """The stamp of a shard after a check of its size, digest and ids; it changes if the file is touched.

        `hashed`: the digest in the manifest was taken just now.
        """
        path, vocab_size = self.folder / shard["file"], self.manifest["vocab_size"]
        size = shard["tokens"] * self.dtype.itemsize

        def damaged(problem: str) -> UserError:
            return UserError(f"token shard {path} {problem}; delete {self.folder} to rebuild it")

        try:
            stat = path.stat()
            if stat.st_size != size:
                raise damaged(f"has {stat.st_size:,} bytes, but its {shard['tokens']:,} ids need {size:,}")
            stamp = [size, system.changed_at(stat), stat.st_ino, shard["sha256"], vocab_size]
            if known.get(path.name) == stamp:
                return stamp
            digest = shard["sha256"] if hashed else atomic.sha256(path)
        except FileNotFoundError as error:
            raise damaged(f"cannot be read: {error.strerror}") from None
        if digest != shard["sha256"]:
            raise damaged("has changed since it was written: its sha256 differs")
        if (largest := np.memmap(path, self.dtype, mode="r").max()) >= vocab_size:
            raise damaged(f"contains id {largest}, but the vocabulary has {vocab_size}")
        return stamp

    def digest(self) -> str:
        """The sha256 of what equal stores in different places have in common: corpus, tokenizer, digests of the ids."""
        same = {key: value for key, value in self.manifest.items() if key != "litdata"}  # which has paths
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()

    @property
    def has_ends(self) -> bool:
        """False if no eos follows the documents: data.joined."""
        return self.manifest.get("has_ends", True)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest["dtype"])

    def tokens(self, split: Split) -> int:
        """The number of ids, eos included."""
        return self.manifest["splits"][split]["tokens"]

    def dropped(self) -> str | None:
        """How many documents data.deduplicate has dropped, for people; None if it is not set."""
        if (its := self.manifest.get("dropped")) is None:
            return None
        totals = {split: self.manifest["splits"][split]["documents"] for split in ("train", "validation")}
        totals["train"] += its["train"] + its["held_out"]
        totals["validation"] += its["validation"]
        return (
            f"data.deduplicate=exact drops, of {totals['train']:,} train documents, {its['train']:,} that repeat an "
            f"earlier one and {its['held_out']:,} that validation has, and of {totals['validation']:,} validation "
            f"documents {its['validation']:,}"
        )

    def eos_is_trained(self, context: int) -> bool:
        """True if eos, before the start of a document, is an input of at least one in 100 packed train windows.

        It never is for a corpus of one document; a prompt after eos would then follow what no window shows.
        """
        train = self.manifest["splits"]["train"]
        return self.has_ends and (train["documents"] - 1) * context * 100 >= train["tokens"]

    def shards(self, split: Split) -> list[np.memmap]:
        """One memory-mapped array (ids,) of uint16 or uint32 per file."""
        files = [shard["file"] for shard in self.manifest["splits"][split]["shards"]]
        return [np.memmap(self.folder / file, dtype=self.dtype, mode="r") for file in files]

    def bounds(self, split: Split, eos: int) -> np.ndarray:
        """The places of a split, in ids, at which its documents begin, and the last one ends (D + 1,), int64."""
        return index.bounds(self.folder / f"{split}-documents.i64", self.shards(split), eos)


def prepare_tokenizer(
    settings: Mapping[str, Any],
    build: Callable[..., Tokenizer],
    corpus: Corpus,
    cache: Path,
    load: Callable[[Path], Tokenizer] = tokenizers.load,
) -> Tokenizer:
    """The tokenizer of these settings for this corpus, from the cache or built now.

    `load` is the inverse of the tokenizer's `save`; for a class outside slm it must be the class's own.
    Raises: UserError: from the corpus, `build` or `load`; for a cache folder that cannot be created.
    """

    def write(folder: Path):
        build(documents=corpus.documents("train")).save(folder)

    return load(cached(cache, "tokenizers", corpus, tokenizer_identity(settings, corpus), write))


def prepare(corpus: Corpus, tokenizer: Tokenizer, cache: Path) -> TokenStore:
    """The tokenized corpus, from the cache or tokenized now. Memory depends on the longest document only.

    Raises: UserError: from the corpus; for a split without documents; for a damaged cache (see `TokenStore.open`).
    """
    if hasattr(corpus, "store"):  # it has ids already
        return corpus.store(tokenizer, cache)
    identity = store_identity(corpus, tokenizer)
    expected = {**identity, "vocab_size": tokenizer.vocab_size}
    if not (has_ends := getattr(corpus, "has_ends", True)):
        expected["has_ends"] = False

    def write(folder: Path):
        preparation = Preparation(folder, id_type(tokenizer.vocab_size), corpus)
        encoder = Encoder(tokenizer, preparation.dtype, has_ends)
        with encoder.processes:
            splits = {split: write_split(corpus, encoder, preparation, split) for split in ("validation", "train")}
        written = TokenStore(folder, {"dtype": preparation.dtype, "splits": splits, **expected})
        shards = [shard for split in splits.values() for shard in split["shards"]]
        stamps = {shard["file"]: written._verify(shard, {}, hashed=True) for shard in shards}
        atomic.write_text(folder / VERIFIED, json.dumps(stamps))
        for split in splits if has_ends else ():
            written.bounds(split, tokenizer.eos)
        preparation.complete({**expected, "splits": splits})

    progress = PROGRESS if hasattr(corpus, "parts") else None
    store = TokenStore.open(cached(cache, "tokens", corpus, identity, write, progress), expected)
    repeated, documents = store.manifest["repeated"], store.manifest["splits"]["validation"]["documents"]
    if repeated > REPEATED * documents:
        notice(
            f"warning: {repeated:,} of {documents:,} validation documents ({repeated / documents:.1%}) are train "
            "documents, too, so val/loss is too low; data.deduplicate=exact drops them from train"
        )
    return store


def id_type(vocab_size: int) -> np.dtype:
    """The smallest type of the ids on disk."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def tokenizer_identity(settings: Mapping[str, Any], corpus: Corpus) -> dict[str, Any]:
    """What names the folder of a tokenizer in the cache."""
    return {"format": TOKENIZER_FORMAT, "corpus": corpus.fingerprint(), "settings": dict(settings)}


def store_identity(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Any]:
    """What names the folder of a token store in the cache."""
    names = {"format": FORMAT, "corpus": corpus.fingerprint(), "tokenizer": fingerprint(tokenizer)}
    return {**names, **code_of(type(tokenizer))}


def code_of(kind: type) -> dict[str, str | None]:
    """The code of a class of tokenizers from outside slm, which may change while its files do not."""
    return {"code": file_hash(kind)} if tokenizers.is_own(kind) else {}


def fingerprint(tokenizer: Tokenizer) -> str:
    """The digest of the files that the tokenizer saves."""
    digest = hashlib.sha256()
    for name, content in tokenizers.files(tokenizer).items():
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def _read_manifest(folder: Path, expected: Mapping[str, Any]) -> dict:
    """The manifest, after a check of its keys and of the expected values."""
    path, remedy = folder / "manifest.json", f"delete {folder} to rebuild it"
    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}")
    manifest = atomic.read_object(path) or {}
    for key, value in expected.items():
        if manifest and manifest.get(key) != value:
            raise UserError(f"{path} has {key}={manifest.get(key)}, but this run needs {key}={value}; {remedy}")
    try:
        valid = manifest["dtype"] in ("uint16", "uint32") and manifest["repeated"] >= 0
        for split in ("train", "validation"):
            counts = manifest["splits"][split]
            shards = counts["shards"]
            valid &= counts["documents"] > 0 and counts["bytes"] >= 0 and counts["lost_bytes"] >= 0
            valid &= counts["tokens"] == sum(shard["tokens"] for shard in shards)
            valid &= all(shard["tokens"] > 0 and Path(shard["file"]).name == shard["file"] for shard in shards)
            valid &= bool(shards) and ("litdata" in manifest or all(len(shard["sha256"]) == 64 for shard in shards))
    except (KeyError, TypeError):
        valid = False
    if not valid:
        raise UserError(f"{path} cannot be read or is damaged; {remedy}")
    return manifest
