"""Archives of torch.save, before torch reads them: a small file of somebody else must not describe a huge content."""

import contextlib
import errno
import os
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MAX_OPCODES = 10**6  # of the pickle; a number takes one or two
TENSOR_OPCODES = 48  # that a tensor takes at most: 37 for a parameter of four dimensions
MAX_BYTES = 2**29  # of the pickle, which is read into memory; tokenizers in use take up to 70 MB
CALLED = re.compile(  # by the pickle; weights_only allows others, which make memory of any size from one number
    r"collections (OrderedDict|Counter)|_codecs encode|(__builtin__|builtins) (set|complex)"
    r"|torch (Size|device|[A-Z]\w+Storage|u?int\d+|b?float\w+|complex\d+|bool)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.nn\.parameter Parameter"
)
ENCODE = "GLOBAL", "_codecs encode"  # how bytes are written: a call with text and "latin1"; some codecs take forever


def is_plain(file: Path | BinaryIO, most: int = MAX_OPCODES) -> bool:
    """True if the pickle in the archive has at most so many opcodes and MAX_BYTES, names only what is in CALLED, and
    encodes only latin1.

    Raises: BadZipFile: for an archive that `opened` refuses; OSError: if the file cannot be read; others of zipfile
    and pickletools for a damaged file.
    """
    with opened(file) as archive:
        pickled = archive.getinfo(*pickles(archive))
        if pickled.file_size > MAX_BYTES:
            return False
        values: list[Any] = []  # the texts that are pushed; else opcode and argument
        memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(archive.read(pickled)):
            if len(values) > most or (opcode.name in ("GLOBAL", "INST") and not CALLED.fullmatch(argument)):
                return False
            if opcode.name.endswith("PUT"):
                memo[argument] = values[-1]
            elif opcode.name.endswith("GET"):
                values.append(memo[argument])
            else:
                text = isinstance(argument, str) and opcode.name != "GLOBAL"
                values.append(argument if text else (opcode.name, argument))
    calls = (values[i + 1 : i + 5] for i, value in enumerate(values) if value == ENCODE)
    return all(
        isinstance(call[0], str) and call[1:] == ["latin1", ("TUPLE2", None), ("REDUCE", None)] for call in calls
    )


def is_complete(path: Path) -> bool:
    """True if the checksums in the archive are those of its entries. Raises OSError if it cannot be read."""
    try:
        with opened(path) as archive:
            return archive.testzip() is None
    except OSError:
        raise
    except Exception:  # zipfile's errors have no common base class
        return False


@contextlib.contextmanager
def opened(file: Path | BinaryIO) -> Iterator[zipfile.ZipFile]:
    """An archive with one pickle. Raises: BadZipFile: if entries are compressed or encrypted, share bytes or names, or
    are not the same for every reader; OSError: if the file cannot be read."""
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        cause = error.__context__  # zipfile calls a disk that fails a bad file
        if isinstance(cause, OSError) and cause.errno != errno.EINVAL:  # a wrong seek
            raise cause from None
        raise
    with archive:
        archive.fp.seek(0, os.SEEK_END)
        parts = archive.infolist()
        stored = all(part.compress_type == zipfile.ZIP_STORED and not part.flag_bits & 1 for part in parts)
        distinct = len({part.filename.casefold() for part in parts}) == len(parts)
        fitting = sum(part.file_size for part in parts) <= archive.fp.tell()
        if not stored or not distinct or not fitting or archive.comment or len(pickles(archive)) != 1:
            raise zipfile.BadZipFile
        yield archive


def pickles(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if name.casefold().endswith("data.pkl")]
