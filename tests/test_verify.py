"""verify finds no problem in a complete run and every kind of damage; it compares two runs bit for bit."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import trained

from slm import checkpoint, verify
from slm.files import run_folder
from slm.run.train import train


def arguments(text_file: Path, folder: Path) -> list[str]:
    """The arguments of a run that takes seconds."""
    data = "data=text", f"data.path={text_file}", "data.separator=<|endoftext|>", f"cache_dir={folder / 'cache'}"
    return [*data, "tokenizer=bytes", "trainer=cpu", "debug=default", "model.context=64"]


@pytest.fixture(scope="module")
def complete(text_file, tmp_path_factory) -> Path:
    """The folder of a run of ten steps, validated at the fifth and the tenth."""
    folder = tmp_path_factory.mktemp("complete")
    with pytest.MonkeyPatch.context() as patch:
        assert trained(patch, *arguments(text_file, folder), "log_windows=true", f"run_dir={folder / 'run'}") == 0
    return folder / "run"


@pytest.fixture
def run(complete, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(complete, tmp_path / "run"))


def edit_lines(path: Path, change):
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))


def flip_a_bit(run):
    newest = run_folder.checkpoints(run)[0]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)


def swap_windows(run):
    def change(lines):
        event = json.loads(lines[3])
        event["windows"].reverse()
        lines[3] = json.dumps(event) + "\n"

    edit_lines(run / "windows.jsonl", change)


def make_weights_infinite(run):
    newest = run_folder.checkpoints(run)[0]
    content = checkpoint.read(newest)
    for name in ("model.tokens.weight", "model.head.weight"):  # one tensor, under both names
        content["state_dict"][name][0, 0] = float("inf")
    checkpoint.save(content, newest)


DAMAGES = {
    "step-000010.ckpt does not match its sha256": flip_a_bit,
    "step-000010.ckpt holds numbers that are not finite in tokens.weight": make_weights_infinite,
    "train/loss is missing at steps 3": lambda run: edit_lines(run / "metrics.jsonl", lambda lines: lines.pop(2)),
    "val/loss is missing at steps 5": lambda run: edit_lines(run / "metrics.jsonl", lambda lines: lines.pop(5)),
    "train/loss is repeated at steps 1": lambda run: edit_lines(
        run / "metrics.jsonl", lambda lines: lines.insert(1, lines[0])
    ),
    "train/loss is out of order": lambda run: edit_lines(
        run / "metrics.jsonl", lambda lines: lines.insert(0, lines.pop(1))
    ),
    "windows is missing at steps 4": lambda run: edit_lines(run / "windows.jsonl", lambda lines: lines.pop(3)),
    "step 4 consumed other windows than the endless order has there": swap_windows,
    "metrics.jsonl cannot be read from line 13 on": lambda run: edit_lines(
        run / "metrics.jsonl", lambda lines: lines.append('{"step": 11')
    ),
    "best.json names a checkpoint that is not there": lambda run: (run / "checkpoints" / "best.json").write_text(
        '{"file": "step-000007.ckpt"}'
    ),
    "there is no checkpoint": lambda run: shutil.rmtree(run / "checkpoints"),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_each_damage_is_found(run, problem, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify", str(run)])
    assert verify.main() == 0
    assert "finished, step 10 of 10, 1 attempt(s); no problems: checkpoints of steps 5, 10" in capsys.readouterr().out
    DAMAGES[problem](run)
    assert verify.main() == 1
    assert f"problem: {problem}" in capsys.readouterr().out.splitlines()


def test_a_folder_without_a_run_is_a_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify", str(tmp_path)])
    assert verify.main() == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_the_first_difference_is_named(complete, run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify", str(complete), str(run)])
    assert verify.main() == 0
    assert capsys.readouterr().out == "equal bit for bit\n"
    newest = run_folder.checkpoints(run)[0]
    content = checkpoint.read(newest)
    weight = content["state_dict"]["model.tokens.weight"]
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    checkpoint.save(content, newest)
    assert verify.main() == 1
    assert capsys.readouterr().out.startswith("first difference: state_dict.model.tokens.weight, by up to ")
    swap_windows(run)
    assert verify.first_difference(complete, run).startswith("windows.jsonl, line 4: ")


@pytest.mark.parametrize("later", [["trainer.microbatch=2"], ["val_every_n_steps=4"]])
def test_a_run_of_two_attempts_is_complete(composed, tmp_path, later):
    """Also if the second one is longer or has another microbatch."""
    first = composed("log_windows=true", *(later if "val_every_n_steps=4" in later else []))
    train(first, run_dir=tmp_path / "run", overrides=[])
    train(composed("log_windows=true", *later, "budget.steps=12"), run_dir=tmp_path / "run", overrides=[])
    assert list(verify.find_problems(tmp_path / "run")) == []


@pytest.mark.slow
def test_verify_resume(text_file, tmp_path, monkeypatch, capsys):
    """Three trainings, each in a process of its own."""
    settings = "budget.steps=40", "model.dropout=0.1", "data.workers=2", "trainer.microbatch=2", "logger=csv"
    command = [*arguments(text_file, tmp_path), *settings, f"runs_dir={tmp_path / 'runs'}", "verify_resume=true"]
    code, printed = trained(monkeypatch, *command), capsys.readouterr()
    assert code == 0, printed.err
    assert "PASS: 16 steps" in printed.out
    assert list((tmp_path / "runs").iterdir()) == []
    monkeypatch.setattr("slm.run.verify_resume.first_difference", lambda *folders: "metrics.jsonl, line 3")
    assert trained(monkeypatch, *command) == 1
    assert "FAIL: the resumed run differs: metrics.jsonl, line 3; both runs are in" in capsys.readouterr().out
