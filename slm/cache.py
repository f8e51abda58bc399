"""The cache of tokenizers and token stores: folders named by a hash of everything that determines their content.

    python -m slm.cache                               lists them, newest use first
    python -m slm.cache prune --older-than-days 30    deletes those that no run has used for 30 days
    python -m slm.cache prune --all                   deletes all but those in use

A folder is written under a temporary name and renamed when it is complete, so a killed process never leaves an
incomplete folder under the final name; where the corpus allows it, the next process goes on with it. Beside HASH/ lie
HASH.lock, which is never deleted, since a process may wait for it, and HASH.json, a description for this list.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm import system
from slm.corpora import Corpus
from slm.corpora.wrapped import Wrapped
from slm.errors import DISK_ERRORS, ResourceError, UserError, file_operation, printable
from slm.files import atomic, json_line
from slm.files.shared_lock import shared_lock
from slm.files.stdio import make_stdio_robust

KINDS = ("tokens", "tokenizers")
FOLDER = re.compile(r"[0-9a-f]{16}")
PARTIAL = re.compile(r"[0-9a-f]{16}\.(\d+\.)?partial")
NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
MAX_FILES = 10_000  # that a description lists
DAY = 24 * 60 * 60  # seconds


def cached(
    cache: Path,
    kind: str,
    corpus: Corpus,
    identity: dict[str, Any],
    write: Callable[[Path], None],
    progress: str | None = None,
) -> Path:
    """The folder of this identity, written now if it is missing. One process writes, others wait for it.

    `identity["corpus"]` is the fingerprint of the corpus. An incomplete folder with a file `progress` is kept: with it
    the next `write` can go on.
    Raises: UserError: if the documents change while they are read; if the folder cannot be written, with the file.
    """
    folder = place(cache, kind, identity)
    lock = folder.with_suffix(".lock")
    if folder.is_dir():
        return folder
    with writing(folder.parent):
        with file_operation("create", folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with shared_lock(lock, wait=True, on_wait=lambda holder: announce_wait(lock, holder)):
            if folder.is_dir():
                return folder
            temporary = folder.with_suffix(f".{time.time_ns()}.partial")  # of this process on this machine alone
            take_over(folder, temporary, progress)
            try:
                temporary.mkdir(exist_ok=True)
                write(temporary)
                before = getattr(corpus, "digests", {})
                if corpus.fingerprint() != identity["corpus"]:
                    which = changes(before, getattr(corpus, "digests", {}))
                    which = f" ({which})" if which else ""
                    raise UserError(f"the documents changed while they were read{which}; start again")
                for path in (*temporary.iterdir(), temporary):
                    atomic.flush(path)
                files = getattr(corpus, "digests", {})
                known = {"files": files} if len(files) <= MAX_FILES else {}
                description = {"source": described(corpus), **known, **identity}
                atomic.write_text(folder.with_suffix(".json"), json.dumps(description, default=str))
                system.patiently(lambda: temporary.rename(folder))
                atomic.flush(folder.parent)
            finally:
                if not (progress and (temporary / progress).is_file()):
                    shutil.rmtree(temporary, ignore_errors=True)
    return folder


def take_over(folder: Path, temporary: Path, progress: str | None):
    """Gives the incomplete folder of a process that has ended a new name, if the next can go on with it, and deletes
    others. Should that process work on after all, on a machine that seemed dead, its next write fails."""
    for stale in folder.parent.glob(f"{folder.name}*.partial"):
        if progress and (stale / progress).is_file() and not temporary.exists():
            stale.rename(temporary)
        elif stale != temporary:
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def place(cache: Path, kind: str, identity: dict[str, Any]) -> Path:
    """The folder of this identity, whether it exists or not."""
    return cache / kind / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def writing(parent: Path) -> Iterator[None]:
    """Raises: UserError: for an OSError of the block in the cache, with the file and what can be done."""
    try:
        yield
    except OSError as error:
        file, place = str(error.filename or parent), str(parent)
        known = error.filename or error.errno in DISK_ERRORS  # otherwise of a connection, or the user's own code
        if not (known and (file.startswith(place) or place.startswith(file))):
            raise
        kind, operation = UserError if error.errno in NO_FOLDER else ResourceError, getattr(error, "operation", "write")
        room = "make room there, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise kind(f"cannot {operation} {file} in the cache: {error.strerror}; {room}give another cache_dir") from error


def announce_wait(lock: Path, holder: str):
    print(f"waiting for the {lock.parent.name} of this corpus, which {holder} ({lock})", file=sys.stderr)


def described(corpus: Corpus) -> str:
    """The class of a corpus and its settings."""
    if isinstance(corpus, Wrapped):
        return f"{described(corpus.corpus)} {corpus.setting}"
    settings = {name: value for name, value in vars(corpus).items() if isinstance(value, str | int | float)}
    shown = (f"{name}={value!r}" for name, value in settings.items() if not name.startswith("_"))
    return " ".join([type(corpus).__name__, *shown])


def changed_files(cache: Path, before: str, corpus: Corpus) -> str:
    """How the files of a corpus differ from those of an earlier fingerprint; empty if the cache does not know them."""
    new = getattr(corpus, "digests", {})
    for path in (cache / "tokens").glob("*.json"):
        known = atomic.read_object(path) or {}
        if known.get("corpus") == before and isinstance(old := known.get("files"), dict):
            return changes(old, new)
    return ""


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """How the digests of files differ, with the names of the first three of each kind."""
    found = {
        "changed": [name for name in old if name in new and new[name] != old[name]],
        "missing": [name for name in old if name not in new],
        "new": [name for name in new if name not in old],
    }
    shown = (f"{change}: {', '.join(names[:3])}" for change, names in found.items() if names)
    return printable("; ".join(shown), 500)


def keep(folder: Path, owner: object):
    """Notes the time of use, and protects a folder from `prune` for the lifetime of `owner`."""
    with contextlib.suppress(OSError):  # a read-only cache, or a file system without locks
        os.utime(folder)
        file = open(folder.with_suffix(".lock"), "rb")  # noqa: SIM115 (closed with its owner)
        weakref.finalize(owner, file.close)
        system.lock_as_user(file)


@dataclass(frozen=True)
class Entry:
    """A folder of the cache, complete or left behind by a killed process."""

    folder: Path
    bytes: int
    used: float  # seconds since 1970

    def line(self) -> str:
        """Kind, name, size, last use, corpus; then the tokenizer."""
        known = atomic.read_object(self.folder.with_suffix(".json")) or {}
        settings = known.get("settings", {"tokenizer": str(known.get("tokenizer", ""))[:8]})
        detail = " ".join(f"{key.strip('_')}={value}" for key, value in settings.items()) if known else ""
        day = time.strftime("%Y-%m-%d", time.localtime(self.used))
        place = f"{self.folder.parent.name}/{self.folder.name}"
        return printable(f"{place:32} {self.bytes / 1e6:10,.1f} MB  {day}  {known.get('source', '')}  {detail}", 300)


def entries(cache: Path) -> list[Entry]:
    """The folders of the cache, the last used first. Raises: UserError: if the cache is missing or cannot be read."""
    if not cache.is_dir():
        raise UserError(f"cache folder {cache} does not exist; give --cache-dir=<folder>")
    found = []
    for folder in (path for kind in KINDS for path in (cache / kind).glob("*") if path.is_dir()):
        own = FOLDER.fullmatch(folder.name) and folder.with_suffix(".lock").exists()
        if (own or PARTIAL.fullmatch(folder.name)) and not folder.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # renamed or deleted by another process
                size = sum(path.lstat().st_size for path in folder.rglob("*"))
                found.append(Entry(folder, size, folder.stat().st_mtime))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def prune(cache: Path, before: float) -> Iterator[tuple[Entry, str | None]]:
    """Deletes the folders last used before a time, in seconds since 1970. Yields each with the reason why it stays.

    Raises: OSError: if a folder cannot be deleted.
    """
    for entry in entries(cache):
        if entry.used >= before:
            yield entry, "used since then"
            continue
        folder = entry.folder
        lock = folder.with_name(folder.name[:16] + ".lock")
        try:
            with shared_lock(lock, wait=False), open(lock, "rb") as file:
                with file_operation("lock", lock):
                    system.lock_against_users(file)
                remains = folder.with_name(f"{folder.name[:16]}.{os.getpid()}.partial")  # never half under its own name
                with file_operation("delete", folder):
                    folder.rename(remains)
                    shutil.rmtree(remains)
                if FOLDER.fullmatch(folder.name):
                    folder.with_suffix(".json").unlink(missing_ok=True)
            yield entry, None
        except BlockingIOError:
            yield entry, "in use"


@json_line.command
def main() -> int:
    """Exit code: 0, or 2 or 4 for a mistake or a limit of the machine."""
    parser = json_line.Parser(prog="python -m slm.cache", description=__doc__.splitlines()[0])
    parser.add_argument("action", nargs="?", choices=("list", "prune"), default="list")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--older-than-days", type=float, metavar="N", help="prune: not used for N days")
    which.add_argument("--all", action="store_true", help="prune: everything that is not in use")
    default = os.environ.get("SLM_CACHE", "~/.cache/slm")  # as in conf/train.yaml
    parser.add_argument("--cache-dir", default=default, help="default: SLM_CACHE, else ~/.cache/slm")
    arguments = parser.parse_args()
    days, cache = -math.inf if arguments.all else arguments.older_than_days, atomic.expanded(arguments.cache_dir)
    if arguments.action == "list":
        found = entries(cache)
        json_line.note(entries=[asdict(entry) | {"folder": str(entry.folder)} for entry in found])
        for entry in found:
            print(entry.line())
        print(f"{cache}: {len(found)} folders, {sum(entry.bytes for entry in found) / 1e6:,.1f} MB")
        return 0
    if days is None or not (arguments.all or days >= 0):
        raise UserError("prune needs --older-than-days N, with N at least 0, or --all")
    pruned = []
    for entry, reason in prune(cache, time.time() - days * DAY):
        pruned.append(asdict(entry) | {"folder": str(entry.folder), "kept": reason})
        print(f"{'kept' if reason else 'deleted'} {entry.line()}" + (f" ({reason})" if reason else ""))
    json_line.note(entries=pruned)
    return 0


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
