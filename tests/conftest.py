"""What several tests need: a small text of our own, and configurations as the command line would compose them."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from slm.run import cli  # which registers the resolvers that conf/ uses, too

CONF = Path(__file__).parents[1] / "conf"
WORDS = "the a small old red cat dog bird girl boy house tree river saw took lost found liked gave and then but"

torch.set_num_threads(1)  # on matrices this small more only wait for each other: 20 times slower on a busy machine


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
    """A function from overrides to the resolved configuration of a very small run, on that text unless told other."""
    text = "data=text", f"data.path='{text_file}'", "data.separator='<|endoftext|>'"

    def compose(*overrides: str, data: Sequence[str] = text) -> dict:
        small = [
            *data,
            "tokenizer=bytes",
            "trainer=cpu",
            "debug=default",
            f"runs_dir='{tmp_path / 'runs'}'",
            f"cache_dir='{tmp_path / 'cache'}'",
        ]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = OmegaConf.to_container(hydra.compose("train", overrides=[*small, *overrides]), resolve=True)
        return config | {"name": config["name"] or "test"}

    return compose


def trained(monkeypatch, *arguments: str) -> int:
    """The exit code of `python train.py` with these arguments, run in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.train_main()
    return exit_.value.code
