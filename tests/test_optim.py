"""Roles cover every parameter; AdamW is torch's; schedules are their formulas."""

import math

import pytest
import torch
from test_model import model_of

from slm.errors import UserError
from slm.optim import schedule
from slm.optim.adamw import adamw
from slm.optim.roles import roles

SETTINGS = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "decay": "matrices"}


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_a_role(tied):
    model = model_of(tied=tied, positions="learned", qk_norm=True, mlp="swiglu")
    found = roles(model)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert found["tokens.weight"] == found["positions.weight"] == "embedding"
    assert found.get("head.weight") == (None if tied else "readout")
    assert found["blocks.0.attention.qkv.weight"] == found["blocks.1.mlp.out.weight"] == "hidden"
    assert found["blocks.0.attention.qkv.bias"] == found["norm.weight"] == "vector"
    assert found["blocks.1.attention.query_norm.weight"] == "vector"


def test_a_parameter_without_a_role_is_refused():
    model = model_of()
    model.scale = torch.nn.Parameter(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match=r"no role for scale of shape \(2, 2, 2\)"):
        roles(model)


def test_decay_by_role():
    model = model_of()
    by_decay = {group["weight_decay"]: group["params"] for group in adamw(model, **SETTINGS).param_groups}
    assert {p.ndim for p in by_decay[0.1]} == {2}
    assert {p.ndim for p in by_decay[0.0]} == {1}
    assert sum(map(len, by_decay.values())) == len(list(model.parameters()))
    (group,) = adamw(model, **{**SETTINGS, "decay": "all"}).param_groups
    assert group["weight_decay"] == 0.1


def test_steps_are_those_of_plain_adamw():
    """The same update as torch's unfused AdamW over one group with decay on everything."""
    ours, theirs = model_of(), model_of()
    tokens = torch.randint(17, (4, 12))
    pairs = [
        (ours, adamw(ours, **{**SETTINGS, "decay": "all"})),
        (theirs, torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, foreach=False)),
    ]
    for model, optimizer in pairs:
        for _ in range(3):
            optimizer.zero_grad()
            model(tokens).logsumexp(-1).mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1.0}, "optimizer.lr=-1.0"),
        ({"lr": math.nan}, "optimizer.lr=nan"),
        ({"betas": [0.9, 1.0]}, "optimizer.betas"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay=-0.1"),
    ],
)
def test_impossible_settings(change, message):
    with pytest.raises(UserError, match=message):
        adamw(model_of(), **{**SETTINGS, **change})


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (schedule.constant(1000, warmup_steps=100), {0: 0.01, 49: 0.5, 99: 1, 100: 1, 1000: 1}),
        (schedule.linear(1000, warmup_steps=100, final=0.1), {0: 0.01, 99: 1, 100: 1, 550: 0.55, 1000: 0.1, 2000: 0.1}),
        (schedule.cosine(1000, warmup_steps=100, final=0.1), {0: 0.01, 100: 1, 550: 0.55, 1000: 0.1, 2000: 0.1}),
        (
            schedule.cosine(1000, warmup_steps=0, final=0.0),
            {0: 1, 250: (1 + math.cos(math.pi / 4)) / 2, 500: 0.5, 1000: 0},
        ),
        (
            schedule.warmup_stable_decay(1000, warmup_steps=100, decay_share=0.4, final=0.05),
            {0: 0.01, 100: 1, 600: 1, 800: 0.525, 1000: 0.05},
        ),
        (schedule.inverse_sqrt(1000, warmup_steps=100), {0: 0.01, 99: 1, 399: 0.5, 899: 1 / 3}),
    ],
)
def test_schedules_are_their_formulas(curve, expected):
    for step, value in expected.items():
        assert curve(step) == pytest.approx(value, abs=1e-12), step


def test_warmup_longer_than_the_run():
    with pytest.raises(UserError, match=r"schedule.warmup_steps=200 must be between 0 and the run's 100 steps"):
        schedule.cosine(100, warmup_steps=200, final=0.0)
