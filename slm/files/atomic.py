"""Atomic, fsynced writes; sha256 sidecars; locks."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from slm import system
from slm.errors import ResourceError, UserError, file_operation

UNSUPPORTED = (  # answers of network and FUSE file systems that cannot lock, or flush a folder
    errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL,
)  # fmt: skip


@contextlib.contextmanager
def replacing(path: Path, *, digest: bool = False) -> Iterator[BinaryIO]:
    """A temporary file that replaces `path` at the end of the block, flushed to disk.

    With `digest` the sha256 sidecar is written first: a sidecar without its file is harmless, a file without its
    sidecar would not be trusted. Raises OSError with the file's name.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with file_operation("write", path, instead_of=temporary):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                _flush(system.flush, file.fileno())
            if digest:
                write(digest_path(path), f"{sha256(temporary)}  {path.name}\n".encode())
            system.patiently(lambda: temporary.replace(path))
        flush(path.parent)
    finally:
        with contextlib.suppress(OSError):  # it must not hide the first error
            temporary.unlink()


def remove_partial(path: Path):
    """Deletes the temporary files of `path` that killed processes left. Raises OSError."""
    for partial in path.parent.glob(f"{path.name}.*.partial"):
        remove(partial)


def expanded(path: str | Path) -> Path:
    """The path with a leading ~ or ~name replaced by that home folder, if there is such a user.

    Raises UserError if the user's own home folder is not known.
    """
    found = os.path.expanduser(path)  # noqa: PTH111 (Path.expanduser raises for an unknown user)
    if found == "~" or found.startswith("~/"):
        raise UserError(f"{path}: no home folder is known; set HOME, or give the whole path")
    return Path(found)


def write(path: Path, content: bytes):
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str):
    write(path, text.encode("utf-8"))


def flush(path: Path):
    """Makes a file's content, or a folder's entries, survive a power cut (fsync)."""
    with file_operation("write", path):
        _flush(system.flush_path, path)


def _flush(call: Callable[[Any], None], what: Any):
    try:
        call(what)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is missing or holds anything else. Raises OSError."""
    try:
        with file_operation("read", path):
            content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name; nothing if there is no such folder. Raises OSError, unlike Path.glob."""
    try:
        with file_operation("list", folder):
            return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def check_folder(path: Path):
    """Raises UserError if it is no folder and cannot become one, since a file is in its place or above it;
    ResourceError if nothing may be written there."""
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{path} cannot be made: {nearest} is a file; give another folder")
    if not os.access(nearest, os.W_OK):
        raise ResourceError(f"{path} cannot be made: no permission to write in {nearest}; give another folder")


def remove(path: Path):
    """Deletes a file if it is there. Raises OSError."""
    with file_operation("delete", path):
        system.patiently(lambda: path.unlink(missing_ok=True))


def sha256(path: Path) -> str:
    with file_operation("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_path(path: Path) -> Path:
    """The sha256 sidecar of a file or a folder."""
    return path.with_name(path.name + ".sha256")


def is_intact(path: Path) -> bool:
    """True if the file's sha256 is that of its sidecar; of a folder, if it holds the files of its sidecar, no other,
    and each has its sha256. Raises OSError for a file that cannot be read."""
    try:
        with file_operation("read", digest_path(path)):
            content = digest_path(path).read_bytes()
        if not path.is_dir():
            return content.split()[:1] == [sha256(path).encode()]
        listed = {line.rpartition(b"/")[2]: line.split(b" ")[0] for line in content.splitlines()}
        files = {os.fsencode(file.name): file for file in entries(path)}
        if listed.keys() != files.keys() or not all(file.is_file() for file in files.values()):
            return False
        return all(sha256(file).encode() == listed[name] for name, file in files.items())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock file that contains the holder's process id; the system releases it when that process ends.

    On a file system without locks a warning is printed. Raises BlockingIOError if another process holds it and `wait`
    is false.
    """
    with contextlib.ExitStack() as held:
        with file_operation("lock", path):
            file = open(path, "ab+", buffering=0)  # noqa: SIM115 (closed below)
            held.callback(close, file)
            lock(file, wait=wait)
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield


def close(file: IO):
    """Closes a file of which the content is of no value any more."""
    with contextlib.suppress(OSError):  # of a full disk: nothing of value is lost, and the first error shall be raised
        file.close()


def lock(file: IO, *, wait: bool) -> bool:
    """Locks a file until it is closed; False, with a warning, where the file system has no locks.

    Raises BlockingIOError if another process holds the lock and `wait` is false.
    """
    try:
        system.lock(file, wait=wait)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_without_locks(error.strerror)
        return False
    return True


@functools.cache  # once per process
def _warn_without_locks(reason: str):
    print(
        f"warning: this file system has no locks ({reason}), so two processes on the same folder are not kept apart",
        file=sys.stderr,
    )
