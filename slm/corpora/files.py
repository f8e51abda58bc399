"""Your own files: plain text, JSON, CSV and parquet, in one file, a folder or those that match a pattern."""

import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from slm.corpora import Split, digest_of, notices
from slm.corpora.decoded import chunks, known_encoding, opened, readable
from slm.corpora.division import Division, SplitMethod
from slm.corpora.file_digests import FileDigests
from slm.corpora.local import COMPRESSED, FORMATS, format_of, named
from slm.corpora.notices import BLANK, END_OF_TEXT, MARKED, NULL
from slm.corpora.rows import csv_rows, json_rows, parquet_rows, split_stream
from slm.corpora.template import Template
from slm.errors import UserError, notice
from slm.files import atomic


class Files:
    """Plain text: one document per file, or documents divided by `separator` and stripped. JSON, CSV and parquet: one
    document per row, its `column` or a `template` of several.

    Blank documents and rows with a null are skipped and counted. In plain text and CSV all line ends become \\n;
    nothing else changes. `encoding`: None for UTF-8; a byte order mark has precedence. The folder `cache` keeps the
    digests of files, and is left out if it lies below `path`. Splits: see `Division`; with
    split=contiguous, a single document is cut. Constant memory for rows and with a separator; without one, the longest
    file is in memory. Raises: UserError: for a wrong setting.
    """

    suffixes = tuple(suffix + end for suffix in FORMATS for end in ("", *COMPRESSED))  # of the files in a folder
    format: str | None = None  # of all files; None: by their suffixes
    column_key = "data.column"  # for errors

    def __init__(
        self,
        *,
        path: str | None,
        split: SplitMethod,
        train_ratio: float,
        seed: int,
        column: str | None = None,
        template: str | None = None,
        separator: str | None = None,
        encoding: str | None = None,
        validation_files: str | None = None,
        cache: str | None = None,
    ):
        self.division = Division(split, train_ratio, seed, validation_files)
        if separator == "":
            raise UserError("data.separator is empty: give null for one document per file, or a text")
        self.path, self.column, self.template = path, column, template
        self.split, self.train_ratio, self.seed = split, train_ratio, seed
        self._rows = Template(column, template, self.column_key) if column or template else None
        self.separator = separator and separator.replace("\\n", "\n").replace("\\t", "\t")  # as typed in a shell
        self.encoding = known_encoding(encoding)
        self.cache = atomic.expanded(cache).absolute() if cache else None
        self.digests: dict[str, str] = {}  # by file, as of the last fingerprint
        self._known = FileDigests(self.cache, str(path))

    def documents(self, split: Split) -> Iterator[str]:
        """All documents of the split.

        Raises: UserError: before the first document, for a wrong path, a file or row that cannot be read, or a split
            without text.
        """
        counts, files = self._counts, self.files()
        total, start = sum(counts), 0
        if total == 1 and self.split == "contiguous":
            yield self.division.cut(next(self.all_documents()))[split]
            return
        for number, (file, count) in enumerate(zip(files, counts)):
            if any(self._split_of(number, index, total) == split for index in range(start, start + count)):
                for index, document in enumerate(self.read(file), start):
                    if self._split_of(number, index, total) == split:
                        yield document
            start += count

    def size(self) -> tuple[int, int] | None:
        """Train documents, and about their bytes, by the sizes of the files; None if they are not known so."""
        files = self.files()
        if self.separator is not None or any(file.name.lower().endswith(COMPRESSED) for file in files):
            return None
        if any(format_of(file, self.format) != "text" for file in files):
            return None
        return len(files), round(self.train_ratio * sum(file.stat().st_size for file in files))

    def fingerprint(self) -> str:
        """Reads every file that changed since the last time.

        Raises: UserError: if there is no file, or one cannot be read or is not plain text.
        """
        files = self.files()
        formats = [format_of(file, self.format) for file in files]
        for path, kind in zip(files, formats):
            if kind != "parquet":
                with opened(path, self.encoding):
                    pass
        with readable(files[0]):
            self.digests = dict(zip(self._names(), self._known.of(files), strict=True))
        seed = None if self.split == "contiguous" or self.division.pattern else self.seed
        choices = [list(self.digests.values()), self.separator, self.split, self.train_ratio, seed]
        if further := {key: value for key, value in self._further(formats).items() if value is not None}:
            choices.append(further)
        return digest_of(choices)

    def _further(self, formats: list[str]) -> dict[str, Any]:
        """What else decides the documents and splits; all None for plain text in UTF-8."""
        rows = {*formats} != {"text"}
        return {
            "formats": formats if rows else None,
            "column": self.column if rows and not self.template else None,
            "template": self.template if rows else None,
            "encoding": self.encoding,
            "validation": sorted(self._validation) if self.division.pattern else None,
        }

    def files(self) -> list[Path]:
        """The files at `path`. Raises: UserError: if there is none, or one has a format that is not read."""
        files, cache = named(self.path, self.suffixes), self.cache
        if cache and not atomic.expanded(self.path).absolute().is_relative_to(cache):
            files = [file for file in files if not file.absolute().is_relative_to(cache)]
            if not files:
                raise UserError(f"data.path={self.path} has only files of cache_dir={cache}, which are left out")
        for file in files:
            format_of(file, self.format)
        return files

    def all_documents(self) -> Iterator[str]:
        """The documents of both splits. Raises: UserError: for a file or row that cannot be read."""
        for file in self.files():
            yield from self.read(file)

    def read(self, path: Path, tally: Counter[str] | None = None) -> Iterator[str]:
        """The documents of one file; `tally` counts what is skipped or changed. Raises: UserError: see above."""
        tally = Counter() if tally is None else tally
        for document in self._texts(path, tally):
            if document is None:
                tally[NULL] += 1
            elif not document or document.isspace():
                tally[BLANK] += 1
            else:
                yield document

    def _texts(self, path: Path, tally: Counter[str]) -> Iterator[str | None]:
        kind = format_of(path, self.format)
        if kind == "text":
            yield from self._plain(path, tally)
            return
        template = self._rows or Template(None, None)  # which raises
        if kind == "json":
            rows = json_rows(path, self.encoding)
        elif kind == "csv":
            rows = csv_rows(path, chunks(path, self.encoding, tally), template)
        else:
            rows = parquet_rows(path, template)
        for where, row in rows:
            yield template.text(row, where)

    def _plain(self, path: Path, tally: Counter[str]) -> Iterator[str]:
        parts = chunks(path, self.encoding, tally)
        if self.separator is None:
            yield "".join(parts)
            return
        for document in split_stream(parts, self.separator):
            yield (stripped := document.strip())
        tally[BLANK] -= not stripped  # nothing after the last separator is no document

    def _split_of(self, file: int, index: int, total: int) -> Split:
        if self.split == "files":
            return "validation" if file in self._validation else "train"
        return self.division.split_of(index, total)

    @cached_property
    def _validation(self) -> set[int]:
        return self.division.validation_files(self._names())

    def _names(self) -> list[str]:
        """The paths of the files, relative to their common folder."""
        files = self.files()
        common = os.path.commonpath([file.parent for file in files])
        return [os.path.relpath(file, common) for file in files]

    @cached_property
    def _counts(self) -> list[int]:
        """The documents in each file. Reads them all, so that every mistake is reported before the first document."""
        files, tally, counts = self.files(), Counter[str](), []
        plain = {file for file in files if format_of(file, self.format) == "text"}
        notices.before(self.path, files, plain, self.separator)
        notices.mistaken(files, self.encoding)
        for file in files:
            count = 0
            for document in self.read(file, tally):
                count += 1
                tally[MARKED] += file in plain and END_OF_TEXT in document
            counts.append(count)
        notices.after(self.path, sum(counts), tally)
        self._check(counts)
        return counts

    def _check(self, counts: list[int]):
        """Raises: UserError: if a split would have no text."""
        total = sum(counts)
        if total == 0:
            raise UserError(f"data.path={self.path} is empty: it contains only white space")
        if total == 1 and self.split == "seeded":
            raise UserError(
                f"data.path={self.path} is one document, which data.split=seeded cannot divide: "
                "give data.separator, more documents or data.split=contiguous"
            )
        if total == 1 and self.separator:
            notice(f"warning: {self.path} is one document, without {self.separator!r} between texts")
        if total == 1 and self.split == "contiguous":
            complete = all(part.strip() for part in self.division.cut(next(self.all_documents())).values())
        else:
            complete = all(split in self._splits(counts) for split in ("train", "validation"))
        if not complete:
            raise UserError(
                f"data.path={self.path} is too short: data.train_ratio={self.train_ratio} leaves one split without text"
            )

    def _splits(self, counts: list[int]) -> Iterator[Split]:
        """The split of each document."""
        files = (file for file, count in enumerate(counts) for _ in range(count))
        total = sum(counts)
        return (self._split_of(file, index, total) for index, file in enumerate(files))
