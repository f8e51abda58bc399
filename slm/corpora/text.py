"""Plain text in local files: a file, a folder of *.txt files or a glob, UTF-8."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from slm.corpora import Split
from slm.errors import UserError
from slm.files import atomic

SplitMethod = Literal["contiguous", "seeded"]

CHUNK_CHARACTERS = 2**20


class Text:
    """One document per file, or documents divided by `separator` and stripped. Blank documents are skipped.

    All line ends become \\n and a byte order mark at the start of a file is dropped; nothing else changes.
    split=contiguous: the first `train_ratio` of the documents are train; a single document is cut there instead.
    split=seeded: each document is train with probability `train_ratio`, a function of (`seed`, its index) alone.
    Constant memory with a separator; without one, the longest file is in memory.
    Raises: UserError: for an unknown split, a ratio outside (0, 1) or an empty separator.
    """

    pattern = "*.txt"  # of the files in a folder

    def __init__(self, *, path: str | None, separator: str | None, split: SplitMethod, train_ratio: float, seed: int):
        if split not in ("contiguous", "seeded"):
            raise UserError(f"data.split={split} must be contiguous or seeded")
        if not 0 < train_ratio < 1:
            raise UserError(f"data.train_ratio={train_ratio} must be between 0 and 1")
        if separator == "":
            raise UserError("data.separator is empty: give null for one document per file, or a text")
        self.path = path
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

    def fingerprint(self) -> str:
        """Reads every file once. Raises: UserError: if there is no file or one cannot be read."""
        digests = []
        for path in self.files():
            with readable(path):
                digests.append(atomic.sha256(path))
        seed = self.seed if self.split == "seeded" else None
        choices = [digests, self.separator, self.split, self.train_ratio, seed]
        return hashlib.sha256(json.dumps(choices).encode()).hexdigest()

    def read(self, path: Path) -> Iterator[str]:
        """The documents of one file, blank ones included. Raises: UserError: if it is unreadable or not UTF-8."""
        with readable(path), path.open(encoding="utf-8-sig") as file:  # "sig" drops a leading byte order mark
            try:
                if self.separator is None:
                    yield file.read()
                else:
                    chunks = iter(partial(file.read, CHUNK_CHARACTERS), "")
                    yield from (document.strip() for document in split_stream(chunks, self.separator))
            except UnicodeDecodeError as error:
                offset = file.buffer.tell() - len(error.object) + error.start
                raise UserError(f"{path} is not UTF-8 at byte {offset}: convert it, or leave it out") from None

    def files(self) -> list[Path]:
        """The files at `path`. Raises: UserError: if there is none."""
        if not self.path:
            raise UserError("data.path is missing: give data.path=<file, folder or glob>")
        path = atomic.expanded(self.path)
        if path.is_dir():
            files, problem = sorted(path.rglob(self.pattern)), f"no {self.pattern} file in the folder"
        elif path.exists():
            files, problem = [path], "neither a file nor a folder"
        elif set("*?[") & set(self.path):
            try:
                files, problem = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))), "no file matches"
            except ValueError as error:
                raise UserError(f"data.path={self.path} names no file: {error}") from None
        else:
            siblings = path.parent.iterdir() if path.parent.is_dir() else []
            nearest = get_close_matches(path.name, [file.name for file in siblings if file.exists()], n=1)
            hint = f", did you mean {path.parent / nearest[0]}?" if nearest else ""
            raise UserError(f"data.path={self.path} does not exist{hint}")
        if not (files := [file for file in files if file.is_file()]):  # a pipe may never end
            raise UserError(f"data.path={self.path}: {problem}")
        return files

    def _all(self) -> Iterator[str]:
        for file in self.files():
            for document in self.read(file):
                if document and not document.isspace():
                    yield document

    @cached_property
    def _count(self) -> int:
        """The number of documents. Reads them all, so that every mistake is reported before the first document."""
        count = sum(1 for _ in self._all())
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


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises: UserError: with the name of the file, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


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
