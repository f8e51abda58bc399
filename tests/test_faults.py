"""Each fault ends a run with its exit code and one line, or is survived; what was saved stays intact."""

import io
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import small_run, trained
from faults import override as fault
from test_resume import history

from slm import verify
from slm.errors import ResourceError, Stopped
from slm.files import atomic, run_folder
from slm.hardware import Hardware
from slm.planning import microbatch
from slm.planning.microbatch import smaller_microbatch
from slm.system import STOP_SIGNALS as STOPPING
from slm.training.callbacks.fault import SIGNALS
from slm.training.loggers import CSVFile

SAVING = "callbacks.samples=null", "callbacks.checkpoints.every_n_steps=3"
CPU = Hardware("cpu", 1, "32-true", "a small machine")


def steps_saved(folder: Path) -> list[int]:
    """The steps of all checkpoints, newest first. They must be intact."""
    assert all(atomic.is_intact(path) for path in run_folder.checkpoints(folder))
    return [run_folder.step_of(path) for path in run_folder.checkpoints(folder)]


# -- requests to stop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SIGTERM", 143),
        ("SIGINT", 130),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("SIGHUP", 129), ("SIGXCPU", 152))),
    ],
)
def test_a_signal_lets_the_step_finish_and_saves_it(run, text_file, tmp_path, monkeypatch, capsys, request, name, code):
    folder, settings = tmp_path / "run", (*SAVING, "trainer.microbatch=2")
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOPPING}  # a background job ignores SIGINT
    request.addfinalizer(lambda: [signal.signal(*handler) for handler in before.items()])
    handlers = [signal.getsignal(number) for number in STOPPING]
    monkeypatch.setitem(SIGNALS, "terminate", signal.Signals[name])
    arguments = [*small_run(text_file, tmp_path), *settings, f"run_dir={folder}", fault("terminate")]
    assert trained(monkeypatch, *arguments) == code
    assert f"the same command with run_dir={folder} goes on from here" in capsys.readouterr().out
    assert steps_saved(folder)[0] == 7
    assert run_folder.read_run_json(folder)["status"] == "stopped"
    assert [signal.getsignal(number) for number in STOPPING] == handlers
    if name == "SIGTERM":  # the others save by the same way
        assert verify.first_difference(run(*settings), run(*settings, folder="straight")) is None


def test_an_ignored_signal_stays_ignored(run, monkeypatch):
    """As nohup sets it."""
    monkeypatch.setitem(SIGNALS, "terminate", signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert steps_saved(run(*SAVING, fault("terminate")))[0] == 10
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("named", [True, False])
def test_slurm_requeues_a_job_that_names_its_run_folder(run, tmp_path, monkeypatch, capsys, named):
    """A script stands in for SLURM's `scontrol`."""
    scontrol, folder = tmp_path / "scontrol", tmp_path / "run"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = {"JOB_ID": "99", "ARRAY_JOB_ID": "77", "ARRAY_TASK_ID": "3", "NTASKS": "1", "JOB_NAME": "train"}
    for key, value in (job | {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "here"}).items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setitem(SIGNALS, "terminate", signal.SIGUSR1)
    with pytest.raises(Stopped) as stopped:
        run(*SAVING, fault("terminate"), *([f"run_dir={folder}"] if named else []))
    assert stopped.value.exit_code == 143
    assert steps_saved(folder)[0] == 7
    if named:
        assert (tmp_path / "calls").read_text() == "requeue 77_3\n"
    else:
        assert "not requeued: without run_dir=" in capsys.readouterr().err
        assert not (tmp_path / "calls").exists()


# -- memory ---------------------------------------------------------------------------------------------------------


def limit_memory(monkeypatch, windows: int, error: Exception) -> list[int]:
    """Makes the search for a microbatch raise above so many windows. Returns the list that collects its attempts."""
    tried, real = [], microbatch.cross_entropy

    def limited(features, **rest):
        tried.append(len(features))
        if len(features) > windows:
            raise error
        return real(features, **rest)

    monkeypatch.setattr(microbatch, "cross_entropy", limited)
    return tried


def test_out_of_memory_suggests_a_microbatch_for_the_same_batch(run, tmp_path):
    remedies = r"trainer.microbatch=3 or trainer.auto_microbatch=true or model.gradient_checkpointing=true"
    with pytest.raises(ResourceError, match=rf"out of memory with 6 windows .* {remedies}; .recipe=low_memory"):
        run(*SAVING, fault("out-of-memory"), "data.batch_windows=6", "trainer.microbatch=6")
    assert steps_saved(tmp_path / "run") == [6, 5]
    assert smaller_microbatch(9, 18, CPU) == 6
    assert smaller_microbatch(1, 18, CPU) == 1


def test_auto_microbatch_finds_the_largest_that_fits_and_keeps_it(composed, run, monkeypatch, capsys):
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    tried = limit_memory(monkeypatch, 3, full)
    settings = "trainer.auto_microbatch=true", "data.batch_windows=12", "callbacks.samples=null"
    folder = run(*settings)
    assert tried == [6, 4, 3]
    assert run_folder.read_run_json(folder)["microbatch"] == 3
    assert "microbatch 3 x 1 device(s) x accumulation 4" in capsys.readouterr().out
    run(*settings, "budget.steps=12")
    assert tried == [6, 4, 3]
    limit_memory(monkeypatch, 0, full)
    with pytest.raises(ResourceError, match=r"not even one window of model.context=64 fits"):
        microbatch.largest_microbatch(replace(composed().model, vocab_size=9), 2, CPU)


def test_auto_microbatch_does_not_keep_a_size_that_ran_out_of_memory(run, monkeypatch):
    limit_memory(monkeypatch, 2, torch.OutOfMemoryError())
    with pytest.raises(ResourceError, match=r"auto_microbatch=true"):
        run(*SAVING, fault("out-of-memory"))
    folder = run(*SAVING, "trainer.auto_microbatch=true")
    assert run_folder.read_run_json(folder)["microbatch"] == 2


# -- loader processes, disks, loggers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "workers", "message"),
    [
        ("loader-killed", 1, r"a loader process was killed \(.*\); out of memory\? try data.workers=0"),
        ("loader-raises", 1, r"windows \[\d+, \d+, \d+, \d+\] cannot be read: Input/output error"),
        ("loader-raises", 0, r"windows \[\d+, \d+, \d+, \d+\] cannot be read: Input/output error"),
        pytest.param(
            *("loader-hangs", 1, "a loader process took more than data.timeout=1 seconds"),
            marks=pytest.mark.slow,  # torch waits long before it gives up
        ),
    ],
)
def test_a_loader_that_fails(run, tmp_path, kind, workers, message):
    with pytest.raises(ResourceError, match=f"^{message}"):
        run(*SAVING, fault(kind), f"data.workers={workers}", f"data.timeout={1 if kind == 'loader-hangs' else 60}")
    assert not multiprocessing.active_children()
    assert 3 in steps_saved(tmp_path / "run")


def test_a_disk_too_small_for_the_checkpoints_is_found_before_training(run, tmp_path, monkeypatch):
    monkeypatch.setattr("slm.run.record.shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(ResourceError, match=r"0.001 GB of disk left, and 4 checkpoints take 0.006 GB more"):
        run()
    assert not (tmp_path / "run").exists()


def test_a_disk_full_at_a_checkpoint_keeps_the_old_ones(run, tmp_path, monkeypatch):
    """The disk is full in the middle of the third checkpoint."""
    real, saved = torch.save, []

    def save(content, file):
        if isinstance(file, io.BytesIO):  # the check of the state
            return real(content, file)
        saved.append(content["global_step"])
        if len(saved) == 3:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        return real(content, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(ResourceError, match=r"^cannot write .*step-(\d+).ckpt: No space left on device$") as error:
        run(*SAVING)
    assert f"step-{saved[2]:06d}.ckpt" in str(error.value)
    assert steps_saved(tmp_path / "run") == saved[1::-1]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_logger_that_fails_is_disabled(run, monkeypatch, capsys):
    def broken(self, metrics, step=None):
        if step == 3:
            raise ConnectionError("the line is dead")

    monkeypatch.setattr(CSVFile, "log_metrics", broken)
    folder = run("logger=csv", "callbacks.samples=null")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: CSVFile failed (the line is dead); going on without it, metrics.jsonl has all"]
    assert len([line for line in history(folder) if "train/loss" in line]) == 10
