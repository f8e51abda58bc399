"""On two GPUs (`pytest -m gpu tests/test_several_gpus.py`): NCCL reaches what one GPU reaches, and resumes exactly."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, small_run
from faults import override as fault
from test_resume import assert_same, final_state, history

from slm import verify

ACCELERATOR = "gpu"
PRECISIONS = {"32-true": (1e-5, 1e-3), "bf16-mixed": (2e-2, None)}  # tolerances of losses and of weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2 and ACCELERATOR == "gpu", reason="torch sees no two CUDA devices"),
]


@pytest.fixture
def train(text_file, tmp_path):
    """Runs train.py on so many devices into a folder, as Lightning or torchrun starts it; returns its exit code."""
    fixed = f"trainer.accelerator={ACCELERATOR}", "trainer.tf32=false", "trainer.microbatch=2", "log_windows=true"
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1"}

    def run(devices: int, folder: str, *more: str, torchrun: bool = False) -> int:
        agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"] if torchrun else []
        words = [*small_run(text_file, tmp_path), *fixed, f"trainer.devices={devices}", *more]
        words = [sys.executable, *agent, ROOT / "train.py", *words, f"run_dir={tmp_path / folder}"]
        return subprocess.run(words, env=environment, timeout=230).returncode

    return run


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("strategy", [["ddp"], ["fsdp", "callbacks.checkpoints.sharded=true"]], ids=lambda s: s[0])
def test_two_devices_equal_one(train, tmp_path, strategy, optimizer, precision):
    common = f"trainer.precision={precision}", f"optimizer={optimizer}"
    assert train(1, "one", *common) == 0
    assert train(2, "two", *common, f"trainer.strategy={strategy[0]}", *strategy[1:]) == 0
    losses, weights = PRECISIONS[precision]
    for ours, theirs in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        for key in ours.keys() & {"train/loss", "val/loss"}:
            assert theirs[key] == pytest.approx(ours[key], abs=losses)
    assert (tmp_path / "one" / "windows.jsonl").read_bytes() == (tmp_path / "two" / "windows.jsonl").read_bytes()
    if weights:
        theirs = final_state(tmp_path / "two")[0]
        for name, tensor in final_state(tmp_path / "one")[0].items():
            torch.testing.assert_close(theirs[name], tensor, atol=weights, rtol=0, msg=name)


@pytest.mark.parametrize("strategy", [["ddp"], ["fsdp", "callbacks.checkpoints.sharded=true"]], ids=lambda s: s[0])
def test_a_killed_run_equals_an_uninterrupted_one_and_goes_on_with_one_device(train, tmp_path, strategy):
    common = f"trainer.strategy={strategy[0]}", *strategy[1:], "trainer.deterministic=true", "model.dropout=0.1"
    common += "callbacks.checkpoints.every_n_steps=3", "trainer.precision=32-true"
    assert train(2, "straight", *common, torchrun=True) == 0
    assert train(2, "killed", *common, fault("kill"), torchrun=True) != 0
    assert train(2, "killed", *common, torchrun=True) == 0
    assert_same(final_state(tmp_path / "straight"), final_state(tmp_path / "killed"))
    assert train(1, "killed", *(word for word in common if "sharded" not in word), "budget.steps=14") == 0
    assert list(verify.find_problems(tmp_path / "killed")) == []
