"""Impossible values: each is one line that names its key, before data is prepared or anything large is made."""

import copy
import math
import time
from pathlib import Path

import hydra
import pytest
from conftest import CONF
from omegaconf import OmegaConf

from slm.corpora.storyworld.corpus import Storyworld
from slm.errors import UserError
from slm.run.config import make_plan
from slm.run.trainer import check_watchers
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

INF, NAN, HUGE = math.inf, math.nan, 10**30
OPTIONS = {  # the configurations that the cases below change
    "plain": ["data=text", "data.path=x", "tokenizer=bytes", "trainer=cpu", "debug=default"],
    "muon": ["data=text", "data.path=x", "optimizer=muon", "trainer=cpu", "debug=default"],
    "wsd": ["data=text", "data.path=x", "schedule=warmup_stable_decay", "trainer=cpu", "debug=default"],
    "stories": ["data=storyworld", "trainer=cpu", "debug=default", "logger=wandb"],
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
        "val_every_n_steps": [-1, 0, 0.5, INF, None],
        "callbacks.metrics.every_n_steps": [-1, 0, NAN, None],
        "hooks": [None, "abc", [1]],
        "budget.steps": [-1, 0, 0.5, INF, HUGE, "abc", None],
        "budget.max_time": ["", "1:00", "-1:00:00", "0:0:0", "99999999999:00:00", "a:b:c", 5],
        "data.batch_windows": [-1, 0, 2.5, 10**9, HUGE, None],
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
        "trainer.clip": [-1, 0, NAN, "abc"],
        "trainer.precision": ["", "8", None],
        "trainer.accelerator": ["", "tpu", None],
        "model.width": [-1, 0, 65, 10**9, HUGE, NAN, None, []],
        "model.depth": [-1, 0, 10**9, HUGE, 1.5],
        "model.context": [-1, 0, 10**9, HUGE],
        "model.mlp_width": [-1, 0, 10**9, HUGE],
        "model.head_dim": [-1, 0, 3, HUGE, None],
        "model.kv_heads": [-1, 0, 3, HUGE],
        "model.dropout": [-0.5, 1, 1.5, NAN, INF, None],
        "model.rope_base": [-1, 0, 0.5, NAN, INF, HUGE],
        "model.bias": [0, None, "abc"],
        "optimizer.lr": [-1, 0, NAN, INF, None, "abc", []],
        "optimizer.betas": [[], [0.9], [2, 2], [0.9, 1], [NAN, 0.9], 0.9, None],
        "optimizer.eps": [-1, 0, 1, NAN, INF, None],
        "optimizer.weight_decay": [-1, NAN, INF, None],
        "optimizer.decay": ["", "abc", None],
        "schedule.warmup_share": [-0.1, 1.5, NAN, INF, None, True, "abc", []],
        "schedule.warmup_steps": [-1, 11, 0.5, HUGE, "abc"],
        "schedule.final": [-1, NAN, INF, None, "abc"],
        "callbacks.samples.every_n_steps": [-1, 0, NAN],
        "callbacks.samples.max_new_tokens": [-1, 0, 10**9, None],
        "callbacks.samples.prompts": ["abc", [1], None],
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
    "muon": {
        "optimizer.lr": [-1, 0, NAN, INF],
        "optimizer.momentum": [-1, 1, 1.5, NAN],
        "optimizer.weight_decay": [-1, NAN, INF],
        "optimizer.adamw_lr": [-1, 0, NAN, INF],
        "optimizer.adamw_betas": [[], [2, 2], [0.9, NAN]],
        "optimizer.adamw_eps": [-1, 0, NAN],
        "optimizer.adamw_weight_decay": [-1, NAN, INF],
    },
    "wsd": {
        "schedule.decay_share": [-1, 1.5, NAN, INF, None],
        "schedule.final": [-1, NAN],
        "schedule.warmup_steps": [-1, 11],
    },
    "stories": {
        "callbacks.stories.count": [-1, 0.5, 10**9, HUGE],
        "callbacks.stories.seed": [-1, NAN],
        "data.layout": ["packed"],
        "logger.wandb.project": [1, []],
        "logger.wandb.offline": [7, "abc"],
    },
}


@pytest.fixture(scope="module")
def configurations() -> dict[str, dict]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return {
            name: OmegaConf.to_container(hydra.compose("train", overrides=options), resolve=True)
            for name, options in OPTIONS.items()
        }


def with_value(config: dict, key: str, value) -> dict:
    config = copy.deepcopy(config)
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node[name]
    assert last in node
    node[last] = value
    return config


def check(config: dict):
    make_plan(config)
    check_watchers(config, Path("never made"))


def test_what_the_cases_change_is_sound(configurations):
    for config in configurations.values():
        check(config)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, cases in CASES.items() for key in cases])
def test_an_impossible_value_is_one_line_that_names_its_key(name, key, configurations):
    for value in CASES[name][key]:
        start = time.monotonic()
        with pytest.raises(UserError) as error:
            check(with_value(configurations[name], key, value))
        message = str(error.value)
        assert key in message or key.rpartition(".")[2] in message.partition("=")[0], (value, message)
        assert "\n" not in message
        assert time.monotonic() - start < 5, "it must not be tried"


@pytest.mark.parametrize("key", ["tokens", "epochs"])
def test_an_impossible_length_is_refused(key, configurations):
    for value in (-1, 0, NAN, INF, 1e30, "abc"):
        budget = {"steps": None, "tokens": None, "epochs": None, "max_time": None, key: value}
        with pytest.raises(UserError, match=rf"^budget\.{key}="):
            check(with_value(configurations["plain"], "budget", budget))


def test_a_model_that_fits_nowhere_is_refused_with_what_it_needs(configurations):
    config = with_value(configurations["plain"], "model.width", 64_000_000)
    with pytest.raises(UserError, match=r"model.width=64000000, .* 9.83e\+16 parameters or more: 7.86e\+08 GB of"):
        check(config)


@pytest.mark.parametrize("count", [-1, 0, 10**12])
def test_impossible_counts_of_stories(count):
    for name in ("stories", "validation_stories"):
        with pytest.raises(UserError, match=rf"^data\.{name}={count} must be at least 1, at most 100,000,000$"):
            Storyworld(**{"level": "tiny", "stories": 1, "validation_stories": 1, "seed": 0, name: count})


def test_a_vocabulary_that_nothing_could_fill_is_refused_before_a_document_is_read():
    def unread():
        raise AssertionError("read")
        yield

    settings = {"vocab_size": 300, "algorithm": "bpe", "sample_documents": 10, "seed": 0}
    for name, value in (("vocab_size", 2**40), ("sample_documents", 10**30), ("sample_documents", 0)):
        with pytest.raises(UserError, match=rf"tokenizer\.{name}={value}"):
            SentencePieceTokenizer.build(unread(), **{**settings, name: value})
