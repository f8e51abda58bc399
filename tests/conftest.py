"""Fixtures for several tests: a small text, and configurations as the command line composes them."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from slm.run import cli
from slm.run.config import RunConfig

CONF = Path(__file__).parents[1] / "conf"
WORDS = "the a small old red cat dog bird girl boy house tree river saw took lost found liked gave and then but"

torch.set_num_threads(1)  # more threads are 20 times slower on matrices this small and a busy machine


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Forty thousand characters in two hundred documents, separated by <|endoftext|>."""
    rng = random.Random(0)
    documents = [" ".join(rng.choices(WORDS.split(), k=45)).capitalize() + "." for _ in range(200)]
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture
def composed(text_file, tmp_path):
    """A function from overrides to the configuration of a very small run, on that text unless given other data."""
    text = "data=text", f"data.path={text_file}", "data.separator=<|endoftext|>"

    def compose(*overrides: str, data: Sequence[str] = text) -> RunConfig:
        small = [*data, "tokenizer=bytes", "trainer=cpu", "debug=default", "model.context=64", "name=test"]
        folders = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
        return cli.compose([*small, *folders, *overrides])

    return compose


def trained(monkeypatch, *arguments: str) -> int:
    """The exit code of `python train.py` with these arguments, run in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.train_main()
    return exit_.value.code
