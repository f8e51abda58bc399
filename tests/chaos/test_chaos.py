"""Killed with -9 at any moment, a run ends to the bit like one in peace; and whatever breaks that is noticed."""

import random
import shutil
from pathlib import Path

import pytest
from driver import Chaos, compare, moments

from slm.run.train import train

SHARED_MEMORY = Path("/dev/shm")


SETTINGS = (
    *("model.dropout=0.1", "trainer.microbatch=2", "val_every_n_steps=4", "callbacks.early_stopping.patience=99"),
    *("callbacks.samples.every_n_steps=10", "debug.log_windows=true"),
)


@pytest.fixture
def small(text_file, tmp_path):
    """The overrides of a run of seconds, with dropout, accumulation and a validation every four steps."""
    data = f"data.path={text_file}", "data.separator=<|endoftext|>", f"cache_dir={tmp_path / 'cache'}"
    return ["data=text", *data, "trainer=cpu", "debug=default", *SETTINGS]


def chance() -> random.Random:
    """Another one each time, whose seed a failing test shows."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


def peaceful(overrides: list[str], folder: Path, **settings) -> Path:
    assert Chaos(folder, overrides, **settings).live(None, random.Random(0)) == 0
    return folder


def test_killed_at_a_checkpoint_it_goes_on_to_the_bit(small, tmp_path, composed):
    """The short variant: no matter at which of its changes to the folder the kill comes."""
    more = "tokenizer=bytes", "budget.steps=40", "callbacks.checkpoints.every_n_steps=3"
    reference = tmp_path / "peaceful"
    train(composed(*SETTINGS, *more), run_dir=reference, overrides=[])
    killed, rng = Chaos(tmp_path / "killed", [*small, *more]), chance()
    assert killed.live(rng.choice(["writing", "digest", "published", "named", "pruned"]), rng) == -9
    assert killed.live(None, rng) == 0
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
def test_killed_anywhere_it_goes_on_to_the_bit(small, tmp_path, more):
    """Ten kills, from the imports and the tokenizer's training to the pruning of checkpoints."""
    overrides = [*small, "tokenizer.vocab_size=320", "budget.steps=150", *more]
    elsewhere = {"TMPDIR": str(SHARED_MEMORY)} if "data.workers=2" in more and SHARED_MEMORY.is_dir() else {}
    reference = peaceful(overrides, tmp_path / "peaceful")
    shutil.rmtree(tmp_path / "cache")
    killed, rng = Chaos(tmp_path / "killed", overrides, environment=elsewhere), chance()
    for moment in moments(10, rng):
        if killed.live(moment, rng) == 0:
            break
    else:
        killed.live(None, rng)
    print(killed.killed)
    compare(reference, killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("promise", "noticed"),
    [
        ("order", "windows.jsonl, line"),
        ("randomness", "metrics.jsonl, line"),
        ("history", "windows.jsonl, line"),
        ("validation", "metrics.jsonl, line"),
    ],
)
def test_a_broken_promise_is_noticed(small, tmp_path, promise, noticed):
    overrides = [*small, "tokenizer=bytes", "budget.steps=16", "callbacks.checkpoints.every_n_steps=3"]
    broken = {"script": Path(__file__).with_name("broken.py"), "environment": {"SLM_BROKEN": promise}}
    reference, rng = peaceful(overrides, tmp_path / "peaceful", **broken), random.Random(0)
    killed = Chaos(tmp_path / "killed", overrides, **broken)
    killed.environment = {**killed.environment, "SLM_LIFE": "1"}
    fault = [] if promise == "validation" else ["debug.fault.kind=kill", "debug.fault.step=8"]
    assert killed.live(None, rng, *fault) == -9
    killed.environment = {**killed.environment, "SLM_LIFE": "2"}
    assert killed.live(None, rng) == 0
    with pytest.raises(AssertionError, match=noticed):
        compare(reference, killed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("promise", "moment", "noticed"),
    [("atomicity", "published", "torn"), ("retention", "pruned", "only . checkpoints are there")],
)
def test_a_broken_promise_is_noticed_at_the_kill(small, tmp_path, promise, moment, noticed):
    overrides = [*small, "tokenizer=bytes", "budget.steps=60", "callbacks.checkpoints.every_n_steps=3"]
    broken = {"script": Path(__file__).with_name("broken.py"), "environment": {"SLM_BROKEN": promise}}
    with pytest.raises(AssertionError, match=noticed):
        Chaos(tmp_path / "killed", overrides, **broken).live(moment, random.Random(3))
