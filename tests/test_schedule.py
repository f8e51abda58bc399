"""Schedules are their formulas."""

import math
from functools import partial

import pytest
import torch

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


def seed_001(step):
    """LambdaLR over 50,000 steps: 0 at the first step, and max(0.1, cosine)."""
    if step < 2000:
        return step / 2000
    return max(0.1, 0.5 * (1 + math.cos(math.pi * (step - 2000) / (50_000 - 2000))))


def seed_004(microbatch):
    """LinearLR from 1 / 3 over 1,000 microbatches, then CosineAnnealingLR over 19,000 up to five times the peak."""
    if microbatch < 1000:
        return 1 / 3 + 2 / 3 * microbatch / 1000
    return 5 + (1 - 5) * (1 + math.cos(math.pi * (microbatch - 1000) / 19_000)) / 2


def test_a_floor_that_clips_and_a_warmup_from_0():
    """Seed 001 at the steps that it names: 1.5e-4 of 3e-4 in the middle, where a floor that scales gives 1.65e-4."""
    settings = {"steps": 50_000, "warmup_steps": 2000, "min_lr_ratio": 0.1, "warmup_start": 0.0}
    clipped, scaled = curve("cosine", **settings, min_lr_clips=True), curve("cosine", **settings)
    for step in (0, 1, 1999, 2000, 2001, 26_000, 40_000, 46_000, 49_999, 50_000):
        assert clipped(step) == pytest.approx(seed_001(step), abs=1e-12), step
    assert (3e-4 * clipped(26_000), 3e-4 * scaled(26_000)) == pytest.approx((1.5e-4, 1.65e-4), rel=1e-9)


def test_a_schedule_in_microbatches_that_rises():
    """Seed 004 in the units of torch's own schedulers, and at the microbatch of each of 625 updates."""
    settings = {"warmup_steps": 1000, "min_lr_ratio": 5.0, "warmup_start": 1 / 3}
    each = curve("cosine", steps=20_000, **settings)
    for step, rate in {0: 1e-4 / 3, 500: 1e-4 * 2 / 3, 1000: 1e-4, 10_500: 3e-4, 20_000: 5e-4}.items():
        assert 1e-4 * each(step) == pytest.approx(rate, rel=1e-12)
    updates = curve("cosine", steps=625, **settings, microbatches=32)
    for update in range(625):
        assert updates(update) == pytest.approx(seed_004(32 * update + 31), abs=1e-12)


LR = torch.optim.lr_scheduler
BY_TORCH = {  # name and settings of 200 updates -> schedulers of torch, and the updates at which the next one begins
    ("cosine", "min_lr_ratio", 5.0): lambda o: ([LR.CosineAnnealingLR(o, T_max=190, eta_min=5e-4)], []),
    ("linear", "min_lr_ratio", 0.1): lambda o: ([LR.LinearLR(o, start_factor=1, end_factor=0.1, total_iters=190)], []),
    ("constant",): lambda o: ([LR.ConstantLR(o, factor=1)], []),
    ("inverse_sqrt",): lambda o: ([LR.LambdaLR(o, lambda step: math.sqrt(10 / (step + 10)))], []),
    ("warmup_stable_decay", "min_lr_ratio", 0.1, "decay_fraction", 0.4): lambda o: (
        [LR.ConstantLR(o, factor=1), LR.LinearLR(o, start_factor=1, end_factor=0.1, total_iters=80)],
        [120],
    ),
}


@pytest.mark.parametrize("key", BY_TORCH, ids=lambda key: key[0])
def test_torchs_own_schedulers(key):
    """With warmup_start all schedules are torch's, step by step, and with microbatches every fourth value."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
    parts, further = BY_TORCH[key](optimizer)
    warmup = LR.LinearLR(optimizer, start_factor=1 / 3, total_iters=10)
    by_torch = LR.SequentialLR(optimizer, [warmup, *parts], milestones=[10, *further])
    settings = {"warmup_steps": 10, "warmup_start": 1 / 3, **dict(zip(key[1::2], key[2::2], strict=True))}
    ours, slower = curve(key[0], steps=200, **settings), curve(key[0], steps=50, **settings, microbatches=4)
    for step in range(200):
        rate = by_torch.get_last_lr()[0] / 1e-4
        assert ours(step) == pytest.approx(rate, abs=1e-9), step
        assert step % 4 != 3 or slower(step // 4) == pytest.approx(rate, abs=1e-9), step
        optimizer.step()
        by_torch.step()


@pytest.mark.parametrize("name", ["linear", "cosine", "warmup_stable_decay"])
def test_a_floor_that_clips_every_decay(name):
    settings = {"decay_fraction": 0.4} if name == "warmup_stable_decay" else {}
    to_zero, clipped = (curve(name, min_lr_ratio=least, min_lr_clips=least > 0, **settings) for least in (0.0, 0.2))
    values = [to_zero(step) for step in range(1000)]
    assert [clipped(step) for step in range(1000)] == values[:100] + [max(0.2, value) for value in values[100:]]
    assert len({*values[900:]}) == 100


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
        ("cosine", {"min_lr_ratio": 0.1, "warmup_start": 1.5}, "warmup_start=1.5 must be between 0 and 1 .*, or null"),
        ("cosine", {"min_lr_ratio": 0.1, "microbatches": 0}, "microbatches=0 must be at least 1"),
        ("inverse_sqrt", {"warmup_start": -0.1}, "warmup_start=-0.1 must be between 0 and 1"),
        ("constant", {"warmup_steps": 4001, "microbatches": 4}, "warmup_steps=4001 .* run's 4000 microbatches"),
        ("linear", {"min_lr_ratio": 2.0, "min_lr_clips": True}, "min_lr_clips=true needs .*=2.0 to be at most 1"),
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
