"""A run killed with -9 at any moment ends bit for bit like an uninterrupted one; a broken guarantee is noticed."""

import random
import shutil
from pathlib import Path

import pytest
from conftest import small_run
from driver import Chaos, compare, moments
from test_faults import fault

from slm.run.train import train

SHARED_MEMORY = Path("/dev/shm")
SETTINGS = (
    *("model.dropout=0.1", "trainer.microbatch=2", "val_every_n_steps=4", "callbacks.early_stopping.patience=99"),
    *("callbacks.samples.every_n_steps=10", "log_windows=true"),
)


@pytest.fixture
def small(text_file, tmp_path):
    """The overrides of a run of seconds, with dropout, accumulation and a validation every four steps."""
    return [*small_run(text_file, tmp_path), *SETTINGS]


def generator() -> random.Random:
    """A generator with another seed each time, which a failing test shows."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


def uninterrupted(overrides: list[str], folder: Path, **settings) -> Path:
    assert Chaos(folder, overrides, **settings).attempt(None, random.Random(0)) == 0
    return folder


def test_a_run_killed_at_a_checkpoint_resumes_exactly(small, tmp_path, composed):
    """The short variant: one kill, at any change in the checkpoint folder."""
    more = "budget.steps=40", "callbacks.checkpoints.every_n_steps=3"
    reference = tmp_path / "reference"
    train(composed(*SETTINGS, *more), run_dir=reference, overrides=[])
    killed, rng = Chaos(tmp_path / "killed", [*small, *more]), generator()
    assert killed.attempt(rng.choice(["writing", "digest", "published", "named", "pruned"]), rng) == -9
    assert killed.attempt(None, rng) == 0
    compare(reference, killed)


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
    """Ten kills, from the imports to the deletion of old checkpoints."""
    overrides = [*small, "tokenizer=sentencepiece", "tokenizer.vocab_size=320", "budget.steps=150", *more]
    elsewhere = {"TMPDIR": str(SHARED_MEMORY)} if "data.workers=2" in more and SHARED_MEMORY.is_dir() else {}
    reference = uninterrupted(overrides, tmp_path / "reference")
    shutil.rmtree(tmp_path / "cache")
    killed, rng = Chaos(tmp_path / "killed", overrides, environment=elsewhere), generator()
    for moment in moments(10, rng):
        if killed.attempt(moment, rng) == 0:
            break
    else:
        killed.attempt(None, rng)
    print(killed.killed)
    compare(reference, killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guarantee", "noticed"),
    [
        ("order", "windows.jsonl, line"),
        ("randomness", "metrics.jsonl, line"),
        ("history", "windows.jsonl, line"),
        ("validation", "metrics.jsonl, line"),
    ],
)
def test_a_broken_guarantee_is_noticed(small, tmp_path, guarantee, noticed):
    overrides = [*small, "budget.steps=16", "callbacks.checkpoints.every_n_steps=3"]
    broken = {"script": Path(__file__).with_name("broken.py"), "environment": {"SLM_BROKEN": guarantee}}
    reference, rng = uninterrupted(overrides, tmp_path / "reference", **broken), random.Random(0)
    killed = Chaos(tmp_path / "killed", overrides, **broken)
    killed.environment = {**killed.environment, "SLM_ATTEMPT": "1"}
    kill = [] if guarantee == "validation" else [fault("kill", step=8)]
    assert killed.attempt(None, rng, *kill) == -9
    killed.environment = {**killed.environment, "SLM_ATTEMPT": "2"}
    assert killed.attempt(None, rng) == 0
    with pytest.raises(AssertionError, match=noticed):
        compare(reference, killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guarantee", "moment", "noticed"),
    [("atomicity", "published", "torn"), ("retention", "pruned", "only . checkpoints are there")],
)
def test_a_broken_guarantee_is_noticed_at_the_kill(small, tmp_path, guarantee, moment, noticed):
    overrides = [*small, "budget.steps=60", "callbacks.checkpoints.every_n_steps=3"]
    broken = {"script": Path(__file__).with_name("broken.py"), "environment": {"SLM_BROKEN": guarantee}}
    with pytest.raises(AssertionError, match=noticed):
        Chaos(tmp_path / "killed", overrides, **broken).attempt(moment, random.Random(3))
