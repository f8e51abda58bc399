"""Cases on what a user types or keeps in conf/: experiment files, arguments of train.py and of generate.py."""

import contextlib
import io
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch  # noqa: F401  (before the first case, for its time)
import mutations
import yaml

from slm.errors import UserError
from slm.generation import command
from slm.run import cli, compose
from slm.run.overrides import read_arguments


def experiments(rng: random.Random, folder: Path) -> Callable[[int], None]:
    conf = folder / "conf"
    shutil.copytree(compose.CONF, conf)
    compose.CONF = conf
    whole = (conf / "experiment" / "quickstart.yaml").read_bytes()
    head, _, body = whole.decode().partition("defaults:")
    tree = yaml.safe_load("defaults:" + body)

    def case(number: int):
        if number % 2:
            data = mutations.damaged(whole, rng)
        else:
            tag = rng.choice(
                ("", "", "", "", "x: !!python/object/apply:os.system ['touch executed']\n", "y: &a [*a]\n")
            )
            try:
                dumped = yaml.safe_dump(mutations.changed(tree, rng, plain=True), sort_keys=False, allow_unicode=True)
            except RecursionError:  # of the dump
                dumped = "a: " + "[" * 300 + "]" * 300
            data = (head + dumped + tag).encode("utf-8", "surrogatepass")
        (conf / "experiment" / "odd.yaml").write_bytes(data)
        cli.compose(["experiment=odd"])

    return case


def train_words(rng: random.Random, folder: Path) -> Callable[[int], None]:
    known = [
        *("experiment=quickstart", "model=tiny", "model.width=64", "model.window=[3,null]", "data=text", "seed=1"),
        *("data.path=a.txt", "budget.steps=5", "optimizer=muon", "optimizer.lr=1e-3", "callbacks.guard.max_skips=3"),
        *("trainer.precision=32-true", "trainer.microbatch=2", "tokenizer=bytes", "name=${seed}", "tags=[a,b]"),
        *("schedule.warmup_steps=3", "logger=csv", "run_dir=run", "resume=auto", "trainer.max_time=00:01:00:00"),
    ]

    def case(number: int):
        words = [*rng.sample(known, rng.choice((0, 1, 2))), mutations.word(rng, known)]
        rng.shuffle(words)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            overrides, _, _ = compose_words(words)
            cli.compose(overrides)

    return case


def compose_words(words: list[str]):
    try:
        return read_arguments(words)
    except SystemExit as exit_:  # of --help and --version
        raise UserError(f"exit {exit_.code}") from None


class Reached(Exception):
    """The command got as far as its checkpoint."""


def generate_words(rng: random.Random, folder: Path) -> Callable[[int], None]:
    known = [
        *("ckpt=latest", "prompt=Once upon a time, there", "num_samples=2", "max_new_tokens=5", "temperature=0.7"),
        *("top_k=5", "top_p=0.5", "min_p=0.1", "repetition_penalty=1.1", "greedy=true", "seed=3", "stream=false"),
        *("format=jsonl", "interactive=false", "device=cpu", "dtype=int8", "stop_at_eos=false", "runs_dir=runs"),
    ]

    def load(*_, **__):
        raise Reached

    command.load = load

    def case(number: int):
        words = [*rng.sample(known, rng.choice((0, 1, 2))), mutations.word(rng, known)]
        sys.argv = ["generate.py", *words]
        stderr = io.StringIO()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr):
                cli.generate_main()
        except Reached:
            return
        except SystemExit as exit_:
            *_, message = ["", *stderr.getvalue().strip().splitlines()]
            if exit_.code in (2, 4) and message.startswith("error: "):
                raise UserError(message.removeprefix("error: ")) from None
            if exit_.code:
                raise AssertionError(f"exit code {exit_.code}: {message}") from None

    return case
