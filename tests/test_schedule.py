"""Schedules are their formulas."""

import math
from functools import partial

import pytest

from slm.errors import UserError
from slm.optim import schedule


def curve(name, **settings):
    """The schedule over a run of 1000 steps, which warms up for 100 of them."""
    return partial(getattr(schedule, name), steps=1000, **{"warmup_fraction": 0.1, "warmup_steps": None, **settings})


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (curve("constant"), {0: 0.01, 49: 0.5, 99: 1, 100: 1, 1000: 1}),
        (curve("linear", min_lr_ratio=0.1), {0: 0.01, 99: 1, 100: 1, 550: 0.55, 1000: 0.1, 2000: 0.1}),
        (curve("cosine", min_lr_ratio=0.1), {0: 0.01, 100: 1, 550: 0.55, 1000: 0.1, 2000: 0.1}),
        (
            curve("cosine", warmup_steps=0, min_lr_ratio=0.0),
            {0: 1, 250: (1 + math.cos(math.pi / 4)) / 2, 500: 0.5, 1000: 0},
        ),
        (
            curve("warmup_stable_decay", decay_fraction=0.4, min_lr_ratio=0.05),
            {0: 0.01, 100: 1, 600: 1, 800: 0.525, 1000: 0.05},
        ),
        (curve("warmup_stable_decay", decay_fraction=1.0, min_lr_ratio=0.0), {0: 0.01, 99: 1, 100: 1, 550: 0.5}),
        (curve("inverse_sqrt"), {0: 0.01, 99: 1, 399: 0.5, 899: 1 / 3}),
        (curve("constant", warmup_steps=10), {0: 0.1, 9: 1}),  # which overrides warmup_fraction
        (curve("constant", warmup_fraction=0.0014), {0: 1}),  # one step, by rounding
        (curve("constant", warmup_fraction=0.0016), {0: 0.5, 1: 1}),
    ],
)
def test_schedules_are_their_formulas(curve, expected):
    for step, value in expected.items():
        assert curve(step) == pytest.approx(value, abs=1e-12), step


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
