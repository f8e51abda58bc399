"""Targets on the command line: the node starts empty, and mistakes in one's own functions are found before any work."""

import sys

import pytest

from slm.errors import UserError

MINE = """
def schedule(step, steps, *, floor): return max(1 - step / steps, floor)
def optimizer(model, *, lr): return None
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    (tmp_path / "targets_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("targets_of_mine", None)


def test_a_target_does_not_inherit_settings_of_the_one_it_replaces(composed):
    """AdamW's weight decay of 0.1 would be another regularisation in RMSprop, on gains and biases, too."""
    config = composed("optimizer._target_=torch.optim.RMSprop", "optimizer.lr=1e-3", "~optimizer.decay")
    assert config.plain["optimizer"] == {"_target_": "torch.optim.RMSprop", "lr": 1e-3}
    config = composed("schedule._target_=targets_of_mine.schedule", "+schedule.floor=0.25")
    assert config.plain["schedule"] == {"_target_": "targets_of_mine.schedule", "floor": 0.25}
    assert [config.schedule(step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]
    config = composed("callbacks.progress._target_=lightning.pytorch.callbacks.RichProgressBar")
    assert config.plain["callbacks"]["progress"] == {"_target_": "lightning.pytorch.callbacks.RichProgressBar"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["schedule._target_=targets_of_mine.schedule"],
            "schedule.floor is missing: targets_of_mine.schedule",
        ),
        (["optimizer._target_=targets_of_mine.optimizer"], "optimizer.lr is missing"),
        (["optimizer._target_=targets_of_mine.optimiser"], "has no optimiser; did you mean optimizer?"),
        (["~model.window"], "~model.window has no effect: its value is null"),
    ],
)
def test_mistakes_are_found_first(composed, overrides, message):
    with pytest.raises(UserError) as error:
        composed(*overrides)
    assert message in str(error.value)


def test_a_plus_before_an_option_is_accepted(composed):
    assert composed("+model=tiny", "+experiment=shakespeare", "data=text").name == "test"
