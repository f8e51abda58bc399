"""What is printed must not end a training: a console that goes away, or a full disk behind it, is done without."""

import io
import os
import sys


class RobustStream(io.RawIOBase):
    """A file descriptor to write to, which takes everything, whether it arrives or not."""

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
    """Makes stdout and stderr such files. Where one is closed, nothing else may come to stand in its place."""
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
