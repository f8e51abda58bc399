"""One run on 1, 2 and 4 processes over gloo on this CPU, which reach the same; what ends one of them ends all."""

import os
import signal
import statistics
import time
from types import SimpleNamespace

import pytest
import torch
from faults import override as fault
from forks import forked, together
from test_distributed import small  # noqa: F401  (a fixture)
from test_resume import final_state, history
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from slm import verify
from slm.files import jsonl, run_folder
from slm.training.callbacks.work import OwnWork
from slm.training.module import Pretraining


def at_step(step: int, do):
    """In this process: calls a function at the beginning of an optimizer step, counted from 1, and of later ones."""
    take_step = Pretraining.training_step

    def training_step(self, windows, index):
        if self.trainer.global_step + 1 >= step:
            do()
        return take_step(self, windows, index)

    Pretraining.training_step = training_step


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_write(step: int):
    """In this process: a kill -9 in the middle of the checkpoint of a step."""
    save = torch.save

    def half(content, file):
        save(content, file)
        if getattr(file, "name", "") and content["global_step"] == step:
            file.truncate(file.tell() // 2)
            file.flush()
            kill()

    torch.save = half


def losses(folder) -> list[float]:
    return [line[key] for line in history(folder) for key in ("train/loss", "val/loss") if key in line]


def windows(folder) -> dict[int, list[int]]:
    """Of each step; a step that was repeated must have the same ones."""
    found = {}
    for line in jsonl.lines(folder / "windows.jsonl"):
        assert found.setdefault(line["step"], line["windows"]) == line["windows"]
    return found


def assert_as(one, other):
    assert windows(one) == windows(other)
    assert losses(one) == pytest.approx(losses(other), abs=1e-5)
    (weights, _, step), (others, _, their_step) = final_state(one), final_state(other)
    assert step == their_step
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=1e-4, rtol=0, msg=name)
    assert list(verify.find_problems(other)) == []


@pytest.mark.slow
def test_one_two_and_four_processes_and_kills_between_them(small, tmp_path):  # noqa: F811
    """1 -> 2, one killed -> 4, the first killed while it saves -> 2, all killed -> 1: as one without any of it."""
    run = [*small, "data.batch_windows=8", "optimizer=muon", "optimizer.lr=0.005"]
    whole = forked(*run, f"run_dir={tmp_path / 'one'}")
    assert whole.returncode == 0, whole.stderr
    four = together(4, *run, f"run_dir={tmp_path / 'four'}", strategy="fsdp")
    assert [process.returncode for process in four] == [0] * 4, four[0].stderr
    assert_as(tmp_path / "one", tmp_path / "four")

    broken = [*run, f"run_dir={tmp_path / 'broken'}"]
    assert forked(*broken, fault("terminate", step=2)).returncode == 143
    ends = together(2, *broken, before=lambda rank: at_step(4, kill) if rank == 1 else None)
    assert [process.returncode for process in ends] == [4, -9]
    assert "another process of this run has ended" in ends[0].stderr
    assert run_folder.read_run_json(tmp_path / "broken")["status"] == "failed"
    ends = together(4, *broken, before=lambda rank: kill_in_write(10) if rank == 0 else None)
    assert ends[0].returncode == -9
    assert {process.returncode for process in ends[1:]} <= {0, 4}  # 0: it was done, and waited for nothing
    assert not any("Traceback" in process.stderr for process in ends)
    assert {process.returncode for process in together(2, *broken, before=lambda rank: at_step(8, kill))} == {-9}
    assert forked(*broken).returncode == 0
    assert_as(tmp_path / "one", tmp_path / "broken")


@pytest.mark.slow
def test_two_processes_reduce_once_a_step_and_end_together(small, tmp_path):  # noqa: F811
    """On two machines, with two microbatches of each process in a step: its gradients are reduced after the second."""

    def before(rank):
        create = DistributedDataParallel.__init__

        def count_reduced(path, bucket):
            with path.open("a") as file:
                file.write(f"{bucket.buffer().numel()}\n")
            return allreduce_hook(None, bucket)

        def init(self, *arguments, **settings):
            create(self, *arguments, **settings)
            self.register_comm_hook(tmp_path / f"reduced-{rank}", count_reduced)

        def fail():
            raise ValueError("a fault of the second process")

        DistributedDataParallel.__init__ = init
        if rank == 1:
            at_step(7, fail)
            at_step(2, lambda: time.sleep(0.3))

    begin = time.monotonic()
    first, second = together(2, *small, f"run_dir={tmp_path / 'run'}", nodes=2, before=before)
    assert time.monotonic() - begin < 100  # torch waits half an hour for a lost process
    assert (first.returncode, second.returncode) == (4, 1)
    assert "Traceback" not in first.stderr
    assert first.stderr.count("error: another process of this run has ended") == 1
    assert second.stderr.count("ValueError: a fault of the second process") == 1
    parameters = run_folder.read_run_json(tmp_path / "run")["parameters"]
    assert sum(map(int, (tmp_path / "reduced-1").read_text().split())) == 6 * parameters
    lines = jsonl.lines(tmp_path / "run" / "metrics.jsonl")
    assert statistics.mode(line["slowest_process"] for line in lines if "slowest_process" in line) == 1


@pytest.mark.parametrize("own", [0.1, 0.5])
def test_the_process_that_all_wait_for_is_named_once(capsys, own):
    """If it is behind at two log lines in a row: 0.5 seconds are, of a step of 1; 0.1 are not."""
    seconds = torch.tensor([0.09, 0.08, own, 0.1])
    strategy = SimpleNamespace(root_device="cpu", all_gather=lambda tensor: seconds)
    trainer = SimpleNamespace(strategy=strategy, global_step=7, num_devices=2, num_nodes=2, is_global_zero=True)
    work = OwnWork()
    assert work.compared(trainer, 1.0)["slowest_process"] in (2, 3)
    assert not capsys.readouterr().err
    for _ in range(3):
        work.compared(trainer, 1.0)
    assert capsys.readouterr().err.count("process 2 (of node 1) takes 0.5 seconds") == (own == 0.5)
