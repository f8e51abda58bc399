"""When the command of this process began, for limits on its time."""

import time

_began: float | None = None


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
