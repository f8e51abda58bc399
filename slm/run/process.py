"""What the command of this process remembers: when it began, and what it has printed."""

import contextlib
import time
from collections.abc import Iterator

_began: float | None = None
_printed: set[str] | None = None  # by the jobs so far; None outside of a command, where nothing is remembered


def begin():
    """The entry point calls it, before anything heavy is imported."""
    global _began
    _began = time.monotonic()


def command_start() -> float:
    """On time.monotonic: the start of this process, for its first training; now, for a later job of a sweep or a call
    from Python."""
    global _began
    start, _began = _began, None
    return time.monotonic() if start is None else start


@contextlib.contextmanager
def printed_once() -> Iterator[None]:
    """The jobs of a sweep in this process print a warning or a failure once."""
    global _printed
    _printed = set()
    try:
        yield
    finally:
        _printed = None


def is_new(text: str) -> bool:
    """False for a warning or a failure that an earlier job has printed."""
    if _printed is None:
        return True
    new = text not in _printed
    _printed.add(text)
    return new
