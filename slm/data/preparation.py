"""A token store that is being written: a preparation that ended early can go on with its complete parts.

Only what `progress.json` lists is trusted, after a check of its CRC-32. It is written when a file of the corpus has
been read to its end and the ids are on disk. The folder has a temporary name until the manifest is written.
"""

import hashlib
import json
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from slm.corpora import Corpus, Place, Split
from slm.errors import file_operation
from slm.files import atomic

PROGRESS = "progress.json"
SHARD_TOKENS = 2**27  # 256 MiB of uint16
COUNTS = ("documents", "bytes", "tokens", "lost_bytes")


class Preparation:
    """A store in `folder`: the place in the corpus, counts and shards of each split, and the repeated documents."""

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder, self.dtype = folder, dtype
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
        content, path = ids.tobytes(), self.folder / shards[-1]["file"]
        with file_operation("write", path), open(path, "ab") as file:
            file.write(content)
        shards[-1]["tokens"] += len(ids)
        shards[-1]["crc32"] = zlib.crc32(content, shards[-1]["crc32"])
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
        with file_operation("write", path := self.folder / "manifest.json"):
            path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    def _counted(self, split: Split, documents: Iterator[str]) -> Iterator[str]:
        for text in documents:
            digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
            if split == "validation":
                self.held_out[digest] += 1
            else:
                self.repeated += self.held_out.pop(digest, 0)
            yield text

    def _save(self):
        for split in self.splits.values():
            for shard in split["shards"][-1:]:
                atomic.flush(self.folder / shard["file"])
        places = {split: asdict(place) for split, place in self.places.items()}
        state = {"splits": self.splits, "places": places, "held_out": self.held_out, "repeated": self.repeated}
        atomic.write_text(self.folder / PROGRESS, json.dumps(state))

    def _restored(self) -> bool:
        """Takes over what an earlier process has completed, and deletes the rest. False if nothing can be trusted."""
        try:
            state = atomic.read_object(self.folder / PROGRESS) or {}
            shards = [shard for split in state["splits"].values() for shard in split["shards"]]
            if not all(self._cut(shard) for shard in shards):
                print(f"{self.folder} is damaged: the preparation begins again", file=sys.stderr)
                return False
            self.splits, self.repeated = state["splits"], state["repeated"]
            self.places = {split: Place(**place) for split, place in state["places"].items()}
            self.held_out = Counter(state["held_out"])
        except (KeyError, TypeError, AttributeError):
            return False
        for path in self.folder.iterdir():
            if path.name not in {PROGRESS, *(shard["file"] for shard in shards)}:
                path.unlink()
        at = ", ".join(f"{split} behind file {place.file} of {place.files}" for split, place in self.places.items())
        print(f"going on with an earlier preparation: {at}", file=sys.stderr)
        return True

    def _cut(self, shard: dict[str, Any]) -> bool:
        """Cuts a shard to its recorded length; True if its content is as recorded."""
        path, size = self.folder / shard["file"], shard["tokens"] * self.dtype.itemsize
        if Path(shard["file"]).name != shard["file"] or not path.is_file() or path.stat().st_size < size:
            return False
        with open(path, "r+b") as file:
            file.truncate(size)
        content = np.memmap(path, np.uint8, "r")
        crc = 0
        for start in range(0, size, 2**24):
            crc = zlib.crc32(content[start : start + 2**24], crc)
        return crc == shard["crc32"]
