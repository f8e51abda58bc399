"""Archives of torch.save, before torch reads them: a small file of somebody else must not describe a huge content."""

import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

MAX_OPCODES = 10**6  # of the pickle; a number takes one or two, a tensor about forty
CALLED = re.compile(  # by the pickle; weights_only allows others, which make memory of any size from one number
    r"collections (OrderedDict|Counter)|_codecs encode|(__builtin__|builtins) (set|complex)"
    r"|torch (Size|device|[A-Z]\w+Storage|u?int\d+|b?float\w+|complex\d+|bool)"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.nn\.parameter Parameter"
)


def is_plain(path: Path | BinaryIO) -> bool:
    """True if the pickle in the archive has at most MAX_OPCODES and names only what is in CALLED.

    Raises: BadZipFile: if entries are compressed or encrypted, share bytes or names, or are not the same for every
    reader; OSError: if the file cannot be read; others of zipfile and pickletools for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        archive.fp.seek(0, os.SEEK_END)
        size = archive.fp.tell()
        parts = archive.infolist()
        pickles = [part for part in parts if part.filename.casefold().endswith("data.pkl")]
        stored = all(part.compress_type == zipfile.ZIP_STORED and not part.flag_bits & 1 for part in parts)
        distinct = len({part.filename.casefold() for part in parts}) == len(parts)
        fitting = sum(part.file_size for part in parts) <= size
        if not stored or not distinct or not fitting or len(pickles) != 1 or archive.comment:
            raise zipfile.BadZipFile
        with archive.open(pickles[0]) as file:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count > MAX_OPCODES or (opcode.name in ("GLOBAL", "INST") and not CALLED.fullmatch(argument)):
                    return False
    return True
