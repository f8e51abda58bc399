"""verify finds no problem in a complete run and every kind of damage; it compares two runs bit for bit."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import exit_code, flip_a_bit, small_run, trained
from forks import forked

from slm import checkpoint, verify
from slm.files import run_folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A run to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def verified(monkeypatch):
    """A function from arguments to the exit code of verify."""
    return partial(exit_code, monkeypatch, verify.main)


def edit(name: str, change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    """A damage that changes the lines of a file."""

    def damage(run: Path):
        lines = (run / name).read_text().splitlines(keepends=True)
        change(lines)
        (run / name).write_text("".join(lines))

    return damage


def swap_windows(lines: list[str]):
    event = json.loads(lines[3])
    event["windows"].reverse()
    lines[3] = json.dumps(event) + "\n"


def change_weight(run: Path, change: Callable[[torch.Tensor], torch.Tensor]):
    """Changes one weight of the newest checkpoint, under both names of the tied tensor."""
    newest = run_folder.checkpoints(run)[0]
    content = checkpoint.read(newest)
    tokens, head = (content["state_dict"][f"model.{name}.weight"] for name in ("tokens", "head"))
    tokens[3, 5] = head[3, 5] = change(tokens[3, 5])
    checkpoint.save(content, newest)


DAMAGES = {
    "step-000010.ckpt does not match its sha256": lambda run: flip_a_bit(run_folder.checkpoints(run)[0]),
    "step-000010.ckpt holds numbers that are not finite in tokens.weight": lambda run: change_weight(
        run, lambda w: w / 0
    ),
    "train/loss is missing at steps 3": edit("metrics.jsonl", lambda lines: lines.pop(2)),
    "val/loss is missing at steps 5": edit("metrics.jsonl", lambda lines: lines.pop(5)),
    "train/loss is repeated at steps 1": edit("metrics.jsonl", lambda lines: lines.insert(1, lines[0])),
    "train/loss is out of order": edit("metrics.jsonl", lambda lines: lines.insert(0, lines.pop(1))),
    "windows is missing at steps 4": edit("windows.jsonl", lambda lines: lines.pop(3)),
    "step 4 consumed other windows than the endless order has there": edit("windows.jsonl", swap_windows),
    "metrics.jsonl cannot be read from line 13 on": edit("metrics.jsonl", lambda lines: lines.append('{"step": 11')),
    "best.json names a checkpoint that is not there": lambda run: run_folder.checkpoints(run)[0].unlink(),
    "there is no checkpoint": lambda run: shutil.rmtree(run / "checkpoints"),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_each_damage_is_found(copy, problem, verified, capsys):
    assert verified(str(copy)) == 0
    assert "checkpoints of steps 5, 10 open" in capsys.readouterr().out
    DAMAGES[problem](copy)
    assert verified(str(copy)) == 1
    assert f"problem: {problem}" in capsys.readouterr().out.splitlines()


def test_a_folder_without_a_run_is_a_mistake(tmp_path, verified, capsys):
    assert verified(str(tmp_path)) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_the_first_difference_is_named(finished, copy, verified, capsys):
    assert verified(str(finished), str(copy)) == 0
    parts = "windows, metrics, samples, weights, optimizer, callbacks"
    assert capsys.readouterr().out == f"equal bit for bit: {parts}\n"
    change_weight(copy, lambda weight: torch.nextafter(weight, torch.tensor(9.0)))
    assert verified(str(finished), str(copy)) == 1
    equal, different = capsys.readouterr().out.splitlines()
    assert equal == f"equal: {parts.replace('weights, ', '')}"
    assert different.startswith("different weights: state_dict.model.tokens.weight, by up to ")
    edit("windows.jsonl", swap_windows)(copy)
    assert verify.first_difference(finished, copy).startswith("windows.jsonl, line 4: ")


def test_parts_and_causes_of_a_difference(finished, copy, verified, capsys):
    """--common ignores metrics of one run alone; settings and files of classes explain, but are no difference."""
    edit("metrics.jsonl", lambda lines: lines.insert(3, '{"step": 4, "mine": 1}\n'))(copy)
    info = run_folder.read_run_json(copy)
    info["config"]["callbacks"]["mine"] = {"_target_": "hooks.\x1b[1mMine"}
    info["classes"]["model"]["sha256"] = "0" * 64
    run_folder.write_run_json(copy, info)
    assert verified(str(finished), str(copy)) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "equal: windows, samples, weights, optimizer, callbacks"
    assert printed[1].startswith("different metrics: metrics.jsonl, line 4: step 4: ")
    assert printed[2] == r"different configuration: callbacks.mine._target_ None and hooks.\x1b[1mMine"
    assert printed[3].startswith("different code: classes.model.sha256 ")
    assert printed[3].endswith(f" and {'0' * 30} ... {'0' * 30}")
    assert verified(str(finished), str(copy), "--common") == 0
    assert capsys.readouterr().out.startswith("equal bit for bit: windows, metrics, ")
    assert verified(str(finished), "--common") == 2


@pytest.mark.slow
def test_verify_resume(text_file, tmp_path, monkeypatch, capsys):
    """Three trainings, each in a process of its own, and three in forked ones that seem to differ."""
    settings = "budget.steps=40", "model.dropout=0.1", "data.workers=2", "trainer.microbatch=2", "logger=csv"
    command = [*small_run(text_file, tmp_path), "verify_resume=true", *settings]
    code, printed = trained(monkeypatch, *command), capsys.readouterr()
    assert code == 0, printed.err
    assert "PASS: 16 steps" in printed.out
    assert list((tmp_path / "runs").iterdir()) == []
    monkeypatch.setattr("slm.run.verify_resume.subprocess.run", lambda words, **_: forked(*words[4:]))
    monkeypatch.setattr("slm.run.verify_resume.first_difference", lambda *folders: "metrics.jsonl, line 3")
    shorter = [word.replace("budget.steps=40", "budget.steps=10") for word in command]
    assert trained(monkeypatch, *shorter) == 1
    assert "FAIL: the resumed run differs: metrics.jsonl, line 3; both runs are in" in capsys.readouterr().out
