"""One device trains whatever SLURM, torchrun or MPI have left in the environment; two agree with it, or it is said."""

import json

import pytest
from conftest import mistake
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only

from slm.run.trainer import launcher

LAUNCHERS = {
    "SLURM": {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "4"},
    "SLURM's third of eight tasks": {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"},
    "torchrun's second of two": {
        **{"RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999", "TORCHELASTIC_RUN_ID": "x"},
    },
    "MPI": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "2"},
    "LSF": {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/no/file", "JSM_NAMESPACE_RANK": "2", "JSM_NAMESPACE_SIZE": "4"},
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_device_trains_whatever_the_environment_says(run, monkeypatch, launcher):
    """And writes its metrics, which only a first process does: Lightning takes its rank from the environment."""
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    ranks = (int(LAUNCHERS[launcher].get(name, 0)) for name in ("RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    monkeypatch.setattr(rank_zero_only, "rank", max(ranks))  # as at Lightning's import in such an environment
    folder = run("budget.steps=2", "callbacks.samples=null")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines if "train/loss" in line} == {1, 2}
    assert json.loads((folder / "run.json").read_text())["status"] == "done"


def test_an_allocation_without_srun_has_no_launcher(monkeypatch):
    """Not even a batch script, to which SLURM gives ranks."""
    for name, value in {"NTASKS": "8", "NODEID": "0", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (environment,) = launcher(2)
    assert isinstance(environment, LightningEnvironment)


TASKS = {
    **{"SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
    **{"SLURM_STEP_NUM_TASKS": "4"},
}
OTHER_COUNTS = {
    "SLURM": {"SLURM_NTASKS": "4", "SLURM_NNODES": "1", **TASKS},
    "torchrun": {**LAUNCHERS["torchrun's second of two"], "WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"},
}


@pytest.mark.parametrize("launcher", OTHER_COUNTS)
def test_a_launcher_with_another_number_of_processes_is_refused(run, monkeypatch, launcher):
    for name, value in OTHER_COUNTS[launcher].items():
        monkeypatch.setenv(name, value)
    with mistake(r"Lightning refuses the trainer: .*devices=2"):
        run("trainer.devices=2")
