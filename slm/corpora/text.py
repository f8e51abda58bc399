"""Plain text of your own: a file, a folder of *.txt files or a glob, UTF-8."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from slm.corpora import Split
from slm.errors import UserError
from slm.files import atomic

CHUNK_CHARACTERS = 1 << 20


class Text:
    """One document per file, or per `separator`, stripped of the white space around it. Blank documents are skipped.

    Line ends of every kind become \\n and a byte order mark at the start of a file is dropped; all else stays as it is.
    split=contiguous: the first `train_ratio` of the documents are train; a single document is cut there instead.
    split=seeded: each document is train with probability `train_ratio`, drawn from (`seed`, its index) alone.
    """

    def __init__(
        self,
        *,
        path: str | None,
        separator: str | None,
        split: Literal["contiguous", "seeded"],
        train_ratio: float,
        seed: int,
    ):
        if split not in ("contiguous", "seeded"):
            raise UserError(f"data.split={split} must be contiguous or seeded")
        if not 0 < train_ratio < 1:
            raise UserError(f"data.train_ratio={train_ratio} must be between 0 and 1")
        if separator == "":
            raise UserError("data.separator is empty: give null for one document per file, or a text")
        self.path = path
        self.separator = separator and separator.replace("\\n", "\n").replace("\\t", "\t")  # as typed in a shell
        self.split = split
        self.train_ratio = train_ratio
        self.seed = seed

    def documents(self, split: Split) -> Iterator[str]:
        """Constant memory with a separator; without, the longest file is held."""
        total = self._total
        if total == 1:
            yield self._cut(next(self._all()))[split]
            return
        for index, document in enumerate(self._all()):
            if self._split_of(index, total) == split:
                yield document

    def fingerprint(self) -> str:
        """Reads every file once."""
        digests = []
        for path in self._files():
            with readable(path), open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        seed = self.seed if self.split == "seeded" else None
        choices = [digests, self.separator, self.split, self.train_ratio, seed]
        return hashlib.sha256(json.dumps(choices).encode()).hexdigest()

    def _files(self) -> list[Path]:
        if not self.path:
            raise UserError("data=text needs data.path=<file, folder or glob>")
        try:
            files = self._found(atomic.expanded(self.path))
        except UserError:
            raise
        except (OSError, ValueError) as error:  # too long a name, an odd pattern
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"data.path={self.path[:200]} names no file: {reason}") from None
        for file in files:
            if not os.access(file, os.R_OK):
                raise UserError(f"{file} may not be read: mend its permissions")
        return files

    def _found(self, path: Path) -> list[Path]:
        if path.is_dir():
            files, none = sorted(path.rglob("*.txt")), "no *.txt file in the folder"
        elif path.exists():
            files, none = [path], "that is neither a file nor a folder"
        elif set("*?[") & set(self.path):
            files, none = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))), "no file matches"
        else:
            siblings = path.parent.iterdir() if path.parent.is_dir() else []
            nearest = get_close_matches(path.name, [file.name for file in siblings if file.exists()], n=1)
            hint = f", did you mean {path.parent / nearest[0]}?" if nearest else ""
            raise UserError(f"data.path={self.path} does not exist{hint}")
        if not (files := [file for file in files if file.is_file()]):  # reading a pipe may never end
            raise UserError(f"data.path={self.path}: {none}")
        return files

    def _all(self) -> Iterator[str]:
        for file in self._files():
            for document in _read(file, self.separator):
                if document and not document.isspace():
                    yield document

    @cached_property
    def _total(self) -> int:
        """The number of documents, by a pass over them all: whatever is wrong is said before the first is used."""
        total = sum(1 for _ in self._all())
        if total == 0:
            raise UserError(f"data.path={self.path} is empty: it holds no text but white space")
        if total == 1 and self.separator:
            print(f"warning: data.separator={self.separator!r} does not occur between two texts", file=sys.stderr)
        if total > 1:
            both = all(
                any(self._split_of(i, total) == split for i in range(total)) for split in ("train", "validation")
            )
        elif self.split == "contiguous":
            both = all(part and not part.isspace() for part in self._cut(next(self._all())).values())
        else:
            raise UserError(
                f"data.path={self.path} is one document, which data.split=seeded cannot divide: "
                "give data.separator or data.split=contiguous"
            )
        if not both:
            raise UserError(
                f"data.path={self.path} is too short: data.train_ratio={self.train_ratio} leaves one split without text"
            )
        return total

    def _cut(self, document: str) -> dict[Split, str]:
        cut = int(self.train_ratio * len(document))
        return {"train": document[:cut], "validation": document[cut:]}

    def _split_of(self, index: int, total: int) -> Split:
        if self.split == "contiguous":
            return "train" if index < min(max(round(self.train_ratio * total), 1), total - 1) else "validation"
        digest = hashlib.sha256(f"{self.seed}:{index}".encode()).digest()
        return "validation" if int.from_bytes(digest[:8]) / 2**64 < 1 - self.train_ratio else "train"


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Puts what the system says of an unreadable file into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _read(path: Path, separator: str | None) -> Iterator[str]:
    with readable(path), path.open(encoding="utf-8-sig") as file:  # "sig": a leading byte order mark is dropped
        try:
            if separator is None:
                yield file.read()
            else:
                chunks = iter(partial(file.read, CHUNK_CHARACTERS), "")
                yield from (document.strip() for document in split_stream(chunks, separator))
        except UnicodeDecodeError as error:
            offset = file.buffer.tell() - len(error.object) + error.start
            raise UserError(f"{path} is not UTF-8 at byte {offset}: convert it, or leave it out") from None


def split_stream(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """`"".join(chunks).split(separator)` in memory for one chunk and one piece, and in linear time."""
    begun: list[str] = []  # the piece so far, free of separators
    tail = ""  # its end, which may be the start of a separator
    for chunk in chunks:
        *ends, rest = (tail + chunk).split(separator)
        for end in ends:
            yield "".join([*begun, end])
            begun.clear()
        keep = max(0, len(rest) - len(separator) + 1)
        begun.append(rest[:keep])
        tail = rest[keep:]
    yield "".join([*begun, tail])
