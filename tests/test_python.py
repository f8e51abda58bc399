"""The Python API: the tour of docs/python.md, and what import slm costs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import slm

TOUR = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.mark.filterwarnings("ignore")  # of a plain Trainer, about a progress bar that is off and the like
def test_the_tour_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    blocks = re.findall(r"```python\n(.*?)```", TOUR.read_text(), re.DOTALL)
    assert len(blocks) == 6
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "did you mean model.width?" in printed
    assert "tour" in printed
    run, model, loss, trainer, module = (namespace[name] for name in ("run", "model", "loss", "trainer", "module"))
    assert run.status == "done"
    assert run.objective == min(run.series("val/loss").values())
    assert (
        "".join(model.stream("Once", max_new_tokens=9, seed=3)) == model.generate("Once", max_new_tokens=9, seed=3)[4:]
    )
    assert 0 < loss.bits_per_byte < 20
    assert loss.bytes == 49
    (validated,) = trainer.validate(module, namespace["data"], verbose=False)
    assert validated.keys() == {"val/loss", "val/perplexity", "val/bits_per_byte", "val/text_bits_per_byte"}
    assert validated["val/loss"] < 5  # before the training log(257), 5.5
    assert module(namespace["torch"].zeros(2, 5).long()).shape == (2, 5, 257)
    loaded = slm.load(trainer.checkpoint_callback.best_model_path, device="cpu")
    assert loaded.model.head.weight.equal(module.model.head.weight)
    assert loaded.tokenizer.vocab_size == 257


def test_loss_is_that_of_validation_and_refuses_lost_text(tmp_path, monkeypatch, text_file):
    """On a text of many windows the mean is the validation loss of the same windows."""
    monkeypatch.chdir(tmp_path)
    common = ["debug=default", "model.context=64", "trainer.precision=32-true", "callbacks.samples=null"]
    text = text_file.read_text().replace("<|endoftext|>", " ")
    Path("text.txt").write_text(text)
    run = slm.train([*common, "data=text", "data.path=text.txt", "tokenizer=characters", "run_dir=run", "cache_dir=c",
                     "data.validation_windows=null"])  # fmt: skip
    validation = text[int(0.95 * len(text)) :]
    model = run.load(device="cpu")
    loss = model.loss(validation)
    assert loss.nats == pytest.approx(run.series("val/loss")[10], abs=0.02)  # but for the last, short window
    assert loss.bits_per_byte == pytest.approx(loss.nats / 0.6931472, rel=1e-5)
    assert model.loss("漢字").bits_per_byte is None
    with pytest.raises(slm.UserError, match="the text is empty"):
        model.loss("")


def test_one_override_may_be_a_string():
    with pytest.raises(slm.UserError, match=r"there is no key model\.widht; did you mean model\.width"):
        slm.train("model.widht=64")


def test_import_is_quick_and_typed():
    code = "import slm, sys; assert not {'torch', 'lightning', 'hydra'} & set(sys.modules); slm.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "module 'slm' has no attribute 'nothing'" in done.stderr
    assert Path(slm.__file__).with_name("py.typed").exists()
    assert slm.load.__module__ == "slm.generation.language_model"
