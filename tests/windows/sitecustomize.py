"""Makes a Python on Linux behave like one on Windows where that concerns slm: put this folder first in PYTHONPATH.

No POSIX modules, signals and functions; locks of byte ranges that belong to a handle; a file that is open or mapped
cannot be replaced or deleted; names that Windows refuses; no flushing of folders; spawned processes; `os.kill` kills.
What other packages do on Windows is not simulated: they find the Linux they were built for.
"""

import asyncio  # noqa: F401 (needs fcntl)
import builtins
import errno
import fcntl
import io
import multiprocessing
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import types
import warnings
from collections import namedtuple
from multiprocessing import popen_fork, popen_spawn_posix, resource_tracker, util  # noqa: F401 (need POSIX here)
from pathlib import Path

import psutil

REFUSED = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
POSIX_MODULES = "fcntl", "grp", "pty", "pwd", "readline", "resource", "termios", "tty"
POSIX_FUNCTIONS = (
    *("fork", "forkpty", "geteuid", "getegid", "getgid", "getpgid", "getuid", "killpg", "mkfifo", "sched_getaffinity"),
    *("setsid", "sysconf", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"),
)
SIGNALS = "SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"
OF_TORCH = "SIGCHLD"  # whose loader processes on Linux need it
REAL = types.SimpleNamespace(
    **{name: getattr(os, name) for name in ("fsync", "kill", "mkdir", "open", "remove", "rename", "replace", "rmdir")},
    signal=signal.signal,
    sigkill=signal.SIGKILL,
    fcntl=fcntl,
)


def refused(path, code: int = errno.EACCES):
    raise OSError(code, os.strerror(code), os.fspath(path))  # EACCES: a PermissionError


def check_unused(path):
    """Raises PermissionError for a file that this process has open or mapped, or a folder with one."""
    place = os.path.realpath(path)
    used = {
        line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    }
    for name in os.listdir("/proc/self/fd"):
        try:
            used.add(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # the descriptor of the list itself
            continue
    if any(name == place or name.startswith(f"{place}/") for name in used):
        refused(path)


def check_name(path):
    if not isinstance(path, int) and REFUSED.search(os.path.basename(os.fsdecode(path).rstrip("/"))):
        refused(path, errno.EINVAL)


def moved(call):
    def move(source, target, **options):
        check_name(target)
        check_unused(source)
        if os.path.exists(target):
            check_unused(target)
            if call is REAL.rename:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        call(source, target, **options)

    return move


def deleted(call):
    def delete(path, **options):
        check_unused(path)
        call(path, **options)

    return delete


def created(path, *arguments, **options):
    check_name(path)
    return REAL.mkdir(path, *arguments, **options)


def opened(path, flags, *arguments, **options):
    if os.path.isdir(path):
        refused(path)
    if flags & os.O_CREAT:
        check_name(path)
    return REAL.open(path, flags, *arguments, **options)


def open_file(file, mode="r", *arguments, real=builtins.open, **options):
    if set(mode) & set("wax"):
        check_name(file)
    return real(file, mode, *arguments, **options)


def fsync(descriptor):
    if REAL.fcntl.fcntl(descriptor, REAL.fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "it needs a handle for writing")
    REAL.fsync(descriptor)


def kill(process, number):
    """TerminateProcess, with the number as the exit code; a signal only to the console's group."""
    if number == 0:
        raise AssertionError("os.kill(process, 0) is Ctrl-C on Windows")
    os._exit(number) if process == os.getpid() else REAL.kill(process, REAL.sigkill)


def handled(number, handler):
    if number not in {*signal.valid_signals(), getattr(signal, OF_TORCH)}:
        raise ValueError("invalid signal value")
    return REAL.signal(number, handler) if number != signal.SIGBREAK else signal.SIG_DFL


def locking(descriptor: int, mode: int, count: int):
    """An open file description lock, which like one of Windows belongs to a handle."""
    start = os.lseek(descriptor, 0, os.SEEK_CUR)
    if REAL.fcntl.fcntl(descriptor, REAL.fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:  # a lock needs more here
        again = REAL.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        os.dup2(again, descriptor)
        os.close(again)
    what = struct.pack("hhqqi4x", REAL.fcntl.F_WRLCK, os.SEEK_SET, start, count, 0)
    try:
        REAL.fcntl.fcntl(descriptor, 37, what)  # F_OFD_SETLK
    except BlockingIOError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def memory_info(process, real=psutil.Process.memory_info):
    found = real(process)
    return namedtuple("memory", "rss vms peak_wset")(found.rss, found.vms, found.rss)


def system(real=platform.system) -> str:
    """Lightning shall see Windows, and torch the Linux that it was built for."""
    return "Windows" if sys._getframe(1).f_globals["__name__"].startswith("lightning") else real()


def install():
    popen_fork.signal = resource_tracker.signal = subprocess.signal = types.SimpleNamespace(
        **vars(signal)
    )  # as they are
    psutil.pid_exists = lambda number: os.path.exists(f"/proc/{number}")
    sys.modules.update(dict.fromkeys(POSIX_MODULES), msvcrt=types.ModuleType("msvcrt"))
    sys.modules["msvcrt"].__dict__.update(locking=locking, LK_NBLCK=2)
    for name in POSIX_FUNCTIONS:
        delattr(os, name)
    for name in [
        name for name in vars(signal) if re.fullmatch(r"SIG[A-Z0-9]+", name) and name not in (*SIGNALS, OF_TORCH)
    ]:
        delattr(signal, name)
    for name in ("pthread_sigmask", "pthread_kill", "alarm", "setitimer", "sigwait", "SIG_BLOCK", "SIG_UNBLOCK"):
        delattr(signal, name)
    signal.SIGBREAK, signal.signal = 21, handled
    valid = {signal.SIGBREAK, *(getattr(signal, name) for name in SIGNALS)}
    signal.valid_signals = valid.copy
    os.kill, os.fsync, os.mkdir, os.open = kill, fsync, created, opened
    os.replace, os.rename = moved(REAL.replace), moved(REAL.rename)
    os.remove = os.unlink = deleted(REAL.remove)
    os.rmdir = deleted(REAL.rmdir)
    builtins.open = io.open = open_file
    shutil._use_fd_functions, tempfile.TemporaryFile = False, tempfile.NamedTemporaryFile
    psutil.Process.memory_info, platform.system = memory_info, system
    multiprocessing.set_start_method("spawn")
    warnings.filterwarnings("ignore", category=EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"slm\.")  # with -X warn_default_encoding
    sys.platform = "win32"
    import slm.system  # noqa: F401 (the only module of slm that asks)

    sys.platform = "linux"


install()
