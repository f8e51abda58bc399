"""budget.minutes and budget.max_cost: the measuring leaves a run as it was, and the steps fit into the time."""

import itertools
import json

import pytest
from conftest import mistake, small_run, trained

from slm.run.rate import Intervals, Rate, steps_in
from slm.training.callbacks.stopwatch import LEAST_STEPS, WARM_STEPS, Stopwatch
from slm.verify import first_difference

RATE = Rate(begin=3.0, step=0.5, samples=2.0, validation=10.0, checkpoint=1.0, end=4.0)
EVERY = Intervals(validation=40, samples=50, checkpoint=40)


def test_the_seconds_of_a_run_are_those_of_its_parts():
    assert RATE.total(100, EVERY) == 3 + 100 * 0.5 + 3 * 10 + 2 * 2 + 4
    rare = Intervals(validation=1000, samples=None, checkpoint=20)  # the fifth checkpoint is that of the validation
    assert RATE.total(100, rare) == 3 + 50 + 10 + 2 + 4 * 1 + 4


@pytest.mark.parametrize("seconds", [1, 30, 69, 300, 3600])
def test_the_steps_are_the_most_that_fit(seconds):
    steps = steps_in(RATE, seconds, EVERY)
    assert steps == 1 or RATE.total(steps, EVERY) <= seconds
    assert RATE.total(steps + 1, EVERY) > seconds


@pytest.mark.parametrize("steps", [LEAST_STEPS, 50])
def test_a_step_takes_what_most_later_ones_take(steps):
    """The first half is slow, unless there are too few steps, and one pause is left out."""
    watch = Stopwatch(0, lambda: 0.0)
    slow = max(0, steps // 2 - LEAST_STEPS)
    times = [9.0] * WARM_STEPS + [2.0] * slow + [1.0] * (steps - slow)
    times[-1] = 30.0
    watch.marks = list(itertools.accumulate(times))
    assert watch.step == 1.0


@pytest.mark.slow
def test_a_run_of_minutes_is_bit_for_bit_the_run_of_its_steps(monkeypatch, text_file, tmp_path, capsys):
    """With dropout, whose random numbers measuring must not move; the same command then finds the run done."""
    small = [*small_run(text_file, tmp_path), "model.dropout=0.1", "log_windows=true", "report=false"]
    minutes = [*small, "budget.minutes=0.05", f"run_dir={tmp_path / 'minutes'}"]
    assert trained(monkeypatch, *minutes) == 0
    info = json.loads((tmp_path / "minutes" / "run.json").read_text())
    assert info["plan"]["measured"]
    assert not (tmp_path / "minutes" / ".measured").exists()
    assert trained(monkeypatch, *small, f"budget.steps={info['steps']}", f"run_dir={tmp_path / 'steps'}") == 0
    assert first_difference(tmp_path / "minutes", tmp_path / "steps") is None
    capsys.readouterr()
    assert trained(monkeypatch, *minutes) == 0
    assert "is done" in capsys.readouterr().out


def test_a_cost_stops_with_a_checkpoint_and_counts_earlier_attempts(run, composed, tmp_path, capsys):
    with mistake("budget.max_cost=1 needs a price"):
        run("budget.max_cost=1")
    cheap = "budget.steps=100000", "callbacks.samples=null", "report=false", "price_per_hour=3600"
    folder = run(*cheap, "budget.max_cost=0.001")  # a millisecond: no step is as short
    assert "budget.max_cost is used up; the same command with" in capsys.readouterr().out
    assert list((folder / "checkpoints").glob("*.ckpt"))
    with mistake("earlier attempts of .* have used up budget.max_cost=0.001"):
        run(*cheap, "budget.max_cost=0.001", "log_every_n_steps=1")
    with mistake("exclude one another"):
        composed("budget={steps:1,tokens:null,epochs:null,minutes:2,max_time:null}")
