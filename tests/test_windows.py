"""Commands on an imitation of Windows, which tests/windows/sitecustomize.py describes; and spawned loaders."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, small_run

from slm import verify
from slm.files import jsonl, run_folder, sweep_folder
from slm.run.overrides import parsed, quoted

FILES = r"""
import os, sys, threading, time
from pathlib import Path
from slm import cache, system
from slm.files import atomic, claim, jsonl

def refused(call, error):
    try:
        call()
    except error:
        return True

folder = Path(sys.argv[1])
assert refused(lambda: __import__("fcntl"), ImportError) and refused(lambda: os.kill(os.getpid(), 0), AssertionError)
assert system.WINDOWS and system.is_running(os.getpid()) and not system.is_running(2**22 + 1)

def hold(wait):
    with atomic.locked(folder / "lock", wait=wait):
        return int((folder / "lock").read_text()) == os.getpid()

with atomic.locked(folder / "lock", wait=False):
    assert (folder / "lock").read_text() == str(os.getpid())  # the locked byte is elsewhere
    assert refused(lambda: hold(False), BlockingIOError)
assert hold(True)

with claim.claimed(folder / "runs" / "one", "run"):
    assert refused(lambda: claim.claimed(folder / "runs" / "one", "run").__enter__(), claim.UserError)
assert not (folder / "runs").exists()

path = folder / "read"
atomic.write_text(path, "before")
with open(path) as reader:
    assert refused(lambda: os.replace(folder / "lock", path), PermissionError)
    threading.Timer(0.2, reader.close).start()
    atomic.write_text(path, "after\n")
assert path.read_bytes() == b"after\n"
jsonl.append(folder / "lines", {"step": 1})
atomic.flush(folder)

class Owner: pass
tokens = folder / "cache" / "tokens" / ("0" * 16)
tokens.mkdir(parents=True)
tokens.with_suffix(".lock").touch()
owners = [Owner(), Owner()]
for owner in owners:
    cache.keep(tokens, owner)
for kept in ("in use", "in use", None):
    assert [reason for _, reason in cache.prune(folder / "cache", time.time() + 60)] == [kept]
    owners and owners.pop()
    owner = None
assert not tokens.exists()
print("é→", system.peak_memory() > 0, system.resident_memory() > 0, system.total_memory() > 0)
"""


def windows(*command: str, cwd: Path, **settings) -> subprocess.Popen:
    """A Python on the imitation of Windows, with the code page of Western Europe."""
    places = [str(ROOT / "tests" / "windows"), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONIOENCODING": "cp1252:backslashreplace"}
    environment |= {"OMP_NUM_THREADS": "1", "USERNAME": "student"}
    interpreter = [sys.executable, "-X", "warn_default_encoding"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "cp1252"}
    return subprocess.Popen([*interpreter, *command], cwd=cwd, env=environment, **streams, **settings)


def printed(*command: str, cwd: Path, code: int = 0) -> str:
    process = windows(*command, cwd=cwd)
    output = process.communicate(timeout=230)[0]
    assert process.returncode == code, output
    return output


def test_files_and_locks(tmp_path):
    assert printed("-c", FILES, str(tmp_path), cwd=tmp_path) == "é\\u2192 True True True\n"


@pytest.mark.parametrize(
    "path", ["C:\\runs\\one", "C:\\runs\\", "\\\\server\\runs\\\\", "it's \\'here\\'", "/runs/ä, =1"]
)
def test_paths_of_windows_are_overrides(path):
    assert parsed([quoted(f"run_dir={path}")])[0].value() == path


def small(text_file: Path, folder: Path, *overrides: str) -> list[str]:
    each = "budget.steps=8", "callbacks.checkpoints.every_n_steps=3", "log_windows=true"
    return [str(ROOT / "train.py"), *small_run(text_file, folder), *each, *overrides]


@pytest.mark.slow
def test_a_killed_run_resumes_and_equals_one_of_linux(text_file, tmp_path):
    """With spawned loader processes; then what is done with a run."""
    there, here = (small(text_file, tmp_path / name) for name in ("windows", "linux"))
    fault = ["+callbacks.fault._target_=slm.training.callbacks.fault.Fault", "+callbacks.fault.kind=kill"]
    killed = [*there, "run_dir=run", "data.workers=1"]
    printed(*killed, *fault, "+callbacks.fault.step=6", cwd=tmp_path, code=9)
    assert "from step-000003.ckpt" in printed(*killed, cwd=tmp_path)
    run, other = tmp_path / "run", tmp_path / "other"
    subprocess.run([sys.executable, *here, f"run_dir={other}"], check=True, capture_output=True, cwd=ROOT)
    assert verify.first_difference(run, other) is None
    assert not [path for path in run.rglob("*.json*") if b"\r" in path.read_bytes()]
    printed(str(ROOT / "generate.py"), "ckpt=run", "max_new_tokens=5", cwd=tmp_path)
    printed("-m", "slm.evaluate", "run", "--text", str(text_file), cwd=tmp_path)
    assert "deleted" in printed("-m", "slm.cache", "prune", "--all", "--cache-dir", "windows/cache", cwd=tmp_path)


@pytest.mark.slow
def test_a_sweep_and_its_report(text_file, tmp_path):
    printed(*small(text_file, tmp_path), "-m", "optimizer.lr=1e-3,1e-2", "sweep_dir=sweep", cwd=tmp_path)
    assert [job.status for job in sweep_folder.require(tmp_path / "sweep").jobs] == ["done", "done"]
    assert "val/loss" in printed("-m", "slm.compare", "sweep", cwd=tmp_path)
    printed("-m", "slm.report", "sweep", cwd=tmp_path)


@pytest.mark.slow
def test_ctrl_c_saves_the_step(text_file, tmp_path):
    process = windows(*small(text_file, tmp_path, "run_dir=run", "budget.steps=100000"), cwd=tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not log.exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 130, output
    assert "goes on from here" in output
    last = max(line["step"] for line in jsonl.lines(tmp_path / "run" / "windows.jsonl"))
    assert run_folder.step_of(run_folder.newest_intact(tmp_path / "run")) == last


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])  # of Windows and macOS; of Linux from Python 3.14 on
def test_loader_processes_are_started_in_any_way(finished, run, method):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        again = run("data.workers=1", "log_windows=true")
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert verify.first_difference(finished, again) is None


@pytest.mark.slow
def test_the_doctor(tmp_path):
    output = windows("-m", "slm.doctor", "--wait", "60", cwd=tmp_path).communicate(timeout=230)[0]
    assert "the check failed" not in output
    assert "cannot be written" not in output
