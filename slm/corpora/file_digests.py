"""The SHA-256 of files that do not change: read once, and again only when their metadata show a change.

Every write to a file changes its time of change, which no program can set back (on Windows the time of its last write).
A file that changed within RECENT seconds before it was read is read again the next time, since clocks of file systems
are coarse.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from slm.files import atomic

RECENT = 3.0  # seconds; FAT has the coarsest clock, of 2 seconds

Stamp = list[int]  # size, times of change and of the last write (ns), inode


class FileDigests:
    """Digests of files, kept in memory and in a file of the folder `cache` (None: in memory only)."""

    def __init__(self, cache: Path | None, name: str):
        self.path = cache / "digests" / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.json" if cache else None
        self.known: dict[str, list] = {}  # absolute path -> [*stamp, digest]
        self.loaded = False

    def of(self, files: Iterable[Path]) -> list[str]:
        """The SHA-256 of each file. Raises OSError with the file's name."""
        if self.path and not self.loaded:
            self.known, self.loaded = atomic.read_object(self.path) or {}, True
        before, digests = dict(self.known), []
        for file in files:
            key, stamp, now = str(file.absolute()), stamp_of(file), time.time_ns()
            entry = self.known.get(key)
            if isinstance(entry, list) and entry[:-1] == stamp:
                digests.append(str(entry[-1]))
                continue
            digests.append(atomic.sha256(file))
            if stamp_of(file) == stamp and now - max(stamp[1:3]) > RECENT * 1e9:
                self.known[key] = [*stamp, digests[-1]]
        if self.path and self.known != before:
            with contextlib.suppress(OSError):  # in a read-only cache the files are read again the next time
                self.path.parent.mkdir(parents=True, exist_ok=True)
                atomic.remove_partial(self.path)
                atomic.write_text(self.path, json.dumps(self.known))
        return digests


def stamp_of(file: Path) -> Stamp:
    stat = file.stat()
    return [stat.st_size, stat.st_ctime_ns, stat.st_mtime_ns, stat.st_ino]
