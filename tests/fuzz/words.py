"""Cases on what a user types or keeps in conf/: experiment files, arguments of the commands."""

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

from slm import evaluate
from slm.errors import UserError
from slm.evaluation import standard_tests
from slm.export import __main__ as export
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


def generate_words(rng: random.Random, folder: Path) -> Callable[[int], None]:
    known = [
        *("ckpt=latest", "prompt=Once upon a time, there", "num_samples=2", "max_new_tokens=5", "temperature=0.7"),
        *("top_k=5", "top_p=0.5", "min_p=0.1", "repetition_penalty=1.1", "greedy=true", "seed=3", "stream=false"),
        *("format=jsonl", "interactive=false", "device=cpu", "dtype=int8", "stop_at_eos=false", "runs_dir=runs"),
    ]
    command.load = reached
    return lambda number: run_command(cli.generate_main, changed_words(rng, known))


def evaluate_words(rng: random.Random, folder: Path) -> Callable[[int], None]:
    known = [
        *("samples=20", "temperature=[1,0.8]", "measures=[loss,texts]", "tokens=100", "seed=3", "split=train"),
        *("source=null", "bleu=a.jsonl", "cache_dir=a b", "device=cpu", "data=text", "data.path=a, b.txt"),
        *("tasks=[blimp,lambada]", "limit=3", "fewshot=2", "eos_first=false", "tasks_path=.", "--text=a.txt"),
    ]
    (folder / "a.ckpt").write_bytes(b"")
    evaluate.load = standard_tests.load = reached
    return lambda number: run_command(evaluate.main, [str(folder / "a.ckpt"), *changed_words(rng, known)])


def export_words(rng: random.Random, folder: Path) -> Callable[[int], None]:
    known = [
        *("format=page", "format=weights", "format=hf", "license=mit", "title=A fox, Zoe's", "start=Once [a", "text=a"),
        *("push=a/b", "public=true", "revision=main", "revisions=false", "type=q8_0", "runs_dir=runs"),
    ]
    export.load = reached
    return lambda number: run_command(export.main, ["a.ckpt", str(folder / "new"), *changed_words(rng, known)])


class Reached(Exception):
    """The command got as far as its checkpoint."""


def reached(*_, **__):
    raise Reached


def changed_words(rng: random.Random, known: list[str]) -> list[str]:
    return [*rng.sample(known, rng.choice((0, 1, 2))), mutations.word(rng, known)]


def run_command(main: Callable[[], object], words: list[str]):
    """The command with these words, up to its checkpoint; an end with 2 or 4 and one line is a UserError."""
    sys.argv = ["command", *words]
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr):
            main()
    except Reached:
        return
    except SystemExit as exit_:
        _, error, message = stderr.getvalue().partition("error: ")  # argparse's usage is before it
        if exit_.code in (2, 4) and error:
            raise UserError(message) from None
        if exit_.code:
            raise AssertionError(f"exit code {exit_.code}: {stderr.getvalue()}") from None
