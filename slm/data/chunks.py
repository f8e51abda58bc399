"""The chunks of a folder that `litdata.optimize` wrote: token ids, read where they are.

A folder has an index.json and chunks. A chunk is the number n of its items, n + 1 offsets in bytes, each a uint32, and
the items: their ids, behind a length of 4 bytes unless the writer had TokensLoader. Chunks that are compressed, or on
another machine, are fetched by the library litdata, as a whole; others are mapped.

Shapes: C chunks, n items of a chunk.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import UserError, one_line
from slm.files import atomic

MAPPED = 64  # chunks of a folder that a process keeps mapped
LOCKS = 16  # chunks of a folder that are fetched at a time, over all processes
WORD = 4  # bytes of a number in the head of a chunk, and of the length before an item
TYPES = {  # litdata's numbers of the types of ids
    "no_header_tensor": {11: "u1", 13: "i2", 14: "i2", 15: "i4", 16: "i4", 17: "i8", 18: "i8", 20: "u2"},
    "no_header_numpy": {1: "i2", 2: "i4", 3: "i8", 4: "u1", 5: "u2", 6: "u4", 7: "u8"},
}


class Chunks:
    """The chunks of the folder or URL `path`. `home` holds a copy of its index.json, and the chunks that are fetched.

    `keep`: so many of the fetched ones stay on disk (None: all). `vocab_size`: ids are less (None: unchecked).
    Raises: UserError: for an index that is damaged, or of anything but token ids.
    """

    def __init__(self, path: str, home: Path, keep: int | None = None, vocab_size: int | None = None):
        self.path, self.home, self.keep, self.vocab_size = path, home, keep, vocab_size
        self.config, self.chunks = checked(atomic.read_object(home / "index.json"), path)
        self.dtype = type_of(self.config["data_format"], path)
        self.prefix = 0 if self.config.get("item_loader", "TokensLoader") == "TokensLoader" else WORD
        self.bytes, self.items = (np.array([its[key] for its in self.chunks]) for key in ("chunk_bytes", "chunk_size"))
        content = self.bytes - (self.items + 2) * WORD - self.items * self.prefix
        self.lengths = content // self.dtype.itemsize  # ids of each chunk (C,)
        for number in np.flatnonzero((self.lengths < 1) | (content % self.dtype.itemsize != 0)):
            raise self.damaged(number, f"cannot hold ids in its {self.bytes[number]:,} bytes")
        self.fetched = is_remote(path) or bool(self.config.get("compression"))
        self.mapped = lru_cache(MAPPED)(self._mapped)

    def damaged(self, number: int, problem: str) -> UserError:
        return UserError(one_line(f"chunk {self.chunks[number]['filename']} of {self.path} {problem}"))

    def check_files(self):
        """Raises: UserError: for a chunk on this machine that is missing or has another size than index.json says."""
        for number, its in enumerate([] if is_remote(self.path) else self.chunks):
            try:
                size = Path(self.path, its["filename"]).stat().st_size
            except OSError as error:
                raise self.damaged(number, f"cannot be read: {error.strerror}; copy it again") from None
            if not self.fetched and size != self.bytes[number]:
                raise self._cut(number, size)

    def ids(self, number: int, start: int, stop: int) -> np.ndarray:
        """The ids of a chunk from one place to another. Raises: UserError: if one is not in the vocabulary."""
        content, starts = self.mapped(number)
        size, head = self.dtype.itemsize, int(self.items[number] + 2) * WORD
        if not self.prefix:
            ids = content[head + start * size : head + stop * size].view(self.dtype)
        else:
            first, last = np.searchsorted(starts, [start, max(start, stop - 1)], side="right") - 1
            parts = []
            for item in range(first, last + 1):
                low, high = max(start, starts[item]), min(stop, starts[item + 1])
                begin = head + self.prefix * (item + 1)
                parts.append(content[begin + low * size : begin + high * size].view(self.dtype))
            ids = np.concatenate(parts)
        if self.vocab_size is not None and len(ids):
            wrong = int(ids.max())
            if self.dtype.kind == "i" and ids.min() < 0:
                wrong = int(ids.min())
            if not 0 <= wrong < self.vocab_size:
                problem = f"has id {wrong}, but the vocabulary has {self.vocab_size:,} ids"
                raise self.damaged(number, f"{problem}: give the tokenizer that made them")
        return ids

    def starts(self, number: int) -> np.ndarray:
        """The ids of a chunk at which its items begin, and the last one ends (n + 1,)."""
        return self.mapped(number)[1]

    def _mapped(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            file = Path(self.path, self.chunks[number]["filename"])
            content = self._fetch(number) if self.fetched else np.memmap(file, np.uint8, "r")
        except UserError:
            raise
        except (OSError, ValueError) as error:  # ValueError: of an empty file
            raise self.damaged(number, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
        if len(content) != self.bytes[number]:
            raise self._cut(number, len(content))
        items = int(self.items[number])
        head = content[: (items + 2) * WORD].view("<u4").astype(np.int64)
        starts = (head[1:] - (items + 2) * WORD - self.prefix * np.arange(items + 1)) // self.dtype.itemsize
        if head[0] != items or starts[0] != 0 or starts[-1] != self.lengths[number] or (np.diff(starts) < 0).any():
            raise self.damaged(number, "is damaged: its head does not agree with index.json; copy it again")
        return content, starts

    def _cut(self, number: int, size: int) -> UserError:
        return self.damaged(number, f"has {size:,} bytes, but {self.bytes[number]:,} by index.json; copy it again")

    def _fetch(self, number: int) -> np.ndarray:
        """The content of a chunk that is compressed or remote, from `home` or fetched now."""
        name = self.chunks[number]["filename"].replace(f".{self.config.get('compression')}", "")
        file = self.home / name
        with atomic.locked(self.home / f"{number % LOCKS}.lock", wait=True):
            while True:
                with contextlib.suppress(FileNotFoundError):  # not there yet, or deleted by another process just now
                    os.utime(file)
                    content = np.memmap(file, np.uint8, "r")
                    break
                with library(f"chunk {name} of {self.path}"):
                    from litdata.streaming.config import ChunksConfig
                    from litdata.streaming.item_loader import TokensLoader
                    from litdata.streaming.serializers import _SERIALIZERS

                    source = self.path if is_remote(self.path) else f"local:{self.path}"
                    config = ChunksConfig(str(self.home), _SERIALIZERS, source, TokensLoader(block_size=1))
                    config.download_chunk_from_index(number, skip_lock=True)
        if self.keep is not None:
            others = sorted(self.home.glob("*.bin"), key=lambda path: path.stat().st_mtime)
            for old in others[: -self.keep]:
                old.unlink(missing_ok=True)  # what a process has mapped stays readable for it
        return content


def is_remote(path: str) -> bool:
    return "://" in path or path.startswith("local:")


def index_of(path: str) -> bytes:
    """The content of a folder's index.json. Raises: UserError: if it cannot be read."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder, library(f"{path}/index.json"):
            from litdata.streaming.downloader import get_downloader

            file = Path(folder, "index.json")
            get_downloader(path, folder, []).download_file(f"{path.rstrip('/')}/index.json", str(file))
            return file.read_bytes()
    folder = Path(path)
    try:
        return (folder / "index.json").read_bytes()
    except OSError as error:
        below = sorted(file.parent.name for file in folder.glob("*/index.json"))
        hint = f"; did you mean {folder / below[0]}?" if below else ": it must be what litdata.optimize wrote"
        raise UserError(f"{folder / 'index.json'} cannot be read ({error.strerror}){hint}") from None


@contextlib.contextmanager
def library(what: str) -> Iterator[None]:
    """Raises: UserError: in one line, for an error of the library litdata, or without it."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{what} needs the library litdata: pip install -e '.[litdata]' ({one_line(error, 200)})"
        ) from None
    except Exception as error:  # of litdata, a cloud's library, or a codec: no common base class
        raise UserError(f"{what} cannot be fetched: {type(error).__name__}: {one_line(error, 300)}") from error


def checked(index: Any, path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`config` and `chunks` of an index.json. Raises: UserError: if they are not those of a folder of plain items."""
    try:
        config, chunks = index["config"], index["chunks"]
        spec = json.loads(config["data_spec"])[1]
        leaves, valid = spec["children_spec"], isinstance(config["data_format"], list) and bool(chunks)
        for its in chunks:
            name, numbers = its["filename"], (its["chunk_bytes"], its["chunk_size"])
            valid &= Path(name).name == name and all(type(number) is int and number > 0 for number in numbers)
    except (KeyError, TypeError, ValueError, IndexError):
        valid = False
    if not valid:
        raise UserError(f"{path}/index.json is damaged, or not of litdata.optimize: write the folder again")
    if spec["type"] is not None or leaves or len(config["data_format"]) != 1:
        kind = f"{spec['type']} of {', '.join(map(str, config['data_format']))}"
        raise UserError(one_line(f"the items of {path} are {kind}: each must be one array of token ids", 300))
    if config.get("encryption") or config.get("compression_level") not in (None, "chunk"):
        remedy = "write it without encryption, and with compression_level='chunk' if at all"
        raise UserError(f"{path} is encrypted, or compressed within its chunks: {remedy}")
    if config.get("item_loader", "TokensLoader") not in ("TokensLoader", "PyTreeLoader"):
        raise UserError(one_line(f"{path} was written for {config['item_loader']}: write it for TokensLoader", 300))
    return config, chunks


def type_of(data_format: list[str], path: str) -> np.dtype:
    """The type of the ids. Raises: UserError: for items that are no integers of one dimension."""
    kind, _, number = str(data_format[0]).partition(":")
    found = TYPES.get(kind, {}).get(int(number) if number.isdecimal() else -1)
    if found is None:
        raise UserError(
            one_line(
                f"the items of {path} are {data_format[0]}: each must be one array of token ids, such as "
                "torch.tensor(ids, dtype=torch.uint16)",
                300,
            )
        )
    return np.dtype(found).newbyteorder("<")
