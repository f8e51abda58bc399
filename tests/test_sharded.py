"""Two processes that divide the work of Muon, or every weight (FSDP2), reach what one process reaches."""

import pytest
import torch
from forks import forked
from test_distributed import TWO, small  # noqa: F401  (a fixture)
from test_resume import final_state, history

from slm import verify
from slm.optim.shares import divided, newton_schulz_cost

SHARDED = "trainer.devices=2", "trainer.strategy=fsdp"


def losses(folder) -> list[float]:
    return [line[key] for line in history(folder) for key in ("train/loss", "val/loss") if key in line]


def assert_near(a, b, tolerance: float):
    """Two checkpoints: weights, and the optimizer's state of each."""
    (weights, optimizers, step), (others, their_optimizers, their_step) = final_state(a), final_state(b)
    assert step == their_step
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=tolerance, rtol=0, msg=name)
    states, their_states = optimizers[0]["state"], their_optimizers[0]["state"]
    assert states.keys() == their_states.keys()
    for place, state in states.items():
        for name, value in state.items():
            torch.testing.assert_close(their_states[place][name], value, atol=tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("two", "optimizer"), [(TWO, "muon"), (SHARDED, "muon"), (SHARDED, "adamw")], ids=["ddp", "fsdp", "fsdp-adamw"]
)
def test_two_processes_equal_one(small, tmp_path, two, optimizer):  # noqa: F811
    """Also in averaged weights, with accumulation, and in samples."""
    run = [*small, f"optimizer={optimizer}", "callbacks=ema", "callbacks.ema.decay=0.5", "trainer.microbatch=1"]
    run += ["callbacks.samples.every_n_steps=5", "model.tied=true", "model.residual_scalars=true"]
    for name, more in {"one": (), "two": two}.items():
        done = forked(*run, *more, f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert_near(tmp_path / "one", tmp_path / "two", 1e-5 if optimizer == "muon" else 1e-3)  # biases go by AdamW
    for name in ("windows.jsonl", "samples.jsonl"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    assert list(verify.find_problems(tmp_path / "two")) == []


def test_work_is_divided_by_its_size():
    """No process has more than the mean and the largest piece; equal pieces are shared out evenly."""
    costs = [newton_schulz_cost(*shape) for shape in [(64, 64)] * 7 + [(64, 256)] * 5 + [(256, 1024)]]
    for processes in (1, 2, 3, 16):
        owners = divided(costs, processes)
        loads = [sum(c for c, owner in zip(costs, owners) if owner == process) for process in range(processes)]
        assert max(loads) <= sum(costs) / processes + max(costs)
    assert sorted(divided([5] * 8, 4)) == [0, 0, 1, 1, 2, 2, 3, 3]
