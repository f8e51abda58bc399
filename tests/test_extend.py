"""docs/extend.md: its diffs apply to this tree, and a copy of the tree with all of them does what the page says.

As a script, this file is the training and the measurements in that copy.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import islice
from math import sqrt
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
DIFFS = {
    name.lower(): re.findall(r"^```diff\n(.*?)^```", text, re.M | re.S)
    for name, text in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}
COMMANDS = [shlex.split(command) for command in re.findall(r"^python train\.py (.*)$", PAGE, re.M)]
FILES = {  # section -> files that its diff touches
    **{"attention": 2, "mlp": 2, "norm": 2, "optimizer": 2, "schedule": 2, "corpus": 2},
    **{"tokenizer": 1, "callback": 1, "logger": 1},
}
STEPS, LR, TEXT = 20, 2e-3, "17 + 58 = 75\t\n  naïve 17 + 5"
TRAINING = [
    *("model.head_gate=true", "model.mlp=reglu", "model.norm=rmsnorm_no_gain", "optimizer=lion", f"optimizer.lr={LR}"),
    *("schedule=sqrt_cooldown", "data=arithmetic", "data.sums=2000", "data.corpus.validation_sums=200"),
    *("tokenizer=bytes", "tokenizer._target_=my_tokenizers.Words.build", "+tokenizer.words=150"),
    *("+callbacks.norms._target_=my_callbacks.BlockNorms", "callbacks.samples=null"),
    *("+logger.sql._target_=my_loggers.SQLite", "+logger.sql.file=runs.sqlite", "run_dir=run", "cache_dir=cache"),
    *("model=tiny", "model.context=32", "debug=default", f"budget.steps={STEPS}", "val_every_n_steps=10"),
    *("trainer=cpu", "trainer.precision=32-true", "seed=1"),
]


def measured() -> dict:
    """What the extensions did in a run that uses all of them, as plain types."""
    import sqlite3
    from contextlib import closing

    import torch
    from my_tokenizers import Words

    import slm
    from slm.attention import Cache
    from slm.corpora import arithmetic
    from slm.run.cli import compose

    for command in COMMANDS:
        compose(command)
    run = slm.train(TRAINING)
    loaded = slm.load(run.folder, device="cpu", tokenizer=Words)
    model, cache = loaded.model, Cache(loaded.model.config, 2)
    tokens = torch.randint(loaded.tokenizer.vocab_size, (2, 32), generator=torch.Generator().manual_seed(0))
    attention, head_gate = model.blocks[0].attention, model.blocks[0].attention.head_gate
    with torch.inference_mode():
        whole = model(tokens)
        pieces = torch.cat([model(piece, cache) for piece in tokens.split([3, 1, 1, 20, 7], dim=1)], dim=1)
        attention.head_gate = None
        ungated = model(tokens)
    with closing(sqlite3.connect("runs.sqlite")) as database:
        rows = list(database.execute("SELECT run, step, name, value FROM metrics"))
    sums = {seed: arithmetic.Arithmetic(digits=2, sums=3000, validation_sums=300, seed=seed) for seed in (0, 1)}
    return {
        "package": slm.__file__,
        "metrics": run.metrics,
        "run_id": run.info["run_id"],
        "rows": rows,
        "cached": (whole - pieces).abs().max().item(),
        "gated": (whole - ungated).abs().max().item(),
        "gate_shape": list(head_gate.weight.shape),
        "mlp": [model.config.mlp, model.blocks[0].mlp.gate is not None, model.config.hidden_width],
        "norm_parameters": sum(p.numel() for block in model.blocks for p in block.mlp_norm.parameters()),
        "ids": loaded.encode(TEXT),
        "texts": [loaded.decode(loaded.encode(TEXT)), Words.load(run.folder / "tokenizer").decode(loaded.encode(TEXT))],
        "documents": {split: list(sums[0].documents(split)) for split in ("train", "validation")},
        "again": list(islice(sums[0].documents("train"), 9)),
        "fingerprints": [corpus.fingerprint() for corpus in sums.values()],
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the tree with every diff of the page. Each diff also applies alone."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    folder = tmp_path_factory.mktemp("extended")
    for name in ("slm", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "generate.py"):
        shutil.copy(ROOT / name, folder)
    for section in DIFFS:
        apply(section, folder, "--check")
    for section in DIFFS:
        apply(section, folder)
    return folder


@pytest.fixture(scope="module", params=[pytest.param("trained", marks=pytest.mark.slow)])
def result(tree) -> dict:
    """Measurements of one training in that copy."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, __file__], cwd=tree, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["package"] == str(tree / "slm" / "__init__.py")
    return result


def apply(section: str, folder: Path, *flags: str):
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}  # as if in no repository
    command, (diff,) = ["git", "apply", *flags, "-"], DIFFS[section]
    done = subprocess.run(command, input=diff, cwd=folder, capture_output=True, text=True, env=environment)
    assert not done.returncode, f"the diff of {section} does not apply: {done.stderr}"


def test_each_section_has_one_diff_of_few_files_and_a_command():
    assert {name: len(diffs) for name, diffs in DIFFS.items()} == dict.fromkeys(FILES, 1)
    assert {name: len(re.findall(r"^\+\+\+ b/", diff, re.M)) for name, (diff,) in DIFFS.items()} == FILES
    assert len(COMMANDS) == len(FILES)
    assert len(PAGE.splitlines()) < 400


def test_each_diff_applies_alone_and_after_the_others(tree):
    for file in tree.rglob("*.py"):
        compile(file.read_text(encoding="utf-8"), file, "exec")


def test_attention_cached_is_uncached(result):
    assert result["cached"] < 1e-5
    assert result["gated"] > 1e-3
    assert result["gate_shape"] == [2, 64]


def test_mlp_and_norm(result):
    assert result["mlp"] == ["reglu", True, 192]
    assert result["norm_parameters"] == 0


def series(result, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in result["metrics"] if name in line}


def test_lion_learns(result):
    losses, validation = series(result, "train/loss"), series(result, "val/loss")
    assert losses[1] > 5.8
    assert losses[STEPS] < 4.5
    assert list(validation) == [10, 20]
    assert validation[20] < validation[10]


def test_schedule_cools_down(result):
    rates = series(result, "train/lr")
    assert [rates[step] for step in (1, 16)] == pytest.approx([LR] * 2)
    assert [rates[step] for step in range(17, STEPS + 1)] == pytest.approx(
        [LR * (1 - sqrt(i / 4)) for i in (1, 2, 3, 4)]
    )


def test_corpus_has_sums(result):
    train, validation = (result["documents"][split] for split in ("train", "validation"))
    assert (len(train), len(validation)) == (3000, 300)
    for document in train + validation:
        a, b, c = map(int, re.fullmatch(r"(\d+) \+ (\d+) = (\d+)", document).groups())
        assert a + b == c
    assert not set(train) & set(validation)
    assert result["again"] == train[:9]
    assert len(set(result["fingerprints"])) == 2


def test_tokenizer_round_trips_from_the_checkpoint_and_the_run_folder(result):
    assert result["texts"] == [TEXT, TEXT]
    assert len(result["ids"]) < len(TEXT.encode())
    assert max(result["ids"]) > 256


def test_callback_logs_the_norm_of_each_block(result):
    total = series(result, "train/grad_norm")
    for number in (0, 1):
        norms = series(result, f"grad_norm/block_{number}")
        assert list(norms) == list(range(1, STEPS + 1))
        assert all(0 < norm < total[step] for step, norm in norms.items())


def test_logger_has_the_numbers_of_metrics_jsonl(result):
    assert {run for run, *_ in result["rows"]} == {result["run_id"]}
    lines: dict[int, dict[str, float]] = {}
    for _, step, name, value in result["rows"]:
        lines.setdefault(step, {"step": step})[name] = value
    expected: dict[int, dict[str, float]] = {}
    for line in result["metrics"]:
        expected.setdefault(line["step"], {}).update(line)
    assert lines == expected


if __name__ == "__main__":
    print(json.dumps(measured()))
