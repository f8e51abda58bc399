"""A lock in a folder that several machines may share, whose holder shows who it is and that it still works.

The lock of the system comes first; it ends with its holder. But a network file system may have none, keep it to one
machine, or keep it for a machine that has died. So the holder also writes its name and a growing number into the file:
another machine waits as long as that number grows, and takes the lock after SILENCE.
"""

import contextlib
import errno
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from slm import system
from slm.errors import file_operation, one_line
from slm.files import atomic

BEAT, SILENCE, FORGOTTEN = 5, 60, 3600  # seconds: between two numbers; without a new one; by the clock of the file
LONGEST = 1000  # bytes of such a file


@contextlib.contextmanager
def shared_lock(path: Path, *, wait: bool, on_wait: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """Holds the lock. `on_wait` is called once, with what the holder has been doing since when, before waiting for it.

    Raises BlockingIOError if another process holds it and `wait` is false.
    """
    seen, announced = Seen(), False
    with file_operation("lock", path):
        while (file := _taken(path, seen)) is None:
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "another process has locked it")
            if not announced:
                announced = True
                on_wait(seen.holder())
            time.sleep(0.2)
    with contextlib.ExitStack() as held:
        held.callback(atomic.close, file)
        held.enter_context(_shown(file, path))
        yield


@dataclass
class Seen:
    """What a waiting process has read in the lock's file, and when that last changed, on time.monotonic."""

    content: dict[str, Any] = field(default_factory=dict)
    changed: float = -1.0
    silent: bool = False

    def read(self, file: IO):
        """Takes what the file says now; nothing of a file that no process holds, or of an older version of slm."""
        try:
            content = json.loads(file.read(LONGEST))
        except ValueError:
            content = {}
        known = isinstance(content, dict) and all(isinstance(content.get(key), int) for key in ("process", "since"))
        content = content if known else {}
        if self.changed < 0 or content != self.content:
            self.content, self.changed = content, time.monotonic()
        age = time.time() - os.fstat(file.fileno()).st_mtime
        self.silent = time.monotonic() - self.changed > SILENCE or age > FORGOTTEN

    def is_free(self, locked: bool | None) -> bool:
        """`locked`: this process has the system's lock; None: there are no locks."""
        if self.content and self.content.get("host") != socket.gethostname():
            return self.silent
        return not (self.content and system.is_running(self.content["process"])) if locked is None else locked

    def holder(self) -> str:
        """The holder, and since when it prepares what the lock is for, for people."""
        if not self.content:
            return "another process is preparing"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.content["since"]))
        name = f"process {self.content['process']} on {self.content.get('host')}"
        return one_line(f"{name} has been preparing since {since}", 200)


def _taken(path: Path, seen: Seen) -> IO | None:
    """The file of the lock, which this process now holds; None while another one does."""
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0))
        try:
            locked = True if atomic.lock(file, wait=False) else None
        except BlockingIOError:
            locked = False
        seen.read(file)
        with contextlib.suppress(FileNotFoundError):  # another process has made a new file
            if seen.is_free(locked) and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                if locked is not False:
                    opened.pop_all()
                    return file
                path.unlink()  # a machine that has died keeps the old file; the next attempt makes another
    return None


@contextlib.contextmanager
def _shown(file: IO, path: Path) -> Iterator[None]:
    """Writes into the file who holds it, with a number that grows until the end of the block; then empties it."""
    ended, who = threading.Event(), {"host": socket.gethostname(), "process": os.getpid(), "since": int(time.time())}

    def write(number: int):
        content = json.dumps(who | {"beat": number}).encode()
        file.seek(0)
        file.write(content)
        file.truncate(len(content))

    def go_on():
        for number in itertools.count(1):
            if ended.wait(BEAT):
                return
            with contextlib.suppress(OSError):  # a full disk, a connection that comes back
                write(number)
                system.flush(file.fileno())  # other machines see it

    with file_operation("lock", path):
        write(0)
    beats = threading.Thread(target=go_on, daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        with contextlib.suppress(OSError):
            file.truncate(0)
