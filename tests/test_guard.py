"""The guard stops at a loss that is not finite, or skips its update; it logs or skips loss spikes."""

import json

import pytest
from faults import Fault
from faults import override as fault
from test_faults import SAVING, steps_saved
from test_resume import assert_same, history

from slm import checkpoint, verify
from slm.errors import Diverged
from slm.files import jsonl, run_folder
from slm.training.callbacks.guard import Guard

SPIKE = (*SAVING, fault("spike"), "callbacks.guard.spike_window=4")


@pytest.mark.parametrize(  # every pair of values; a GPU defers the check by one step
    ("accumulation", "deferred", "every"), [(1, False, 1), (2, True, 1), (1, True, 100), (2, False, 100)]
)
def test_a_loss_that_is_not_finite_is_never_saved(run, tmp_path, monkeypatch, accumulation, deferred, every):
    monkeypatch.setattr(Guard, "is_deferred", lambda guard: deferred)
    folder, rest = tmp_path / "run", ("log_windows=true", "log_every_n_steps=100")
    settings = f"trainer.microbatch={4 // accumulation}", f"callbacks.checkpoints.every_n_steps={every}"
    before = "its result was saved" if deferred else "the update"
    with pytest.raises(
        Diverged, match=rf"loss nan.* at step 7: stopped before {before}.*recipe=stable.*nonfinite=skip"
    ) as error:
        run(*SAVING, fault("nonfinite"), *rest, *settings)
    assert error.value.exit_code == 3
    assert steps_saved(folder) == [6, 5] if every == 1 else [5]
    weights = checkpoint.read(run_folder.checkpoints(folder)[0])["state_dict"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    crash = json.loads((folder / "crash.json").read_text())
    assert crash["step"] == 7
    run(*SAVING, *rest)  # without the fault the run goes on
    assert crash["windows"] == list(jsonl.lines(folder / "windows.jsonl"))[6]["windows"]
    assert list(verify.find_problems(folder)) == []


@pytest.mark.parametrize("shown", ["callbacks.samples.every_n_steps=7", "log_every_n_steps=7"])
def test_a_deferred_check_precedes_metrics_and_samples(run, tmp_path, monkeypatch, shown):
    monkeypatch.setattr(Guard, "is_deferred", lambda guard: True)
    keys = "log_every_n_steps", "callbacks.samples.every_n_steps", "val_every_n_steps"
    rare = [f"{key}=100" for key in (*keys, "callbacks.checkpoints.every_n_steps")]
    with pytest.raises(Diverged, match=r"loss nan.* at step 7"):
        run(fault("nonfinite"), *rare, shown)
    for name in ("metrics.jsonl", "samples.jsonl"):
        steps = [line["step"] for line in jsonl.lines(tmp_path / "run" / name)]
        assert steps
        assert max(steps) < 7


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_update_changes_nothing_and_is_counted(run, optimizer):
    folder = run(*SAVING, fault("nonfinite"), "on_nonfinite=skip", f"optimizer={optimizer}", "budget.steps=7")
    six, seven = (checkpoint.read(folder / "checkpoints" / f"step-00000{step}.ckpt") for step in (6, 7))
    assert_same(six["state_dict"], seven["state_dict"])
    assert_same(six["optimizer_states"][0]["state"], seven["optimizer_states"][0]["state"])
    assert {"step": 7, "train/skipped": 1} in history(folder)
    (event,) = jsonl.lines(folder / "events.jsonl")
    assert event["event"] == "skipped"
    assert len(event["windows"]) == 4


def test_too_many_skipped_updates_in_a_row_stop_the_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Fault, "_is_now", lambda self, trainer: trainer.global_step >= 3)
    with pytest.raises(Diverged, match="at step 8 after 4 skipped steps"):
        run(*SAVING, fault("nonfinite"), "on_nonfinite=skip", "callbacks.guard.max_skips=4")
    assert history(tmp_path / "run")[-1] == {"step": 7, "train/skipped": 4}


@pytest.mark.parametrize(("policy", "event"), [("warn", "spike"), ("skip", "skipped")])
def test_a_spike_is_logged_or_skipped(run, capsys, policy, event):
    folder = run(*SPIKE, f"on_spike={policy}")
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warning.startswith(f"warning: step 7: {event}: loss ")
    assert any("train/skipped" in line for line in history(folder)) == (policy == "skip")
