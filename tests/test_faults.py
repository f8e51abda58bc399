"""Each fault ends with its exit code and one line, or is survived as the configuration says; what was saved stays."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from test_resume import assert_same, final_state, history

from slm import checkpoint, verify
from slm import hardware as memory
from slm.errors import Diverged, ResourceError, Stopped, UserError
from slm.files import atomic, run_folder
from slm.hardware import Hardware, smaller
from slm.model import GPTConfig
from slm.run.train import train
from slm.training.callbacks import fault
from slm.training.callbacks.guard import Guard
from slm.training.loggers import CSVFile

FAULT = ("debug.fault.step=7", "callbacks.samples=null", "callbacks.checkpoints.every_n_steps=3")


def steps_saved(folder) -> list[int]:
    assert all(atomic.is_intact(path) for path in run_folder.checkpoints(folder))
    return [run_folder.step_of(path) for path in run_folder.checkpoints(folder)]


# -- numbers that are none, and losses that rise --------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "a step later, as on a GPU"])
@pytest.mark.parametrize("every", [1, 100])
def test_a_loss_that_is_not_finite_stops_before_the_update(composed, tmp_path, monkeypatch, accumulation, late, every):
    monkeypatch.setattr(Guard, "may_be_late", lambda guard: late)
    config = composed(
        *(*FAULT, "debug.fault.kind=nonfinite", "debug.log_windows=true", f"trainer.microbatch={4 // accumulation}"),
        *(f"callbacks.checkpoints.every_n_steps={every}", "log_every_n_steps=100"),
    )
    folder = tmp_path / "run"
    before = "anything of it was saved" if late else "the update"
    with pytest.raises(Diverged, match=rf"loss nan.* at step 7: stopped before {before}.*on_nonfinite=skip") as error:
        train(config, run_dir=folder, overrides=[])
    assert error.value.exit_code == 3
    assert steps_saved(folder) == [6, 5] if every == 1 else [5]
    assert all(
        tensor.isfinite().all() for tensor in checkpoint.read(run_folder.checkpoints(folder)[0])["state_dict"].values()
    )
    crash = json.loads((folder / "crash.json").read_text())
    assert crash["step"] == 7
    again = composed(*FAULT, "debug.log_windows=true", "log_every_n_steps=100")
    train(again, run_dir=folder, overrides=[])  # it was the fault, not the data
    windows = [json.loads(line) for line in (folder / "windows.jsonl").read_text().splitlines()]
    assert crash["windows"] == windows[6]["windows"]
    assert list(verify.find_problems(folder)) == []


@pytest.mark.parametrize("shown", ["callbacks.samples.every_n_steps=7", "log_every_n_steps=7"])
def test_a_late_look_comes_before_anything_is_shown(composed, tmp_path, monkeypatch, shown):
    monkeypatch.setattr(Guard, "may_be_late", lambda guard: True)
    rare = "log_every_n_steps=100", "callbacks.samples.every_n_steps=100", "callbacks.checkpoints.every_n_steps=100"
    config = composed("debug.fault.step=7", "debug.fault.kind=nonfinite", *rare, "val_every_n_steps=100", shown)
    with pytest.raises(Diverged, match=r"loss nan.* at step 7"):
        train(config, run_dir=tmp_path / "run", overrides=[])
    for name in ("metrics.jsonl", "samples.jsonl"):
        steps = [json.loads(line)["step"] for line in (tmp_path / "run" / name).read_text().splitlines()]
        assert steps
        assert max(steps) < 7


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_skip_leaves_the_update_out_and_counts_it(composed, tmp_path, optimizer):
    config = composed(
        *FAULT, f"optimizer={optimizer}", "debug.fault.kind=nonfinite", "on_nonfinite=skip", "budget.steps=7"
    )
    folder = tmp_path / "run"
    train(config, run_dir=folder, overrides=[])
    six, seven = (checkpoint.read(folder / "checkpoints" / f"step-00000{step}.ckpt") for step in (6, 7))
    assert_same(six["state_dict"], seven["state_dict"])
    assert_same(six["optimizer_states"][0]["state"], seven["optimizer_states"][0]["state"])
    assert {"step": 7, "train/skipped": 1} in history(folder)
    (event,) = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert event["event"] == "skipped"
    assert len(event["windows"]) == 4


def test_skips_in_a_row_end(composed, tmp_path, monkeypatch):
    monkeypatch.setattr(fault.Fault, "_is_now", lambda self, trainer: trainer.global_step >= 3)
    config = composed(*FAULT, "debug.fault.kind=nonfinite", "on_nonfinite=skip", "callbacks.guard.max_skips=4")
    with pytest.raises(Diverged, match="at step 8 after 4 skipped steps"):
        train(config, run_dir=tmp_path / "run", overrides=[])
    assert history(tmp_path / "run")[-1] == {"step": 7, "train/skipped": 4}


SPIKE = (*FAULT, "debug.fault.kind=spike", "callbacks.guard.spike_window=4", "debug.log_windows=true")


@pytest.mark.parametrize("policy", ["warn", "skip"])
def test_a_spike_is_told_and_passes_or_is_skipped(composed, tmp_path, capsys, policy):
    train(composed(*SPIKE, f"on_spike={policy}"), run_dir=tmp_path / "run", overrides=[])
    word = {"warn": "spike", "skip": "skipped"}[policy]
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert told.startswith(f"warning: step 7: {word}: loss ")
    assert any("train/skipped" in line for line in history(tmp_path / "run")) == (policy == "skip")


def once(monkeypatch):
    """The fault comes only in the first life."""
    lives = []

    def is_now(self, trainer):
        lives.append(self)
        return trainer.global_step + 1 == self.step and self is lives[0]

    monkeypatch.setattr(fault.Fault, "_is_now", is_now)


def test_rewind_passes_over_the_windows_and_survives_a_kill(composed, tmp_path, monkeypatch):
    once(monkeypatch)
    folder = tmp_path / "run"
    train(composed(*SPIKE, "on_spike=rewind"), run_dir=folder, overrides=[])
    (rewind,) = run_folder.read_run_json(folder)["rewinds"]
    assert (rewind["step"], rewind["to"], rewind["skipped"]) == (7, 6, 4)
    assert list(verify.find_problems(folder)) == []  # among them: each step's windows are those of the order
    whole = final_state(folder)
    for path in run_folder.checkpoints(folder)[:-1]:  # back to the first that has been saved since
        path.unlink()
    run_folder.write_run_json(folder, run_folder.read_run_json(folder) | {"status": "running"})
    train(composed(*SPIKE, "on_spike=rewind", "debug.fault.kind=null"), run_dir=folder, overrides=[])
    assert_same(whole, final_state(folder))


def test_rewind_does_not_go_round_in_circles(composed, tmp_path):
    with pytest.raises(Diverged, match="again after rewinding to step 6"):
        train(composed(*SPIKE, "on_spike=rewind"), run_dir=tmp_path / "run", overrides=[])


# -- requests to stop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "code"), [("terminate", 143), ("interrupt", 130)])
def test_a_request_to_stop_finishes_the_step_and_saves_it(composed, tmp_path, kind, code):
    folder = tmp_path / "run"
    with pytest.raises(Stopped) as stopped:
        train(composed(*FAULT, f"debug.fault.kind={kind}", "trainer.microbatch=2"), run_dir=folder, overrides=[])
    assert stopped.value.exit_code == code
    assert steps_saved(folder)[0] == 7
    assert run_folder.read_run_json(folder)["status"] == "stopped"
    train(composed(*FAULT, "trainer.microbatch=2"), run_dir=folder, overrides=[])
    train(composed(*FAULT, "trainer.microbatch=2"), run_dir=tmp_path / "straight", overrides=[])
    assert verify.first_difference(tmp_path / "straight", folder) is None


@pytest.mark.parametrize("named", [True, False])
def test_slurm_gets_its_node_back_and_the_job_into_its_queue(composed, tmp_path, monkeypatch, capsys, named):
    """A `scontrol` of our own stands in for SLURM's."""
    stand_in, folder = tmp_path / "scontrol", tmp_path / "run"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for key, value in {"JOB_ID": "99", "ARRAY_JOB_ID": "77", "ARRAY_TASK_ID": "3", "NTASKS": "1"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    for key, value in {"JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "here"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setitem(fault.SIGNALS, "terminate", signal.SIGUSR1)
    config = composed(*FAULT, "debug.fault.kind=terminate", *([f"run_dir='{folder}'"] if named else []))
    with pytest.raises(Stopped) as stopped:
        train(config, run_dir=folder, overrides=[])
    assert stopped.value.exit_code == 143
    assert steps_saved(folder)[0] == 7
    if named:
        assert (tmp_path / "calls").read_text() == "requeue 77_3\n"
    else:
        assert "not requeued: without run_dir=" in capsys.readouterr().err
        assert not (tmp_path / "calls").exists()


# -- what the machine does ------------------------------------------------------------------------------------------


def test_out_of_memory_names_a_microbatch_for_the_same_batch(composed, tmp_path):
    config = composed(*FAULT, "debug.fault.kind=out-of-memory", "data.batch_windows=6", "trainer.microbatch=6")
    with pytest.raises(
        ResourceError, match=r"out of memory with 6 windows .* trainer.microbatch=3 or trainer.auto_microbatch=true"
    ):
        train(config, run_dir=tmp_path / "run", overrides=[])
    assert steps_saved(tmp_path / "run") == [6, 5]
    assert smaller(9, 18, Hardware("cpu", 1, "32-true", "")) == 6
    assert smaller(1, 18, Hardware("cpu", 1, "32-true", "")) == 1


def test_auto_microbatch_finds_the_largest_that_fits_and_keeps_it(composed, tmp_path, monkeypatch, capsys):
    tried, real = [], memory.cross_entropy

    def limited(features, *rest):
        tried.append(len(features))
        if len(features) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(features, *rest)

    monkeypatch.setattr(memory, "cross_entropy", limited)
    config = composed("trainer.auto_microbatch=true", "data.batch_windows=12", "callbacks.samples=null")
    train(config, run_dir=tmp_path / "run", overrides=[])
    assert tried == [6, 4, 3]
    assert run_folder.read_run_json(tmp_path / "run")["microbatch"] == 3
    assert "microbatch 3 x 1 device(s) x accumulation 4" in capsys.readouterr().out
    config["budget"]["steps"] = 12
    train(config, run_dir=tmp_path / "run", overrides=[])
    assert tried == [6, 4, 3]
    monkeypatch.setattr(memory, "cross_entropy", lambda features, *rest: limited(features.repeat(9, 1, 1), *rest))
    shape = GPTConfig(**config["model"], vocab_size=9)
    with pytest.raises(ResourceError, match=r"not even one window of model.context=64 fits"):
        memory.largest_microbatch(shape, 2, Hardware("cpu", 1, "32-true", "a small machine"))


@pytest.mark.parametrize(
    ("kind", "workers", "message"),
    [
        ("loader-killed", 1, r"a loader process was killed \(.*\); out of memory\? try data.workers=0"),
        ("loader-raises", 1, r"windows \[\d+, \d+, \d+, \d+\] cannot be read: Input/output error"),
        ("loader-raises", 0, r"windows \[\d+, \d+, \d+, \d+\] cannot be read: Input/output error"),
        pytest.param(
            *("loader-hangs", 1, "a loader process took more than data.timeout=1 seconds"),
            marks=pytest.mark.slow,  # torch waits long before it gives a loader up
        ),
    ],
)
def test_a_loader_that_fails(composed, tmp_path, kind, workers, message):
    config = composed(*FAULT, f"debug.fault.kind={kind}", f"data.workers={workers}", "data.timeout=1")
    with pytest.raises(ResourceError, match=f"^{message}"):
        train(config, run_dir=tmp_path / "run", overrides=[])
    assert not multiprocessing.active_children()
    assert 3 in steps_saved(tmp_path / "run")


def test_a_disk_without_room_is_known_before_training(composed, tmp_path, monkeypatch):
    monkeypatch.setattr("slm.run.resume.shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(ResourceError, match=r"0.001 GB of disk left, and 4 checkpoints take 0.006 GB more"):
        train(composed(), run_dir=tmp_path / "run", overrides=[])
    assert not (tmp_path / "run").exists()


def test_a_full_disk_at_a_checkpoint_leaves_the_old_ones(composed, tmp_path, monkeypatch):
    """The second half of the third checkpoint finds no room."""
    real, saved = torch.save, []

    def save(content, file):
        saved.append(content["global_step"])
        if len(saved) == 3:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        real(content, file)

    monkeypatch.setattr(torch, "save", save)
    folder = tmp_path / "run"
    with pytest.raises(OSError, match="No space left") as error:  # from the thread that writes
        train(composed(*FAULT), run_dir=folder, overrides=[])
    assert error.value.filename.endswith(f"step-{saved[2]:06d}.ckpt")
    assert steps_saved(folder) == saved[1::-1]
    assert not list(folder.rglob("*.partial"))


def test_a_run_folder_that_is_removed_is_not_made_again(composed, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(
        fault.Fault, "on_train_batch_start", lambda *_: folder.exists() and folder.rename(tmp_path / "x")
    )
    with pytest.raises(ResourceError, match="was removed or moved away during training"):
        train(composed(*FAULT, "debug.fault.kind=kill"), run_dir=folder, overrides=[])
    assert not folder.exists()


def test_after_out_of_memory_auto_microbatch_tries_what_fits(composed, tmp_path, monkeypatch):
    """And does not take the size of the life that ran out of it."""
    real = memory.cross_entropy

    def limited(features, *rest):
        if len(features) > 2:
            raise torch.OutOfMemoryError
        return real(features, *rest)

    monkeypatch.setattr(memory, "cross_entropy", limited)
    with pytest.raises(ResourceError, match=r"auto_microbatch=true"):
        train(composed(*FAULT, "debug.fault.kind=out-of-memory"), run_dir=tmp_path / "run", overrides=[])
    train(composed(*FAULT, "trainer.auto_microbatch=true"), run_dir=tmp_path / "run", overrides=[])
    assert run_folder.read_run_json(tmp_path / "run")["microbatch"] == 2


def test_a_logger_that_fails_is_done_without(composed, tmp_path, monkeypatch, capsys):
    def broken(self, metrics, step=None):
        if step == 3:
            raise ConnectionError("the line is dead")

    monkeypatch.setattr(CSVFile, "log_metrics", broken)
    train(composed("logger=csv", "callbacks.samples=null"), run_dir=tmp_path / "run", overrides=[])
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: CSVFile failed (the line is dead); going on without it, metrics.jsonl has all"]
    assert len([line for line in history(tmp_path / "run") if "train/loss" in line]) == 10


def test_lines_that_are_none_do_not_stop_a_resume(composed, tmp_path):
    """What comes after such a line is written again, if the checkpoint is older; else verify names it."""
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(composed(*FAULT, "debug.fault.kind=terminate"), run_dir=folder, overrides=[])
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b"\n\0\0\0\n" + b'{"note": "mine"}\n')
    assert list(verify.find_problems(folder)) == ["metrics.jsonl cannot be read from line 9 on"]
    train(composed(*FAULT), run_dir=folder, overrides=[])
    assert list(verify.find_problems(folder)) == []


def test_tied_weights_are_one_tensor_in_a_checkpoint(composed, tmp_path):
    train(composed("callbacks.samples=null", "model.tied=true"), run_dir=tmp_path / "run", overrides=[])
    weights = checkpoint.read(run_folder.checkpoints(tmp_path / "run")[0])["state_dict"]
    assert weights["model.tokens.weight"].data_ptr() == weights["model.head.weight"].data_ptr()


# -- one run folder, one process ------------------------------------------------------------------------------------


def test_a_run_folder_in_use_is_refused_until_its_holder_dies(composed, tmp_path):
    folder = tmp_path / "run"
    code = (
        "import pathlib, sys, time; from slm.files import run_folder\n"
        f"with run_folder.claimed(pathlib.Path({str(folder)!r})): print('claimed', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"claimed\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}; wait for it"):
            train(composed(), run_dir=folder, overrides=[])
        holder.kill()
    train(composed("callbacks.samples=null"), run_dir=folder, overrides=[])


def test_a_folder_that_another_run_has_taken_is_left_alone(composed, tmp_path, monkeypatch):
    """Moved away while its run goes on, and a new one begun in its place: the old process notices and ends."""
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def swap(self, trainer, *_):
        if trainer.global_step == 5 and not moved.exists():
            folder.rename(moved)
            shutil.copytree(moved, folder)

    monkeypatch.setattr(fault.Fault, "on_train_batch_start", swap)
    with pytest.raises(ResourceError, match="was removed or moved away"):
        train(composed(*FAULT, "debug.fault.kind=kill"), run_dir=folder, overrides=[])
    assert run_folder.read_run_json(folder)["status"] == "running"  # as the copy was


def test_checkpoints_of_other_runs_are_not_taken(composed, tmp_path):
    for name in ("one", "other"):
        with pytest.raises(Stopped):
            train(composed(*FAULT, "debug.fault.kind=terminate"), run_dir=tmp_path / name, overrides=[])
    for path in (tmp_path / "other" / "checkpoints").glob("step-000007*"):
        shutil.copy(path, tmp_path / "one" / "checkpoints")
    with pytest.raises(UserError, match=r"step-000007.ckpt is another run's"):
        train(composed(*FAULT), run_dir=tmp_path / "one", overrides=[])
    assert any("another run's" in fault for fault in verify.find_problems(tmp_path / "one"))


def test_resume_does_not_begin_anew_where_there_are_checkpoints(composed, tmp_path):
    """Not even with resume=<another run>, if the digests of its own checkpoints are gone."""
    train(composed("callbacks.samples=null"), run_dir=tmp_path / "other", overrides=[])
    start = f"resume='{run_folder.checkpoints(tmp_path / 'other')[1]}'"
    train(composed("callbacks.samples=null", start), run_dir=tmp_path / "run", overrides=[])
    run_folder.write_run_json(tmp_path / "run", run_folder.read_run_json(tmp_path / "run") | {"status": "running"})
    for path in (tmp_path / "run" / "checkpoints").glob("*.sha256"):
        path.unlink()
    with pytest.raises(UserError, match="is intact; move the folder away"):
        train(composed("callbacks.samples=null", start), run_dir=tmp_path / "run", overrides=[])


def test_a_rewound_run_can_be_gone_on_from_in_another(composed, tmp_path, monkeypatch):
    """Its passed over windows stay so, and come first when the other one rewinds."""
    once(monkeypatch)
    train(composed(*SPIKE, "on_spike=rewind"), run_dir=tmp_path / "one", overrides=[])
    start = f"resume='{tmp_path / 'one' / 'checkpoints' / 'step-000009.ckpt'}'"
    monkeypatch.setattr(fault.Fault, "_is_now", lambda self, trainer: trainer.global_step == 10)
    more = "budget.steps=12", "callbacks.checkpoints.every_n_steps=20", "val_every_n_steps=20"
    changed = "allow_changes=[val_every_n_steps]"
    with pytest.raises(Diverged, match="again after rewinding to step 9"):
        train(composed(*SPIKE, "on_spike=rewind", start, *more, changed), run_dir=tmp_path / "two", overrides=[])
    (rewind,) = run_folder.read_run_json(tmp_path / "two")["rewinds"]
    assert (rewind["to"], rewind["skipped"]) == (9, 4 + 2 * 4)


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID"])
def test_what_the_environment_says_of_ranks_opens_no_door(composed, tmp_path, monkeypatch, name):
    """A run on one device is its own first process, so it takes the lock."""
    monkeypatch.setenv(name, "1")
    train(composed("callbacks.samples=null"), run_dir=tmp_path / "run", overrides=[])
    assert list(verify.find_problems(tmp_path / "run")) == []


# -- what may change on resume --------------------------------------------------------------------------------------


def test_changes_can_be_allowed_by_name(composed, tmp_path):
    folder = tmp_path / "run"
    train(composed("callbacks.samples=null"), run_dir=folder, overrides=[])
    changed = "optimizer.lr=1e-5", "trainer.clip=0.5", "budget.steps=12"
    with pytest.raises(UserError, match=r"optimizer.lr: 0.001 -> 1e-05; trainer.clip: 1.0 -> 0.5"):
        train(composed(*changed), run_dir=folder, overrides=[])
    train(composed(*changed, "allow_changes=[optimizer,trainer.clip]"), run_dir=folder, overrides=[])
    assert steps_saved(folder)[0] == 12
