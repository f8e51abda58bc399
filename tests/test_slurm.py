"""deploy/slurm.sbatch and what a run does under SLURM, for whose srun and scontrol scripts in tests/slurm stand in."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, small_run
from forks import Forked, together

from slm import verify
from slm.errors import Stopped
from slm.files import jsonl, run_folder
from slm.run import cli
from slm.training.callbacks.signals import StopSignals

SCRIPT = ROOT / "deploy" / "slurm.sbatch"
JOB = {
    **{"JOB_ID": "4242", "JOB_NAME": "slm", "NODELIST": "127.0.0.1", "CPUS_PER_TASK": "1", "NTASKS": "2"},
    **{"NODEID": "0", "PROCID": "0", "LOCALID": "0"},  # SLURM gives ranks to the batch script, too
}
EXACT = "trainer.precision=32-true", "trainer.microbatch=1"


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


def step(words: list[str], environment: dict[str, str], out: int) -> int:
    """The exit code of `srun [--ntasks=N --nodes=M --kill-on-bad-exit=1] python train.py ...`, in forks."""
    options = {}
    while words[0].startswith("--"):
        name, _, value = words.pop(0)[2:].partition("=")
        options[name] = value
    assert words[:2] == ["python", "train.py"]
    nodes = int(options.get("nodes", environment["SLURM_NNODES"]))
    tasks = int(options.get("ntasks", environment["SLURM_NTASKS"]))
    here = tasks // nodes
    common = {"STEP_NUM_TASKS": tasks, "NTASKS": tasks, "NNODES": nodes, "NTASKS_PER_NODE": here}
    processes = []
    for rank in range(tasks):
        ranks = common | {"PROCID": rank, "LOCALID": rank % here, "NODEID": rank // here}
        own = environment | {f"SLURM_{name}": str(value) for name, value in ranks.items()}
        processes.append(Forked(words[2:], stdout=out, stderr=out, env=own))
    while None in (codes := [process.poll() for process in processes]):
        if "kill-on-bad-exit" in options and any(codes):
            for process, code in zip(processes, codes):
                if code is None:
                    os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.02)
    return max(code if code >= 0 else 128 - code for code in codes)


def job(*words: str, out: Path, **environment: str) -> tuple[int, str]:
    """The exit code of the batch script, whose steps are forks of this process, and what all of it has printed."""
    with out.open("w+") as file, socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        streams = {"stdout": file, "stderr": file, "cwd": ROOT}
        own = os.environ | environment | {"SRUN": str(server.getsockname()[1])}
        script = subprocess.Popen(["bash", str(SCRIPT), *words], env=own, **streams)
        while script.poll() is None:
            with contextlib.suppress(TimeoutError), server.accept()[0] as asking:
                request = json.loads(asking.makefile().readline())
                asking.sendall(f"{step(*request, file.fileno())}\n".encode())
        file.seek(0)
        return script.returncode, file.read()


@pytest.mark.slow
def test_a_job_is_queued_again_and_goes_on(text_file, tmp_path):
    """The batch script on two nodes with a process each; USR1 reaches the second process first. Then a second start,
    as SLURM makes it: with the same number of the job."""
    folder, tools = tmp_path / "run", f"{ROOT / 'tests' / 'slurm'}:{Path(sys.executable).parent}"
    environment = {f"SLURM_{name}": value for name, value in (JOB | {"NNODES": "2", "NTASKS_PER_NODE": "1"}).items()}
    environment |= {"PATH": f"{tools}:{os.environ['PATH']}", "RUN": str(folder), "SCONTROL_CALLS": f"{tmp_path}/calls"}
    words = [*small_run(text_file, tmp_path), *EXACT, "callbacks.samples=null", "log_windows=true", "report=false"]
    words = [word for word in words if word != "trainer=cpu"] + ["trainer.accelerator=cpu"]
    fault = "+callbacks.fault={_target_: faults.SignalOfCluster, step: 7}"
    code, stopped = job(*words, fault, out=tmp_path / "stopped", **environment)
    assert code == 143, stopped
    assert "SLURM queues job 4242 again" in stopped
    code, done = job(*words, out=tmp_path / "done", **environment)
    assert code == 0, done
    assert stopped.count("goes on from here") == done.count("done:") == 1
    assert (tmp_path / "calls").read_text() == "requeue 4242\n"
    assert list(verify.find_problems(folder)) == []
    assert len(list(jsonl.lines(folder / "windows.jsonl"))) == 10


def task_of_node(rank: int):
    """In this process of torchrun: two nodes with a torchrun each, by srun, in another order than torchrun numbers
    them."""
    node = {"NNODES": "2", "NTASKS": "2", "STEP_NUM_TASKS": "2", "NTASKS_PER_NODE": "1", "LOCALID": "0"}
    number = str(1 - int(os.environ["GROUP_RANK"]))
    node |= {"PROCID": number, "NODEID": number, "JOB_ID": "4242", "JOB_NAME": "slm", "NODELIST": "127.0.0.1"}
    os.environ.update({f"SLURM_{name}": value for name, value in node.items()})


@pytest.mark.slow
def test_torchrun_by_srun_on_two_nodes_has_the_ranks_of_torchrun(text_file, tmp_path):
    words = [
        *small_run(text_file, tmp_path),
        *EXACT,
        "callbacks.samples=null",
        "budget.steps=3",
        "data.batch_windows=4",
    ]
    words += [f"run_dir={tmp_path / 'run'}", "print=json", "log_windows=true"]
    ends = together(4, *words, nodes=2, before=task_of_node)
    assert [end.returncode for end in ends] == [0] * 4, ends[0].stderr
    assert [bool(end.stdout) for end in ends] == [True, False, False, False]
    assert json.loads(ends[0].stdout)["status"] == "done"
    assert run_folder.read_run_json(tmp_path / "run")["devices"] == 4
    assert list(verify.find_problems(tmp_path / "run")) == []
    assert [len(line["windows"]) for line in jsonl.lines(tmp_path / "run" / "windows.jsonl")] == [4] * 3


@pytest.mark.slow
def test_nodes_with_other_files_are_refused_before_the_first_step(text_file, tmp_path):
    """Two nodes, each with a disk of its own, on which the same words of a command find another text."""

    def change_disk(rank: int):
        task_of_node(rank)
        os.chdir(tmp_path / f"disk{rank}")

    for rank, text in enumerate((text_file.read_text(), text_file.read_text().replace("cat", "cow"))):
        (tmp_path / f"disk{rank}").mkdir()
        (tmp_path / f"disk{rank}" / "stories.txt").write_text(text)
    words = [*small_run(Path("stories.txt"), Path()), *EXACT, f"run_dir={tmp_path / 'run'}"]
    ends = together(2, *words, nodes=2, before=change_disk)
    assert [end.returncode for end in ends] == [2, 2]
    (line,) = (line for end in ends for line in end.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: process 1 (cache/tokens/")
    assert "reads other tokens than process 0 (cache/tokens/" in line
    assert not (tmp_path / "run").exists()
