"""Two processes over gloo on this CPU reach the losses of one process at the same global batch."""

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT, small_run
from faults import override as fault
from forks import forked
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from test_resume import final_state, history

from slm import report, verify
from slm.files import jsonl

pytestmark = pytest.mark.slow
TWO = "trainer.devices=2", "trainer.strategy=ddp"


def command(*arguments, **environment):
    """Runs train.py as a process of its own, on one thread. (Of two processes Lightning starts the second.)"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    words = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture
def small(text_file, tmp_path) -> list[str]:
    """The arguments of a run of seconds, in exact arithmetic, with a log of windows."""
    return [
        *small_run(text_file, tmp_path),
        *("trainer.precision=32-true", "trainer.microbatch=1", "log_windows=true"),
    ]


def test_two_processes_equal_one(small, tmp_path):
    one = forked(*small, f"run_dir={tmp_path / 'one'}")
    two = command(*small, f"run_dir={tmp_path / 'two'}", *TWO)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert not [line for line in two.stderr.splitlines() if "deprecated" in line or "recommended" in line]
    assert one.stdout.count("done:") == two.stdout.count("done:") == 1
    a, b = history(tmp_path / "one"), history(tmp_path / "two")
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for key in ("train/loss", "val/loss", "val/bits_per_byte"):
        ours, theirs = ([line[key] for line in lines if key in line] for lines in (a, b))
        assert ours == pytest.approx(theirs, abs=1e-4), key
    assert final_state(tmp_path / "two")[2] == 10
    assert (tmp_path / "one" / "windows.jsonl").read_text() == (tmp_path / "two" / "windows.jsonl").read_text()
    assert list(verify.find_problems(tmp_path / "two")) == []


def test_two_processes_stop_together_and_one_process_resumes(small, tmp_path, monkeypatch):
    """Both receive a signal and save once; later both meet a loss that is not finite. The windows stay the same."""
    run = [*small, f"run_dir={tmp_path / 'run'}"]
    # Lightning looks for failed processes, and kills the others, while the first one closes the run folder
    monkeypatch.setattr(_ChildProcessObserver.__init__, "__defaults__", (0.02,))
    monkeypatch.setattr(report, "loss_curve", lambda folder: time.sleep(1))
    stopped = forked(*run, *TWO, fault("terminate"))
    assert stopped.returncode == 143, stopped.stderr
    diverged = forked(*run, *TWO, fault("nonfinite", step=8))
    assert diverged.returncode == 3, diverged.stderr
    assert diverged.stderr.count("stopped before the update") == 1
    done = forked(*run)
    assert done.returncode == 0, done.stderr
    assert "the windows stay the same" in done.stdout
    assert list(verify.find_problems(tmp_path / "run")) == []


def test_fast_dev_run_keeps_nothing(small, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = forked(*small, *TWO, "trainer.fast_dev_run=true", TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert "nothing was kept" in done.stdout
    assert not list(temporary.iterdir())


def test_a_sweep_of_runs_on_two_processes(small, tmp_path):
    """Each job's second process trains that job alone, in its folder, which is named by the swept key."""
    done = forked("-m", *small, *TWO, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done:") == 2
    assert sorted(path.name for path in (tmp_path / "sweep").glob("*/")) == ["seed-1", "seed-2"]
    for seed in (1, 2):
        folder = tmp_path / "sweep" / f"seed-{seed}"
        assert list(verify.find_problems(folder)) == []
        assert len(list(jsonl.lines(folder / "windows.jsonl"))) == 10
