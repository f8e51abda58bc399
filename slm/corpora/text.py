"""Plain text in local files: a file, a folder of *.txt files or a glob, UTF-8."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from slm.corpora import Split
from slm.corpora.local import named, opened, refuse_format
from slm.errors import UserError

SplitMethod = Literal["contiguous", "seeded"]

CHUNK_CHARACTERS = 2**20
END_OF_TEXT = "<|endoftext|>"  # between documents, in many text files


class Text:
    """One document per file, or documents divided by `separator` and stripped. Blank documents are skipped.

    All line ends become \\n and a byte order mark at the start of a file is dropped; nothing else changes.
    split=contiguous: the first `train_ratio` of the documents are train; a single document is cut there instead.
    split=seeded: each document is train with probability `train_ratio`, a function of (`seed`, its index) alone.
    Constant memory with a separator; without one, the longest file is in memory.
    Raises: UserError: for an unknown split, a ratio outside (0, 1) or an empty separator.
    """

    suffix = ".txt"  # of the files in a folder
    own = frozenset()  # suffixes that `read` divides into documents

    def __init__(self, *, path: str | None, separator: str | None, split: SplitMethod, train_ratio: float, seed: int):
        if split not in ("contiguous", "seeded"):
            raise UserError(f"data.split={split} must be contiguous or seeded")
        if not 0 < train_ratio < 1:
            raise UserError(f"data.train_ratio={train_ratio} must be between 0 and 1")
        if separator == "":
            raise UserError("data.separator is empty: give null for one document per file, or a text")
        self.path = path
        self.digests: dict[str, str] = {}  # by file, as of the last fingerprint
        self.separator = separator and separator.replace("\\n", "\n").replace("\\t", "\t")  # as typed in a shell
        self.split, self.train_ratio, self.seed = split, train_ratio, seed

    def documents(self, split: Split) -> Iterator[str]:
        """All documents of the split.

        Raises: UserError: before the first document, for a wrong path, an unreadable file or a split without text.
        """
        count = self._count
        for index, document in enumerate(self._all()):
            if count == 1:
                yield self._cut(document)[split]
            elif self._split_of(index, count) == split:
                yield document

    def size(self) -> tuple[int, int] | None:
        """Train documents, and about their bytes, by the sizes of the files; None for documents within files."""
        files = self.files()
        if self.separator is not None:
            return None
        return len(files), round(self.train_ratio * sum(file.stat().st_size for file in files))

    def fingerprint(self) -> str:
        """Reads every file once. Raises: UserError: if there is no file, or one cannot be read or is not plain text."""
        files = self.files()
        names = [os.path.relpath(path, os.path.commonpath([file.parent for file in files])) for path in files]
        self.digests = {}
        for name, path in zip(names, files):
            with opened(path) as file:
                self.digests[name] = hashlib.file_digest(file.buffer, "sha256").hexdigest()
        seed = self.seed if self.split == "seeded" else None
        choices = [list(self.digests.values()), self.separator, self.split, self.train_ratio, seed]
        return hashlib.sha256(json.dumps(choices).encode()).hexdigest()

    def read(self, path: Path) -> Iterator[str]:
        """The documents of one file, blank ones included. Raises: UserError: if it is not readable plain UTF-8 text."""
        with opened(path) as file:
            if self.separator is None:
                yield file.read()
            else:
                chunks = iter(partial(file.read, CHUNK_CHARACTERS), "")
                yield from (document.strip() for document in split_stream(chunks, self.separator))

    def files(self) -> list[Path]:
        """The files at `path`. Raises: UserError: if there is none, or one is not plain text by its suffix."""
        files = named(self.path, self.suffix)
        for file in files:
            if file.suffix.lower() not in self.own:
                refuse_format(file)
        return files

    def _all(self) -> Iterator[str]:
        for file in self.files():
            for document in self.read(file):
                if document and not document.isspace():
                    yield document

    @cached_property
    def _count(self) -> int:
        """The number of documents. Reads them all, so that every mistake is reported before the first document."""
        count = marked = 0
        for document in self._all():
            count, marked = count + 1, marked + (END_OF_TEXT in document)
        if marked and not self.own:
            print(
                f"warning: {END_OF_TEXT} in {marked:,} of {count:,} documents of {self.path} is read as text; if it "
                f"divides them, give data.separator='{END_OF_TEXT}'",
                file=sys.stderr,
            )
        if count == 0:
            raise UserError(f"data.path={self.path} is empty: it contains only white space")
        if count == 1 and self.split == "seeded":
            raise UserError(
                f"data.path={self.path} is one document, which data.split=seeded cannot divide: "
                "give data.separator, more documents or data.split=contiguous"
            )
        if count == 1 and self.separator:
            print(f"warning: {self.path} is one document, without {self.separator!r} between texts", file=sys.stderr)
        if count == 1:
            complete = all(part.strip() for part in self._cut(next(self._all())).values())
        else:
            complete = len({self._split_of(index, count) for index in range(count)}) == 2
        if not complete:
            raise UserError(
                f"data.path={self.path} is too short: data.train_ratio={self.train_ratio} leaves one split without text"
            )
        return count

    def _cut(self, document: str) -> dict[Split, str]:
        end = int(self.train_ratio * len(document))
        return {"train": document[:end], "validation": document[end:]}

    def _split_of(self, index: int, count: int) -> Split:
        if self.split == "contiguous":
            return "train" if index < min(max(round(self.train_ratio * count), 1), count - 1) else "validation"
        digest = hashlib.sha256(f"{self.seed}:{index}".encode()).digest()
        return "validation" if int.from_bytes(digest[:8]) / 2**64 < 1 - self.train_ratio else "train"


def split_stream(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """Equal to `"".join(chunks).split(separator)`. Linear time, memory for one chunk and one piece."""
    piece: list[str] = []  # parts of the current piece, without a separator
    tail = ""  # its last characters, which may begin a separator
    for chunk in chunks:
        *ends, rest = (tail + chunk).split(separator)
        for end in ends:
            yield "".join([*piece, end])
            piece.clear()
        keep = max(0, len(rest) - len(separator) + 1)
        piece.append(rest[:keep])
        tail = rest[keep:]
    yield "".join([*piece, tail])
