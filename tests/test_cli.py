"""train.py as a user types it: a mistake gives one line and exit code 2, a success a complete run folder."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import trained

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def small(folder, text_file):
    """The arguments of a run that takes seconds."""
    text = ["data=text", f"data.path={text_file}", "data.separator=<|endoftext|>", "tokenizer=bytes"]
    return [*text, "trainer=cpu", "debug=default", f"runs_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}"]


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


def last_line(capsys) -> str:
    """The last line on stderr, which is the message of a mistake."""
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


# -- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_an_experiment_takes_any_tokenizer(small, tmp_path, monkeypatch, tokenizer):
    arguments = [*small, "experiment=modern_small", f"tokenizer={tokenizer}", f"run_dir={tmp_path / 'run'}"]
    assert trained(monkeypatch, *arguments, "budget.steps=2", "val_every_n_steps=2", "callbacks.samples=null") == 0


def test_a_run_folder_is_complete(run_dir):
    expected = {".lock", "config.yaml", "overrides.yaml", "run.json", "tokenizer", "checkpoints"}
    expected |= {"metrics.jsonl", "samples.jsonl", "samples.md", "loss.png"}
    assert {path.name for path in run_dir.iterdir()} == expected
    run_info = json.loads((run_dir / "run.json").read_text())
    assert (run_info["status"], run_info["attempts"]) == ("done", 1)
    assert len(run_info["config_hash"]) == len(run_info["corpus"]) == len(run_info["tokenizer"]) == 64
    metrics = {name for line in (run_dir / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    train = {"train/loss", "train/lr", "train/grad_norm", "train/tokens", "tokens_per_second", "mfu"}
    assert metrics == {"step", "device/memory_gb", *train, "val/loss", "val/perplexity", "val/bits_per_byte"}
    assert (run_dir / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    checkpoints = sorted(path.name for path in (run_dir / "checkpoints").glob("*.ckpt"))
    assert checkpoints == ["step-000005.ckpt", "step-000010.ckpt"]


def test_the_same_command_does_not_train_again(run_dir, small, monkeypatch, capsys):
    assert trained(monkeypatch, *small, f"run_dir={run_dir}") == 0
    assert "is done: val/loss" in capsys.readouterr().out


def test_sweep(small, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert trained(monkeypatch, "-m", *small, "optimizer.lr=3e-4,1e-3", "model.width=32,64") == 0
    printed = capsys.readouterr().out
    (sweep,) = (folder / "sweeps").iterdir()
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == [f"model.width-{width}_optimizer.lr-{lr}" for width in (32, 64) for lr in ("0.0003", "0.001")]
    infos = [json.loads((sweep / job / "run.json").read_text()) for job in jobs]
    assert {info["status"] for info in infos} == {"done"}
    assert len({info["objective"] for info in infos}) == 4
    for job, info in zip(jobs, infos, strict=True):
        assert f"{info['objective']:.4f}  {job}" in printed  # the table at the end


def test_a_failed_job_does_not_end_a_sweep(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trained(monkeypatch, "-m", *small, "model.width=33,64") == 2
    assert "model.width=33 must be a multiple" in capsys.readouterr().err
    assert len(list(tmp_path.glob("sweeps/*/*/run.json"))) == 1


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint(small, folder):
    run_dir = folder / "terminated"
    budget = ["budget.steps=100000", "log_every_n_steps=100", "val_every_n_steps=100000"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *small, *budget, f"run_dir={run_dir}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 60
    while time.time() < deadline and not (run_dir / "metrics.jsonl").exists():
        time.sleep(0.1)
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert "goes on from here" in out
    assert json.loads((run_dir / "run.json").read_text())["status"] == "stopped"
    assert list((run_dir / "checkpoints").glob("*.ckpt"))


# -- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = {  # tests/test_mistakes.py has impossible values, tests/test_habits.py keys of other frameworks
    "+optimizer.lrr=1e-3": "optimizer.lrr is not a setting of slm.optim.adamw.AdamW; did you mean optimizer.lr?",
    "++modle.width=64": "there is no key modle; did you mean model?",
    "+trainer.foo=3": "trainer.foo is not a setting",
    "+data.path2=x": "there is no key data.path2; did you mean data.path?",
    "model=smal": "model=smal is not one of base, gpt2_124m, gpt2_350m, small, tiny; did you mean small?",
    "model=3": "model=3 is not one of base, gpt2_124m",
    "trainer=h100": "trainer=h100 is not one of auto, cpu, ddp",
    "hydra/launcher=nope": "hydra/launcher=nope is not one of basic",
    "model.width=abc": "model.width='abc' must be a whole number",
    "model.width=65": "model.width=65 must be a multiple of model.head_dim=32; try model.width=64 or 96",
    "model.width=64,96": "model.width=64,96 gives several values; add -m",
    "model.context=100000": "fewer than one window of model.context=100000",
    "schedule.decay_fraction=0.1": "there is no key schedule.decay_fraction",
    "trainer=rtx4090": "this trainer needs a CUDA GPU and torch finds none; use trainer=cpu or trainer=auto",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU; on a CPU use bf16-mixed or 32-true",
    "trainer.microbatch=3": "data.batch_windows=4 must be a multiple of trainer.microbatch=3",
    "trainer.profiler=nope": "Lightning refuses the trainer: ",
    "data.path=/no/such/file": "data.path=/no/such/file does not exist",
    "data.path=a**b": "data.path=a**b names no file: Invalid pattern",
    "resume=/no/such.ckpt": "/no/such.ckpt does not exist; it takes a .ckpt file, a run folder, latest",
    "run_dir=README.md": "run_dir=README.md is a file",
    "runs_dir=/proc/nope": "/proc/nope",
    "name=${no.such.key}": "Interpolation key 'no.such.key' not found",
    "optimizer": "'optimizer' is not key=value; python train.py --help lists the keys",
    "=3": "'=3' is not key=value",
    "optimizer.lr=[1": "cannot read optimizer.lr; write key=value",
    "~model.depth": "model.depth is missing; null stands for no value",
    "~data": "there is no key data.path, since data is left out or has another option",
    "+callbacks.x={a: 1}": "callbacks.x must have a _target_, the class to build, not be {'a': 1}",
    "+callbacks.x._target_=no.such.Class": "callbacks.x._target_=no.such.Class cannot be imported",
    "+callbacks.x._target_=pathlib.Path": "callbacks.x._target_ must be a Lightning Callback, not PosixPath",
    "+callbacks.x._target_=builtins.int": "callbacks.x._target_=builtins.int has no signature",
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
    assert trained(monkeypatch, *small, argument) == 2
    assert MISTAKES[argument] in last_line(capsys)
    assert set((folder / "runs").rglob("*")) == before


def test_a_vocabulary_that_is_too_large_names_the_largest(small, capsys, monkeypatch):
    arguments = [argument for argument in small if argument != "tokenizer=bytes"]
    assert trained(monkeypatch, *arguments, "tokenizer.vocab_size=16000") == 2
    largest = re.search(r"tokenizer.vocab_size=16000 .* use tokenizer.vocab_size=(\d+)", last_line(capsys))[1]
    assert 256 < int(largest) < 16000


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"caf\xe9 " * 100, "UTF-8"), (b"short", "fewer than one window"), (b"  \n \n", "empty")],
    ids=["empty", "not UTF-8", "too short", "white"],
)
def test_bad_text(content, message, small, tmp_path, monkeypatch, capsys):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert trained(monkeypatch, *small, f"data.path={path}", "data.separator=null") == 2
    assert message in last_line(capsys)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "trainer.microbatch=2"),
        (OSError(errno.ENOSPC, "No space left on device", "x.ckpt"), "cannot write x.ckpt: No space left on device"),
    ],
    ids=["memory", "disk"],
)
def test_a_limit_of_the_machine_is_one_line_and_exit_code_4(error, message, small, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("slm.training.module.Pretraining.training_step", full)
    assert trained(monkeypatch, *small) == 4
    assert message in last_line(capsys)


def test_a_bug_of_this_program_keeps_its_traceback(small, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("slm.run.train.prepare_job", broken)
    assert trained(monkeypatch, *small) == 1
    assert "RuntimeError: a bug" in capsys.readouterr().err


def test_interpolations_on_the_command_line_are_resolved_and_recorded_as_typed(small, tmp_path, monkeypatch):
    arguments = ["name=seed_${seed}", "callbacks.samples.max_new_tokens=${budget.steps}", "budget.steps=2"]
    assert trained(monkeypatch, *small, *arguments, f"runs_dir={tmp_path}") == 0
    (run_dir,) = tmp_path.iterdir()
    assert "_seed_42-" in run_dir.name
    assert "max_new_tokens: 2" in (run_dir / "config.yaml").read_text()
    assert "max_new_tokens=${budget.steps}" in (run_dir / "overrides.yaml").read_text()
