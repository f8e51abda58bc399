"""A run that was interrupted anywhere ends bitwise like one that was not: weights, optimizer, metrics, samples."""

import json

import pytest
import torch

from slm import checkpoint
from slm.errors import UserError
from slm.files import run_folder
from slm.run.train import train
from slm.training.module import Pretraining

TIMES = ("tokens_per_second", "mfu", "device/memory_gb")


def history(folder):
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def final_state(folder):
    raw = checkpoint.read(run_folder.checkpoints(folder)[0])
    return raw["state_dict"], raw["optimizer_states"], raw["global_step"]


def assert_same(a, b):
    """Equal to the bit, through nested containers."""
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
    """Runs until each of the given microbatches, counted over all lives, raises; then to the end."""
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


@pytest.mark.parametrize(
    ("optimizer", "layout", "workers", "accumulation"),
    [
        ("adamw", "packed", 0, 4),
        pytest.param("muon", "documents", 2, 1, marks=pytest.mark.slow),
        pytest.param("adamw", "packed", 0, 1, marks=pytest.mark.slow),
        pytest.param("muon", "packed", 2, 4, marks=pytest.mark.slow),
    ],
)
def test_interrupted_equals_uninterrupted(composed, tmp_path, monkeypatch, optimizer, layout, workers, accumulation):
    """Validation at 3, 6, 9 and the end, checkpoints at 4, 8 and new bests: aligned and not aligned."""
    config = composed(
        f"optimizer={optimizer}",
        f"data.layout={layout}",
        f"model.context={300 if layout == 'documents' else 64}",  # so that rows have different lengths
        "model.dropout=0.1",
        f"data.workers={workers}",
        f"trainer.microbatch={4 // accumulation}",
        "val_every_n_steps=3",
        "callbacks.checkpoints.every_n_steps=4",
        "callbacks.samples.every_n_steps=4",
        "callbacks.early_stopping.patience=50",
    )
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    objective = train(config, run_dir=straight, overrides=[])
    kills = [2 * accumulation, 5 * accumulation + (accumulation > 1), 2 * accumulation, 3 * accumulation]
    assert train_with_kills(config, broken, monkeypatch, kills) == objective
    assert_same(final_state(straight), final_state(broken))
    assert history(straight) == history(broken)
    assert (straight / "samples.md").read_text() == (broken / "samples.md").read_text()
    assert run_folder.read_run_json(broken)["attempts"] == len(kills) + 1
    assert [line["step"] for line in history(straight) if "val/loss" in line] == [3, 6, 9, 10]


@pytest.mark.parametrize("layout", [["data.layout=packed"], ["data.layout=documents", "model.context=300"]])
def test_accumulation_does_not_change_the_numbers(composed, tmp_path, layout):
    """Not even where windows have different lengths."""
    losses = {}
    for size in (1, 4):
        config = composed(f"trainer.microbatch={size}", "trainer.precision=32-true", *layout)
        train(config, run_dir=tmp_path / str(size), overrides=[])
        losses[size] = [line["train/loss"] for line in history(tmp_path / str(size)) if "train/loss" in line]
    assert len(losses[1]) == 10
    assert losses[1] == pytest.approx(losses[4], abs=2e-5)


def test_a_finished_run_is_not_trained_again(composed, tmp_path, capsys):
    config = composed()
    first = train(config, run_dir=tmp_path / "run", overrides=[])
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train(config, run_dir=tmp_path / "run", overrides=[]) == first
    assert "is done" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_more_steps_go_on_from_the_end(composed, tmp_path):
    train(composed("schedule=constant"), run_dir=tmp_path / "run", overrides=[])
    longer = composed("schedule=constant", "budget.steps=14", "schedule.warmup_steps=1", "schedule.warmup_share=0.02")
    with pytest.raises(UserError, match=r"schedule.warmup_steps: None -> 1"):
        train(longer, run_dir=tmp_path / "run", overrides=[])
    train(composed("schedule=constant", "budget.steps=14"), run_dir=tmp_path / "run", overrides=[])
    assert final_state(tmp_path / "run")[2] == 14
    steps = [line["step"] for line in history(tmp_path / "run") if "train/loss" in line]
    assert steps == list(range(1, 15))


def test_early_stopping_stays_stopped(composed, tmp_path):
    """With a learning rate of almost nothing no validation improves: it stops after `patience` of them, for good."""
    config = composed(
        "optimizer.lr=1e-12",
        "val_every_n_steps=1",
        "callbacks.early_stopping.patience=3",
        "callbacks.early_stopping.min_delta=0.001",
    )
    folder = tmp_path / "run"
    train(config, run_dir=folder, overrides=[])
    assert final_state(folder)[2] == 4  # one best, three without improvement
    run_folder.write_run_json(folder, run_folder.read_run_json(folder) | {"status": "running"})
    train(config, run_dir=folder, overrides=[])
    assert final_state(folder)[2] == 4


def test_other_configurations_are_refused(composed, tmp_path):
    train(composed(), run_dir=tmp_path / "run", overrides=[])
    with pytest.raises(UserError, match=r"model.width: 64 -> 96.*another run_dir"):
        train(composed("model.width=96"), run_dir=tmp_path / "run", overrides=[])
    with pytest.raises(UserError, match="resume=auto"):
        train(composed("resume=never"), run_dir=tmp_path / "run", overrides=[])


def test_the_newest_intact_checkpoint_is_taken(composed, tmp_path, capsys):
    config, folder = composed("callbacks.checkpoints.every_n_steps=4"), tmp_path / "run"
    train(config, run_dir=folder, overrides=[])
    state = final_state(folder)
    newest = run_folder.checkpoints(folder)[0]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    run_folder.write_run_json(folder, run_folder.read_run_json(folder) | {"status": "running"})
    train(config, run_dir=folder, overrides=[])
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: damaged, by the sha256: step-000010.ckpt; going on from step-000008.ckpt"]
    assert_same(state, final_state(folder))


def test_resume_from_another_runs_checkpoint(composed, tmp_path):
    train(composed(), run_dir=tmp_path / "first", overrides=[])
    first = run_folder.checkpoints(tmp_path / "first")[1]
    train(composed(f"resume='{first}'"), run_dir=tmp_path / "second", overrides=[])
    assert_same(final_state(tmp_path / "first"), final_state(tmp_path / "second"))


@pytest.mark.parametrize(("before", "after"), [(1, 4), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_another_microbatch_goes_on_at_the_same_step_and_window(composed, tmp_path, before, after):
    """Half of the run with one microbatch, half with another: the order of the data and of validation is the same."""

    def half(size, *overrides):
        return composed("trainer.precision=32-true", "schedule=constant", f"trainer.microbatch={size}", *overrides)

    train(half(before, "val_every_n_steps=3"), run_dir=tmp_path / "straight", overrides=[])
    train(half(before, "val_every_n_steps=3", "budget.steps=4"), run_dir=tmp_path / "changed", overrides=[])
    with pytest.raises(UserError, match="warmup_steps"):
        train(half(after, "schedule.warmup_steps=1"), run_dir=tmp_path / "changed", overrides=[])
    train(half(after, "val_every_n_steps=3"), run_dir=tmp_path / "changed", overrides=[])
    straight, changed = (history(tmp_path / name) for name in ("straight", "changed"))
    losses = [[line["train/loss"] for line in lines if "train/loss" in line] for lines in (straight, changed)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert [line["step"] for line in straight if "val/loss" in line] == [3, 6, 9, 10]
    assert [line["step"] for line in changed if "val/loss" in line] == [3, 4, 6, 9, 10]


def test_patience_may_change_on_resume(composed, tmp_path):
    still = [
        "optimizer.lr=1e-12",
        "val_every_n_steps=1",
        "callbacks.early_stopping.min_delta=0.001",
        "schedule=constant",
    ]
    folder = tmp_path / "run"
    train(composed(*still, "budget.steps=3"), run_dir=folder, overrides=[])
    train(composed(*still, "budget.steps=9", "callbacks.early_stopping.patience=4"), run_dir=folder, overrides=[])
    assert final_state(folder)[2] == 8  # the first validation that is watched is the best


def test_resume_from_a_run_folder_takes_its_newest_checkpoint(composed, tmp_path):
    train(composed(), run_dir=tmp_path / "first", overrides=[])
    assert run_folder.find_start(str(tmp_path / "first"), tmp_path).name == "step-000010.ckpt"
    (tmp_path / "first" / "checkpoints" / "best.json").write_text('{"file": "step-000005.ckpt"}')
    assert run_folder.find_start(str(tmp_path / "first"), tmp_path).name == "step-000010.ckpt"
    assert run_folder.find_checkpoint(str(tmp_path / "first"), tmp_path).name == "step-000005.ckpt"
