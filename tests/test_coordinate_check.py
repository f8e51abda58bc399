"""python -m slm.coordinate_check: slopes over widths and depths, with what must fail beside what must pass."""

import json
import math
from dataclasses import replace

import pytest
from conftest import exit_code

from slm import coordinate_check as check
from slm.run import cli

SMALL = ["widths=[32,64,128]", "depths=[2,4,8]", "seeds=1"]


@pytest.fixture(scope="module", params=["adamw", "muon"])
def config(request):
    return cli.compose([*check.SMALL, f"optimizer={request.param}", "model.tied=false"])


def test_widths_learn_alike_under_mup_alone(config):
    """Every embedding, norm, linear layer and block, and the logits; without it the logits at least grow."""
    request = check.Request(widths=[32, 64, 128], seeds=1)
    slopes = {name: check.sweep(config, request, "width", name).slopes for name in ("mup", "standard")}
    assert len(slopes["mup"]) == 2 * 7 + 3
    assert all(abs(slope) < 0.25 for slope in slopes["mup"].values()), slopes["mup"]
    assert slopes["standard"]["logits"] > 0.5


def test_depths_learn_alike_under_completep_alone(config):
    request = check.Request(depths=[2, 4, 8], widths=[32, 64], seeds=1)
    slopes = {name: check.sweep(config, request, "depth", name).slopes for name in ("completep", "mup")}
    assert all(abs(slope) < 0.25 for slope in slopes["completep"].values()), slopes["completep"]
    assert slopes["mup"]["last block"] > 0.5


def test_learned_positions_are_among_the_modules():
    """The first step of AdamW moves each weight by the learning rate, but for the decay."""
    config = cli.compose([*check.SMALL, "model.positions=learned", "optimizer.weight_decay=0"])
    model = replace(config.model, vocab_size=check.VOCABULARY, width=32)
    assert check.change(model, config.optimizer, steps=1, seed=0)["positions"] == pytest.approx(0.004, rel=1e-2)


def test_a_module_that_does_not_change_fails():
    """Such as one whose hook is broken: no slope, no pass."""
    still = check.Sweep("width", "mup", {32: {"a": 0.0, "b": 1.0}, 64: {"a": 0.0, "b": 2.0}})
    assert still.failed == ["a", "b"]
    assert check.Sweep("width", "mup", {32: {"b": 1.0}, 64: {"b": 1.1}}).failed == []


@pytest.mark.parametrize("most", [0.25, 0.0])
def test_command(most, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "MOST", most)
    words = ["widths=[32,64]", "depths=[1,2]", "seeds=1", "steps=2", f"folder={tmp_path / 'a'}", "print=json"]
    monkeypatch.setattr(check, "sweep", lambda config, request, axis, name: check.Sweep(axis, name, CHANGES))
    assert exit_code(monkeypatch, check.main, *words, "optimizer=muon", "model.mlp=swiglu") == (most == 0)
    output = capsys.readouterr()
    line = json.loads(output.out)
    assert line["exit_code"] == (most == 0)
    assert line["failed"] == ([] if most else ["width/logits", "depth/logits"])
    assert line["picture"] == output.err.splitlines()[-1] == str(tmp_path / "a" / "coordinate_check.png")
    assert (tmp_path / "a" / "coordinate_check.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.delattr(check, "sweep")  # so that any work would fail
    (tmp_path / "file").touch()
    assert exit_code(monkeypatch, check.main, f"folder={tmp_path / 'file'}") == 2
    assert f"{tmp_path}/file cannot be made: {tmp_path}/file is a file; give another folder" in capsys.readouterr().err


CHANGES = {32: {"logits": 1.0}, 64: {"logits": 1.1}}


@pytest.mark.parametrize("larger", [1.1, math.nan])
def test_a_model_that_diverges_fails(larger, tmp_path, capsys):
    """With its line of JSON and a picture, also if no change is known."""
    sweeps = (
        check.Sweep("width", "standard", CHANGES),
        check.Sweep("width", "mup", {32: {"logits": math.nan}, 64: {"logits": larger}}),
    )
    assert check.report([sweeps[1:] * 2], "AdamW", tmp_path) == 1
    assert check.report([sweeps], "AdamW", tmp_path) == 1
    assert "failed: width/logits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("widths=[64,32]", "widths=[64, 32] must be at least two sizes, the smallest first"),
        ("depths=[2]", "depths=[2] must be at least two sizes"),
        ("steps=0", "steps=0 must be at least 1"),
        ("optimizer=sgd", "optimizer=adamw and optimizer=muon do"),
        ("optimiser=muon", "there is no key optimiser"),
        ("widths=[32,50]", "model.width=50 must be a multiple of model.head_dim=32"),
    ],
)
def test_mistakes(word, message, monkeypatch, capsys):
    assert exit_code(monkeypatch, check.main, word) == 2
    assert message in capsys.readouterr().err
