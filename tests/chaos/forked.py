"""Runs in forked processes, with a fault at a chosen file operation, which faults.c injects.

All of them are forked from one process that has imported everything, so a run takes a second.
"""

import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from ctypes import CDLL, c_long
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
KINDS = "list", "open", "read", "create", "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "truncate", "close"
COUNT, KILL, TORN, FAIL, SHORT, SIGNAL, POWER = range(7)
CHANGES = "create", "write", "rename", "unlink", "mkdir", "rmdir", "truncate"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Mode:
    """What happens at an operation, the kinds of operations where it can happen, and the exit codes that follow."""

    action: int
    kinds: Sequence[str] = CHANGES
    value: int = 0  # errno or signal
    sticky: bool = False  # at every later operation of these kinds, too
    entries: int = 0  # directory entries that were not flushed are undone: 1 all, 2 a random half
    data: bool = False  # bytes that were not flushed are lost, half of them, or zeros
    codes: Sequence[int] = (-signal.SIGKILL,)


MODES = {
    "kill": Mode(KILL),
    "torn": Mode(TORN, ("write",)),
    "power": Mode(POWER, entries=1, data=True),
    "lost_entry": Mode(POWER, entries=1),
    "lost_data": Mode(POWER, data=True),
    "reordered": Mode(POWER, entries=2, data=True),
    "enospc": Mode(FAIL, ("create", "write", "fsync", "rename", "mkdir", "close"), errno.ENOSPC, True, codes=(0, 4)),
    "eio": Mode(FAIL, KINDS, errno.EIO, codes=(0, 4)),
    "eacces": Mode(FAIL, ("list", "open", "create", "rename", "unlink", "mkdir"), errno.EACCES, codes=(0, 4)),
    "erofs": Mode(FAIL, ("create", "rename", "unlink", "mkdir"), errno.EROFS, True, codes=(0, 4)),
    "short": Mode(SHORT, ("write",), sticky=True, codes=(0,)),
    "eintr": Mode(FAIL, ("open", "create", "read", "write"), errno.EINTR, codes=(0,)),
    "sigterm": Mode(SIGNAL, value=signal.SIGTERM, codes=(143, 0)),  # 0: at the end of a run that is done
    "sigint": Mode(SIGNAL, value=signal.SIGINT, codes=(130, -signal.SIGINT, 0)),
}


@dataclass
class Attempt:
    """The end of one process: its exit code, what it printed, and the operations that it had begun."""

    code: int
    output: str
    operations: list[tuple[str, str]]  # kind and path
    fault: tuple[str, str] | None  # the operation of the fault
    failed: list[str]  # the paths of all operations that failed

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


class Area:
    """A folder with the run folders and the cache of one case."""

    def __init__(self, folder: Path, overrides: Sequence[str]):
        self.folder, self.overrides, self.attempts = folder.resolve(), overrides, 0
        self.files, self.run = self.folder / "files", self.folder / "files/runs/run"
        self.files.mkdir(parents=True, exist_ok=True)

    def attempt(self, mode: Mode | None = None, at: int = 0) -> Attempt:
        """Runs `python train.py` in a forked process, with a fault at the operation of that number."""
        self.attempts += 1
        log, output = (self.folder / f"{name}-{self.attempts}" for name in ("operations", "output"))
        stash = self.folder / f"stash-{self.attempts}"
        stash.mkdir()
        log.touch()
        if not (process := os.fork()):
            self._train(mode or Mode(COUNT), at, stash, log, output)
        code = ended(process, seconds=100)
        assert code is not None, f"no end: {output.read_text(errors='replace')}"
        logged = log.read_text().splitlines()
        lines = [line.split(" ", 1)[1] for line in logged if not line.startswith("-")]
        failed = [line.split(" ", 3)[3] for line in logged if line.startswith("-")]
        begun = [tuple(line.removeprefix("FAULT ").split(" ", 1)) for line in lines]
        faults = [operation for line, operation in zip(lines, begun, strict=True) if line.startswith("FAULT")]
        return Attempt(code, output.read_text(errors="replace"), begun, faults[0] if faults else None, failed)

    def _train(self, mode: Mode, at: int, stash: Path, log: Path, output: Path):
        """The command in this process, which it ends."""
        from slm.run import start

        code = 1
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.argv = ["train.py", *self.overrides, f"cache_dir={self.files / 'cache'}", f"run_dir={self.run}"]
            folders = [os.fsencode(path) for path in (self.files, stash, log)]
            numbers = mode.action, mode.value, mode.sticky, mode.entries, mode.data
            kinds = sum(1 << KINDS.index(kind) for kind in mode.kinds)
            CDLL(os.environ["LD_PRELOAD"]).fault_arm(*folders, *numbers, c_long(kinds), c_long(at))
            start.train()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def ended(process: int, seconds: float) -> int | None:
    """The exit code of a child, negative for a signal; kills it and returns None if it does not end in time."""
    for _ in range(round(100 * seconds)):
        child, status = os.waitpid(process, os.WNOHANG)
        if child:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def preload(folder: Path):
    """Compiles the library and starts this program again with it; returns if that has happened."""
    if "faults" in os.environ.get("LD_PRELOAD", ""):
        return
    library = folder.resolve() / "faults.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD, "LD_PRELOAD": str(library)})


def import_all(folder: Path, overrides: Sequence[str]):
    """Imports what a run imports, and nothing more: a thread of this process would not exist after a fork."""
    area, names = Area(folder / "imports", overrides), folder / "modules"
    if not (process := os.fork()):
        leave = os._exit
        os._exit = lambda code: (names.write_text(" ".join(sys.modules)), leave(code))
        area._train(Mode(COUNT), 0, folder, folder / "modules", area.folder / "output")
    assert ended(process, seconds=100) == 0, (area.folder / "output").read_text()
    for name in names.read_text().split():
        with contextlib.suppress(Exception):
            import_module(name)
    gc.freeze()  # so a run of a second does not look for garbage in all modules
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads before a fork"
