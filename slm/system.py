"""What differs between operating systems: locks, flushing, signals, processes, memory, the quotes of a shell.

Windows has no POSIX modules. There psutil, which is installed with slm, knows about memory and other processes.
"""

import contextlib
import ctypes
import errno
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, TypeVar

WINDOWS = sys.platform == "win32"
FORKS = sys.platform == "linux"  # elsewhere a copy of a process with threads is not safe, or there is none

if WINDOWS:
    import msvcrt

    import psutil
else:
    import fcntl
    import resource

Result = TypeVar("Result")

STOP_SIGNALS = tuple(  # closed terminal, CPU limit; Ctrl-Break and closed console on Windows
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU", "SIGBREAK") if hasattr(signal, name)
)
SLURM_SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))  # before its time limit
KILLED = 9 if WINDOWS else -9  # what subprocess returns for a process that SIGKILL, or its like, has ended
PAUSES = (0.01, 0.03, 0.1, 0.3, 1) if WINDOWS else ()  # seconds
IN_USE = PermissionError if WINDOWS else ()  # what deleting a file raises that another program has open
HOLDER, USERS = 2**30, (2**30 + 1, 2**20)  # locked bytes on Windows, where they cannot be read: behind any content


def lock(file: IO, *, wait: bool):
    """Locks an open, writable file for one process, until the file is closed or the process ends.

    Raises BlockingIOError if another process holds the lock and `wait` is false; OSError without locks.
    """
    if not WINDOWS:
        return fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))  # forked loaders do not inherit it
    while True:
        try:
            return _lock_bytes(file, HOLDER, 1)
        except BlockingIOError:
            if not wait:
                raise
        time.sleep(0.1)


def lock_as_user(file: IO):
    """Adds a user to a file, until it is closed; any number of processes can. Raises OSError without locks."""
    if not WINDOWS:
        return fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    first, count = USERS
    _lock_bytes(file, first + random.SystemRandom().randrange(count), 1)  # a byte each: there are no shared locks


def lock_against_users(file: IO):
    """Keeps users from an open file. Raises BlockingIOError if it has one."""
    if not WINDOWS:
        return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _lock_bytes(file, *USERS)


def _lock_bytes(file: IO, first: int, count: int):
    os.lseek(file.fileno(), first, os.SEEK_SET)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, count)
    except PermissionError:
        raise BlockingIOError(errno.EAGAIN, "another process has locked it") from None
    finally:
        os.lseek(file.fileno(), 0, os.SEEK_SET)


def flush(descriptor: int):
    """Makes a file's content survive a power cut. Raises OSError where the file system cannot."""
    if sys.platform == "darwin":  # its fsync leaves the content in the cache of the drive
        with contextlib.suppress(OSError):  # of a file system that cannot
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def flush_path(path: Path):
    """Like `flush`, for a file or the entries of a folder; those Windows keeps in a journal, and opens no folder."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def patiently(call: Callable[[], Result]) -> Result:
    """The result of renaming or deleting a file. On Windows this fails while another program, such as a virus scanner,
    has the file open, and is tried again for 1.5 seconds."""
    for pause in PAUSES:
        try:
            return call()
        except PermissionError:
            time.sleep(pause)
    return call()


def changed_at(stat: os.stat_result) -> int:
    """When a file was changed, in nanoseconds: on Windows, where st_ctime is that of its creation, its content."""
    return stat.st_mtime_ns if WINDOWS else stat.st_ctime_ns


def mask_signals(how: str, numbers: Collection[int]):
    """Blocks ("SIG_BLOCK") or unblocks ("SIG_UNBLOCK") signals in this thread; Windows has no mask."""
    if not WINDOWS:
        signal.pthread_sigmask(getattr(signal, how), numbers)


def signal_self(number: int):
    """Sends a signal to this process, from any of its threads. On Windows, `os.kill` would end it at once."""
    if WINDOWS and number in STOP_SIGNALS:
        signal.raise_signal(number)
    else:
        os.kill(os.getpid(), number)


def ask_to_stop(process: int):
    """Sends SIGTERM. On Windows that would kill: there the console has sent Ctrl-C to all of its processes."""
    if not WINDOWS:
        os.kill(process, signal.SIGTERM)


def is_running(process: int) -> bool:
    """True for the id of a process of this machine that has not ended."""
    if WINDOWS:  # os.kill(id, 0) would send Ctrl-C
        return psutil.pid_exists(process)
    try:
        os.kill(process, 0)
    except OSError:
        return False
    with contextlib.suppress(OSError):  # without /proc
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def how_it_ended(code: int) -> str:
    """A return code of subprocess, in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with code {code}"


def end_with_parent():
    """This process is killed when the one that started it ends, however it ends; on Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of the machine's memory."""
    return psutil.virtual_memory().total if WINDOWS else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """The most bytes that this process has held in memory."""
    if WINDOWS:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # KiB


def resident_memory() -> int:
    """Bytes that this process holds in memory now; where the system does not tell, the most so far."""
    if WINDOWS:
        return psutil.Process().memory_info().rss
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_memory()


def allow_open_files(needed: int) -> int:
    """Raises this process's limit of open files to a number, if it can. Returns how many of these it may open."""
    if WINDOWS:  # no limit that matters: sockets and pipes are not counted
        return needed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < needed:
        if resource.RLIM_INFINITY != hard < needed:
            return hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return needed


def quoted(word: str) -> str:
    """The word as a shell of this system reads it: in double quotes on Windows, which both of its shells know."""
    return subprocess.list2cmdline([word]) if WINDOWS else shlex.quote(word)
