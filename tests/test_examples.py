"""Programs of examples/ do what their first lines say."""

import runpy
import shlex

import torch
from conftest import ROOT, trained

from slm.results import Run

PLAIN_LOOP = ROOT / "examples" / "plain_loop.py"


def test_the_plain_loop_has_the_losses_and_weights_of_the_command_bit_for_bit(tmp_path, monkeypatch):
    plain_loop = runpy.run_path(str(PLAIN_LOOP))
    command = plain_loop["__doc__"].partition("python train.py")[2]
    places = [f"cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    quick = ["lint=false", "report=false", "callbacks.samples=null"]
    assert trained(monkeypatch, *shlex.split(command), *places, *quick) == 0
    model, losses = plain_loop["train"](tmp_path / "cache")
    run = Run(tmp_path / "run")
    assert losses == list(run.series("train/loss").values())
    assert len(losses) == 20
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"model.{name}"], tensor) for name, tensor in model.state_dict().items())
