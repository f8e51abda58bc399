"""torch.compile changes the speed of a training and no result."""

import pytest
import torch
from test_resume import assert_same, final_state, history, train_with_kills

from slm.files import run_folder
from slm.run.train import train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, about itself
@pytest.mark.parametrize("layout", ["packed", "documents"])
def test_a_compiled_training_equals_an_eager_one(composed, tmp_path, monkeypatch, layout):
    """Equal losses and names of weights, also with recomputed blocks; and it resumes bit for bit."""
    weights = {}
    for compile in ("false", "true"):
        settings = f"trainer.compile={compile}", "model.dropout=0.0", "model.gradient_checkpointing=true"
        config = composed(*settings, "trainer.microbatch=2", f"data.layout={layout}", "model.context=320")
        train(config, run_dir=tmp_path / compile, overrides=[])
        weights[compile] = final_state(tmp_path / compile)[0]
        assert run_folder.read_run_json(tmp_path / compile)["compiled"] == (compile == "true")
    assert weights["true"].keys() == weights["false"].keys()
    for name, tensor in weights["true"].items():
        apart = (tensor - weights["false"][name]).abs().mean()  # AdamW turns rounding of a gradient near 0 into a step
        assert apart < 1e-4, name
    for ours, theirs in zip(history(tmp_path / "true"), history(tmp_path / "false"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    train_with_kills(config, tmp_path / "broken", monkeypatch, [9, 3])
    assert_same(final_state(tmp_path / "true"), final_state(tmp_path / "broken"))


def test_without_a_compiler_the_training_is_eager(composed, tmp_path, monkeypatch, capsys):
    def refuse(*arguments, **settings):
        raise RuntimeError("\nno C++ compiler here\nat all")

    monkeypatch.setattr(torch, "compile", refuse)
    train(composed("trainer.compile=true"), run_dir=tmp_path / "run", overrides=[])
    assert "warning: torch.compile does not work here (no C++ compiler here); training" in capsys.readouterr().err
    assert run_folder.read_run_json(tmp_path / "run")["status"] == "done"
