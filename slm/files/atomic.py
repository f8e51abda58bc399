"""Atomic, fsynced writes; sha256 sidecars; locks."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: Path, *, digest: bool = False) -> Iterator[BinaryIO]:
    """A temporary file that replaces `path` at the end of the block, flushed to disk.

    With `digest` the sha256 sidecar is written first: a sidecar without its file is harmless, a file without its
    sidecar would not be trusted. Raises OSError with the file's name.
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
        error.filename = str(path)  # a full disk does not name the file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def expanded(path: str | Path) -> Path:
    """The path with a leading ~ or ~name replaced by that home folder, if there is such a user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises for an unknown user)


def write(path: Path, content: bytes):
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str):
    write(path, text.encode("utf-8"))


def flush(path: Path):
    """Makes a file's content, or a folder's entries, survive a power cut (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_path(path: Path) -> Path:
    """The sha256 sidecar of a file."""
    return path.with_name(path.name + ".sha256")


def is_intact(path: Path) -> bool:
    """True if the file's sha256 is that of its sidecar."""
    try:
        return digest_path(path).read_text().split()[:1] == [sha256(path)]
    except OSError:
        return False


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock file that contains the holder's process id; the system releases it when that process ends.

    Raises BlockingIOError if another process holds it and `wait` is false.
    """
    with open(path, "a+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # lockf: forked loaders do not inherit it
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
