"""deploy/slurm.sbatch and what a run does under SLURM, for whose srun and scontrol scripts in tests/slurm stand in."""

import os
import re
import shlex
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, small_run
from forks import Forked

from slm import verify
from slm.errors import Stopped
from slm.files import jsonl
from slm.run import cli
from slm.training.callbacks.signals import StopSignals

SCRIPT = ROOT / "deploy" / "slurm.sbatch"
JOB = {
    **{"JOB_ID": "4242", "JOB_NAME": "slm", "NODELIST": "127.0.0.1", "CPUS_PER_TASK": "1", "NTASKS": "2"},
    **{"NODEID": "0", "PROCID": "0", "LOCALID": "0"},  # SLURM gives ranks to the batch script, too
}


class Strategy:
    """Two processes, of which the other one has this request."""

    def __init__(self, other: Stopped | None):
        self.answers = iter([other is not None, other is not None and other.requeue])

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        return decision or next(self.answers)


PAGE = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


def test_the_commands_of_the_page_have_keys_of_this_project_and_options_of_the_script():
    script = SCRIPT.read_text(encoding="utf-8")
    assert os.access(SCRIPT, os.X_OK)
    for command in COMMANDS:
        words = [word for word in shlex.split(command) if re.match(r"[a-z][a-z_.]*=", word)]
        cli.compose([word for word in words if not word.startswith(("hydra", "seed=1,", "sweep_dir="))])
        for option in re.findall(r" (--[a-z-]+)=", command):
            assert f"#SBATCH {option}=" in script, option


USR1, TERM, MINUTES = Stopped("USR1", 143, requeue=True), Stopped("TERM", 143), Stopped("time is up", 0)


@pytest.mark.parametrize(
    ("own", "other", "code", "requeue"),
    [
        *((None, None, None, None), (None, USR1, 143, True), (USR1, None, 143, True), (None, TERM, 143, False)),
        *((MINUTES, None, 0, False), (TERM, USR1, 143, True)),
    ],
)
def test_all_processes_agree_on_the_end_and_on_a_second_start(own, other, code, requeue):
    """SLURM's signal reaches the processes at different steps, and the first one alone asks for the second start."""
    signals = StopSignals(None)
    signals.request = own
    agreed = signals.agreed(Strategy(other))
    assert (agreed and agreed.exit_code, agreed and agreed.requeue) == (code, requeue)


@pytest.mark.slow
def test_a_job_is_queued_again_and_goes_on(text_file, tmp_path):
    """The batch script on two nodes with a process each; USR1 reaches the second process first. Then a second start,
    as SLURM makes it: with the same number of the job."""
    folder, tools = tmp_path / "run", f"{ROOT / 'tests' / 'slurm'}:{Path(sys.executable).parent}"
    slurm = JOB | {"NNODES": "2", "NTASKS_PER_NODE": "1"}
    environment = {
        **{f"SLURM_{name}": value for name, value in slurm.items()},
        **{"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "RUN": str(folder)},
        **{"SCONTROL_CALLS": str(tmp_path / "calls"), "OMP_NUM_THREADS": "1"},
    }
    words = [*small_run(text_file, tmp_path), "trainer.precision=32-true", "trainer.microbatch=1", "log_windows=true"]
    words = [word for word in words if word != "trainer=cpu"] + [
        "trainer.accelerator=cpu",
        "callbacks.samples=null",
        "report=false",
    ]

    def job(*more: str) -> subprocess.CompletedProcess:
        command = ["bash", str(SCRIPT), *words, *more]
        return subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True)

    stopped = job("+callbacks.fault={_target_: faults.SignalOfCluster, step: 7}")
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    assert "SLURM queues job 4242 again" in stopped.stdout
    done = job()
    assert done.returncode == 0, done.stdout + done.stderr
    assert stopped.stdout.count("goes on from here") == done.stdout.count("done:") == 1
    assert (tmp_path / "calls").read_text() == "requeue 4242\n"
    assert list(verify.find_problems(folder)) == []
    assert len(list(jsonl.lines(folder / "windows.jsonl"))) == 10


@pytest.mark.slow
def test_nodes_with_other_files_are_refused_before_the_first_step(text_file, tmp_path):
    """Two nodes, each with a disk of its own, on which the same words of a command find another text."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    step = JOB | {"NNODES": "2", "NTASKS_PER_NODE": "1", "STEP_NUM_TASKS": "2"}
    words = [
        *small_run(Path("stories.txt"), Path()),
        "trainer.devices=1",
        "trainer.num_nodes=2",
        "trainer.precision=32-true",
    ]
    words += ["trainer.microbatch=1", f"run_dir={tmp_path / 'run'}"]
    processes, text = [], text_file.read_text()
    for rank in range(2):
        disk = tmp_path / f"disk{rank}"
        disk.mkdir()
        (disk / "stories.txt").write_text(text.replace("cat", "cow") if rank else text)
        ranks = {f"SLURM_{name}": value for name, value in (step | {"PROCID": str(rank), "NODEID": str(rank)}).items()}
        with open(tmp_path / f"printed{rank}", "w") as out:
            streams = {"stdout": out.fileno(), "stderr": out.fileno()}
            environment = {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
            processes.append(Forked(words, **streams, env=environment, before=partial(os.chdir, disk)))
    assert [process.wait(200) for process in processes] == [2, 2]
    printed = [(tmp_path / f"printed{rank}").read_text() for rank in range(2)]
    (line,) = (line for line in "".join(printed).splitlines() if line.startswith("error: "))
    assert line.startswith("error: process 1 (cache/tokens/")
    assert "reads other tokens than process 0 (cache/tokens/" in line
    assert not (tmp_path / "run").exists()
