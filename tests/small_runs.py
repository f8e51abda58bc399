"""Fixtures and helpers for several tests: a small text, very small runs on it, and commands run in this process."""

import functools
import gc
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import composing  # noqa: F401  (Hydra takes half the time)
import pytest
import torch
from lightning.fabric.utilities import registry

from slm import report
from slm.errors import UserError
from slm.run import cli, record
from slm.run.config import RunConfig
from slm.run.train import train

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
WORDS = "the a small old red cat dog bird girl boy house tree river saw took lost found liked gave and then but"

torch.set_num_threads(1)  # more threads are 20 times slower on matrices this small and a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
draw = report.draw


registry.entry_points = functools.cache(registry.entry_points)  # with the next, a fifteenth of a run
record.version = functools.cache(record.version)


def pytest_collection_finish():
    """Excludes the imported modules from garbage collection, which takes half a second after each run otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def blank_pictures() -> Iterator[None]:
    """loss.png is empty in tests without `drawn`, since drawing takes a quarter of a run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            report, "draw", lambda folder, axis="": (folder / "loss.png").write_bytes(b"") or folder / "loss.png"
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def unflushed_files() -> Iterator[None]:
    """Files are not flushed to the disk, which a run does twenty times; chaos/ cuts the power of other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which fails where fsync would: without an open file
        yield


@pytest.fixture
def drawn(monkeypatch):
    """Pictures are drawn as ever."""
    monkeypatch.setattr(report, "draw", draw)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Forty thousand characters in two hundred documents, separated by <|endoftext|>."""
    rng = random.Random(0)
    documents = [" ".join(rng.choices(WORDS.split(), k=45)).capitalize() + "." for _ in range(200)]
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return path


def small_run(text_file: Path, folder: Path, data: Sequence[str] = ()) -> list[str]:
    """The arguments of a run of seconds, on that text unless given other data."""
    data = data or ["data=text", f"data.path={text_file}", "data.separator=<|endoftext|>"]
    small = [
        "tokenizer=bytes",
        "trainer=cpu",
        "debug=default",
        "model.context=64",
        "callbacks.samples.max_new_tokens=5",
    ]
    return [*data, *small, f"runs_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}"]


@pytest.fixture
def composed(text_file, tmp_path):
    """A function from overrides to the configuration of such a run."""

    def compose(*overrides: str, data: Sequence[str] = ()) -> RunConfig:
        return cli.compose([*small_run(text_file, tmp_path, data), "name=test", *overrides])

    return compose


@pytest.fixture
def run(composed, tmp_path):
    """A function that trains with these overrides in a folder of tmp_path, which it returns."""

    def run(*overrides: str, folder: str = "run") -> Path:
        train(composed(*overrides), run_dir=tmp_path / folder, overrides=[])
        return tmp_path / folder

    return run


@pytest.fixture(scope="session")
def finished(text_file, tmp_path_factory) -> Path:
    """The folder of such a run, validated at steps 5 and 10, with a log of its windows. Tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        assert trained(patch, *small_run(text_file, folder), "log_windows=true", f"run_dir={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture(scope="session")
def chatting(tmp_path_factory) -> Path:
    """The folder of such a run on conversations, which has a template."""
    folder = tmp_path_factory.mktemp("chatting")
    rows = [{"prompt": f"Say {word}.", "completion": f"{word}, {word}!"} for word in WORDS.split()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 20), encoding="utf-8")
    data = "data=instructions", f"data.path={folder / 'rows.jsonl'}"
    with pytest.MonkeyPatch.context() as patch:
        assert trained(patch, *small_run(folder, folder, data), f"run_dir={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture
def planned_and_measured(monkeypatch) -> Callable[[dict, str], tuple[float, float]]:
    """Bytes of the peak by plan, and as measured, of a training in a process of its own: benchmarks/plan.py."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from plan import elsewhere

    return elsewhere


def exit_code(monkeypatch, main: Callable, *arguments: str) -> int:
    """The exit code of a command with these arguments, run in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    try:
        return main() or 0
    except SystemExit as exit_:
        return exit_.code or 0


def trained(monkeypatch, *arguments: str) -> int:
    """The exit code of `python train.py` with these arguments."""
    return exit_code(monkeypatch, cli.train_main, *arguments)


@contextmanager
def mistake(pattern: str | None = None) -> Iterator[pytest.ExceptionInfo]:
    """Expects a UserError of one line that matches the pattern."""
    with pytest.raises(UserError, match=pattern) as error:
        yield error
    assert "\n" not in str(error.value)


def refused(call: Callable, *messages: str) -> str:
    """The one-line message of the UserError that the call raises, with these parts."""
    with mistake() as error:
        call()
    text = str(error.value)
    assert all(message in text for message in messages), text
    return text


def flip_a_bit(path: Path):
    """Damages the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
