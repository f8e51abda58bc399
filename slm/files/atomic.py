"""Files that are whole or not there, whatever is killed when; digests that say whether they are intact; locks."""

import contextlib
import fcntl
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
    except OSError as error:
        error.filename = str(path)  # a full disk does not say which file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def expanded(path: str | Path) -> Path:
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


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock file, in which its holder's process id stands; it is released however that process ends.

    Without `wait` raises BlockingIOError if another process holds it.
    """
    with open(path, "a+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # lockf: forked loaders do not hold it
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
