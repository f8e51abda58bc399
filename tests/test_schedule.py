"""Schedules are their formulas."""

import math
from functools import partial

import pytest

from slm.errors import UserError
from slm.optim import schedule


def curve(name, steps=1000, **settings):
    """The schedule over a run of 1000 steps, which warms up for 100 of them."""
    return partial(getattr(schedule, name), steps=steps, **{"warmup_fraction": 0.1, "warmup_steps": None, **settings})


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (curve("constant"), {0: 0.01, 49: 0.5, 99: 1, 100: 1, 999: 1}),
        (curve("linear", min_lr_ratio=0.1), {0: 0.01, 99: 1, 100: 1 - 0.001, 549: 0.55, 999: 0.1, 2000: 0.1}),
        (curve("linear", min_lr_ratio=3.0), {0: 0.01, 99: 1, 549: 2, 999: 3}),
        (curve("cosine", min_lr_ratio=0.1), {0: 0.01, 99: 1, 549: 0.55, 999: 0.1, 2000: 0.1}),
        (
            curve("cosine", steps=1001, warmup_steps=0, min_lr_ratio=0.0),
            {0: 1, 250: (1 + math.cos(math.pi / 4)) / 2, 500: 0.5, 1000: 0},
        ),
        (
            curve("warmup_stable_decay", decay_fraction=0.4, min_lr_ratio=0.05),
            {0: 0.01, 99: 1, 599: 1, 600: 1 - 0.95 / 400, 799: 0.525, 999: 0.05},
        ),
        (curve("warmup_stable_decay", decay_fraction=1.0, min_lr_ratio=0.0), {0: 0.01, 99: 1, 549: 0.5, 999: 0}),
        (curve("warmup_stable_decay", decay_fraction=0.0, min_lr_ratio=0.0), {0: 0.01, 99: 1, 999: 1}),
        (curve("inverse_sqrt"), {0: 0.01, 99: 1, 399: 0.5, 899: 1 / 3}),
        (curve("constant", warmup_steps=10), {0: 0.1, 9: 1}),  # which overrides warmup_fraction
        (curve("constant", warmup_fraction=0.0014), {0: 1}),  # one step, by rounding
        (curve("constant", warmup_fraction=0.0016), {0: 0.5, 1: 1}),
    ],
)
def test_schedules_are_their_formulas(curve, expected):
    for step, value in expected.items():
        assert curve(step) == pytest.approx(value, abs=1e-12), step


DECAYING = [("linear", {}), ("cosine", {}), ("warmup_stable_decay", {"decay_fraction": 0.5})]


@pytest.mark.parametrize(("name", "settings"), DECAYING)
@pytest.mark.parametrize("final", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 100])
@pytest.mark.parametrize("warmup", ["none", "one", "half", "all"])
def test_first_and_last_values_are_those_of_the_keys(name, settings, final, steps, warmup):
    """To the bit: an update at the peak, once unless the curve is flat there; the last update at the final value.

    The peak comes first: a run whose warmup takes all its steps, or of one step, has no decay.
    """
    updates = {"none": 0, "one": 1, "half": steps // 2, "all": steps}[warmup]
    of_run = curve(name, steps=steps, warmup_steps=updates, min_lr_ratio=final, **settings)
    values = [of_run(step) for step in range(steps)]
    peak = max(updates, 1) - 1
    flat = max(steps - round(steps / 2) - 1 - peak, 0) if name == "warmup_stable_decay" else 0
    assert values[: peak + 1] == [(step + 1) / (peak + 1) for step in range(peak + 1)]
    assert values.count(1.0) == 1 + flat
    assert values[-1] == (1.0 if peak + flat == steps - 1 else final)
    assert values[peak:] == sorted(values[peak:], reverse=True)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "cosine",
            {"warmup_steps": 1001, "min_lr_ratio": 0.0},
            "warmup_steps=1001 must be between 0 and the run's 1000",
        ),
        (
            "constant",
            {"warmup_steps": -1},
            "warmup_steps=-1 must be between 0 and the run's 1000 steps; try .*_steps=20",
        ),
        (
            "inverse_sqrt",
            {"warmup_fraction": 1.5},
            r"warmup_fraction=1.5 must be between 0 and 1 \(a share of all steps\)",
        ),
        ("linear", {"min_lr_ratio": -0.1}, r"min_lr_ratio=-0.1 must be at least 0 \(a share of the peak\)"),
        ("cosine", {"min_lr_ratio": math.nan}, "min_lr_ratio=nan must be at least 0"),
        (
            "warmup_stable_decay",
            {"min_lr_ratio": 0.0, "decay_fraction": 2},
            r"decay_fraction=2 must be between 0 and 1 \(a share of all steps\)",
        ),
    ],
)
@pytest.mark.parametrize("step", [0, 1000])
def test_impossible_schedules(name, settings, message, step):
    with pytest.raises(UserError, match=f"schedule.{message}"):
        curve(name, **settings)(step)
