"""One run folder belongs to one process and one run."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys

import pytest
from conftest import flip_a_bit, mistake, refused
from faults import override as fault
from test_faults import SAVING
from test_resume import set_status

from slm import checkpoint, verify
from slm.errors import ResourceError, Stopped
from slm.files import atomic, jsonl, run_folder
from slm.training.callbacks.fault import Fault


def test_a_run_folder_in_use_is_refused_until_its_process_ends(run, tmp_path):
    folder = tmp_path / "run"
    code = (
        "import pathlib, sys, time; from slm.files import claim\n"
        f"with claim.claimed(pathlib.Path({str(folder)!r}), 'run'): print('claimed', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"claimed\n"
        with mistake(f"in use by process {holder.pid}; wait for it"):
            run()
        holder.kill()
    run("callbacks.samples=null")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_folder_that_was_moved_away_ends_the_run(run, tmp_path, monkeypatch, replaced):
    """Neither is the folder created again, nor is a copy in its place written to."""
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def move(self, trainer, *_):
        if trainer.global_step == 5 and not moved.exists():
            trainer.strategy.checkpoint_io.wait()  # a copy of a folder that is being written to may fail
            folder.rename(moved)
            if replaced:
                shutil.copytree(moved, folder)

    monkeypatch.setattr(Fault, "on_train_batch_start", move)
    with pytest.raises(ResourceError, match="was removed or moved away"):
        run(*SAVING, fault("kill"))
    assert folder.exists() == replaced
    if replaced:
        assert run_folder.read_run_json(folder)["status"] == "running"  # as copied


def test_checkpoints_of_another_run_are_refused(run, tmp_path):
    for name in ("one", "other"):
        with pytest.raises(Stopped):
            run(*SAVING, fault("terminate"), folder=name)
    for path in (tmp_path / "other" / "checkpoints").glob("step-000007*"):
        shutil.copy(path, tmp_path / "one" / "checkpoints")
    with mistake(r"step-000007.ckpt belongs to another run .*; move it away"):
        run(*SAVING, folder="one")
    assert any("belongs to another run" in problem for problem in verify.find_problems(tmp_path / "one"))


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(run):
    """Not even from the checkpoint of another run that resume= names."""
    other = run("callbacks.samples=null", folder="other")
    start = f"resume={run_folder.checkpoints(other)[1]}"
    folder = run("callbacks.samples=null", start)
    set_status(folder, "running")
    for path in run_folder.checkpoints(folder):
        flip_a_bit(path)
    with mistake("is intact; move the folder away"):
        run("callbacks.samples=null", start)
    for path in folder.glob("checkpoints/*.sha256"):
        path.unlink()
    with mistake("is intact; move the folder away"):
        run("callbacks.samples=null", start)


def test_checkpoints_that_were_copied_without_their_sha256_are_used(run, capsys):
    """By the checksums inside, which find a bit that has changed."""
    folder = run("callbacks.samples=null")
    for path in folder.glob("checkpoints/*.sha256"):
        path.unlink()
    assert "step-000010.ckpt has no .sha256 beside it" in list(verify.find_problems(folder))
    run("callbacks.samples=null", "budget.steps=11")
    assert "step-000010.ckpt has no .sha256 beside it; the checksums inside are right" in capsys.readouterr().err
    flip_a_bit(folder / "checkpoints" / "step-000010.ckpt")
    refused(lambda: checkpoint.read(folder / "checkpoints" / "step-000010.ckpt"), "is damaged")


@pytest.mark.parametrize("change", [{"intervals": 3}, {"commits": "a"}, {"steps": "ten"}, {"first_step": None}])
def test_a_run_json_of_other_types_is_one_line(run, change):
    folder = run("callbacks.samples=null", "budget.steps=1")
    run_folder.write_run_json(folder, run_folder.read_run_json(folder) | change)
    with mistake("run.json is damaged; give another run_dir"):
        run("callbacks.samples=null", "budget.steps=2")


EDITS = {
    "line ends of Windows": lambda text: text.replace("\n", "\r\n"),
    "a byte order mark": lambda text: "\ufeff" + text,
    "empty lines": lambda text: text.replace("\n", "\n\n"),
    "no last line end": lambda text: text.rstrip("\n"),
    "a loss that is text": lambda text: text.replace('"val/loss": ', '"val/loss": "x", "earlier": '),
}


@pytest.mark.parametrize("edit", EDITS)
def test_metrics_that_an_editor_has_saved_are_kept(run, edit):
    folder = run("callbacks.samples=null", "budget.steps=2", "val_every_n_steps=1")
    path = folder / "metrics.jsonl"
    before = list(jsonl.lines(path))
    path.write_text(EDITS[edit](path.read_text()), newline="")
    assert len(list(jsonl.lines(path))) == len(before)
    assert list(verify.find_problems(folder)) == []
    run("callbacks.samples=null", "budget.steps=3", "val_every_n_steps=1")
    assert [line["step"] for line in jsonl.lines(path)] == [1, 1, 2, 2, 3, 3]


def test_a_checkpoint_under_the_name_of_another_step_is_refused(run):
    folder = run("callbacks.samples=null", "budget.steps=2")
    for path in folder.glob("checkpoints/step-000002.ckpt*"):
        path.rename(path.with_name(path.name.replace("2", "9")))
    with mistake("step-000009.ckpt holds step 2, so it was renamed"):
        run("callbacks.samples=null", "budget.steps=4")


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID"])
def test_a_rank_in_the_environment_does_not_matter_to_one_device(run, monkeypatch, name):
    """A run on one device is its own first process, so it writes the run folder."""
    monkeypatch.setenv(name, "1")
    assert list(verify.find_problems(run("callbacks.samples=null"))) == []


@pytest.mark.parametrize(
    "reason", [errno.ENOLCK, *(pytest.param(n, marks=pytest.mark.slow) for n in (errno.EOPNOTSUPP, errno.ENOSYS))]
)
def test_a_file_system_without_locks_or_flushes_is_used_with_one_warning(run, monkeypatch, capsys, reason):
    """As network and FUSE file systems answer. A cold cache and a run folder take several locks."""
    real = os.fsync

    def lockf(*_):
        raise OSError(reason, os.strerror(reason))

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    monkeypatch.setattr(os, "fsync", fsync)
    atomic._warn_without_locks.cache_clear()
    assert list(verify.find_problems(run("callbacks.samples=null", "budget.steps=2"))) == []
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == [
        f"warning: this file system has no locks ({os.strerror(reason)}), so two processes on the same folder are not "
        "kept apart"
    ]
