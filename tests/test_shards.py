"""Sharded checkpoints: folders with a part from each process of a training."""

import errno
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import exit_code, flip_a_bit, mistake, small_run
from forks import forked, together
from safetensors.torch import save_file
from test_foreign_files import content
from test_resume import assert_same, final_state, history
from test_sharded import assert_near

from slm import checkpoint, verify
from slm.checkpoint import __main__ as command
from slm.checkpoint import shards
from slm.files import atomic, jsonl, run_folder
from slm.training import shard_writer, sharded

SHARDED = "callbacks.checkpoints.sharded=true"
NAME = "shard-{:05}-model-00001-of-00001.safetensors"


def written(folder: Path, raw: dict, processes: int = 2) -> Path:
    """A checkpoint as so many processes write it, each the rows of every weight that torch.chunk gives it."""
    folder.mkdir(parents=True)
    weights, shapes = raw["state_dict"], {}
    for process in range(processes):
        rows, starts = {}, {}
        for name, value in weights.items():
            place, parts = f"state_dict.{name}", value.chunk(processes)
            before = sum(len(part) for part in parts[:process])
            rows[place] = parts[process].clone() if process < len(parts) else value[:0].clone()
            starts[place] = {"saved_offsets": [before, *[0] * (value.ndim - 1)]}
            shapes[place] = [place, [*value.shape]]
        save_file(rows, folder / NAME.format(process + 1), {"DCP_SHARDING_INFO": json.dumps(starts)})
    empty = {name: torch.empty(0, dtype=value.dtype) for name, value in weights.items()}
    checkpoint.save({**raw, "state_dict": empty, shards.FIELD: shapes}, folder / run_folder.PLAIN_PART, digest=False)
    return signed(folder)


def signed(folder: Path) -> Path:
    """The folder, with a sidecar that is right."""
    lines = (f"{atomic.sha256(file)}  {folder.name}/{file.name}\n" for file in atomic.entries(folder))
    atomic.write_text(atomic.digest_path(folder), "".join(lines))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return written(tmp_path / "run" / "checkpoints" / "step-000003.ckpt", content())


@pytest.mark.parametrize("processes", [1, 2, 3, 64])
def test_a_sharded_checkpoint_is_read_as_a_whole_one(tmp_path, processes):
    """Also from processes that have no row of a weight; the command makes one file of it."""
    path = written(tmp_path / "any.ckpt", content(), processes)
    assert_same(checkpoint.read(path), content())
    assert run_folder.find_checkpoint(str(path), Path()) == path
    assert checkpoint.load(path).step == 3


def test_gathered(folder, monkeypatch, capsys):
    gather = partial(exit_code, monkeypatch, command.main, "gather")
    assert gather(str(folder)) == 0
    whole = folder.with_name("step-000003-whole.ckpt")
    assert capsys.readouterr().out == f"{whole}: step 3 in one file of {whole.stat().st_size:,} bytes\n"
    assert atomic.is_intact(whole)
    assert_same(torch.load(whole, weights_only=True), content())
    for words, problem in {(): "exists", (f"out={folder / 'no' / 'x'}",): "is in no folder"}.items():
        assert gather(str(folder), *words) == 2
        assert problem in capsys.readouterr().err
    assert gather(str(whole)) == 2
    assert "is not sharded" in capsys.readouterr().err
    assert gather(str(folder.parents[1]), f"out={whole.with_name('other.ckpt')}") == 0


def damage(folder: Path) -> dict[str, Callable]:
    """What can be wrong with a folder although its sidecar is right."""
    plain, first, second = (folder / name for name in (run_folder.PLAIN_PART, NAME.format(1), NAME.format(2)))
    raw = torch.load(plain, weights_only=True)
    name = "state_dict.model.tokens.weight"

    def saved(**changes):
        checkpoint.save({**raw, **changes}, plain, digest=False)

    def moved(starts: dict, rows: dict | None = None):
        with shards.require_safetensors().safe_open(second, framework="pt") as file:
            rows = {key: file.get_tensor(key) for key in file.keys()} | (rows or {})  # noqa: SIM118
            old = json.loads(file.metadata()["DCP_SHARDING_INFO"])
        save_file(rows, second, {"DCP_SHARDING_INFO": json.dumps(old | starts)})

    def shape(*sizes):
        return {shards.FIELD: raw[shards.FIELD] | {name: [name, [*sizes]]}}

    return {
        "a missing shard": second.unlink,
        "a shard twice": lambda: shutil.copy(first, folder / NAME.format(3)),
        "a truncated shard": lambda: os.truncate(second, second.stat().st_size - 8),
        "an empty shard": lambda: os.truncate(second, 0),
        "another file": lambda: first.write_bytes(b"\xff" * 64),
        "rows far behind": lambda: moved({name: {"saved_offsets": [2**40, 0]}}),
        "rows that are there": lambda: moved({name: {"saved_offsets": [128, 0]}}),
        "no start": lambda: moved({name: {}}),
        "a start of text": lambda: moved({name: {"saved_offsets": "129"}}),
        "nested without end": lambda: save_file({}, second, {"DCP_SHARDING_INFO": "[" * 10**5}),
        "another type": lambda: moved({}, {name: torch.zeros(128, 8, dtype=torch.float16)}),
        "another type in training.ckpt": lambda: saved(
            state_dict=raw["state_dict"] | {"model.tokens.weight": torch.empty(0, dtype=torch.float16)}
        ),
        "rows of no tensor": lambda: moved({"x": {"saved_offsets": [0]}}, {"x": torch.zeros(1)}),
        "other columns": lambda: moved({}, {name: torch.zeros(128, 9)}),
        "a huge shape": lambda: saved(**shape(2**40, 2**40)),
        "a negative shape": lambda: saved(**shape(-257, 8)),
        "a shape of text": lambda: saved(**shape("257", 8)),
        "no shapes": lambda: saved(**{shards.FIELD: None}),
        "an unknown place": lambda: saved(**{shards.FIELD: raw[shards.FIELD] | {"x": [name, [257, 8]]}}),
        "one tensor a hundred times": lambda: saved(
            more=[torch.empty(0)] * 100,
            **{shards.FIELD: raw[shards.FIELD] | {f"more.{number}": [name, [257, 8]] for number in range(100)}},
        ),
    }


def test_a_folder_whose_files_do_not_fit(tmp_path):
    for name in damage(written(tmp_path / "whole.ckpt", content())):
        folder = written(tmp_path / f"{name}.ckpt", content())
        assert_same(checkpoint.read(folder), content())
        damage(folder)[name]()
        with mistake("its files do not fit each other"):
            checkpoint.read(signed(folder))


def test_another_folder_than_that_of_the_sidecar_is_not_intact(folder):
    assert atomic.is_intact(folder)
    for change in (
        lambda copy: flip_a_bit(copy / NAME.format(2)),
        lambda copy: (copy / NAME.format(1)).unlink(),
        lambda copy: (copy / "more").write_bytes(b""),
        lambda copy: (copy / "more").mkdir(),
    ):
        copy = folder.with_name("step-000004.ckpt")
        shutil.copytree(folder, copy)
        signed(copy)
        assert atomic.is_intact(copy)
        change(copy)
        assert not atomic.is_intact(copy)
        assert run_folder.newest_intact(folder.parents[1]) == folder
        run_folder.remove_checkpoint(copy)
    atomic.digest_path(folder).unlink()
    assert run_folder.newest_intact(folder.parents[1]) is None
    with mistake("has no step-000003.ckpt.sha256 beside it"):
        checkpoint.read(folder)


def test_folders_among_the_checkpoints_of_a_run(folder):
    """One kind takes the place of the other, and what a killed process has left is removed."""
    run = folder.parents[1]
    checkpoint.save(content(), folder.with_name("step-000002.ckpt"))
    (folder.parent / "step-000009.ckpt").mkdir()  # of somebody else
    for name in ("step-000007.ckpt.0.partial", "step-000001.ckpt.4711.partial"):
        shutil.copytree(folder, folder.with_name(name))
    assert [run_folder.step_of(path) for path in run_folder.checkpoints(run)] == [3, 2]
    run_folder.remove_partial_files(run)
    assert not list(folder.parent.glob("*.partial"))
    checkpoint.save(content(), folder)
    assert folder.is_file()
    assert atomic.is_intact(folder)


def test_sharded_needs_fsdp_and_its_package(run, monkeypatch):
    with mistake("callbacks.checkpoints.sharded=true needs trainer.strategy=fsdp"):
        run(SHARDED, "trainer.strategy=ddp")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with mistake(r'a sharded checkpoint needs safetensors: pip install "slm\[sharded\]"'):
        run(SHARDED, "trainer.strategy=fsdp")


@pytest.fixture
def small(text_file, tmp_path) -> list[str]:
    exact = "trainer.precision=32-true", "trainer.microbatch=1", "log_windows=true", "callbacks.samples=null"
    exact += "optimizer=muon", "schedule=constant", "schedule.warmup_steps=1", "report=false", "val_every_n_steps=2"
    return [*small_run(text_file, tmp_path), *exact]


def assert_done(ends):
    for end in ends:
        assert end.returncode == 0, end.stderr


def train_losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in history(folder) if "train/loss" in line}


def saved_as_both(rank: int):
    """For `together`: each sharded checkpoint is also written as a whole one, into the folder `whole` of the run."""
    save = sharded.ShardedStrategy.save_checkpoint

    def both(self, content, path, storage_options=None):
        gathered = sharded.gathered(content, keep=rank == 0)
        if rank == 0:
            folder = path.parents[1] / "whole"
            folder.mkdir(exist_ok=True)
            checkpoint.save(gathered, folder / path.name)
        save(self, content, path, storage_options)

    sharded.ShardedStrategy.save_checkpoint = both


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_strategies(small, tmp_path):
    """One process, two and four with sharded checkpoints, two with whole weights, one: as one process all the way, with
    tied and averaged weights. A sharded checkpoint holds what a whole one holds."""
    run = [*small, "model.tied=true", "model.residual_scalars=true", "callbacks=ema", "callbacks.ema.decay=0.5"]
    run += ["callbacks.samples=null"]
    assert_done([forked(*run, f"run_dir={tmp_path / 'one'}", "budget.steps=8")])
    words = [*run, f"run_dir={tmp_path / 'all'}"]
    assert_done([forked(*words, SHARDED, "trainer.strategy=fsdp", "budget.steps=2")])
    folder = tmp_path / "all" / "checkpoints"
    assert (folder / "step-000002.ckpt").is_file()
    for processes, step in {2: 4, 4: 6}.items():
        end = f"budget.steps={step}"
        assert_done(together(processes, *words, SHARDED, end, strategy="fsdp", before=saved_as_both))
        path = folder / f"step-{step:06}.ckpt"
        assert len(list(path.glob("*.safetensors"))) == processes
        assert_same(checkpoint.read(path), checkpoint.read(tmp_path / "all" / "whole" / path.name))
    assert_done(together(2, *words, "budget.steps=7"))
    assert_done([forked(*words, "budget.steps=8")])
    assert_near(tmp_path / "one", tmp_path / "all", 1e-4)
    assert train_losses(tmp_path / "all") == pytest.approx(train_losses(tmp_path / "one"), abs=1e-6)
    assert list(verify.find_problems(tmp_path / "all")) == []


def at_step(step: int, name: str, call: Callable) -> Callable[[int], None]:
    """For `together`: calls `call` with the rank, and what was there, instead of a function of the writer."""

    def before(rank: int):
        there = getattr(shard_writer, name)

        def instead(*arguments):
            path = next(word for word in arguments if isinstance(word, Path))
            if path.name.startswith(f"step-{step:06}"):
                call(rank)
            return there(*arguments)

        setattr(shard_writer, name, instead)

    return before


@pytest.mark.slow
def test_a_kill_during_the_write_and_a_flipped_bit(small, tmp_path):
    """Of all processes, once the rows are written. Each time the run goes on from the checkpoint before, and ends as
    one without, which takes a step while a checkpoint is written."""
    run = [*small, SHARDED, "callbacks.checkpoints.every_n_steps=2", "budget.steps=6"]

    def wait_for_a_step(rank: int):
        for _ in range(600):
            if len(list(jsonl.lines(tmp_path / "straight" / "windows.jsonl"))) >= 3:
                return
            time.sleep(0.1)
        raise TimeoutError

    waits = at_step(2, "own_digests", wait_for_a_step)
    assert_done(together(2, *run, f"run_dir={tmp_path / 'straight'}", strategy="fsdp", before=waits))
    words = [*run, f"run_dir={tmp_path / 'run'}"]
    kill = at_step(4, "own_digests", lambda rank: os.kill(os.getpid(), signal.SIGKILL))
    for end in together(2, *words, strategy="fsdp", before=kill):
        assert end.returncode == -signal.SIGKILL
    folder = tmp_path / "run" / "checkpoints"
    assert len(list((folder / "step-000004.ckpt.0.partial").glob("*.safetensors"))) == 2
    assert run_folder.checkpoints(tmp_path / "run") == [folder / "step-000002.ckpt"]
    assert_done(together(2, *words, strategy="fsdp"))
    assert not list(folder.glob("*.partial"))
    assert_same(final_state(tmp_path / "run"), final_state(tmp_path / "straight"))
    flip_a_bit(folder / "step-000006.ckpt" / NAME.format(2))
    info = run_folder.read_run_json(tmp_path / "run")
    run_folder.write_run_json(tmp_path / "run", info | {"status": "running"})
    ends = together(2, *words, strategy="fsdp")
    assert_done(ends)
    assert "damaged, by the sha256: step-000006.ckpt; going on from step-000004.ckpt" in ends[0].stderr
    assert_same(final_state(tmp_path / "run"), final_state(tmp_path / "straight"))
    assert list(verify.find_problems(tmp_path / "run")) == []


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["a full disk", "another disk"])
def test_a_fault_of_one_process_ends_all_with_one_line(small, tmp_path, fault):
    path = tmp_path / "run" / "checkpoints" / "step-000002.ckpt"
    write, other = shard_writer.write, tmp_path / "step-000002.ckpt"

    def of_second(rank: int):
        if rank == 1 and fault == "a full disk":
            dcp.HuggingFaceStorageWriter.write_data = full
        elif rank == 1:
            shard_writer.write = lambda plain, parts, path, *more: write(plain, parts, other, *more)

    words = [*small, SHARDED, f"run_dir={tmp_path / 'run'}", "callbacks.checkpoints.every_n_steps=2"]
    ends = together(2, *words, "budget.steps=6", strategy="fsdp", before=of_second)
    assert [end.returncode for end in ends] == [4, 4]
    lines = [line for end in ends for line in end.stderr.splitlines() if line.startswith("error")]
    problem = {
        "a full disk": f"cannot write {path}: {os.strerror(errno.ENOSPC)}",
        "another disk": f"{other}.0.partial is not seen by all processes; run_dir must be on a disk that all nodes "
        "share",
    }
    assert lines == [f"error: process 1: {problem[fault]}"]
    assert not list(path.parent.glob("*.partial"))
    assert not list(path.parent.glob("*.ckpt"))
