"""The presets of conf/experiment: every stated number, the exact sizes, the schedules, and a small run of each."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from conftest import exit_code, mistake, trained
from presets_table import BEGIN, END, PAGE, table

from slm.estimate import parameters
from slm.hardware import resolve_hardware
from slm.model import GPT
from slm.planning.microbatch import choose_microbatch
from slm.run import cli
from slm.run.config import RunConfig
from slm.run.overrides import flattened

ADAMW = {"optimizer.betas": [0.9, 0.95], "optimizer.eps": 1e-8, "optimizer.weight_decay": 0.1}
GPT2_124M = {
    **{"model.context": 1024, "model.depth": 12, "model.head_dim": 64, "model.width": 768, "model.dropout": 0.1},
    **{"model.bias": True, "model.positions": "learned", "model.norm": "layernorm", "model.mlp": "gelu"},
    **{"model.tied": True, "model.init_std": 0.02, "model.init_residual_scale": False, "model.head_bias": False},
    **{"data.joined": None, "data.layout": "packed", "data.batch_windows": 16 * 2, "data.validation_windows": 50 * 32},
    **{"data.workers": 4, "trainer.gradient_clip_val": 1.0, "budget.steps": 50_000 // 2},
    **ADAMW,
    **{
        "optimizer.lr": 3e-4,
        "optimizer.decay": "all",
        "schedule.warmup_fraction": 2000 / 50_000,
        "schedule.min_lr_ratio": 0,
    },
    **{"val_every_n_steps": 500 // 2, "callbacks.checkpoints.every_n_steps": 1000 // 2, "log_every_n_steps": 10 // 2},
    **{"logger.wandb.project": "slm-from-scratch", "logger.wandb.name": "gpt-124m-tinystories"},
    "tags": ["gpt", "124m", "tinystories"],
}
NOTEBOOK = {
    **{"model.context": 128, "model.depth": 6, "model.head_dim": 64, "model.width": 384, "model.dropout": 0.1},
    **{"model.bias": True, "model.positions": "learned", "model.norm": "layernorm", "model.norm_eps": 1e-5},
    **{"model.mlp": "gelu", "model.tied": True, "model.init_std": 0.02, "model.init_residual_scale": True},
    **{"data.joined": True, "data.layout": "packed", "data.order": "replacement", "data.batch_windows": 32 * 32},
    **{"data.validation_windows": 500 * 32, "data.validated_train_windows": 500 * 32},
    **{"trainer.microbatch": 32, "trainer.precision": "auto", "trainer.gradient_clip_val": 0.5},
    **{"budget.steps": 20_000 // 32, "val_every_n_steps": round(500 / 32), "seed": 42},
    **ADAMW,
    **{"optimizer.lr": 1e-4, "optimizer.eps": 1e-9, "optimizer.decay": "all", "schedule.min_lr_ratio": 5.0},
    **{"schedule.microbatches": 32, "schedule.warmup_fraction": 1000 / 20_000, "schedule.warmup_start": 0.3333333},
    **{"callbacks.samples.max_new_tokens": 200, "callbacks.samples.sampler.temperature": 1.0},
    **{"callbacks.samples.sampler.top_k": None},
    "callbacks.samples.prompts": ["Once upon a time there was a pumpkin.", "A little girl went to the woods"],
}
STATED = {
    "gpt2_124m": GPT2_124M,
    "gpt2_350m": {
        **GPT2_124M,
        **{"model.depth": 24, "model.width": 1024, "data.batch_windows": 10 * 8, "data.validation_windows": 50 * 20},
        **{"budget.steps": 100_000 // 8, "schedule.warmup_fraction": 2000 / 100_000, "val_every_n_steps": 63},
        **{"callbacks.checkpoints.every_n_steps": 1000 // 8, "log_every_n_steps": 1},
        **{"logger.wandb.name": "gpt-350m-tinystories", "tags": ["gpt", "350m", "tinystories"]},
    },
    "smalllm": {
        **{"model.context": 512, "model.depth": 8, "model.head_dim": 64, "model.width": 384, "model.dropout": 0.1},
        **{"model.attention_dropout": None, "model.embedding_dropout": None, "model.bias": True},
        **{"model.positions": "rope", "model.rope_base": 10_000, "model.norm": "layernorm", "model.norm_eps": 1e-5},
        **{"model.mlp": "gelu", "model.tied": True, "model.init_std": 0.02, "model.gradient_checkpointing": True},
        **{"tokenizer.vocab_size": 16_000, "tokenizer.algorithm": "bpe", "tokenizer.character_coverage": 1.0},
        **{"tokenizer.sample_documents": 100_000, "data.layout": "documents", "data.batch_windows": 32 * 8},
        **{"data.validation_windows": None, "trainer.gradient_clip_val": 1.0, "budget.steps": 50_000},
        **ADAMW,
        **{"optimizer.lr": 3e-4, "optimizer.decay": "matrices", "schedule.warmup_fraction": 2000 / 50_000},
        **{"schedule.warmup_start": 0.0, "schedule.min_lr_ratio": 0.1, "schedule.min_lr_clips": True},
        **{"val_every_n_steps": 500, "callbacks.checkpoints.every_n_steps": 1000, "log_every_n_steps": 100},
        **{"callbacks.early_stopping.patience": 5, "callbacks.early_stopping.min_delta": 0.001, "seed": 42},
        **{"callbacks.samples.sampler.temperature": 1.0, "callbacks.samples.sampler.top_k": 50},
        **{"callbacks.samples.sampler.top_p": 0.9, "callbacks.samples.sampler.repetition_penalty": 1.0},
        **{"callbacks.samples.max_new_tokens": 100, "logger.wandb.project": "smalllm-gpt"},
    },
    "char_slm": {
        **{"model.context": 256, "model.depth": 4, "model.head_dim": 64, "model.width": 256, "model.dropout": 0.1},
        **{"model.bias": True, "model.positions": "learned", "model.norm": "layernorm", "model.mlp": "gelu"},
        **{"model.tied": False, "model.head_bias": True, "tokenizer.alphabet": "ascii", "data.train_ratio": 0.95},
        **{"data.joined": True, "data.layout": "packed", "data.order": "sequential", "data.batch_windows": 16},
        **{"data.validation_windows": None, "trainer.precision": "32-true", "trainer.gradient_clip_val": None},
        **ADAMW,
        **{"optimizer.lr": 3e-4, "optimizer.decay": "all", "schedule.warmup_fraction": 0.0, "budget.steps": 10_000},
        **{"val_every_n_steps": 200, "callbacks.samples.every_n_steps": 200, "callbacks.samples.prompts": ["The"]},
        **{"callbacks.samples.max_new_tokens": 100, "callbacks.samples.sampler.temperature": 1.0, "seed": 42},
        **{"callbacks.samples.seed": 42, "callbacks.checkpoints.every_n_steps": 1000},
    },
    "sml": {
        **{"model.context": 256, "model.depth": 6, "model.head_dim": 64, "model.width": 384, "model.dropout": 0.2},
        **{"model.positions": "learned", "model.mlp": "gelu", "model.tied": True, "tokenizer.vocab_size": 8192},
        **{"data.train_ratio": 0.9, "data.batch_windows": 64, "budget.steps": 5000, "trainer.gradient_clip_val": 1.0},
        **{"optimizer.lr": 1e-3, "optimizer.weight_decay": 0.1, "schedule.warmup_fraction": 100 / 5000},
    },
    "slm_notebook": NOTEBOOK,
    "slm_notebook_sane": {
        **NOTEBOOK,
        **{"optimizer.lr": 5e-4, "schedule.min_lr_ratio": 0.1, "budget.steps": 2441, "val_every_n_steps": 100},
        **{"data.batch_windows": 262_144 // 128, "schedule.microbatches": 1, "schedule.warmup_start": None},
    },
}
SIZES = {  # ids, parameters, those outside the embeddings, width of the MLP's hidden layer
    "gpt2_124m": (50_257, 124_439_808, 124_439_808 - 768 * (50_257 + 1024), 3072),
    "gpt2_350m": (50_257, 354_823_168, 354_823_168 - 1024 * (50_257 + 1024), 4096),
    "smalllm": (16_000, 20_340_480, 14_196_480, 1536),
    "char_slm": (99, 3_275_875, 3_275_875 - 256 * (99 + 256) - 99 * 256 - 99, 1024),
    "sml": (8192, 13_891_584, 10_745_856 - 256 * 384, 1536),
    "slm_notebook": (50_257, 29_995_392, 10_647_552, 1536),
    "slm_notebook_sane": (50_257, 29_995_392, 10_647_552, 1536),
}


@functools.cache
def preset(name: str, *further: str) -> RunConfig:
    return cli.compose([f"experiment={name}", *further])


def rate(name: str, step: int) -> float:
    """The learning rate of the update after so many steps."""
    config = preset(name)
    return config.plain["optimizer"]["lr"] * config.schedule(step, config.budget.steps)


@pytest.mark.parametrize("name", STATED)
def test_a_preset_has_every_stated_number(name):
    config = flattened(preset(name).plain)
    found = {key: config.get(key) for key in STATED[name]}
    assert found == STATED[name]
    assert preset(name).logger == {}  # W&B is a choice


@pytest.mark.parametrize("name", SIZES)
def test_a_preset_has_the_exact_number_of_parameters(name):
    vocab_size, total, inner, hidden = SIZES[name]
    config = replace(preset(name).model, vocab_size=vocab_size)
    with torch.device("meta"):
        model = GPT(config)
    outside = [model.tokens.weight, model.head.weight, model.head.bias, getattr(model.positions, "weight", None)]
    embeddings = {id(weight): weight.numel() for weight in outside if weight is not None}
    assert sum(weight.numel() for weight in model.parameters()) == total
    assert total - sum(embeddings.values()) == inner
    assert config.hidden_width == hidden


def test_the_variant_of_a_readme_by_its_code():
    gated = preset("char_slm", "model.mlp=geglu", "model.mlp_width=1024").model
    assert parameters(replace(gated, vocab_size=100)).total == 4_329_060


@pytest.mark.slow
def test_the_table_of_the_presets_is_up_to_date():
    """python tests/presets_table.py writes it anew."""
    assert BEGIN + table() + END in PAGE.read_text(encoding="utf-8")


def test_microbatches_and_precisions_of_the_stated_machines():
    gpu = resolve_hardware("gpu", 1, 1, "auto", planned=True)
    assert gpu.precision == "bf16-mixed"
    trainer = preset("smalllm", "trainer=rtx4090").trainer
    assert (trainer.precision, trainer.microbatch, choose_microbatch(None, 8, 256, gpu)) == ("16-mixed", 32, 32)
    assert choose_microbatch(preset("slm_notebook").trainer.microbatch, None, 1024, gpu) == 32
    for name, microbatch in (("gpt2_124m", 16), ("gpt2_350m", 10)):
        config = preset(name)
        assert config.data.batch_windows % choose_microbatch(microbatch, None, config.data.batch_windows, gpu) == 0


def test_schedules_of_the_presets():
    """Against the formulas that are stated, in their own units."""
    for step, expected in ((0, 0.0), (1999, 3e-4 * 1999 / 2000), (2000, 3e-4), (26_000, 1.5e-4), (49_999, 3e-5)):
        assert rate("smalllm", step) == pytest.approx(expected, rel=1e-6)
    notebook = [1e-4 / 3 + (1e-4 - 1e-4 / 3) * i / 1000 for i in range(1000)]
    notebook += [5e-4 + (1e-4 - 5e-4) * (1 + math.cos(math.pi * i / 19_000)) / 2 for i in range(19_000)]
    for step in (0, 15, 31, 328, 624):  # an update has the rate of its last microbatch
        assert rate("slm_notebook", step) == pytest.approx(notebook[32 * step + 31], rel=1e-6)
    assert [rate("char_slm", step) for step in (0, 5000, 9999)] == [3e-4] * 3
    assert rate("gpt2_124m", 999) == rate("gpt2_350m", 249) == 3e-4
    assert rate("gpt2_124m", 24_999) == 0
    assert (rate("slm_notebook_sane", 121), rate("slm_notebook_sane", 2440)) == (5e-4, pytest.approx(5e-5))


def test_wandb_is_a_choice_and_has_the_stated_project():
    wandb = preset("smalllm", "logger=wandb").logger["wandb"]
    assert wandb.settings["project"] == "smalllm-gpt"
    with mistake("logger.wandb.project has no effect: logger.wandb is left out; take logger=wandb"):
        cli.compose(["experiment=smalllm", "logger.wandb.project=mine"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return f"cache_dir={tmp_path_factory.mktemp('presets')}"


@pytest.mark.parametrize(  # shrunk, gpt2_350m is gpt2_124m
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "gpt2_350m" else ()) for name in STATED]
)
def test_a_small_run_of_each_preset_generates(name, cache, tmp_path, monkeypatch, capsys):
    """debug=shrink keeps what a preset is, but for sizes; it trains without network, and generate.py reads the run."""
    words = [f"experiment={name}", "debug=shrink"]
    words += ["data.validated_train_windows=8"] if "notebook" in name else []
    small, large = cli.compose(words), preset(name)
    for part, keys in (
        ("model", ("positions", "norm", "mlp", "tied", "bias", "head_bias", "dropout", "gradient_checkpointing")),
        ("data", ("layout", "order", "joined")),
        ("optimizer", tuple(large.plain["optimizer"])),
        ("schedule", tuple(large.plain["schedule"])),
    ):
        for key in keys:
            assert small.plain[part][key] == large.plain[part][key], f"{part}.{key}"
    own = large.plain["tokenizer"]["_target_"]
    assert small.plain["tokenizer"]["_target_"] == own.replace("gpt2.GPT2Tokenizer", "bpe.BPETokenizer")
    assert trained(monkeypatch, *words, cache, f"run_dir={tmp_path / 'run'}") == 0
    assert "10: val/loss" in capsys.readouterr().out
    assert exit_code(monkeypatch, cli.generate_main, f"ckpt={tmp_path / 'run'}", "sampler=run") == 0
    prompts = small.plain["callbacks"]["samples"]["prompts"] or [""]
    printed = capsys.readouterr().out
    assert printed
    assert all(prompt in printed for prompt in prompts)
