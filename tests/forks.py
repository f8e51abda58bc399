"""`python train.py` in a forked process of this one, which has imported everything, so that its start takes no time."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path

import torch
from hydra.core.global_hydra import GlobalHydra

from slm.run import cli, start, train, trainer  # noqa: F401  (imported before a fork)

# A first backward pass decides for which devices autograd has threads, which a fork would lose. Without a GPU
# it has none; but it would after a plan (fake tensors), if torch is a build for CUDA.
torch.ones(1, requires_grad=True).sum().backward()
SCRIPT = Path(__file__).parents[1] / "train.py"


class Forked:
    """The process, in a session of its own, with those parts of subprocess.Popen that the tests need.

    `stdout`, `stderr`: descriptors, as for Popen. `before` is called in the process, before the command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdout: int,
        stderr: int,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] = lambda: None,
        main: Callable[[], None] = start.train,
    ):
        def run():
            os.setsid()
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            os.environ.update(env or {})
            sys.modules["__main__"].__spec__ = None  # Lightning and Hydra see a script
            GlobalHydra.instance().clear()
            sys.argv = [str(SCRIPT), *arguments]
            before()
            main()

        self._process = get_context("fork").Process(target=run)
        self._process.start()
        self.pid = self._process.pid
        while self.poll() is None and os.getpgid(self.pid) != self.pid:  # it has no session yet
            time.sleep(0.001)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("train.py", timeout)
        return self._process.exitcode


def forked(*arguments: str, main: Callable[[], None] = start.train, **env: str) -> subprocess.CompletedProcess:
    """The end of the command, as of subprocess.run with captured text."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        code = Forked(arguments, stdout=stdout.fileno(), stderr=stderr.fileno(), env=env, main=main).wait(200)
        printed = [(file.seek(0), file.read())[1] for file in (stdout, stderr)]
    return subprocess.CompletedProcess(arguments, code, *printed)
