"""The commands as a user types them: each mistake is one line and exit code 2, each success leaves what it says."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import hydra
import pytest
import torch
from conftest import CONF, trained
from omegaconf import OmegaConf

from slm.run import cli

ROOT = Path(__file__).parents[1]


def command(script: str, *arguments, cwd=None, **environment):
    """Runs a script of the project as its own process, on one thread."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=cwd or ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def small(folder, text_file):
    """The arguments of a run that takes seconds."""
    return [
        "data=text",
        f"data.path={text_file}",
        "data.separator=<|endoftext|>",
        "tokenizer=bytes",
        "trainer=cpu",
        "debug=default",
        f"runs_dir={folder / 'runs'}",
        f"cache_dir={folder / 'cache'}",
    ]


@pytest.fixture(scope="module")
def run_dir(small, folder) -> Path:
    """A run, made by the command line, in a process that dies where it looks for a network."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "NETWORK = ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto')\n"
        "sys.addaudithook(lambda event, arguments: os._exit(77) if event in NETWORK else None)\n"
    )
    done = command("train.py", *small, f"run_dir={folder / 'a run, with = and ü'}", PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    return folder / "a run, with = and ü"


def last_line(done) -> str:
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr, done.stderr
    return lines[-1] if lines else ""


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_a_recipe_takes_any_tokenizer(small, tmp_path, monkeypatch, tokenizer):
    arguments = [*small, "experiment=modern_small", f"tokenizer={tokenizer}", f"run_dir={tmp_path / 'run'}"]
    assert trained(monkeypatch, *arguments, "budget.steps=2", "val_every_n_steps=2", "callbacks.samples=null") == 0


# -- training -------------------------------------------------------------------------------------------------------


def test_a_run_folder_is_complete(run_dir):
    names = {path.name for path in run_dir.iterdir()}
    expected = {".lock", "config.yaml", "overrides.yaml", "run.json", "tokenizer", "checkpoints"}
    assert expected | {"metrics.jsonl", "samples.jsonl", "samples.md", "loss.png"} == names
    card = json.loads((run_dir / "run.json").read_text())
    assert card["status"] == "done"
    assert card["lives"] == 1
    assert len(card["config_hash"]) == len(card["corpus"]) == len(card["tokenizer"]) == 64
    names = {name for line in (run_dir / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    train = {"train/loss", "train/lr", "train/grad_norm", "train/tokens", "tokens_per_second", "mfu"}
    assert names == {"step", "device/memory_gb", *train, "val/loss", "val/perplexity", "val/bits_per_byte"}
    assert (run_dir / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in sorted((run_dir / "checkpoints").glob("*.ckpt"))] == [
        "step-000005.ckpt",
        "step-000010.ckpt",
    ]


def test_the_same_command_finds_it_done(run_dir, small):
    done = command("train.py", *small, f"run_dir={run_dir}")
    assert done.returncode == 0
    assert "is done: val/loss" in done.stdout


def test_sweep(small, folder, capsys, monkeypatch):
    start = time.time()
    monkeypatch.chdir(folder)
    assert trained(monkeypatch, "-m", *small, "optimizer.lr=3e-4,1e-3", "model.width=32,64") == 0
    printed = capsys.readouterr().out
    (sweep,) = (folder / "sweeps").iterdir()
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert [job[:2] for job in jobs] == ["0_", "1_", "2_", "3_"]
    assert all("optimizer.lr-" in job and "model.width-" in job and "=" not in job for job in jobs)
    cards = [json.loads((sweep / job / "run.json").read_text()) for job in jobs]
    assert len({card["objective"] for card in cards}) == 4
    assert {card["status"] for card in cards} == {"done"}
    for job, card in zip(jobs, cards, strict=True):
        assert f"{card['objective']:.4f}  {job}" in printed  # the table at the end
    assert time.time() - start < 60


def test_a_failing_job_does_not_end_a_sweep(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trained(monkeypatch, "-m", *small, "model.width=33,64") == 2
    assert "model.width=33 must be a multiple" in capsys.readouterr().err
    assert len(list(tmp_path.glob("sweeps/*/*/run.json"))) == 1


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(small, folder):
    here = folder / "terminated"
    arguments = [*small, f"run_dir={here}", "budget.steps=100000", "log_every_n_steps=100", "val_every_n_steps=100000"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 60
    while time.time() < deadline and not (here / "metrics.jsonl").exists():
        time.sleep(0.1)
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert "goes on from here" in out
    card = json.loads((here / "run.json").read_text())
    assert card["status"] == "stopped"
    assert list((here / "checkpoints").glob("*.ckpt"))


def test_help_is_quick():
    start = time.time()
    done = command("train.py", "--help")
    assert done.returncode == 0
    assert "optimizer: adamw" in done.stdout
    assert time.time() - start < 20


# -- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = {
    "optimizer.lrr=1e-3": "there is no key optimizer.lrr; did you mean optimizer.lr?",
    "+optimizer.lrr=1e-3": "optimizer.lrr is not a setting; did you mean optimizer.lr?",
    "++modle.width=64": "there is no key modle.width; did you mean model.width?",
    "+learning_rate=1e-3": "there is no key learning_rate",
    "lr=1e-3": "there is no key lr; did you mean optimizer.lr?",
    "model=smal": "model=smal is not one of base, gpt2_124m, gpt2_350m, small, tiny; did you mean small?",
    "experiment=../../evil": "experiment=../../evil is not one of",
    "model.width=abc": "model.width='abc' must be a whole number",
    "model.width=65": "model.width=65 must be a multiple of model.head_dim=32; try model.width=64 or 96",
    "model.norm=batch": "model.norm='batch' must be one of layernorm, rmsnorm",
    "optimizer.lr=fast": "optimizer.lr='fast' must be a number",
    "optimizer.lr=-1": "optimizer.lr=-1 must be above 0",
    "model.width=64,96": "gives several values; add -m",
    "trainer=rtx4090": "this trainer needs a CUDA GPU and torch sees none here; use trainer=cpu or trainer=auto",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU; on a CPU use bf16-mixed or 32-true",
    "trainer.microbatch=3": "data.batch_windows=4 must be a multiple of trainer.microbatch=3",
    "data.batch_windows=0": "data.batch_windows=0 must be at least 1",
    "budget.steps=0": "budget.steps=0 must be above 0",
    "budget.max_time=soon": "budget.max_time=soon must be hh:mm:ss",
    "schedule.warmup_steps=11": "schedule.warmup_steps=11 must be between 0 and the run's 10 steps",
    "data.path=/no/such/file": "/no/such/file",
    "callbacks.samples.every_n_steps=0": "callbacks.samples.every_n_steps=0 must be at least 1",
    "callbacks.checkpoints.keep_last=1": "callbacks.checkpoints.keep_last=1 must be at least 2",
    "resume=/no/such.ckpt": "/no/such.ckpt does not exist",
    "optimizer._target_=os.system": "optimizer._target_=os.system is outside slm.corpora., ",
    "trainer.clip=-1": "trainer.clip=-1 must be above 0",
    "trainer.devices=abc": "trainer.devices=abc must be at least 1, or auto",
    "schedule.final=-1": "schedule.final=-1 must be at least 0",
    "optimizer.eps=-1": "optimizer.eps=-1 must be above 0",
    "model.mlp_width=-5": "model.mlp_width=-5 must be at least 1",
    "model.rope_base=0": "model.rope_base=0 must be at least 1",
    "optimized_metric=val/los": "optimized_metric=val/los is not one of val/loss",
    "optimizer": "'optimizer' is not key=value",
    "modle=tiny": "there is no key modle; did you mean model?",
    "trainer.precision=fp16": "trainer.precision=fp16 is not one of auto, 32-true, bf16-mixed, 16-mixed",
    "run_dir=README.md": "run_dir=README.md is a file",
    "hooks={x: {a: 1}}": "Could not override 'hooks'",
    "+hooks.x={a: 1}": "hooks.x must have a _target_",
    "callbacks.checkpoints=null": "callbacks.checkpoints cannot be left out",
    "~model.depth": "give model.depth=null instead",
    "runs_dir=/proc/nope": "/proc/nope",
    "seed=-1": "seed=-1 must be at least 0",
    "model.context=100000": "fewer than one window of model.context=100000",
    "name=1": "name=1 must be text or null",
    "runs_dir=null": "runs_dir=null must be text",
    "model.depth=1000000000": "model.depth=1000000000, model.mlp_width=256",
    "budget.tokens=inf": "budget.tokens=inf must be above 0 and at most 1e+18",
    "data.path=a**b": "data.path=a**b names no file: Invalid pattern",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_mistakes_are_one_line(override, small, folder, monkeypatch, capsys):
    """In this process, with the arguments a shell would pass; nothing is written but the cache."""
    if override == "trainer=rtx4090" and cli_sees_cuda():
        pytest.skip("this machine has a CUDA GPU")
    before = set((folder / "runs").rglob("*"))
    assert trained(monkeypatch, *small, override) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ")
    assert MISTAKES[override] in error[-1]
    assert set((folder / "runs").rglob("*")) == before


def cli_sees_cuda() -> bool:
    return torch.cuda.is_available()


def test_vocabulary_too_large_names_the_maximum(small, capsys, monkeypatch):
    arguments = [argument for argument in small if argument != "tokenizer=bytes"]
    assert trained(monkeypatch, *arguments, "tokenizer.vocab_size=16000") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "tokenizer.vocab_size=16000" in line
    maximum = max(
        int(word) for word in line.replace("=", " ").replace(",", " ").split() if word.isdigit() and word != "16000"
    )
    assert 256 < maximum < 16000


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"caf\xe9 " * 100, "UTF-8"), (b"short", "fewer than one window"), (b"  \n \n", "empty")],
    ids=["empty", "not UTF-8", "too short", "white"],
)
def test_bad_text(content, message, small, tmp_path, monkeypatch, capsys):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    arguments = [a for a in small if not a.startswith(("data.path", "data.separator"))]
    assert trained(monkeypatch, *arguments, f"data.path={path}") == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "trainer.microbatch=2"),
        (OSError(errno.ENOSPC, "No space left on device", "x.ckpt"), "cannot write x.ckpt: No space left on device"),
    ],
    ids=["memory", "disk"],
)
def test_what_the_machine_lacks_is_one_line_and_exit_code_4(error, message, small, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("slm.training.module.Pretraining.training_step", full)
    assert trained(monkeypatch, *small) == 4
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_our_bugs_keep_their_traceback(small, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("slm.run.train.prepare_data", broken)
    assert trained(monkeypatch, *small) == 1
    assert "RuntimeError: a bug" in capsys.readouterr().err


# -- configuration --------------------------------------------------------------------------------------------------

OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=map("=".join, OPTIONS))
def test_every_option_composes_with_known_keys_only(group, option):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(hydra.compose("train"))
        config = OmegaConf.to_container(hydra.compose("train", overrides=[f"{group}={option}"]), resolve=True)
    assert config.keys() == plain.keys()
    for fixed in ("model", "trainer", "budget"):
        assert config[fixed].keys() == plain[fixed].keys()


def test_one_length_of_training_replaces_the_other():
    assert cli.one_length(["budget.steps=5"]) == ["budget.steps=5", "budget.tokens=null", "budget.epochs=null"]
    both = ["budget.steps=5", "budget.tokens=9"]
    assert cli.one_length(both) == [*both, "budget.epochs=null"]
    assert cli.one_length(["seed=1"]) == ["seed=1"]


# -- generation -----------------------------------------------------------------------------------------------------

AWKWARD = 'It\'s a "test", {x: [1, 2]} = ${oops} % \\n ü 漢 🙂, $HOME; --help'


def test_prompts_are_literal(run_dir, tmp_path):
    done = command("generate.py", f"ckpt={run_dir}", f"prompt={AWKWARD}", "max_new_tokens=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(AWKWARD)
    assert list(tmp_path.iterdir()) == []  # no folders of Hydra's


def told(capsys, monkeypatch, *arguments) -> str:
    """What generate.py prints, run in this process."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    cli.generate_main()
    return capsys.readouterr().out


def test_modes_of_generation(run_dir, tmp_path, capsys, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\n\na small, old dog saw\n", encoding="utf-8")
    (lone,) = (run_dir / "checkpoints").glob("step-000010.ckpt")
    copy = tmp_path / "lone.ckpt"
    copy.write_bytes(lone.read_bytes())
    batch = [f"ckpt={copy}", f"prompts_file={prompts}", "num_samples=2", "max_new_tokens=9", "format=jsonl", "seed=3"]
    first, second = (told(capsys, monkeypatch, *batch) for _ in range(2))
    assert first == second
    stories = [json.loads(line) for line in first.splitlines()]
    assert [(story["prompt"], story["sample"]) for story in stories] == [
        ("the cat", 0), ("the cat", 1), ("a small, old dog saw", 0), ("a small, old dog saw", 1)
    ]  # fmt: skip
    greedy = [f"ckpt={copy}", "prompt=the", "greedy=true", "max_new_tokens=9"]
    streamed, whole = (told(capsys, monkeypatch, *greedy, f"stream={value}") for value in ("true", "false"))
    assert streamed.strip() == whole.removesuffix("---\n").strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ckpt=/no/such.ckpt"], "ckpt=/no/such.ckpt does not exist"),
        (["ckpt=http://127.0.0.1:9/x.ckpt"], "is a URL"),
        (["ckpt={truncated}"], "not a checkpoint, or a truncated one"),
        (["ckpt={foreign}"], "not one of slm"),
        (["ckpt_path={flipped}"], "its sha256 is not the one beside it"),
        (["ckpt={text}"], "not a checkpoint, or a truncated one"),
        (["ckpt=latest", "runs_dir={empty}"], "no run in"),
        (["ckpt={run}", "temperature=0"], "greedy=true"),
        (["ckpt={run}", "top_p=1.5"], "top_p=1.5"),
        (["ckpt={run}", "top_k=many"], "top_k='many' must be a whole number"),
        (["ckpt={run}", "temprature=1"], "did you mean temperature?"),
        (["ckpt={run}", "+temprature=1"], "did you mean temperature?"),
        (["ckpt={run}", "max_new_tokens=-1"], "max_new_tokens=-1"),
        (
            ["ckpt={run}", "max_new_tokens=1000000000"],
            "max_new_tokens=1000000000 must be a whole number from 1 to 1,000",
        ),
        (["ckpt={run}", "num_samples=0"], "num_samples=0 must be a whole number from 1"),
        (["ckpt={run}", "num_samples=1e9"], "num_samples=1000000000.0 must be a whole number"),
        (["ckpt={run}", "temperature=nan"], "temperature=nan must be"),
        (["ckpt={run}", "temperature=-1"], "temperature=-1 must be"),
        (["ckpt={run}", "top_k=0"], "top_k=0 must be"),
        (["ckpt={run}", "top_p=0"], "top_p=0 must be"),
        (["ckpt={run}", "seed=null"], "seed=null must be a whole number"),
        (["ckpt={run}", "dtype=int8,float32"], "dtype=int8,float32 gives several values, and generate.py takes one"),
        (["ckpt={run}", "-m"], "-m is not taken; give key=value"),
        (["ckpt={run}", "interactive=true", "format=jsonl"], "interactive=true and format=jsonl exclude one another"),
        (["ckpt={run}", "prompt=\udcff"], "prompt= is not UTF-8 text"),
        (["ckpt={run}", "prompts_file={pipe}"], "is not a file; save the prompts in one"),
        (["ckpt={run}", "prompts_file=/dev/zero"], "is not a file"),
        (["ckpt={run}", "prompts_file={run}"], "is not a file"),
        (["ckpt={run}", "prompts_file={truncated}"], "is not UTF-8 text"),
        (["ckpt={run}", "prompts_file={nothing}"], "is empty"),
        (["ckpt={pipe}"], "no checkpoint at"),
        (["ckpt=" + "x" * 300], "names no file: File name too long"),
        (["ckpt=~nobody-of-that-name/x.ckpt"], "does not exist"),
        (["ckpt=/proc/self/mem"], "not a checkpoint"),
        (["ckpt={run}", "prompts_file=/no/such.txt"], "/no/such.txt"),
        (["ckpt={run}", "prompt=a", "interactive=true"], "prompt= and interactive= exclude one another"),
        (["ckpt={run}", "device=cuda"], "device=cuda"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_generation(arguments, message, run_dir, tmp_path, monkeypatch, capsys):
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    whole = (run_dir / "checkpoints" / "step-000010.ckpt").read_bytes()
    places = {name: tmp_path / f"{name}.ckpt" for name in ("truncated", "foreign", "text", "flipped")}
    places["truncated"].write_bytes(whole[: len(whole) // 2])
    places["flipped"].write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    digest = (run_dir / "checkpoints" / "step-000010.ckpt.sha256").read_text()
    (tmp_path / "flipped.ckpt.sha256").write_text(digest)
    torch.save({"state_dict": {}}, places["foreign"])
    places["text"].write_text("these are not weights")
    places |= {"run": run_dir, "empty": tmp_path / "empty", "pipe": tmp_path / "pipe", "nothing": tmp_path / "nothing"}
    os.mkfifo(places["pipe"])
    places["nothing"].touch()
    monkeypatch.setattr(sys, "argv", ["generate.py", *(argument.format(**places) for argument in arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.generate_main()
    error = capsys.readouterr().err.strip()
    assert exit_.value.code == 2
    assert message in error
    assert len(error.splitlines()) == 1
