"""An interrupted run ends bit for bit like an uninterrupted one: weights, optimizer, metrics, samples."""

import json
from pathlib import Path

import pytest
import torch
from conftest import flip_a_bit, mistake

from slm import checkpoint, verify
from slm.files import jsonl, run_folder
from slm.run.train import train
from slm.training.module import Pretraining
from slm.verify import CLOCK


def history(folder):
    """The lines of metrics.jsonl without values that depend on the clock."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in jsonl.lines(folder / "metrics.jsonl")]


def final_state(folder):
    raw = checkpoint.read(run_folder.checkpoints(folder)[0])
    return raw["state_dict"], raw["optimizer_states"], raw["global_step"]


def set_status(folder, status):
    """Changes the status in run.json, for example to that of a run that was killed."""
    run_folder.write_run_json(folder, run_folder.read_run_json(folder) | {"status": status})


def assert_same(a, b):
    """Asserts that nested containers of tensors and plain values are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


class Killed(Exception):
    pass


def train_with_kills(config, folder, monkeypatch, microbatches):
    """Trains to the end, with an attempt before it for each number: the attempt fails at that microbatch of its own."""
    real = Pretraining.training_step
    for at in [*microbatches, None]:
        seen = 0

        def step(self, windows, index, at=at):
            nonlocal seen
            seen += 1
            if seen == at:
                raise Killed
            return real(self, windows, index)

        monkeypatch.setattr(Pretraining, "training_step", step)
        if at is None:
            return train(config, run_dir=folder, overrides=[])
        with pytest.raises(Killed):
            train(config, run_dir=folder, overrides=[])


def resumes_exactly(config, folder, monkeypatch, microbatches) -> Path:
    """Asserts that a run with such failures equals one without. Returns the folder of the latter."""
    straight, broken = folder / "straight", folder / "broken"
    objective = train(config, run_dir=straight, overrides=[])
    assert train_with_kills(config, broken, monkeypatch, microbatches) == objective
    assert_same(final_state(straight), final_state(broken))
    assert history(straight) == history(broken)
    assert run_folder.read_run_json(broken)["attempts"] == len(microbatches) + 1
    for samples in straight.glob("samples.*"):
        assert samples.read_text() == (broken / samples.name).read_text()
    return straight


@pytest.mark.parametrize(
    ("optimizer", "workers", "accumulation", "data"),
    [
        ("adamw", 0, 4, ["data.layout=packed"]),
        ("adamw", 0, 1, ["data.train_windows=6", "data.batch_windows=4"]),  # as debug=overfit; not a multiple
        pytest.param("muon", 2, 1, ["data.layout=documents", "model.context=300"], marks=pytest.mark.slow),
        pytest.param("adamw", 0, 1, ["data.layout=packed"], marks=pytest.mark.slow),
        pytest.param("muon", 2, 4, ["data.layout=packed"], marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(
    composed, tmp_path, monkeypatch, optimizer, workers, accumulation, data
):
    """Validation at 3, 6, 9 and the end, checkpoints at 4, 8 and new bests: at the same steps and at others."""
    config = composed(
        *(f"optimizer={optimizer}", f"data.workers={workers}", f"trainer.microbatch={4 // accumulation}", *data),
        *("model.dropout=0.1", "val_every_n_steps=3", "callbacks.checkpoints.every_n_steps=4"),
        *("callbacks.samples.every_n_steps=4", "callbacks.early_stopping.patience=50"),
    )
    kills = [2 * accumulation, 5 * accumulation + (accumulation > 1), 2 * accumulation, 3 * accumulation]
    straight = resumes_exactly(config, tmp_path, monkeypatch, kills)
    assert (straight / "samples.md").exists()
    assert [line["step"] for line in history(straight) if "val/loss" in line] == [3, 6, 9, 10]


def test_a_validation_that_fails_is_repeated(run, monkeypatch):
    """At the step of a checkpoint, which is written after the validation."""
    settings, real = ("val_every_n_steps=3", "callbacks.checkpoints.every_n_steps=3"), Pretraining.validation_step
    straight = run(*settings, folder="straight")

    def step(self, *batch):
        if self.trainer.global_step == 6:
            self.trainer.strategy.checkpoint_io.wait()
            raise Killed
        return real(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "validation_step", step)
        with pytest.raises(Killed):
            run(*settings)
    assert history(run(*settings)) == history(straight)


def test_a_longer_budget_continues_a_finished_run(run):
    for steps in (10, 14):
        folder = run("schedule=constant", "val_every_n_steps=4", "log_windows=true", f"budget.steps={steps}")
    assert final_state(folder)[2] == 14
    assert [line["step"] for line in history(folder) if "train/loss" in line] == list(range(1, 15))
    assert [line["step"] for line in history(folder) if "val/loss" in line] == [4, 8, 10, 12, 14]
    assert list(verify.find_problems(folder)) == []


def test_patience_may_change_on_resume_and_a_run_that_stopped_early_does_not_train_on(run):
    """With a learning rate of almost nothing no validation improves, so it stops after `patience` of them."""
    still = "optimizer.lr=1e-12", "val_every_n_steps=1", "callbacks.early_stopping.min_delta=0.001", "schedule=constant"
    run(*still, "budget.steps=3")
    for _ in range(2):
        folder = run(*still, "budget.steps=9", "callbacks.early_stopping.patience=4")
        assert final_state(folder)[2] == 8  # the first validation that early stopping sees is the best
        set_status(folder, "running")


def test_another_configuration_is_refused_unless_the_change_is_allowed(run):
    changed = "optimizer.lr=1e-5", "trainer.gradient_clip_val=0.5", "budget.steps=12"
    folder = run("callbacks.samples=null")
    for overrides, message in (
        (["model.width=96"], r"model.width: 64 -> 96.*another run_dir"),
        (["resume=never"], "resume=auto"),
        (["schedule.warmup_steps=1"], "schedule.warmup_steps: None -> 1"),
        (changed, r"optimizer.lr: 0.001 -> 1e-05; trainer.gradient_clip_val: 1.0 -> 0.5"),
    ):
        with mistake(message):
            run(*overrides)
    run(*changed, "allow_changes=[optimizer,trainer.gradient_clip_val]")
    assert final_state(folder)[2] == 12


def test_a_damaged_checkpoint_and_damaged_lines_do_not_prevent_a_resume(run, capsys):
    """The run goes on from the checkpoint before, and writes the lines after it again."""
    folder = run("callbacks.checkpoints.every_n_steps=4")
    state, lines = final_state(folder), history(folder)
    flip_a_bit(run_folder.checkpoints(folder)[0])
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b"\n\0\0\0\n" + b'{"note": "mine"}\n')
    set_status(folder, "running")
    run("callbacks.checkpoints.every_n_steps=4")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: damaged, by the sha256: step-000010.ckpt; going on from step-000008.ckpt"]
    assert_same(state, final_state(folder))
    assert history(folder) == lines
    assert list(verify.find_problems(folder)) == []


@pytest.mark.parametrize(
    ("before", "after", "layout"),
    [
        (1, 4, ["data.layout=documents", "model.context=300"]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (4, 1, ["data.layout=documents", "model.context=300"]),
                (1, 4, ["data.layout=packed"]),
                (4, 1, ["data.layout=packed"]),
            )
        ),
    ],
)
def test_another_microbatch_resumes_with_the_same_losses(run, before, after, layout):
    """Half of the run with each microbatch: windows, also those of different lengths, and validations are the same."""
    settings = "trainer.precision=32-true", "schedule=constant", "val_every_n_steps=3", "log_windows=true", *layout
    settings += "budget.steps=7", "callbacks.samples=null"
    straight = history(run(*settings, f"trainer.microbatch={before}", folder="straight"))
    run(*settings, f"trainer.microbatch={before}", "budget.steps=4")
    folder = run(*settings, f"trainer.microbatch={after}")
    changed = history(folder)
    losses = [[line["train/loss"] for line in lines if "train/loss" in line] for lines in (straight, changed)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    assert [line["step"] for line in straight if "val/loss" in line] == [3, 6, 7]
    assert [line["step"] for line in changed if "val/loss" in line] == [3, 4, 6, 7]
    assert list(verify.find_problems(folder)) == []


def test_resume_from_another_run(run, tmp_path):
    """From a checkpoint of it, or from its folder, which means the newest one and not the best."""
    first = run()
    second = run(f"resume={run_folder.checkpoints(first)[1]}", folder="second")
    assert_same(final_state(first), final_state(second))
    (first / "checkpoints" / "best.json").write_text(json.dumps({"file": "step-000005.ckpt"}))
    assert run_folder.find_resume_checkpoint(str(first), tmp_path).name == "step-000010.ckpt"
    assert run_folder.find_checkpoint(str(first), tmp_path).name == "step-000005.ckpt"


LATER_KEYS = {  # that a run of an earlier version does not have
    "model": (
        *("norm_eps", "embedding_dropout", "attention_dropout", "residual_dropout", "head_bias"),
        *("init_std", "init_residual_scale"),
    ),
    "schedule": ("warmup_start", "min_lr_clips", "microbatches"),
    "optimizer": ("cautious", "weight_decay_schedule"),
}


def test_a_run_of_an_earlier_version_goes_on(run):
    """Its checkpoints and its configuration lack the keys that were added since."""
    arguments = "schedule=cosine", "val_every_n_steps=4", "budget.epochs=null"
    straight = run(*arguments, "budget.steps=8", folder="straight")
    folder = run(*arguments, "budget.steps=8", "budget.max_time=null")
    path = run_folder.checkpoints(folder)[0]
    raw = checkpoint.read(path)
    plain = raw["slm"]["config"]
    for section, values in (
        ("model", raw["slm"]["model"]),
        ("model", plain["model"]),
        ("schedule", plain["schedule"]),
        ("optimizer", plain["optimizer"]),
    ):
        for key in LATER_KEYS[section]:
            values.pop(key)
    checkpoint.save(raw, path)
    assert checkpoint.load(path).model.config == checkpoint.load(straight).model.config
    run(*arguments, "budget.steps=10")
    with mistake("model.init_std: 0.02 -> 0.03"):
        run(*arguments, "budget.steps=12", "model.init_std=0.03")
    longer = run(*arguments, "budget.steps=10", folder="straight")
    assert_same(final_state(folder), final_state(longer))
