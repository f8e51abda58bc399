"""A token store that is being written: a preparation that ended early can go on with its complete parts.

Only what `progress.json` lists is trusted, after a check of its CRC-32. It is written when a file of the corpus has
been read to its end and the ids are on disk. The folder has a temporary name until the manifest is written.
"""

import json
import shutil
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from slm.corpora import Corpus, Place, Split
from slm.corpora.deduplicated import Deduplicated, Digests, digest
from slm.errors import file_operation, notice
from slm.files import atomic

PROGRESS = "progress.json"
DIGESTS = "{}-digests.bin"  # of the documents of a split, 8 bytes each
SHARD_TOKENS = 2**27  # 256 MiB of uint16
COUNTS = ("documents", "bytes", "tokens", "lost_bytes")


class Preparation:
    """A store in `folder`: the place in the corpus, counts and shards of each split, and the repeated documents.

    If the corpus drops repeated documents and is read part by part, the digests of those so far are on disk, too.
    """

    def __init__(self, folder: Path, dtype: np.dtype, corpus: Corpus | None = None):
        self.folder, self.dtype = folder, dtype
        self.deduplicated = corpus if isinstance(corpus, Deduplicated) else None
        self.fresh: dict[Split, array] = defaultdict(lambda: array("Q"))  # digests that are not yet on disk
        self.splits: dict[str, dict[str, Any]] = {}
        self.places: dict[str, Place] = {}
        self.held_out: Counter[str] = Counter()  # digests of the validation documents that train does not have so far
        self.repeated = 0
        if not self._restored():
            shutil.rmtree(folder)
            folder.mkdir()

    def start(self, split: Split) -> tuple[dict[str, Any], Place]:
        """Counts and shards of the split so far, to be kept up to date, and the place in the corpus."""
        counts = self.splits.setdefault(split, {**dict.fromkeys(COUNTS, 0), "shards": []})
        return counts, self.places.setdefault(split, Place())

    def documents(self, corpus: Corpus, split: Split) -> Iterator[Iterator[str]]:
        """The documents of each file that is not complete; of the whole split if the corpus is read as one."""
        place = self.places[split]
        if not hasattr(corpus, "parts"):
            yield self._counted(split, corpus.documents(split))
            return
        for part in corpus.parts(split, place):
            yield self._counted(split, part)
            self._save()

    def add(self, split: Split, ids: np.ndarray):
        """Appends ids to the last shard of the split, or to a new one."""
        shards = self.splits[split]["shards"]
        if not shards or shards[-1]["tokens"] + len(ids) > SHARD_TOKENS:
            shards.append({"file": f"{split}-{len(shards):05d}.bin", "tokens": 0, "crc32": 0})
        self._append(shards[-1], ids)
        self.splits[split]["tokens"] += len(ids)

    def sealed(self, split: Split) -> dict[str, Any]:
        """Counts and shards for the manifest."""
        found = self.splits[split]
        shards = [{"file": shard["file"], "tokens": shard["tokens"]} for shard in found["shards"]]
        digests = [atomic.sha256(self.folder / shard["file"]) for shard in shards]
        sealed = [{**shard, "sha256": digest} for shard, digest in zip(shards, digests)]
        return {**{name: found[name] for name in COUNTS}, "shards": sealed}

    def complete(self, manifest: dict[str, Any]):
        """Writes the manifest in place of the progress."""
        (self.folder / PROGRESS).unlink(missing_ok=True)
        manifest = {**manifest, "dtype": self.dtype.name, "repeated": self.repeated}
        if self.deduplicated:
            manifest["dropped"] = dict(self.deduplicated.dropped)
            for split in self.splits:
                (self.folder / DIGESTS.format(split)).unlink(missing_ok=True)
        with file_operation("write", path := self.folder / "manifest.json"):
            path.write_text(json.dumps(manifest, indent=1), encoding="utf-8", newline="\n")

    def _counted(self, split: Split, documents: Iterator[str]) -> Iterator[str]:
        for text in documents:
            number = digest(text)
            if split == "validation":
                self.held_out[f"{number:016x}"] += 1
            else:
                self.repeated += self.held_out.pop(f"{number:016x}", 0)
            if self.deduplicated and hasattr(self.deduplicated, "parts"):
                self.fresh[split].append(number)
            yield text

    def _append(self, shard: dict[str, Any], numbers: np.ndarray):
        """Appends numbers to a file, and counts them."""
        content, path = numbers.tobytes(), self.folder / shard["file"]
        with file_operation("write", path), open(path, "ab") as file:
            file.write(content)
        shard["tokens"] += len(numbers)
        shard["crc32"] = zlib.crc32(content, shard["crc32"])

    def _save(self):
        for name, split in self.splits.items():
            if self.deduplicated:
                known = split.setdefault("known", {"file": DIGESTS.format(name), "tokens": 0, "crc32": 0})
                self._append(known, np.array(self.fresh.pop(name, ()), np.uint64))
                atomic.flush(self.folder / known["file"])
            for shard in split["shards"][-1:]:
                atomic.flush(self.folder / shard["file"])
        places = {split: asdict(place) for split, place in self.places.items()}
        state = {"splits": self.splits, "places": places, "held_out": self.held_out, "repeated": self.repeated}
        if self.deduplicated:
            state["dropped"] = self.deduplicated.dropped
        atomic.write_text(self.folder / PROGRESS, json.dumps(state))

    def _restored(self) -> bool:
        """Takes over what an earlier process has completed, and deletes the rest. False if nothing can be trusted."""
        try:
            state = atomic.read_object(self.folder / PROGRESS) or {}
            shards = [shard for split in state["splits"].values() for shard in split["shards"]]
            known = {name: split["known"] for name, split in state["splits"].items() if self.deduplicated}
            intact = all(self._cut(shard, self.dtype) for shard in shards)
            if not (intact and all(self._cut(its, np.dtype(np.uint64)) for its in known.values())):
                notice(f"{self.folder} is damaged: the preparation begins again")
                return False
            self.splits, self.repeated = state["splits"], state["repeated"]
            self.places = {split: Place(**place) for split, place in state["places"].items()}
            self.held_out = Counter(state["held_out"])
            for split, its in known.items():
                self.deduplicated.known[split] = Digests(np.fromfile(self.folder / its["file"], np.uint64))
            if self.deduplicated:
                self.deduplicated.dropped.update(state["dropped"])
        except (KeyError, TypeError, AttributeError):
            return False
        for path in self.folder.iterdir():
            if path.name not in {PROGRESS, *(shard["file"] for shard in (*shards, *known.values()))}:
                path.unlink()
        at = ", ".join(f"{split} behind file {place.file} of {place.files}" for split, place in self.places.items())
        notice(f"going on with an earlier preparation: {at}")
        return True

    def _cut(self, shard: dict[str, Any], dtype: np.dtype) -> bool:
        """Cuts a file to its recorded length; True if its content is as recorded."""
        path, size = self.folder / shard["file"], shard["tokens"] * dtype.itemsize
        if Path(shard["file"]).name != shard["file"] or not path.is_file() or path.stat().st_size < size:
            return False
        with open(path, "r+b") as file:
            file.truncate(size)
        content = np.memmap(path, np.uint8, "r") if size else b""
        crc = 0
        for start in range(0, size, 2**24):
            crc = zlib.crc32(content[start : start + 2**24], crc)
        return crc == shard["crc32"]
