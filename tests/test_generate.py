"""generate.py as a user types it: a mistake gives one line and exit code 2, a success texts on stdout."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import ROOT, exit_code, flip_a_bit
from forks import forked

from slm.errors import CONTROL
from slm.run import cli, start

AWKWARD = 'It\'s a "test", {x: [1, 2]} = ${oops} % \\n ü 漢 🙂, $HOME; --help'
NAME = "step-000010.ckpt"


@pytest.fixture
def generated(monkeypatch):
    """A function from arguments to the exit code of generate.py."""
    return partial(exit_code, monkeypatch, cli.generate_main)


@pytest.mark.parametrize("script", ["generate.py", "slm"])
def test_a_prompt_is_taken_literally(script, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = f"ckpt={finished}", f"prompt={AWKWARD}", "max_new_tokens=5"
    if script == "slm":
        done = forked("generate", *arguments, main=start.main)
    else:
        done = subprocess.run([sys.executable, ROOT / script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(AWKWARD)
    assert list(tmp_path.iterdir()) == []  # no folders of Hydra's


def test_modes_of_generation(finished, tmp_path, capsys, generated):
    """Batches are reproducible, and streamed texts equal whole ones; a checkpoint needs no run folder."""

    def printed(*arguments: str) -> str:
        assert generated(f"ckpt={tmp_path / NAME}", "max_new_tokens=9", *arguments) == 0
        out = capsys.readouterr().out
        assert not CONTROL.search(out)  # the model generates any bytes
        return out

    shutil.copy(finished / "checkpoints" / NAME, tmp_path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\n\na small, old dog saw\n", encoding="utf-8")
    first, second = (printed(f"prompts_file={prompts}", "num_samples=2", "format=jsonl", "seed=3") for _ in range(2))
    assert first == second
    texts = [json.loads(line) for line in first.splitlines()]
    expected = [(prompt, sample) for prompt in ("the cat", "a small, old dog saw") for sample in (0, 1)]
    assert [(text["prompt"], text["sample"]) for text in texts] == expected
    streamed, whole = (printed("prompt=the", "greedy=true", f"stream={value}") for value in ("true", "false"))
    assert streamed.strip() == whole.removesuffix("---\n").strip()


def test_auto_takes_the_type_for_so_many_texts(finished, monkeypatch, capsys, generated):
    monkeypatch.setattr("slm.generation.quantize.has_fast_bfloat16", lambda device: False)
    for count, dtype in ((8, "int8"), (9, "float32")):
        printed = []
        for given in ("auto", dtype):
            settings = "prompt=the", f"num_samples={count}", "max_new_tokens=9", "format=jsonl"
            assert generated(f"ckpt={finished}", *settings, f"dtype={given}") == 0
            printed.append(capsys.readouterr())
        assert printed[0].out == printed[1].out
        assert f"dtype=auto takes {dtype} for {count} text(s)" in printed[0].err


MISTAKES = {  # tests/test_security.py has URLs
    "ui=web serve=openai": "ui= and serve= exclude one another",
    "ui=web num_samples=3": "ui=web and num_samples= exclude one another",
    "serve=openai prompt=Once": "serve=openai and prompt= exclude one another",
    "serve=openai host=0.0.0.0": "host=0.0.0.0 lets other machines use the model; give token=",
    "serve=openai max_new_tokens=100000": "max_new_tokens=100000 must be at most 4096",
    "ckpt2=runs/a": "ckpt2= is only for ui=web and serve=openai",
    "token=a-long-word": "token= is only for ui=web and serve=openai",
    "serve=http": "serve='http' must be one of openai",
    "ckpt=/no/such.ckpt": "ckpt=/no/such.ckpt does not exist",
    "ckpt={truncated}": "not a checkpoint, or a truncated one",
    "ckpt={text}": "not a checkpoint, or a truncated one",
    "ckpt={foreign}": "not one of slm",
    "ckpt_path={flipped}": "its sha256 is not the one beside it",
    "ckpt={pipe}": "is not a file",
    "ckpt=/proc/self/mem": "not a checkpoint",
    "ckpt=~nobody-of-that-name/x.ckpt": "does not exist",
    "ckpt=" + "x" * 300: "is not a valid file name: File name too long",
    "ckpt=latest runs_dir={empty}": "no run in",
    "temperature=0": "greedy=true",
    "top_k=many": "top_k='many' must be a whole number",
    "+temprature=1": "did you mean temperature?",
    "max_tokens=5": "did you mean max_new_tokens?",
    "num_return_sequences=2": "did you mean num_samples?",
    "start=the": "did you mean prompt?",
    "max_new_tokens=-1": "max_new_tokens=-1",
    "num_samples=0": "num_samples=0 must be a whole number from 1",
    "seed=null": "seed=null must be a whole number",
    "dtype=int8,float32": "dtype=int8,float32 gives several values, and generate.py takes one",
    "-m": "-m is not key=value; python generate.py --help lists the keys",
    "interactive=true format=jsonl": "interactive=true and format=jsonl exclude one another",
    "prompt=a interactive=true": "prompt= and interactive= exclude one another",
    "prompt=\udcff": "prompt= is not UTF-8 text",
    "prompts_file={pipe}": "is not a file; save the prompts in one",
    "prompts_file=/dev/zero": "is not a file",
    "prompts_file={truncated}": "is not UTF-8 text",
    "prompts_file={nothing}": "is empty",
    "prompts_file=/no/such.txt": "/no/such.txt",
    "device=cuda": "device=cuda needs a CUDA GPU and torch finds none; use device=cpu or device=auto (",
}


@pytest.fixture(scope="module")
def paths(finished, tmp_path_factory) -> dict[str, str]:
    """Files that no text can be generated from, by name."""
    folder = tmp_path_factory.mktemp("files")
    names = ("truncated", "foreign", "text", "flipped", "pipe", "nothing", "empty")
    paths = {name: folder / f"{name}.ckpt" for name in names}
    paths["truncated"].write_bytes((finished / "checkpoints" / NAME).read_bytes()[:50_000])
    shutil.copy(finished / "checkpoints" / NAME, paths["flipped"])
    shutil.copy(finished / "checkpoints" / f"{NAME}.sha256", folder / "flipped.ckpt.sha256")
    flip_a_bit(paths["flipped"])
    torch.save({"state_dict": {}}, paths["foreign"])
    paths["text"].write_text("these are not weights")
    os.mkfifo(paths["pipe"])
    paths["nothing"].touch()
    return {"run": finished, **paths}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(arguments, paths, capsys, generated):
    if arguments == "device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    given = [argument.format(**paths) for argument in arguments.split(" ")]
    assert generated(*given, *([] if arguments.startswith("ckpt") else [f"ckpt={paths['run']}"])) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert MISTAKES[arguments] in line
