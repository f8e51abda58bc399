"""generate.py as a user types it: a mistake gives one line and exit code 2, a success texts on stdout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import trained

from slm.run import cli

ROOT = Path(__file__).parents[1]
AWKWARD = 'It\'s a "test", {x: [1, 2]} = ${oops} % \\n ü 漢 🙂, $HOME; --help'


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, text_file) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    text = ["data=text", f"data.path={text_file}", "data.separator=<|endoftext|>", "tokenizer=bytes"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        places = [f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]
        assert trained(monkeypatch, *text, "trainer=cpu", "debug=default", *places) == 0
    return folder / "run"


@pytest.mark.parametrize("script", [[ROOT / "generate.py"], ["-m", "slm", "generate"]], ids=["script", "module"])
def test_a_prompt_is_taken_literally(script, run_dir, tmp_path):
    command = [sys.executable, *map(str, script), f"ckpt={run_dir}", f"prompt={AWKWARD}", "max_new_tokens=5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(AWKWARD)
    assert list(tmp_path.iterdir()) == []  # no folders of Hydra's


def generated(capsys, monkeypatch, *arguments) -> str:
    """The output of generate.py, run in this process."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    cli.generate_main()
    return capsys.readouterr().out


def test_modes_of_generation(run_dir, tmp_path, capsys, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\n\na small, old dog saw\n", encoding="utf-8")
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes((run_dir / "checkpoints" / "step-000010.ckpt").read_bytes())
    batch = [f"ckpt={copy}", f"prompts_file={prompts}", "num_samples=2", "max_new_tokens=9", "format=jsonl", "seed=3"]
    first, second = (generated(capsys, monkeypatch, *batch) for _ in range(2))
    assert first == second
    texts = [json.loads(line) for line in first.splitlines()]
    expected = [(prompt, sample) for prompt in ("the cat", "a small, old dog saw") for sample in (0, 1)]
    assert [(text["prompt"], text["sample"]) for text in texts] == expected
    greedy = [f"ckpt={copy}", "prompt=the", "greedy=true", "max_new_tokens=9"]
    streamed, whole = (generated(capsys, monkeypatch, *greedy, f"stream={value}") for value in ("true", "false"))
    assert streamed.strip() == whole.removesuffix("---\n").strip()


MISTAKES = {
    "ckpt=/no/such.ckpt": "ckpt=/no/such.ckpt does not exist",
    "ckpt=http://127.0.0.1:9/x.ckpt": "is a URL",
    "ckpt={truncated}": "not a checkpoint, or a truncated one",
    "ckpt={foreign}": "not one of slm",
    "ckpt_path={flipped}": "its sha256 is not the one beside it",
    "ckpt={text}": "not a checkpoint, or a truncated one",
    "ckpt={pipe}": "no checkpoint at",
    "ckpt=/proc/self/mem": "not a checkpoint",
    "ckpt=~nobody-of-that-name/x.ckpt": "does not exist",
    "ckpt=" + "x" * 300: "is not a valid file name: File name too long",
    "ckpt=latest runs_dir={empty}": "no run in",
    "temperature=0": "greedy=true",
    "temperature=nan": "temperature=nan must be",
    "top_p=1.5": "top_p=1.5",
    "top_k=many": "top_k='many' must be a whole number",
    "temprature=1": "did you mean temperature?",
    "+temprature=1": "did you mean temperature?",
    "max_new_tokens=-1": "max_new_tokens=-1",
    "num_samples=0": "num_samples=0 must be a whole number from 1",
    "num_samples=1e9": "num_samples=1000000000.0 must be a whole number",
    "seed=null": "seed=null must be a whole number",
    "dtype=int8,float32": "dtype=int8,float32 gives several values, and generate.py takes one",
    "-m": "-m is not key=value; python generate.py --help lists the keys",
    "interactive=true format=jsonl": "interactive=true and format=jsonl exclude one another",
    "prompt=a interactive=true": "prompt= and interactive= exclude one another",
    "prompt=\udcff": "prompt= is not UTF-8 text",
    "prompts_file={pipe}": "is not a file; save the prompts in one",
    "prompts_file=/dev/zero": "is not a file",
    "prompts_file={run}": "is not a file",
    "prompts_file={truncated}": "is not UTF-8 text",
    "prompts_file={nothing}": "is empty",
    "prompts_file=/no/such.txt": "/no/such.txt",
    "device=cuda": "device=cuda",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line(arguments, run_dir, tmp_path, monkeypatch, capsys):
    if arguments == "device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    checkpoint = run_dir / "checkpoints" / "step-000010.ckpt"
    content = checkpoint.read_bytes()
    names = ("truncated", "foreign", "text", "flipped", "pipe", "nothing", "empty")
    paths = {"run": run_dir, **{name: tmp_path / f"{name}.ckpt" for name in names}}
    paths["truncated"].write_bytes(content[: len(content) // 2])
    paths["flipped"].write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    (tmp_path / "flipped.ckpt.sha256").write_text(checkpoint.with_name(f"{checkpoint.name}.sha256").read_text())
    torch.save({"state_dict": {}}, paths["foreign"])
    paths["text"].write_text("these are not weights")
    os.mkfifo(paths["pipe"])
    paths["nothing"].touch()
    given = [argument.format(**paths) for argument in arguments.split(" ")]
    given += [] if arguments.startswith("ckpt") else [f"ckpt={run_dir}"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *given])
    with pytest.raises(SystemExit) as exit_:
        cli.generate_main()
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert MISTAKES[arguments] in line
