"""Files that cannot be read, files that are not ours, and limits of the machine: one line, and nothing is harmed."""

import errno
import gc
import json
import os
import re
import shutil
import signal
import weakref
from pathlib import Path

import lightning.pytorch as L
import pytest
from conftest import exit_code, small_run, trained
from test_faults import SAVING, steps_saved

from slm import errors, hardware, system, verify
from slm.errors import ResourceError, UserError
from slm.files import atomic, claim, run_folder
from slm.training.callbacks.fault import Fault

UNREADABLE = Path("/proc/self/mem")  # opens, and fails at the first byte, for every user


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.skipif(not UNREADABLE.exists(), reason="no /proc")
@pytest.mark.parametrize(
    "name", ["run.json", "metrics.jsonl", "checkpoints/step-000010.ckpt", "checkpoints/step-000010.ckpt.sha256"]
)
def test_a_file_that_cannot_be_read_is_not_called_damaged(copy, text_file, tmp_path, monkeypatch, capsys, name):
    """Neither by a resume nor by verify, and the run folder stays as it was."""
    (copy / name).unlink()
    (copy / name).symlink_to(UNREADABLE)
    others = {path: path.read_bytes() for path in copy.rglob("*.*") if path.is_file() and path not in (copy / name,)}
    code = trained(monkeypatch, *small_run(text_file, tmp_path), f"run_dir={copy}", "budget.steps=12")
    line = f"error: cannot read {copy / name}: Input/output error\n"
    printed = capsys.readouterr().err
    assert (code, printed[printed.index("error:") :]) == (4, line)
    assert exit_code(monkeypatch, verify.main, str(copy)) == 4
    assert capsys.readouterr().err == line
    assert {path: path.read_bytes() for path in others if path.name != ".lock"}.items() <= others.items()


@pytest.mark.parametrize(
    ("number", "call", "message"),
    [
        (errno.EACCES, lambda path: atomic.read_object(path), "cannot read {}: Permission denied"),
        (errno.ESTALE, lambda path: atomic.is_intact(path), "cannot read {}.sha256: Stale file handle"),
        (errno.ENOSPC, lambda path: atomic.write_text(path, "x"), "cannot write {}: No space left on device"),
        (errno.EROFS, lambda path: atomic.write_text(path, "x"), "cannot write {}: Read-only file system"),
    ],
)
def test_a_file_error_names_operation_file_and_reason(tmp_path, monkeypatch, number, call, message):
    def refuse(file, *_, **__):
        raise OSError(number, os.strerror(number), None if number == errno.ENOSPC else str(file))

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        call(tmp_path / "file")
    explanation = errors.explain(error.value)
    assert (str(explanation), explanation.exit_code) == (message.format(tmp_path / "file"), 4)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (MemoryError(), "out of memory", 4),
        (RuntimeError("unable to mmap 8 bytes from file </x>: Cannot allocate memory (12)"), "out of memory", 4),
        (RuntimeError("std::bad_alloc"), "out of memory", 4),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory", 4),
        (OSError(errno.EMFILE, "Too many open files", "x"), "ulimit -n", 4),
        (RuntimeError("can't start new thread"), "ulimit -u", 4),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "no access to /x: Permission denied", 4),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write a file: No space left on device", 4),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), "/x is not a valid file name", 2),
    ],
)
def test_limits_of_the_machine_are_one_line(error, message, code):
    explanation = errors.explain(error)
    assert message in str(explanation)
    assert explanation.exit_code == code


@pytest.mark.parametrize("error", [KeyError("x"), FileNotFoundError(2, "No such file or directory", "x"), OSError("x")])
def test_bugs_keep_their_traceback(error):
    assert errors.explain(error) is None


def test_too_few_open_files_for_loader_processes_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(system.resource, "getrlimit", lambda _: (20, 20))
    with pytest.raises(ResourceError, match=r"may open 20 files, and 2 loader processes need 128.*data.workers=0"):
        hardware.check_open_files(2)
    hardware.check_open_files(0)
    monkeypatch.setattr(system.resource, "getrlimit", lambda _: (20, 4096))
    limits = []
    monkeypatch.setattr(system.resource, "setrlimit", lambda _, pair: limits.append(pair))
    hardware.check_open_files(1)
    assert limits == [(96, 4096)]


STRAYS = (".DS_Store", "Thumbs.db", "notes.txt", "metrics.jsonl~", "notes.12.partial", "checkpoints/copy.ckpt.sha256")
STRAY_FOLDERS = (
    *(".ipynb_checkpoints", "lost+found", "checkpoints/.ipynb_checkpoints", "checkpoints/step-000099.ckpt"),
    *("checkpoints/step-000098.ckpt.sha256", "tokenizer/.ipynb_checkpoints"),
)


def test_stray_files_are_neither_taken_nor_deleted(copy, text_file, tmp_path, monkeypatch, capsys):
    for name in STRAY_FOLDERS:
        (copy / name).mkdir()
    for name in (*STRAYS, "checkpoints/step-000004 (copy).ckpt", "checkpoints/last.json.bak"):
        (copy / name).write_text("mine")
    arguments = *small_run(text_file, tmp_path), f"run_dir={copy}", "log_windows=true", "callbacks.samples=null"
    assert trained(monkeypatch, *arguments, "budget.steps=12") == 0
    assert steps_saved(copy) == [12, 10]
    assert all((copy / name).exists() for name in (*STRAYS, *STRAY_FOLDERS))
    assert exit_code(monkeypatch, verify.main, str(copy)) == 0


def test_a_folder_that_cannot_be_made_is_found_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    atomic.check_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file is a file; give another folder"):
            atomic.check_folder(path)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path or mode != os.W_OK)
    with pytest.raises(ResourceError, match=f"no permission to write in {re.escape(str(tmp_path))}; give"):
        atomic.check_folder(tmp_path / "new" / "folder")


def test_a_new_folder_may_hold_the_files_of_an_operating_system(tmp_path):
    for name in ("lost+found", ".Trash-0"):
        (tmp_path / name).mkdir()
    (tmp_path / "Thumbs.db").touch()
    claim.check_folder(tmp_path, "run")


@pytest.mark.parametrize("name", ["checkpoints", "tokenizer", "metrics.jsonl", "checkpoints/last.json", ".lock"])
def test_what_is_deleted_from_a_run_folder_during_training(run, tmp_path, monkeypatch, name):
    """The training goes on, but for the lock, without which another process could start in the folder."""
    folder = tmp_path / "run"

    def delete(self, trainer, *_):
        if trainer.global_step == 4:
            trainer.strategy.checkpoint_io.wait()
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    monkeypatch.setattr(Fault, "on_train_batch_start", delete)
    fault = "+callbacks.fault={_target_: slm.training.callbacks.fault.Fault, kind: kill, step: 4}"
    if name == ".lock":
        with pytest.raises(ResourceError, match=r"or its \.lock was removed"):
            run(*SAVING, fault, "budget.steps=7")
    else:
        run(*SAVING, fault, "budget.steps=7")
        assert steps_saved(folder)[0] == 7
        assert (folder / "checkpoints" / "last.json").exists()


@pytest.mark.parametrize("change", [{"steps": "ten"}, {"intervals": 3}, {"config": {}}, {"windows": None}])
def test_verify_refuses_a_run_json_of_another_version(copy, monkeypatch, capsys, change):
    info = {**run_folder.read_run_json(copy), **change}
    (copy / "run.json").write_text(json.dumps({key: value for key, value in info.items() if value is not None}))
    assert exit_code(monkeypatch, verify.main, str(copy)) == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_leaves_nothing_of_its_jobs(text_file, tmp_path, monkeypatch, drawn):
    """No Trainer, no open file, no signal handler."""
    trainers, open_files, real = [], [], L.Trainer.__init__

    def init(self, *arguments, **keywords):
        gc.collect()
        open_files.append(len(list(Path("/proc/self/fd").iterdir())))
        trainers.append(weakref.ref(self))
        real(self, *arguments, **keywords)

    monkeypatch.setattr(L.Trainer, "__init__", init)
    handler = signal.getsignal(signal.SIGTERM)
    quick = (
        "callbacks.samples=null",
        "budget.steps=1",
        "logger=csv",
        f"hydra.sweep.dir={tmp_path}/s",
    )
    assert trained(monkeypatch, "-m", *small_run(text_file, tmp_path), *quick, "seed=1,2,3,4") == 0
    gc.collect()
    assert len(trainers) == 4
    assert [trainer() for trainer in trainers] == [None] * 4
    assert len(set(open_files[1:])) == 1
    assert signal.getsignal(signal.SIGTERM) is handler
