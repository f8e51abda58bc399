"""A server of generate.py in a process of its own."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

from conftest import ROOT


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The address that the command prints; at the end it is interrupted, and must end without an error."""
    command = [sys.executable, str(ROOT / "generate.py"), "port=0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, line + process.communicate()[1]
            yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, ""), errors
