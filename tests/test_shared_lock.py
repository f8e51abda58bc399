"""A lock in a folder of several machines: a holder elsewhere that works is waited for, one that has died is not."""

import errno
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from slm import system
from slm.cache import take_over
from slm.files import atomic, shared_lock
from slm.files.shared_lock import shared_lock as locked


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(shared_lock, "BEAT", 0.02)
    monkeypatch.setattr(shared_lock, "SILENCE", 0.4)


def write(path: Path, beat: int = 0, host: str = "node7", process: int = 7):
    path.write_text(json.dumps({"host": host, "process": process, "since": 0, "beat": beat}))


def test_a_holder_on_another_machine_is_waited_for_as_long_as_it_works(tmp_path):
    """Where the system's lock is kept to one machine: here nobody has it."""
    path, waits, alive = tmp_path / "lock", [], [True]
    write(path)

    def work():
        for beat in range(1, 6):
            time.sleep(0.15)
            write(path, beat)
        alive[0] = False

    other = threading.Thread(target=work)
    other.start()
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    with locked(path, wait=True, on_wait=waits.append):
        assert not alive[0]
        first = json.loads(path.read_text())
        assert (first["host"], first["process"]) == (socket.gethostname(), os.getpid())
        time.sleep(0.1)
        assert json.loads(path.read_text())["beat"] > first["beat"]
    other.join()
    assert path.read_text() == ""
    assert len(waits) == 1
    assert waits[0].startswith("process 7 on node7 has been preparing since 19")


def test_a_lock_that_the_system_keeps_for_a_dead_machine_is_taken(tmp_path):
    path, (ready, done) = tmp_path / "lock", os.pipe()
    if not (process := os.fork()):
        with atomic.locked(path, wait=False):
            os.write(done, b"x")
            signal.pause()
    os.read(ready, 1)
    write(path)
    before = path.stat().st_ino
    try:
        with locked(path, wait=True):
            assert json.loads(path.read_text())["process"] == os.getpid()
            assert path.stat().st_ino != before
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_without_locks_the_file_alone_keeps_processes_of_this_machine_apart(tmp_path, monkeypatch):
    def no_locks(file, wait):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(system, "lock", no_locks)
    path, host = tmp_path / "lock", socket.gethostname()
    if not (ended := os.fork()):
        os._exit(0)
    os.waitpid(ended, 0)
    write(path, host=host, process=os.getppid())
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    write(path, host=host, process=ended)
    with locked(path, wait=False):
        pass


def test_a_process_that_lost_its_folder_cannot_write_into_the_new_one(tmp_path):
    """It was silent, so another one has gone on with its folder."""
    folder = tmp_path / ("0" * 16)
    mine, others = (folder.with_suffix(f".{number}.partial") for number in (1, 2))
    for path, file in ((mine, "progress.json"), (tmp_path / f"{folder.name}.partial", "manifest.json")):
        path.mkdir()
        (path / file).touch()
    take_over(folder, others, "progress.json")
    assert [path.name for path in tmp_path.iterdir()] == [others.name]
    with pytest.raises(FileNotFoundError):
        (mine / "train-00000.bin").touch()
    take_over(folder, folder.with_suffix(".3.partial"), None)
    assert not list(tmp_path.iterdir())
