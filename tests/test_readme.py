"""Every command of the README and of docs/ runs: here on a small text and for a few steps."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from slm import evaluate, verify
from slm.run import cli
from slm.run.overrides import read_arguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))]
COMMANDS = [
    line.split("  #")[0].strip()
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page, re.S)
    for line in block.splitlines()
    if not line.startswith(("git clone", "python -m venv"))
]
TABLE = [
    words for line in README.splitlines() if line.startswith("| ") for words in re.findall(r"`([^`]*=[^`]*)`", line)
]
QUICKSTART = "python train.py experiment=quickstart"  # run as it stands by .ci/run
TRAINING = [command for command in COMMANDS if command.startswith("python train.py") and command != QUICKSTART]
GENERATION = [command for command in COMMANDS if command.startswith("python generate.py")]
EVALUATION = [command for command in COMMANDS if command.startswith("python -m slm.evaluate")]
VERIFICATION = [command for command in COMMANDS if command.startswith("python -m slm.verify")]


def test_the_readme_has_commands():
    assert len(TRAINING) >= 8
    assert len(GENERATION) >= 2
    assert len(EVALUATION) >= 1
    assert len(TABLE) >= 4
    assert {*TRAINING, *GENERATION, *EVALUATION, *VERIFICATION, QUICKSTART} == set(COMMANDS)


@pytest.fixture(scope="module")
def places(tmp_path_factory, text_file):
    """A working folder with what the commands name, and arguments that make every training small."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "novels").mkdir()
    (folder / "novels" / "a.txt").write_text(text_file.read_text())
    (folder / "novels" / "b.txt").write_text(text_file.read_text())
    (folder / "prompts.txt").write_text("the cat\nthe dog\n")
    stand_in = {
        "data": "text",
        "data.path": str(text_file),
        "data.separator": "'<|endoftext|>'",
        "tokenizer": "bytes",
        "trainer": "cpu",
        "debug": "default",
        "cache_dir": str(folder / "cache"),
    }
    return folder, stand_in


def run(main, script, arguments, folder, monkeypatch) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
    try:
        main()
    except SystemExit as exit_:
        return exit_.code or 0
    return 0


@pytest.mark.parametrize("command", TRAINING)
def test_training(command, places, monkeypatch):
    folder, stand_in = places
    arguments = shlex.split(command)[2:]
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    read_arguments(arguments) if "-m" in arguments else cli.compose(map("=".join, given.items()))
    kept = {
        key: value
        for key, value in given.items()
        if key not in ("data", "trainer", "data.streaming", "logger", "tokenizer.vocab_size")
    }
    if given.get("data.path", "").startswith("novels"):
        kept["data.path"] = given["data.path"]
    else:
        kept.pop("data.path", None)
    if given.get("logger") == "wandb":
        monkeypatch.setenv("WANDB_MODE", "offline")
        kept["logger"] = "wandb"
    merged = {**stand_in, **kept, "model": given.get("model", "small")}
    merged |= {"budget.steps": "2", "model.depth": "1", "model.context": "32", "tokenizer": "bytes"}
    if "experiment" in given:  # which chooses what else it wants
        for choice in ("model", "data", "data.separator", "tokenizer", "debug"):
            merged.pop(choice, None)
        small = {"data.batch_windows": "4", "trainer.microbatch": "2", "data.validation_windows": "2"}
        merged |= small | {"callbacks.samples": "null"}
        if given["experiment"] == "modern_small":
            merged |= {"data": "text", "tokenizer.vocab_size": "300"}
    if given.get("data") == "storyworld":
        merged = {key: value for key, value in merged.items() if not key.startswith("data")} | {
            **{"data": "storyworld", "data.level": given.get("data.level", "tiny"), "tokenizer": "sentencepiece"},
            **{"data.stories": "400", "data.validation_stories": "4", "callbacks.stories.count": "1"},
            **{"model.context": given.get("model.context", "512")},  # that of model=small
        }
    merged = {key: value for key, value in merged.items() if key not in ("budget.tokens",)}
    flags = [argument for argument in arguments if argument.startswith("-")]
    assert run(cli.train_main, "train.py", [*flags, *map("=".join, merged.items())], folder, monkeypatch) == 0


@pytest.mark.parametrize("command", GENERATION)
def test_generation(command, places, monkeypatch, capsys):
    folder, stand_in = places
    if not list(folder.glob("runs/*")):
        arguments = list(map("=".join, stand_in.items()))
        assert run(cli.train_main, "train.py", arguments, folder, monkeypatch) == 0
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(EOFError))
    capsys.readouterr()
    arguments = [*shlex.split(command)[2:], "max_new_tokens=5"]
    assert run(cli.generate_main, "generate.py", arguments, folder, monkeypatch) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", EVALUATION)
def test_evaluation(command, places, monkeypatch, capsys):
    """Of a run on stories, made here."""
    folder, stand_in = places
    arguments = {key: value for key, value in stand_in.items() if not key.startswith("data")} | {
        **{"data": "storyworld", "data.level": "tiny", "data.stories": "20", "data.validation_stories": "4"},
        **{"run_dir": "runs/stories", "model.context": "900", "callbacks.stories": "null"},
    }
    assert run(cli.train_main, "train.py", list(map("=".join, arguments.items())), folder, monkeypatch) == 0
    capsys.readouterr()
    given = ["runs/stories" if word == "RUN" else word for word in shlex.split(command)[3:]]
    assert run(evaluate.main, "evaluate", [*given, "--stories", "2"], folder, monkeypatch) == 0
    assert "2 validation stories" in capsys.readouterr().out


def test_verification(places, monkeypatch, capsys):
    folder, stand_in = places
    arguments = stand_in | {"run_dir": "VERIFIED", "callbacks.samples": "null"}
    assert run(cli.train_main, "train.py", list(map("=".join, arguments.items())), folder, monkeypatch) == 0
    capsys.readouterr()
    for command in VERIFICATION:
        given = ["VERIFIED" if word == "RUN" else word for word in shlex.split(command)[3:]]
        monkeypatch.setattr(sys, "argv", ["verify", *given])
        monkeypatch.chdir(folder)
        assert verify.main() == 0
        expected = "equal bit for bit" if command.count("RUN") == 2 else "VERIFIED: finished"
        assert expected in capsys.readouterr().out


def test_ci_runs_the_installation_and_the_quickstart():
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[dev]" && pytest' in README
    assert QUICKSTART in COMMANDS
    for line in ('pip install --quiet -e ".[dev]"', "\npytest", QUICKSTART):
        assert line in script


@pytest.mark.parametrize("words", TABLE)
def test_commands_of_the_table_compose(words):
    arguments = shlex.split(words)
    read_arguments(arguments) if "-m" in arguments else cli.compose(arguments)


def test_options_named_in_the_readme_exist():
    for group, name in (("data", "Data"), ("optimizer", "Optimizers"), ("tokenizer", "Tokenizers")):
        named = set(re.findall(r"`(\w+)`", re.search(rf"{name}: (.*?)\.\s", README, re.S)[1]))
        assert named <= {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
