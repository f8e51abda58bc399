"""What users of Lightning, lightning-hydra-template, nanoGPT and Hugging Face type by habit: it works, or the answer
names the right key."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, mistake, small_run, trained

from slm.run import cli
from slm.run.names import NAMES, SAME_KEY, SYNONYMS
from slm.run.overrides import flattened, read_arguments
from slm.run.start import main

DATA = ["data=text", "data.path=input.txt", "tokenizer=bytes", "trainer=cpu"]

WORKS = {  # habit -> (what it sets, its value)
    "trainer.max_steps=7": ("budget.steps", 7),
    "+trainer.max_steps=7": ("budget.steps", 7),
    "trainer.max_epochs=3": ("budget.epochs", 3),
    "trainer.max_time=00:01:00": ("budget.max_time", "00:01:00"),
    "+trainer.fast_dev_run=true": ("trainer.fast_dev_run", True),
    "trainer.fast_dev_run=3": ("budget.steps", 3),
    "+trainer.limit_val_batches=2": ("trainer.lightning", {"limit_val_batches": 2, "num_sanity_val_steps": 0}),
    "trainer.num_sanity_val_steps=2": ("trainer.lightning", {"num_sanity_val_steps": 2}),
    "trainer.profiler=simple": ("trainer.lightning", {"profiler": "simple", "num_sanity_val_steps": 0}),
    "trainer.gradient_clip_val=0.5": ("trainer.gradient_clip_val", 0.5),
    "++trainer.accumulate_grad_batches=4": ("trainer.accumulate_grad_batches", 4),
    "trainer.log_every_n_steps=5": ("log_every_n_steps", 5),
    "trainer.precision=16": ("trainer.precision", 16),
    "trainer.precision=bf16": ("trainer.precision", "bf16"),
    "trainer.devices=2": ("trainer.devices", 2),
    "trainer=gpu": ("trainer.accelerator", "gpu"),
    "trainer=ddp": ("trainer.strategy", "ddp"),
    "trainer=ddp_sim": ("trainer.devices", 2),
    "ckpt_path=runs/a/last.ckpt": ("resume", "runs/a/last.ckpt"),
    "task_name=mine": ("name", "mine"),
    "paths.output_dir=out": ("run_dir", "out"),
    "hydra.run.dir=out": ("run_dir", "out"),
    "paths.log_dir=logs": ("runs_dir", "logs"),
    "debug=fdr": ("trainer.fast_dev_run", True),
    "debug=limit": ("budget.epochs", 0.01),
    "debug=overfit": ("data.train_windows", 4),
    "debug=profiler": ("budget.steps", 20),
    "callbacks=none": ("callbacks", ["checkpoints"]),
    "logger=null": ("logger", []),
    "~logger": ("logger", []),
    "logger=csv": ("logger", ["csv"]),
    "logger=many_loggers": ("logger", ["csv", "tensorboard", "wandb"]),
    "tags=[a,b]": ("tags", ["a", "b"]),
    "seed=0": ("seed", 0),
    "experiment=null": ("name", "small"),
    "logger=csv logger.csv=null": ("logger", []),
}
ANSWERED = {  # habit -> the right name in the answer
    "model.n_layer=4": "did you mean model.depth?",
    "model.num_hidden_layers=4": "did you mean model.depth?",
    "model.n_embd=64": "did you mean model.width?",
    "model.hidden_size=64": "did you mean model.width?",
    "model.n_head=4": "did you mean model.head_dim (heads = width / head_dim)?",
    "model.block_size=64": "did you mean model.context?",
    "+model.max_position_embeddings=64": "did you mean model.context?",
    "block_size=64": "did you mean model.context?",
    "data.batch_size=4": "did you mean data.batch_windows (windows per step)?",
    "+data.batch_size=4": "did you mean data.batch_windows (windows per step)?",
    "data.num_workers=2": "did you mean data.workers?",
    "learning_rate=1e-3": "did you mean optimizer.lr?",
    "model.optimizer.lr=1e-3": "did you mean optimizer.lr?",
    "optimizer.lrr=1e-3": "did you mean optimizer.lr?",
    "max_iters=100": "did you mean budget.steps?",
    "max_epochs=3": "did you mean budget.epochs?",
    "eval_interval=100": "did you mean val_every_n_steps?",
    "grad_clip=1.0": "did you mean trainer.gradient_clip_val?",
    "gradient_accumulation_steps=4": "did you mean trainer.accumulate_grad_batches?",
    "warmup_iters=100": "did you mean schedule.warmup_steps?",
    "out_dir=out": "did you mean run_dir?",
    "wandb_project=x": "did you mean logger.wandb.project (with logger=wandb)?",
    "dtype=float16": "did you mean trainer.precision?",
    "model.vocab_size=100": "tokenizer.vocab_size",
    "trainer.overfit_batches=1": "use debug=overfit",
    "+trainer.limit_train_batches=10": "budget.steps",
    "trainer.val_check_interval=100": "use val_every_n_steps",
    "trainer.enable_checkpointing=false": "see callbacks.checkpoints",
    "trainer.max_stepz=3": "there is no key trainer.max_stepz",
    "trainer=gpuu": "is not one of auto, cpu, ddp, ddp_sim, debug, fsdp, gpu, mps, rtx4090, t4; did you mean gpu?",
    "hooks.x=1": "did you mean callbacks?",
    "model.tie_embeddings=true": "did you mean model.tied?",
    "data.val_ratio=0.05": "did you mean data.train_ratio?",
    "data.shuffle=false": "did you mean data.order?",
    "eval.every=100": "did you mean val_every_n_steps?",
    "eval.batches=100": "did you mean data.validation_windows?",
    "schedule.floor_mode=clip": "did you mean schedule.min_lr_clips?",
    "action=params": "did you mean plan=true?",
    "experiment=seed000_gpt2_124m": "did you mean gpt2_124m?",
    "experiment=seed002_char": "did you mean char_slm?",
    "experiment=seed004_tinystories": "did you mean slm_notebook?",
    "experiment=gpt2": "did you mean gpt2_124m?",
    "tokenizer=bpe_scratch": "did you mean bpe?",
    "tokenizer=ascii_char": "did you mean characters?",
    "trainer=cuda": "did you mean gpu?",
    "callbacks=early_stopping": "callbacks.early_stopping is a part of callbacks=default",
    "--no-wandb": "(seed=1), and python train.py --hydra-help lists the flags; did you mean logger=null?",
    "params": "did you mean plan=true?",
}


FLAGS = {  # of a generate.py that has options with hyphens -> the answer
    "--prompt Once": "--prompt is not key=value; did you mean prompt=...?",
    "--no_sample": "did you mean greedy=...?",
    "best.pt": "did you mean ckpt=best.pt?",
    "--sed=3": "python generate.py --help lists the keys",
}


@pytest.mark.parametrize("words", FLAGS)
def test_an_option_of_another_generate_py_is_answered(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate.py", *words.split()])
    with pytest.raises(SystemExit) as end:
        cli.generate_main()
    assert end.value.code == 2
    assert FLAGS[words] in capsys.readouterr().err


def test_a_name_of_another_command_is_answered(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["slm", "params"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "there is no command params; did you mean slm train ... plan=true?" in capsys.readouterr().err


def compose(*habits: str):
    return cli.compose([*DATA, *read_arguments(habits)[0]])


@pytest.mark.parametrize("habit", WORKS)
def test_a_habit_works(habit):
    key, expected = WORKS[habit]
    value = compose(*habit.split())
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    if key in ("callbacks", "logger"):
        value = list(value)
    assert value == expected


@pytest.mark.parametrize("habit", ANSWERED)
def test_a_habit_is_answered_with_the_right_name(habit):
    with mistake() as error:
        compose(habit)
    assert ANSWERED[habit] in str(error.value)


@pytest.mark.parametrize("removed", ["~callbacks.samples", "~budget.max_time"])
def test_what_is_null_cannot_be_left_out_again(removed):
    with mistake() as error:
        compose(f"{removed[1:]}=null", removed)
    assert f"{removed} has no effect: its value is null" in str(error.value)


def test_every_answer_names_a_key_that_exists():
    plain = cli.compose(["logger=wandb"]).plain
    of_ablations = {f"hydra.sweeper.{name}" for name in ("seeds", "detect", "only")}
    of_options = {*of_ablations, "hydra.launcher.n_jobs", "data.train_ratio"}
    for answer in {*NAMES, *SAME_KEY.values()} - of_options - {"experiment"}:  # a group
        assert answer.partition(" ")[0].partition("=")[0] in {*plain, *flattened(plain)}, answer
    assert len(SYNONYMS) == len(" ".join(NAMES.values()).split())  # each with one answer


@pytest.mark.parametrize("place", [0, 1, 3])
def test_flags_may_stand_anywhere(place):
    """-m first, in the middle and last give the same; a budget adds its nulls to the overrides, not behind the flag."""
    words = ["seed=1,2", "budget.steps=2", "model=tiny"]
    words.insert(place, "-m")
    overrides, flags, read = read_arguments(words)
    others = [f"budget.{length}=null" for length in ("tokens", "epochs", "minutes", "flops")]
    assert overrides == ["seed=1,2", "budget.steps=2", "model=tiny", *others]
    assert flags == ["-m"]
    assert read.multirun


def test_fast_dev_run_keeps_nothing(text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert trained(monkeypatch, *small_run(text_file, tmp_path), "debug=fdr", "model=tiny", "data.batch_windows=8") == 0
    assert "fast_dev_run ran 1 step(s)" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.slow
def test_tab_completion_help_and_printed_configuration():
    def python(*arguments: str, **environment):
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={"PATH": "", **environment}, cwd=ROOT)

    completed = python("-sc", "query=bash", COMP_LINE="python train.py optim", COMP_POINT="21")
    assert sorted(completed.stdout.split()) == ["optimized_metric=", "optimizer.", "optimizer="]
    installed = python("--shell-completion", "install=bash")
    assert "complete -o nospace" in installed.stdout
    printed = python("--cfg", "job", "model=tiny", "--package", "model")
    assert "depth: 4" in printed.stdout
    assert "Hydra" in python("--hydra-help").stdout
    assert json.dumps(python("--help").stdout).count("trainer: auto") == 1
