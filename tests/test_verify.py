"""A whole run is found whole, and each way of damaging it is found; two runs are compared to the bit."""

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


@pytest.fixture(scope="module")
def whole(text_file, tmp_path_factory) -> Path:
    """The folder of a run of ten steps, validated at the fifth and the tenth."""
    place = tmp_path_factory.mktemp("whole")
    arguments = [
        *("data=text", f"data.path={text_file}", "data.separator=<|endoftext|>", "tokenizer=bytes", "trainer=cpu"),
        *("debug=default", "debug.log_windows=true", f"cache_dir={place / 'cache'}", f"run_dir={place / 'run'}"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        assert trained(patch, *arguments) == 0
    return place / "run"


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


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


def spoil_weights(run):
    newest = run_folder.checkpoints(run)[0]
    content = checkpoint.read(newest)
    for name in ("model.tokens.weight", "model.head.weight"):  # one tensor, under both names
        content["state_dict"][name][0, 0] = float("inf")
    checkpoint.save(content, newest)


DAMAGES = {
    "step-000010.ckpt does not match its sha256": flip_a_bit,
    "step-000010.ckpt holds numbers that are not finite in tokens.weight": spoil_weights,
    "train/loss is missing at steps 3": lambda run: edit_lines(run / "metrics.jsonl", lambda lines: lines.pop(2)),
    "val/loss is missing at steps 5": lambda run: edit_lines(run / "metrics.jsonl", lambda lines: lines.pop(5)),
    "train/loss is there more than once at steps 1": lambda run: edit_lines(
        run / "metrics.jsonl", lambda lines: lines.insert(1, lines[0])
    ),
    "train/loss is out of order": lambda run: edit_lines(
        run / "metrics.jsonl", lambda lines: lines.insert(0, lines.pop(1))
    ),
    "windows is missing at steps 4": lambda run: edit_lines(run / "windows.jsonl", lambda lines: lines.pop(3)),
    "step 4 consumed other windows than the order has there": swap_windows,
    "metrics.jsonl cannot be read from line 13 on": lambda run: edit_lines(
        run / "metrics.jsonl", lambda lines: lines.append('{"step": 11')
    ),
    "best.json names a checkpoint that is not there": lambda run: (run / "checkpoints" / "best.json").write_text(
        '{"file": "step-000007.ckpt"}'
    ),
    "there is no checkpoint": lambda run: shutil.rmtree(run / "checkpoints"),
}


@pytest.mark.parametrize("fault", DAMAGES)
def test_each_damage_is_found(run, fault, monkeypatch, capsys):
    assert list(verify.find_problems(run)) == []
    DAMAGES[fault](run)
    monkeypatch.setattr(sys, "argv", ["verify", str(run)])
    assert verify.main() == 1
    assert f"fault: {fault}" in capsys.readouterr().out.splitlines()


def test_what_is_no_run_is_a_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify", str(tmp_path)])
    assert verify.main() == 2
    assert "is no run folder" in capsys.readouterr().err


def test_the_first_difference_is_named(whole, run):
    assert verify.first_difference(whole, run) is None
    newest = run_folder.checkpoints(run)[0]
    content = checkpoint.read(newest)
    weight = content["state_dict"]["model.tokens.weight"]
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    checkpoint.save(content, newest)
    assert verify.first_difference(whole, run).startswith("state_dict.model.tokens.weight, by up to ")
    swap_windows(run)
    assert verify.first_difference(whole, run).startswith("windows.jsonl, line 4: ")


@pytest.mark.parametrize("overrides", [["trainer.microbatch=2"], ["budget.steps=20", "val_every_n_steps=4"]])
def test_runs_that_go_on_are_whole(composed, tmp_path, overrides):
    """Also where later lives are longer, or have another microbatch."""
    first = composed("debug.log_windows=true", *(["val_every_n_steps=4"] if "budget.steps=20" in overrides else []))
    train(first, run_dir=tmp_path / "run", overrides=[])
    train(composed("debug.log_windows=true", *overrides, "budget.steps=12"), run_dir=tmp_path / "run", overrides=[])
    assert list(verify.find_problems(tmp_path / "run")) == []


@pytest.mark.slow
def test_verify_resume(text_file, tmp_path, monkeypatch, capsys):
    """Three trainings in processes of their own."""
    arguments = [
        *("data=text", f"data.path={text_file}", "data.separator=<|endoftext|>", "tokenizer=bytes", "trainer=cpu"),
        *("debug=default", "budget.steps=40", "model.dropout=0.1", "data.workers=2", "trainer.microbatch=2"),
        *(f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}", "logger=csv", "verify_resume=true"),
    ]
    code, printed = trained(monkeypatch, *arguments), capsys.readouterr()
    assert code == 0, printed.err
    assert "PASS: 16 steps" in printed.out
    assert list((tmp_path / "runs").iterdir()) == []
    monkeypatch.setattr("slm.run.verify_resume.first_difference", lambda *folders: "metrics.jsonl, line 3")
    assert trained(monkeypatch, *arguments) == 1
    assert "FAIL: the resumed run differs: metrics.jsonl, line 3; both runs are in" in capsys.readouterr().out
