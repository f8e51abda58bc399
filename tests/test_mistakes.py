"""Impossible values: each gives one line that names its key, before any data is prepared."""

import math
from pathlib import Path

import pytest
from conftest import mistake

from slm.hardware import resolve_hardware
from slm.planning.microbatch import choose_microbatch
from slm.run import cli
from slm.run.read_config import read_config
from slm.run.trainer import build_callbacks, early_facts

INF, NAN, HUGE = math.inf, math.nan, 10**30
OPTIONS = {  # the configurations that the cases below change
    "plain": ["data=text", "data.path=x", "tokenizer=bytes"],
    "other": ["data=storyworld", "optimizer=muon", "schedule=warmup_stable_decay", "logger=wandb"],
}
CASES = {
    "plain": {
        "seed": [-1, 2**32, HUGE, NAN, None, "abc", True],
        "name": [1, [], True],
        "tags": ["abc", [1], None],
        "run_dir": [1],
        "runs_dir": [None, 1],
        "cache_dir": [None, 1],
        "resume": [None, 1],
        "optimized_metric": ["", "val", None],
        "on_nonfinite": ["", "warn", None],
        "on_spike": ["", "stop", None],
        "val_every_n_steps": [-1, 0, 0.5, INF, None],
        "callbacks.metrics.every_n_steps": [-1, 0, NAN, None],
        "budget.steps": [-1, 0, 0.5, NAN, INF, "abc"],
        "budget.tokens": [-1, 0, NAN, INF],
        "budget.epochs": [-1, 0, NAN, INF],
        "budget.max_time": ["", "1:00", "-1:00:00", "0:0:0", "a:b:c", 5],
        "data.batch_windows": [-1, 0, 2.5, None],
        "data.validation_windows": [-1, 0, NAN, "all"],
        "data.workers": [-1, 10**6, HUGE, 0.5],
        "data.layout": ["", "abc", None],
        "data.corpus": [None, 1, "abc", []],
        "tokenizer": [None, 1, "abc"],
        "optimizer": [None, 1],
        "schedule": [None, 1],
        "trainer.microbatch": [-1, 0, 3, HUGE, "abc"],
        "trainer.devices": [0, -2, 0.5, HUGE, "abc", None],
        "trainer.num_nodes": [-1, 0, 2, None],
        "trainer.gradient_clip_val": [-1, 0, NAN, "abc"],
        "trainer.num_sanity_val_steps": ["abc"],
        "trainer.precision": ["", "8", None],
        "trainer.accelerator": ["", "tpu", None],
        "trainer.accumulate_grad_batches": [-1, 0, 3, 0.5],
        "trainer.fast_dev_run": [-1, "abc"],
        "model.width": [-1, 0, 65, NAN, None, []],
        "model.depth": [-1, 0, 1.5],
        "model.context": [-1, 0],
        "model.mlp_width": [-1, 0],
        "model.head_dim": [-1, 0, 3, HUGE, None],
        "model.kv_heads": [-1, 0, 3, HUGE],
        "model.dropout": [-0.5, 1, 1.5, NAN, INF, None],
        **{f"model.{part}_dropout": [-0.5, 1, NAN, "abc"] for part in ("embedding", "attention", "residual")},
        "model.norm_eps": [-1, 0, 1, NAN, INF, None],
        "model.init_std": [-1, 0, NAN, INF, None],
        "model.head_bias": [0, None, "abc"],
        "model.init_residual_scale": [0, None, "abc"],
        "model.rope_base": [-1, 0, 0.5, NAN, INF, HUGE],
        "model.window": [-1, 0, "abc", [0]],
        "model.norm": ["", "abc"],
        "model.mlp": ["", "abc"],
        "model.positions": ["", "abc"],
        "model.logit_softcap": [-1, 0, NAN],
        "model.bias": [0, None, "abc"],
        "optimizer.lr": [-1, 0, NAN, INF, None, "abc", []],
        "optimizer.betas": [[], [0.9], [2, 2], [0.9, 1], [NAN, 0.9], 0.9, None],
        "optimizer.eps": [-1, 0, 1, NAN, INF, None],
        "optimizer.weight_decay": [-1, NAN, INF, None],
        "optimizer.decay": ["", "abc", None],
        "optimizer.cautious": [0, None, "abc"],
        "optimizer.weight_decay_schedule": ["", "abc", None],
        "schedule.warmup_fraction": [-0.1, 1.5, NAN, INF, None, True, "abc", []],
        "schedule.warmup_steps": [-1, 11, 0.5, HUGE, "abc"],
        "schedule.min_lr_ratio": [-1, NAN, INF, None, "abc"],
        "schedule.warmup_start": [-0.1, 1.5, NAN, INF, "abc"],
        "schedule.min_lr_clips": [0, None, "abc"],
        "schedule.microbatches": [-1, 0, 0.5, None, "abc"],
        "callbacks.samples.every_n_steps": [-1, 0, NAN],
        "callbacks.samples.max_new_tokens": [-1, 0, None],
        "callbacks.samples.prompts": ["abc", [1]],
        "callbacks.samples.sampler": [None, 1, "abc", []],
        "callbacks.samples.sampler.temperature": [-1, 0, NAN, INF],
        "callbacks.samples.sampler.top_k": [-1, 0, 0.5],
        "callbacks.samples.sampler.top_p": [-1, 0, 1.5, NAN],
        "callbacks.samples.sampler.min_p": [-1, 1.5, NAN],
        "callbacks.samples.sampler.repetition_penalty": [-1, 0, NAN, INF],
        "callbacks.early_stopping.patience": [-1, 0, 0.5, INF],
        "callbacks.early_stopping.min_delta": [-1, NAN, INF, None],
        "callbacks.checkpoints.every_n_steps": [-1, 0, NAN],
        "callbacks.checkpoints.keep_last": [-1, 0, 1, NAN, None],
        "callbacks.checkpoints": [None],
    },
    "other": {
        "optimizer.lr": [-1, 0, NAN, INF],
        "optimizer.momentum": [-1, 1, 1.5, NAN],
        "optimizer.weight_decay": [-1, NAN, INF],
        "optimizer.adamw_lr": [-1, 0, NAN, INF],
        "optimizer.adamw_betas": [[], [2, 2], [0.9, NAN]],
        "optimizer.adamw_eps": [-1, 0, NAN],
        "optimizer.adamw_weight_decay": [-1, NAN, INF],
        "optimizer.momentum_warmup": [-1, 0.5, NAN, None, "abc"],
        "optimizer.iteration": ["", "abc", None],
        "optimizer.neuron_normalization": [0, None, "abc"],
        "schedule.decay_fraction": [-1, 1.5, NAN, INF, None],
        "schedule.min_lr_ratio": [-1, NAN],
        "schedule.warmup_steps": [-1, 11],
        "callbacks.stories.count": [-1, 0.5],
        "callbacks.stories.seed": [-1, NAN],
        "data.layout": ["packed"],
        "data.corpus.level": ["", "abc"],
        "data.corpus.stories": [-1, 0, NAN, None],
        "data.corpus.validation_stories": [-1, 0],
        "logger.wandb.project": [1, []],
        "logger.wandb.offline": [7, "abc"],
    },
}


@pytest.fixture(scope="module")
def configurations() -> dict[str, dict]:
    common = ["trainer=cpu", "debug=default"]
    return {name: cli.composed("train", [*options, *common])[0] for name, options in OPTIONS.items()}


def with_value(config: dict, key: str, value) -> dict:
    """A copy with another value of a key, which must exist."""
    first, _, rest = key.partition(".")
    assert first in config
    return {**config, first: with_value(config[first], rest, value) if rest else value}


def check(plain: dict):
    """What a run checks before it prepares data."""
    config = read_config(plain)
    trainer = config.trainer
    hardware = resolve_hardware(trainer.accelerator, trainer.devices, trainer.num_nodes, trainer.precision)
    choose_microbatch(trainer.microbatch, trainer.accumulate_grad_batches, config.data.batch_windows, hardware)
    build_callbacks(config, early_facts(config, Path("never made")), {})


def test_the_unchanged_configurations_are_valid(configurations):
    for config in configurations.values():
        check(config)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, cases in CASES.items() for key in cases])
def test_an_impossible_value_is_one_line_that_names_its_key(name, key, configurations):
    for value in CASES[name][key]:
        with mistake() as error:
            check(with_value(configurations[name], key, value))
        message = str(error.value)
        assert key in message or key.rpartition(".")[2] in message.partition("=")[0], (value, message)
