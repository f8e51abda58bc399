"""Rows of JSON Lines, JSON arrays, CSV and parquet, one by one. Each comes with its place, for errors."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from json.decoder import WHITESPACE
from pathlib import Path
from typing import Any

from slm.corpora import decoded
from slm.corpora.decoded import opened, readable
from slm.corpora.template import Template
from slm.errors import UserError

Row = tuple[str, Mapping[str, Any]]
BATCH_ROWS = 1000
BUFFER_BYTES = 2**20  # read at a time from each column of a parquet file
MAX_FIELD = 2**30  # characters of a field of CSV
DELIMITERS = ",;\t|"
COMPLETE = "each line must be a complete object, or the file one array of objects"


def json_rows(path: Path, encoding: str | None) -> Iterator[Row]:
    """The objects of JSON Lines, or of one array if the text begins with [. Raises: UserError: for a malformed one."""
    with opened(path, encoding, newline=None) as file:
        begin = file.read(1)
        while begin.isspace() and (character := file.read(1)):
            begin += character
        if begin.endswith("["):
            yield from array_rows(path, chain(["["], iter(partial(file.read, decoded.CHUNK_CHARACTERS), "")))
        else:
            yield from line_rows(path, chain([begin + file.readline()], file), begin.count("\n") + 1)


def line_rows(path: Path, lines: Iterable[str], first: int) -> Iterator[Row]:
    for number, line in enumerate(lines, first):
        if line := line.strip():
            problem = ""
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row, problem = None, f" (column {error.colno}: {error.msg})"
            except (ValueError, RecursionError) as error:
                row, problem = None, f" ({error})"
            if not isinstance(row, dict):
                remedy = f"; {COMPLETE}" if line[:1] in "[{" else ""
                raise UserError(f"{path} line {number} is not a JSON object, but {line[:40]}{problem}{remedy}")
            yield f"{path} line {number}", row


def array_rows(path: Path, chunks: Iterable[str]) -> Iterator[Row]:
    """In memory for one object and one chunk."""
    decode, text, position, number, expected = json.JSONDecoder().raw_decode, "", 0, 0, "["
    problem = "the array has no end"
    for chunk in chunks:
        text, position = text[position:] + chunk, 0
        while (position := WHITESPACE.match(text, position).end()) < len(text):
            mark = text[position]
            if mark not in expected:
                break
            if mark != "{":
                expected, position = {"[": "{]", ",": "{", "]": ""}[mark], position + 1
                continue
            try:
                row, position = decode(text, position)
            except json.JSONDecodeError as error:
                if error.msg.startswith("Unterminated string") or error.pos > len(text) - 8:  # perhaps not yet complete
                    problem = error.msg
                    break
                raise malformed(path, number + 1, error.msg) from None
            except (ValueError, RecursionError) as error:
                raise malformed(path, number + 1, str(error)) from None
            number, expected = number + 1, ",]"
            yield f"{path} object {number}", row
        if position < len(text) and text[position] not in expected:
            raise malformed(path, number + 1, f"{text[position : position + 40]} follows")
    if expected:
        raise malformed(path, number + 1, problem)


def malformed(path: Path, number: int, problem: str) -> UserError:
    return UserError(f"{path} object {number} of the array is not a JSON object: {problem}")


def csv_rows(path: Path, chunks: Iterator[str], template: Template) -> Iterator[Row]:
    """The rows below a line with the names of columns, in which that of DELIMITERS divides that gives the most.

    Raises: UserError: for a missing column, a row with another number of fields, or unbalanced quotes.
    """
    csv.field_size_limit(MAX_FIELD)
    lines = (f"{line}\n" for line in split_stream(chunks, "\n"))
    first = next(lines)
    line = 1
    try:
        names = {mark: next(csv.reader([first], delimiter=mark)) for mark in DELIMITERS}
        delimiter = max(names, key=lambda mark: (set(template.columns) <= {*names[mark]}, len(names[mark])))
        reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        template.check(header := next(reader), f"{path} line 1")
        while True:
            line = reader.line_num + 1
            if (fields := next(reader, None)) is None:
                return
            if len(fields) == len(header):
                yield f"{path} line {line}", dict(zip(header, fields))
            elif fields:
                remedy = f"put quotes around fields with {delimiter!r} or line ends"
                raise UserError(f"{path} line {line} has {len(fields)} fields instead of {len(header)}: {remedy}")
    except csv.Error as error:
        raise UserError(f"{path} line {line} is not CSV: {error}") from None


def parquet_rows(path: Path, template: Template) -> Iterator[Row]:
    """Only the columns of the template are read, in batches. Raises: UserError: if it is damaged or lacks a column."""
    import pyarrow.parquet  # of datasets

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            template.check(file.schema_arrow.names, str(path))
            columns = list(template.columns)
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        with readable(path), path.open("rb"):
            pass
        problem = f"{error}".partition("\n")[0]
        raise UserError(f"{path} after row {number} is not parquet, or damaged: {problem}") from None


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
