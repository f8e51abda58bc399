"""Local files as text: decompressed, and decoded as UTF-8, by their byte order mark, or in a given encoding."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from slm.errors import DISK_ERRORS, ResourceError, UserError

CHUNK_CHARACTERS = 2**20
LINE_ENDS = "line end"  # in a tally: of \r\n and \r
CONVERT = "save it as plain text in UTF-8"
MARKS = {  # a byte order mark -> the codec that reads and drops it; UTF-32 first, whose mark begins like that of UTF-16
    **dict.fromkeys((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
    codecs.BOM_UTF8: "utf-8-sig",
}
SIGNATURES = {  # first bytes of a file that is not plain text -> its content, and what to do
    **dict.fromkeys((b"7z\xbc\xaf", b"Rar!"), ("an archive", "unpack it first")),
    b"PK\x03\x04": ("an archive or office document (zip, docx, odt, xlsx, epub)", f"unpack it first, or {CONVERT}"),
    b"\xd0\xcf\x11\xe0": ("an office document (doc, xls)", CONVERT),
    b"{\\rtf": ("an RTF document", CONVERT),
    b"%PDF": ("a PDF document", "extract its text, for example with pdftotext"),
    b"PAR1": ("a parquet file", "give it the suffix .parquet, and data=files"),
}


class Zstandard(io.RawIOBase):
    """The decompressed bytes of a .zst file, in all its frames. Raises: OSError: if it is damaged or cut off."""

    def __init__(self, file: Any):
        import pyarrow  # of datasets

        self._stream, self._position = pyarrow.CompressedInputStream(file, "zstd"), 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._position += count
        return count


COMPRESSIONS = {  # first bytes -> a reader of the decompressed bytes
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": Zstandard,
}


def known_encoding(name: str | None) -> str | None:
    """The name of a codec as Python writes it; None for UTF-8, the default. Raises: UserError: for no such codec."""
    try:
        "".encode(name or "utf-8")
        canonical = codecs.lookup(name or "utf-8").name
    except (LookupError, ValueError):
        raise UserError(f"data.encoding={name} is not known: give null for UTF-8, latin-1, cp1252, ...") from None
    return None if canonical == "utf-8" else canonical


def chunks(path: Path, encoding: str | None, tally: Counter[str]) -> Iterator[str]:
    """The text in pieces. Line ends \\r\\n and \\r become \\n, and are added to the tally.

    Raises: UserError: as `opened`.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    with opened(path, encoding) as file:
        for chunk in iter(partial(file.read, CHUNK_CHARACTERS), ""):
            tally[LINE_ENDS] += chunk.count("\r")
            yield newlines.decode(chunk)
        yield newlines.decode("", final=True)


@contextlib.contextmanager
def opened(path: Path, encoding: str | None, newline: str | None = "") -> Iterator[io.TextIOWrapper]:
    """The decompressed file as text without its byte order mark, which has precedence over `encoding`.

    `newline`: as for the built-in `open`.

    Raises: UserError: if it cannot be read, is damaged, not plain text by its first bytes, or in another encoding.
    """
    with readable(path), contextlib.ExitStack() as closing:
        file: Any = closing.enter_context(path.open("rb"))
        begin = file.peek(8)
        reader = next((reader for signature, reader in COMPRESSIONS.items() if begin.startswith(signature)), None)
        try:
            file = io.BufferedReader(reader(file)) if reader else file
            head = file.peek(512)[:512]
            codec = next((codec for mark, codec in MARKS.items() if head.startswith(mark)), None)
            if codec is None:
                refuse_binary(path, head, encoding)
            text = io.TextIOWrapper(file, encoding=codec or encoding or "utf-8", newline=newline)
            yield closing.enter_context(text)
        except UnicodeDecodeError as error:
            offset = file.tell() - len(error.object) + error.start
            raise UserError(
                f"{path} is not {(codec or encoding or 'utf-8').removesuffix('-sig').upper()} at byte {offset} "
                f"({error.object[error.start]:#04x}): give data=files data.encoding=<its encoding, such as latin-1, "
                "cp1252, gb18030 or shift_jis>, convert it to UTF-8 with iconv, or leave it out"
            ) from None
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"{path} is damaged or cut off, copy it again: {error}") from None


def is_utf8(path: Path) -> bool:
    """True if a file begins as UTF-8 with characters beyond ASCII, without a byte order mark: no text in another
    encoding does.

    Raises: UserError: if it cannot be read.
    """
    with opened(path, "latin-1") as file:
        begin = file.buffer.peek() if file.encoding == "latin-1" else b""  # none with a byte order mark
    with contextlib.suppress(UnicodeDecodeError):
        return not codecs.getincrementaldecoder("utf-8")().decode(begin).isascii()
    return False


def refuse_binary(path: Path, head: bytes, encoding: str | None):
    """Raises: UserError: for the first bytes of a file that is not plain text."""
    for signature, (content, remedy) in SIGNATURES.items():
        if head.startswith(signature):
            raise UserError(f"{path} is {content}, not plain text: {remedy}")
    if encoding is None and head.count(0) > len(head) / 4:
        raise UserError(
            f"{path} is not plain text but binary or UTF-16 without a byte order mark, by its NUL bytes: {CONVERT}, "
            "or give data=files data.encoding=utf-16-le"
        )


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises: UserError: with the name of the file, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        kind = ResourceError if error.errno in DISK_ERRORS else UserError
        raise kind(f"{error.filename or path} cannot be read: {error.strerror or error}") from None
