"""One device trains whatever SLURM, torchrun or MPI have left in the environment; two agree with it, or it is said."""

import json

import lightning.pytorch as L
import pytest
import torch
from conftest import mistake
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from slm import ranks
from slm.hardware import resolve_hardware
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


TASK = {
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}
TORCHRUN = LAUNCHERS["torchrun's second of two"] | {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}
PLACES = {  # variables -> whether this is the first process, its local rank, all processes, the launcher
    "none": ({}, (True, 0, 1, LightningEnvironment)),
    "a task of srun": ({**TASK, "SLURM_NTASKS_PER_NODE": "1"}, (False, 0, 2, SLURMEnvironment)),
    "first of torchrun in the second task": ({**TASK, **TORCHRUN}, (True, 0, 4, TorchElasticEnvironment)),
    "second of it": ({**TASK, **TORCHRUN, "RANK": "1", "LOCAL_RANK": "1"}, (False, 1, 4, TorchElasticEnvironment)),
    "third, in the first task": (
        {**TASK, **TORCHRUN, "RANK": "2", "SLURM_PROCID": "0"},
        (False, 0, 4, TorchElasticEnvironment),
    ),
    "torchrun in the only task": ({**TORCHRUN, "SLURM_STEP_NUM_TASKS": "1"}, (True, 0, 4, TorchElasticEnvironment)),
    "a batch script": ({**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (True, 0, 1, LightningEnvironment)),
    "second of Lightning in it": (
        {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        (False, 1, 2, LightningEnvironment),
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_place_among_processes_is_that_of_the_launcher(monkeypatch, name):
    variables, (first, local, processes, kind) = PLACES[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert (ranks.is_first(), ranks.local_rank(), ranks.processes()) == (first, local, processes)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", plugins=launcher(2), logger=False)
    environment = trainer.strategy.cluster_environment
    assert type(environment) is kind
    assert trainer.is_global_zero == first


@pytest.mark.parametrize("devices", ["auto", "-1"])
def test_automatic_devices_are_one_cpu_or_all_gpus(run, monkeypatch, devices):
    cpu = "trainer.accelerator=cpu", "trainer.strategy=ddp"
    folder = run(*cpu, f"trainer.devices={devices}", "budget.steps=1", "callbacks.samples=null")
    assert json.loads((folder / "run.json").read_text())["devices"] == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert resolve_hardware("gpu", devices, 1, "auto", planned=True).devices == 4
    assert resolve_hardware("cpu", devices, 1, "auto").devices == 1
    for variable, value in LAUNCHERS["torchrun's second of two"].items():
        monkeypatch.setenv(variable, value)
    with mistake(f"trainer.devices={devices} is 1 on this machine, and 2 processes were started"):
        resolve_hardware("cpu", devices, 1, "auto")
