"""Files that are whole or not there, whatever is killed when, and digests that say whether they are intact."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path, *, digest: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end of the block, flushed to the disk.

    With `digest` its sha256 is written beside it first: a digest without its file harms nobody, a file without its
    digest would not be trusted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if digest:
            write(digest_path(path), f"{sha256(temporary)}  {path.name}\n".encode())
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def typed(path: str | Path) -> Path:
    """The path as a person types it: a leading ~ or ~name is a home, where there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody of that name
        return Path(path)


def write(path: Path, content: bytes):
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str):
    write(path, text.encode("utf-8"))


def flush(path: Path):
    """Makes a file's content, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def intact(path: Path) -> bool:
    """True if the file's sha256 is the one that was written beside it."""
    try:
        return digest_path(path).read_text().split()[:1] == [sha256(path)]
    except OSError:
        return False
