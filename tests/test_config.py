"""conf/ and RunConfig: every option composes and is typed, and what the keys of a budget and a Trainer mean."""

import dataclasses

import pytest
from conftest import CONF, mistake

from slm.hardware import resolve_hardware
from slm.planning.microbatch import choose_microbatch
from slm.run import cli
from slm.run.compose import composed
from slm.run.config import Budget, RunConfig
from slm.run.instantiate import Node

FILES = [path for path in sorted(CONF.glob("*/*.yaml")) if path.stem != "own"]  # which needs a class: test_own_model.py
EXPERIMENTS, DEBUGS = (sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("experiment", "debug"))
OPTIONS = [f"{path.parent.name}={path.stem}" for path in FILES if path.parent.name not in ("experiment", "debug")]
NONE = {"steps": None, "tokens": None, "epochs": None, "max_time": None}
CPU = resolve_hardware("cpu", 1, 1, "32-true")


@pytest.fixture(scope="module")
def default() -> RunConfig:
    return cli.compose()


def typed(default: RunConfig, *overrides: str) -> RunConfig:
    """The configuration, with the types and sections of the default one."""
    config = cli.compose(overrides)
    assert isinstance(config, RunConfig)
    assert all(isinstance(node, Node) for node in [*config.callbacks.values(), *config.logger.values()])
    assert config.plain.keys() - {"dial"} == default.plain.keys()
    for fixed in ("model", "trainer", "budget"):  # an option has no keys of its own
        assert config.plain[fixed].keys() == default.plain[fixed].keys()
    return config


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_is_typed(option, default, monkeypatch):
    if option.startswith("hparams_search="):
        monkeypatch.setenv("SLM_RUN_DIR", "of/a/job")  # one of a sweep
    sizes = ["model.base_width=64", "model.base_depth=2"] if option.startswith("parametrization=") else []
    sizes += ["model.depth=2"] if option == "model=dial" else []
    typed(default, option, *sizes)


@pytest.mark.parametrize(
    ("experiment", "debug"), [*((name, "default") for name in EXPERIMENTS), *(("quickstart", name) for name in DEBUGS)]
)
def test_every_experiment_can_be_debugged(experiment, debug, default):
    config = typed(default, f"experiment={experiment}", f"debug={debug}")
    assert config.name == experiment
    trainer, batch = config.trainer, config.data.batch_windows
    assert batch % choose_microbatch(trainer.microbatch, trainer.accumulate_grad_batches, batch, CPU) == 0


@pytest.mark.parametrize("experiment", ["quickstart", "shakespeare", "modern_small"])
def test_an_option_that_replaces_the_one_of_an_experiment_has_its_own_settings(experiment):
    """All settings that the experiment made for its own option are gone; those of conf/train.yaml stay."""
    path = "data.path=x"
    own = composed("train", [f"experiment={experiment}"])[0]
    for words in (
        ("schedule=constant", "optimizer=adamw", "tokenizer=bytes", "data=text", path),
        ("schedule=cosine", "optimizer=sgd", "tokenizer=gpt2", "data=jsonl", path),
    ):
        config = cli.compose([f"experiment={experiment}", *words]).plain
        alone = composed("train", words)[0]
        for group in ("schedule", "optimizer", "tokenizer"):
            assert config[group] == alone[group], group
        assert config["data"].keys() - {"vocab_size"} == alone["data"].keys()
        assert config["data"]["batch_windows"] == own["data"]["batch_windows"]
        assert config["data"]["train_ratio"] == alone["data"]["train_ratio"]
    kept = composed("train", [f"experiment={experiment}", f"schedule={own['schedule']['_target_'].split('.')[-1]}"])[0]
    assert kept["schedule"] == own["schedule"]
    assert own["schedule"]["min_lr_ratio"] == 0.0


def test_an_experiment_that_continues_another_one(tmp_path):
    """Settings belong to the option that the file or the continued one chose: both are dropped, or both stay."""
    (tmp_path / "experiment").mkdir()
    lines = "# @package _global_\ndefaults:\n  - quickstart\nschedule: {decay_fraction: 0.3}\noptimizer: {lr: 0.5}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(lines)
    words = ["experiment=mine", f"hydra.searchpath=['file://{tmp_path}']"]
    settings = composed("train", words)[0]
    assert (settings["schedule"]["decay_fraction"], settings["schedule"]["min_lr_ratio"]) == (0.3, 0.0)
    changed = composed("train", [*words, "schedule=linear"])[0]
    assert (changed["optimizer"]["lr"], changed["schedule"]["min_lr_ratio"]) == (0.5, 0.01)
    assert "decay_fraction" not in changed["schedule"]


def test_a_configuration_is_frozen(default):
    for part, key in ((default, "seed"), (default.budget, "steps"), (default.model, "width")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, key, 1)
    with mistake(r"^seed=-1 must be"):  # a changed copy is checked, too
        dataclasses.replace(default, seed=-1)


def test_budget():
    """500 windows of 100 targets, 10 windows per step."""
    for given, steps in (
        ({}, 50),  # one epoch
        ({"epochs": 2}, 100),
        ({"epochs": 0.01}, 1),
        ({"steps": 7}, 7),
        ({"tokens": 1e4}, 10),
        ({"tokens": 1}, 1),
        ({"flops": 170_000}, 3),  # 50,000 for each step
    ):
        assert Budget(**NONE | given).total_steps(10, 500, 100, 50) == steps
    with mistake("budget.flops=20000 is less than a step, which takes 5e.04; give more"):
        Budget(**NONE | {"flops": 2e4}).total_steps(10, 500, 100, 50)
    assert Budget(**NONE | {"max_time": "01:02:03"}).max_seconds() == 3723
    with mistake(r"budget.steps=5 and budget.tokens=9 exclude one another"):
        Budget(**NONE | {"steps": 5, "tokens": 9})


def test_a_budget_on_the_command_line_replaces_the_configured_one():
    budget = cli.compose(["experiment=quickstart", "budget.tokens=1e6"]).budget
    assert (budget.steps, budget.tokens) == (None, 1e6)
    assert cli.compose(["experiment=quickstart", "seed=1"]).budget.steps == 1800
    with mistake(r"budget.steps=5 and budget.epochs=1 exclude one another"):
        cli.compose(["budget.steps=5", "budget.epochs=1"])


@pytest.mark.parametrize(("given", "steps", "interval"), [("true", 1, 1), ("3", 3, 3), ("false", None, 500)])
def test_fast_dev_run_takes_a_few_steps_with_validation(given, steps, interval):
    config = cli.compose([f"trainer.fast_dev_run={given}", "budget.epochs=2"])
    assert config.budget == Budget(**NONE | ({"steps": steps} if steps else {"epochs": 2}))
    assert config.val_every_n_steps == interval


def test_accumulate_grad_batches_divides_the_batch_into_microbatches():
    config = cli.compose(["trainer.accumulate_grad_batches=4", "data.batch_windows=64"])
    assert choose_microbatch(None, config.trainer.accumulate_grad_batches, config.data.batch_windows, CPU) == 16
    with mistake(r"accumulate_grad_batches=5 must divide the 64 windows"):
        choose_microbatch(None, 5, 64, CPU)
    with mistake(r"microbatch=8 and trainer.accumulate_grad_batches=4 exclude one another"):
        cli.compose(["trainer.accumulate_grad_batches=4", "trainer.microbatch=8"])
