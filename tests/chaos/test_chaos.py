"""A run killed with -9 at any moment ends bit for bit like an uninterrupted one; a broken guarantee is noticed."""

import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import broken
import pytest
from conftest import small_run
from driver import CHANGES, Chaos, compare, moments
from forked import MODES
from forks import Forked
from operations import contents

from slm.files import run_folder

SHARED_MEMORY = Path("/dev/shm")
DRIVER = Path(__file__).with_name("driver.py")
SCALE = float(os.environ.get("SLM_CHAOS", "1"))  # times as many faults and kills
SETTINGS = (
    *("model.dropout=0.1", "trainer.microbatch=2", "val_every_n_steps=4", "callbacks.early_stopping.patience=99"),
    *("callbacks.samples.every_n_steps=10", "log_windows=true"),
)


@pytest.fixture
def small(text_file, tmp_path):
    """The overrides of a run of seconds, with dropout, accumulation and a validation every four steps."""
    return [*small_run(text_file, tmp_path), *SETTINGS]


def generator() -> random.Random:
    """With the same seed each time, or in the long form another one, which a failing test shows."""
    seed = 0 if SCALE == 1 else random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.slow
def test_a_run_killed_at_a_checkpoint_resumes_exactly(small, tmp_path, run):
    """The short variant: three kills, at changes in the checkpoint folder."""
    more = "budget.steps=40", "callbacks.checkpoints.every_n_steps=3"
    reference = run(*SETTINGS, *more, folder="reference")
    killed, rng = Chaos(tmp_path / "killed", [*small, *more], start=Forked), generator()
    for moment in rng.sample(list(CHANGES), 3):
        if killed.attempt(moment, rng) == 0:
            break
    else:
        killed.attempt(None, rng)
    assert killed.killed
    compare(reference, killed)


@pytest.mark.slow
def test_a_run_killed_after_its_last_checkpoint_is_completed(run):
    """Lightning skips a training whose steps are all done, but its folder has to be completed."""
    folder = run(*SETTINGS)
    saved, checkpoints = contents(folder), folder / "checkpoints"
    run_folder.write_run_json(folder, run_folder.read_run_json(folder) | {"status": "failed", "objective": None})
    for path in (checkpoints / "last.json", checkpoints / "best.json", folder / "loss.png"):
        path.unlink()
    (folder / "run.json.1.partial").touch()
    shutil.copy(run_folder.checkpoints(folder)[0], checkpoints / "step-000001.ckpt")  # not deleted yet
    assert contents(run(*SETTINGS)).keys() == saved.keys()
    assert run_folder.read_run_json(folder)["status"] == "done"
    assert all(contents(checkpoints)[name] == saved[f"checkpoints/{name}"] for name in ("last.json", "best.json"))


def test_a_power_cut_leaves_the_new_run_folder(run, tmp_path, monkeypatch):
    """The entry of a new folder is in its parent, which must be flushed, too."""
    flushed, fsync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.add(os.fstat(descriptor).st_ino), fsync(descriptor)))
    run("budget.steps=1", folder="new/run")
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "new", tmp_path / "new/run")} <= flushed


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="needs Linux and gcc")
def test_a_fault_at_any_file_operation_costs_nothing(tmp_path):
    """Kills, power cuts, errors of the disk and signals, while a run begins, trains, ends or resumes: each mode at
    a random operation of a new run and of a resumed one, which build a tokenizer with a model file."""
    text = tmp_path / "text.txt"
    text.write_text(
        "\n<|endoftext|>\n".join(f"Story {n} of a dog. " + "A dog saw a cat. " * (3 + n) for n in range(20))
    )
    sample = str(int(len(MODES) * SCALE))
    command = [sys.executable, DRIVER, "--operations", "--sample", sample, "--seed", "0", tmp_path / "faults"]
    overrides = f"data.path={text}", "tokenizer=sentencepiece", "tokenizer.vocab_size=300"
    done = subprocess.run([*command, *overrides], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "more",
    [
        ("data.workers=0", "callbacks.checkpoints.every_n_steps=4"),
        ("data.workers=2", "trainer.microbatch=1", "callbacks.checkpoints.every_n_steps=3", "optimizer=muon"),
    ],
    ids=["aligned", "loaders, accumulation 4, not aligned, TMPDIR elsewhere"],
)
def test_a_run_killed_anywhere_resumes_exactly(small, tmp_path, more):
    """Six kills or more, from the imports to the deletion of old checkpoints."""
    overrides = [*small, "tokenizer=sentencepiece", "tokenizer.vocab_size=320", "budget.steps=150", *more]
    elsewhere = {"TMPDIR": str(SHARED_MEMORY)} if "data.workers=2" in more and SHARED_MEMORY.is_dir() else {}
    reference, rng = Chaos(tmp_path / "reference", overrides, start=Forked), generator()
    assert reference.attempt(None, rng) == 0
    shutil.rmtree(tmp_path / "cache")
    killed = Chaos(tmp_path / "killed", overrides, environment=elsewhere, start=Forked)
    for moment in moments(int(6 * SCALE), rng):
        if killed.attempt(moment, rng) == 0:
            break
    else:
        killed.attempt(None, rng)
    print(killed.killed)
    compare(reference.folder, killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guarantee", "moment", "noticed"),
    [(broken.atomicity, "published", "torn"), (broken.retention, "pruned", "only . checkpoints are there")],
    ids=["atomicity", "retention"],
)
def test_a_broken_guarantee_is_noticed(small, tmp_path, guarantee, moment, noticed):
    overrides = [*small, "budget.steps=60", "callbacks.checkpoints.every_n_steps=3"]
    chaos = Chaos(tmp_path / "killed", overrides, start=partial(Forked, before=guarantee))
    with pytest.raises(AssertionError, match=noticed):
        chaos.attempt(moment, random.Random(3))
