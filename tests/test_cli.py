"""train.py as a user types it: a mistake gives one line and exit code 2, a success a complete run folder."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, small_run, trained

from slm import checkpoint
from slm.files import jsonl
from slm.results import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def small(folder, text_file):
    return small_run(text_file, folder)


@pytest.fixture(scope="module")
def run_dir(small, folder) -> Path:
    """A run, made by the command line, in a process that exits at any use of the network."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "NETWORK = ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto')\n"
        "sys.addaudithook(lambda event, arguments: os._exit(77) if event in NETWORK else None)\n"
    )
    run_dir = folder / "a run, with = and ü"
    command = [sys.executable, str(ROOT / "train.py"), *small, f"run_dir={run_dir}"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return run_dir


# -- training -------------------------------------------------------------------------------------------------------


def test_a_run_folder_is_complete(run_dir):
    expected = {".lock", "config.yaml", "overrides.yaml", "run.json", "tokenizer", "checkpoints"}
    expected |= {"metrics.jsonl", "samples.jsonl", "samples.md", "loss.png"}
    assert {path.name for path in run_dir.iterdir()} == expected
    run_info = json.loads((run_dir / "run.json").read_text())
    assert (run_info["status"], run_info["attempts"]) == ("done", 1)
    assert len(run_info["config_hash"]) == len(run_info["corpus"]) == len(run_info["tokenizer"]) == 64
    metrics = {name for line in (run_dir / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    train = {"train/loss", "train/lr", "train/grad_norm", "train/tokens", "tokens_per_second", "seconds", "mfu"}
    validated = {"val/loss", "val/perplexity", "val/bits_per_byte", "val/text_bits_per_byte"}
    assert metrics == {"step", "device/memory_gb", *train, *validated}
    assert (run_dir / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    checkpoints = sorted(path.name for path in (run_dir / "checkpoints").glob("*.ckpt"))
    assert checkpoints == ["step-000005.ckpt", "step-000010.ckpt"]
    weights = checkpoint.read(run_dir / "checkpoints" / checkpoints[0])["state_dict"]
    assert weights["model.tokens.weight"].data_ptr() == weights["model.head.weight"].data_ptr()  # tied, so saved once


def test_a_run_sums_itself_up(run_dir):
    run = Run(run_dir)
    summary, seconds = run.summary, list(run.series("seconds").values())
    assert (summary["status"], summary["failure"], summary["energy_joules"]) == ("done", None, None)
    losses = run.series("val/loss")
    best = min(losses, key=losses.get)
    assert summary["metrics"]["val/loss"] == {"final": losses[10], "best": losses[best], "best_step": best}
    assert summary["objective"] == losses[best]
    assert summary["flops"] == run.series("train/tokens")[10] * run.info["flops_per_token"]
    assert seconds == sorted(seconds)
    assert summary["seconds"] == run.info["seconds"] >= seconds[-1] > 0
    assert run.config["optimizer.lr"] == run.info["config"]["optimizer"]["lr"]


def test_the_same_command_does_not_train_again(run_dir, small, monkeypatch, capsys):
    """Of a version without budget.flops, too."""
    before, info = (run_dir / "metrics.jsonl").read_bytes(), json.loads((run_dir / "run.json").read_text())
    for budget in (info["budget"], info["config"]["budget"]):
        assert budget.pop("flops", None) is None
    (run_dir / "run.json").write_text(json.dumps(info))
    assert trained(monkeypatch, *small, f"run_dir={run_dir}") == 0
    objective = json.loads((run_dir / "run.json").read_text())["objective"]
    assert f"is done: val/loss {objective}" in capsys.readouterr().out
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_a_sweep_is_named_by_its_swept_keys_and_outlasts_a_failed_job(small, tmp_path, capsys, monkeypatch):
    """Keys swept by a file and on the command line; the other keys, which are long, are left out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    experiment = "# @package _global_\nhydra: {sweeper: {params: {seed: '1,2'}}}\n"
    (tmp_path / "mine" / "experiment" / "sweep.yaml").write_text(experiment)
    settings = "experiment=sweep", "model.width=33,64", "budget.steps=2", "val_every_n_steps=2"
    assert trained(monkeypatch, "-m", "--config-dir=mine", *small, *settings) == 2
    printed = capsys.readouterr()
    assert "model.width=33 must be a multiple" in printed.err
    infos = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("sweeps/*/*/run.json")}
    assert infos.keys() == {"seed-1_width-64", "seed-2_width-64"}
    assert len({info["objective"] for info in infos.values()}) == 2
    for info in infos.values():
        assert info["status"] == "done"
        assert f"seed={info['seed']} width=64  val/loss {info['objective']:.4f}" in printed.out
    assert printed.out.count("failed: model.width=33 must be a multiple") == 1  # the others refer to it


# -- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = {  # tests/test_mistakes.py has impossible values, tests/test_habits.py keys of other frameworks
    "+optimizer.lrr=1e-3": "optimizer.lrr is not a setting of slm.optim.adamw.AdamW; did you mean optimizer.lr?",
    "++modle.width=64": "there is no key modle; did you mean model?",
    "+trainer.foo=3": "trainer.foo is not a setting",
    "+data.path2=x": "there is no key data.path2; did you mean data.path?",
    "model=smal": "model=smal is not one of base, dial, gpt2_124m, gpt2_350m, own, small, tiny; did you mean small?",
    "model=3": "model=3 is not one of base, dial, gpt2_124m",
    "model.width=65": "model.width=65 must be a multiple of model.head_dim=32; try model.width=64 or 96",
    "model.width=64,96": "model.width=64,96 gives several values; add -m",
    "model.context=100000": "fewer than one window of model.context=100000",
    "trainer=rtx4090": "trainer.accelerator=gpu needs a CUDA GPU and torch finds none; use trainer=cpu or trainer=auto",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU; on a CPU use bf16-mixed or 32-true",
    "+trainer.lightning.strategy=ddp_fork": "trainer.lightning is not passed on to Lightning: give its keywords as",
    "trainer.profiler=nope": "Lightning refuses the trainer: ",
    "resume=/no/such.ckpt": "/no/such.ckpt does not exist; it takes a .ckpt file, a run folder, latest",
    "run_dir=README.md": "run_dir=README.md is a file",
    "runs_dir=/proc/nope": "/proc/nope",
    "name=${no.such.key}": "Interpolation key 'no.such.key' not found",
    "optimizer": "'optimizer' is not key=value; python train.py --help lists the keys",
    "=3": "'=3' is not key=value",
    "--seed=3": "a key stands without hyphens (seed=1)",
    "++model=smal": "model=smal is not one of",
    "+callbacks.x.a=1": "callbacks.x must have a _target_",
    "cache_dir=": "cache_dir= is empty, and must name a folder",
    "seed=1e3": "seed=1000.0 must be a whole number; write 1000",
    "name=1": "name=1 must be text or null; quote what looks like a number",
    "tags=[1,true]": "must be a list (text each); quote what looks like a number",
    "tags=a": "tags='a' must be a list (text each); write [a]",
    "optimizer.lr=[1": "cannot read optimizer.lr; write key=value",
    "~model.depth": "model.depth is missing; null stands for no value",
    "~data": "there is no key data.path, since data is left out or has another option",
    "+callbacks.x={a: 1}": "callbacks.x must have a _target_, the class to build, not be {'a': 1}",
    "+callbacks.x._target_=no.such.Class": "callbacks.x._target_=no.such.Class cannot be imported",
    "+callbacks.x._target_=pathlib.Path": "callbacks.x._target_ must be a Lightning Callback, not PosixPath",
    "+callbacks.x._target_=builtins.int": "callbacks.x._target_=builtins.int has no signature",
    "schedule._target_=math.sin": "schedule: math.sin must take (steps done, steps in all)",
    "callbacks=null": "callbacks.checkpoints cannot be left out",
    "--config-name=generate": "there is no key data",
    "--config-name=nope": "Cannot find primary config 'nope'",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_is_one_line(argument, small, folder, monkeypatch, capsys):
    """In this process; only the cache is written."""
    if argument == "trainer=rtx4090" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    before = set((folder / "runs").rglob("*"))
    settings = [word for word in small if argument != "callbacks=null" or "callbacks" not in word]
    assert trained(monkeypatch, *settings, argument) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert MISTAKES[argument] in line
    assert set((folder / "runs").rglob("*")) == before


FULL = OSError(errno.ENOSPC, "No space left on device", "x.ckpt")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 4, r"error: out of memory .*trainer.microbatch=2"),
        (FULL, 4, r"error: cannot write x.ckpt: No space left on device"),
        (RuntimeError("a bug"), 1, r"RuntimeError: a bug"),
    ],
    ids=["memory", "disk", "bug"],
)
def test_only_a_bug_of_this_program_has_a_traceback(error, code, message, small, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr("slm.training.module.Pretraining.training_step", broken)
    assert trained(monkeypatch, *small) == code
    printed = capsys.readouterr().err
    assert re.match(message, printed.strip().splitlines()[-1])
    assert ("Traceback" in printed) == (code == 1)


def test_interpolations_on_the_command_line_are_resolved_and_recorded_as_typed(small, tmp_path, monkeypatch):
    arguments = ["name=seed_${seed}", "callbacks.samples.max_new_tokens=${budget.steps}", "budget.steps=2"]
    assert trained(monkeypatch, *small, *arguments, f"runs_dir={tmp_path}") == 0
    (run_dir,) = tmp_path.iterdir()
    assert "_seed_42-" in run_dir.name
    assert "max_new_tokens: 2" in (run_dir / "config.yaml").read_text()
    assert "max_new_tokens=${budget.steps}" in (run_dir / "overrides.yaml").read_text()


def test_fast_dev_run_in_a_sweep_leaves_finished_runs_alone(text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = [*small_run(text_file, tmp_path), "-m", "seed=1,2", "hydra.sweep.dir=s", "callbacks.samples=null"]
    assert trained(monkeypatch, *sweep, "budget.steps=1", "val_every_n_steps=1") == 0
    assert trained(monkeypatch, *sweep, "trainer.fast_dev_run=true") == 0
    assert {path.parent.name for path in tmp_path.glob("s/*/run.json")} == {"seed-1", "seed-2"}


def test_a_finished_run_answers_with_the_metric_that_is_asked_for(finished, text_file, tmp_path, monkeypatch, capsys):
    lines, name = jsonl.lines(finished / "metrics.jsonl"), "val/bits_per_byte"
    lowest = min(line[name] for line in lines if name in line)
    arguments = [*small_run(text_file, finished.parent), "log_windows=true", f"run_dir={finished}"]
    assert trained(monkeypatch, *arguments, f"optimized_metric={name}") == 0
    assert f"{name} {lowest}" in capsys.readouterr().out
