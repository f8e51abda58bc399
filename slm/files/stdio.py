"""Standard streams that never raise: a closed console or a full disk behind it must not end a training."""

import io
import os
import sys


class RobustStream(io.RawIOBase):
    """A file descriptor whose writes succeed even where the text cannot be delivered."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data) -> int:
        try:
            return os.write(self.descriptor, data)
        except OSError:
            return len(data)


def make_stdio_robust():
    """Replaces stdout and stderr by robust streams. A closed one is opened on /dev/null, so no other file takes its
    descriptor."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != descriptor:
                os.dup2(null, descriptor)
        raw = RobustStream(descriptor)
        stream = io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
