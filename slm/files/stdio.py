"""Standard streams of a command: no character, closed descriptor or closed console ends it with a traceback."""

import io
import os
import sys

STREAMS = {"stdin": "surrogateescape", "stdout": "backslashreplace", "stderr": "backslashreplace"}
WINDOWS_CONSOLE = getattr(io, "_WindowsConsoleIO", ())  # takes all characters, but not through its file descriptor


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


def make_stdio_robust(*, ignore_failed_writes: bool = True):
    """Replaces the standard streams: characters that the encoding of a stream lacks are escaped, and invalid input
    becomes surrogates. A closed stream is opened on /dev/null, so that no other file takes its descriptor.

    With `ignore_failed_writes` a closed console or a full disk behind it does not end a training. Without it a pipe
    whose reader has ended raises BrokenPipeError, as usual.
    """
    for descriptor, (name, errors) in enumerate(STREAMS.items()):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
        stream = getattr(sys, name)
        if isinstance(getattr(getattr(stream, "buffer", None), "raw", None), WINDOWS_CONSOLE):
            stream.reconfigure(errors=errors)
            continue
        if name == "stdin":
            buffer = io.BufferedReader(io.FileIO(descriptor, closefd=False))
        else:
            robust = RobustStream(descriptor) if ignore_failed_writes else io.FileIO(descriptor, "w", closefd=False)
            buffer = io.BufferedWriter(robust)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, errors, line_buffering=name != "stdin"))
