"""torch.compile changes the speed, and nothing that a run is known by."""

import pytest
import torch
from test_resume import assert_same, final_state, history, train_with_kills

from slm import checkpoint
from slm.files import run_folder
from slm.run.train import train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, about itself
@pytest.mark.parametrize("layout", ["packed", "documents"])
def test_a_compiled_training_is_the_same_one(composed, tmp_path, monkeypatch, layout):
    """Same losses, same names of weights, also for blocks that are recomputed; and it resumes to the bit."""
    runs_of = {}
    for compile in ("false", "true"):
        settings = f"trainer.compile={compile}", "model.dropout=0.0", "model.gradient_checkpointing=true"
        config = composed(*settings, "trainer.microbatch=2", f"data.layout={layout}", "model.context=320")
        train(config, run_dir=tmp_path / compile, overrides=[])
        runs_of[compile] = checkpoint.read(run_folder.checkpoints(tmp_path / compile)[0])["state_dict"]
    assert runs_of["true"].keys() == runs_of["false"].keys()
    for name, weights in runs_of["true"].items():
        torch.testing.assert_close(weights, runs_of["false"][name], atol=1e-3, rtol=1e-2)
    for ours, theirs in zip(history(tmp_path / "true"), history(tmp_path / "false"), strict=True):
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=1e-3)
    train_with_kills(config, tmp_path / "broken", monkeypatch, [9, 3])
    assert_same(final_state(tmp_path / "true"), final_state(tmp_path / "broken"))


def test_without_a_compiler_it_trains_all_the_same(composed, tmp_path, monkeypatch, capsys):
    def refuse(*arguments, **settings):
        raise RuntimeError("\nno C++ compiler here\nat all")

    monkeypatch.setattr(torch, "compile", refuse)
    train(composed("trainer.compile=true"), run_dir=tmp_path / "run", overrides=[])
    assert "warning: torch.compile does not work here (no C++ compiler here); training" in capsys.readouterr().err
    assert run_folder.read_run_json(tmp_path / "run")["status"] == "done"
