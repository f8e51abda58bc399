"""torch.compile changes the speed of a training and no result."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_model import LATER, model_of
from test_resume import assert_same, final_state, history, train_with_kills

from slm.estimate import training_flops_per_token
from slm.files import run_folder
from slm.hardware import Hardware
from slm.run.prepare import compiles
from slm.run.sections import UNKNOWN
from slm.run.train import train


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, about itself
@pytest.mark.parametrize("layout", ["packed", "documents"])
def test_a_compiled_training_equals_an_eager_one(composed, tmp_path, monkeypatch, layout):
    """Equal losses and names of weights, also with recomputed blocks and multipliers; with varying lengths it resumes
    bit for bit."""
    weights = {}
    for compile in ("false", "true"):
        settings = f"trainer.compile={compile}", "model.dropout=0.0", "model.gradient_checkpointing=true"
        scaled = "model.parametrization=completep", "model.base_width=32", "model.base_depth=1"
        config = composed(*settings, *scaled, "trainer.microbatch=2", f"data.layout={layout}", "model.context=320")
        train(config, run_dir=tmp_path / compile, overrides=[])
        weights[compile] = final_state(tmp_path / compile)[0]
        assert run_folder.read_run_json(tmp_path / compile)["compiled"] == (compile == "true")
    assert weights["true"].keys() == weights["false"].keys()
    for name, tensor in weights["true"].items():
        apart = (tensor - weights["false"][name]).abs().mean()  # AdamW turns rounding of a gradient near 0 into a step
        assert apart < 1e-4, name
    for ours, theirs in zip(history(tmp_path / "true"), history(tmp_path / "false"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    if layout == "documents":
        train_with_kills(config, tmp_path / "broken", monkeypatch, [9])
        assert_same(final_state(tmp_path / "true"), final_state(tmp_path / "broken"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("choice", [{"dropout": 0.1}, {**LATER, "gradient_checkpointing": True}])
def test_documents_of_all_lengths_are_one_graph(choice):
    """Without a break: a part of the model that is not compiled would only be slower."""
    model, counters = model_of(**choice).train(), torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    features = torch.compile(model.features, backend="aot_eager", dynamic=True)  # no code is generated
    for length in (12, 7, 9):
        features(torch.randint(17, (2, length))).sum().backward()
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("choice", [{}, {"kv_heads": 2}, {"qk_norm": True}, LATER])
def test_rotated_queries_and_keys_are_tensors_of_their_own(choice, monkeypatch):
    """Not views of one: their strides would be fixed numbers in a compiled backward pass, wrong for other lengths."""
    seen, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr("slm.attention.tiles_are_faster", lambda *_: False)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, *a, **b: seen.extend((q, k)) or real(q, k, *a, **b)
    )
    model_of(**choice)(torch.randint(17, (2, 12)))
    assert seen
    assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in seen)


@pytest.mark.parametrize(
    ("settings", "steps", "compiled"),
    [
        ((), 99, False),
        ((), 101, True),
        (("trainer.compile=false",), 101, False),
        (("trainer.compile=true",), 99, True),
        ((), None, False),  # not known
        (("budget.steps=null", "budget.minutes=14"), UNKNOWN, False),
        (("budget.steps=null", "budget.minutes=15"), UNKNOWN, True),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_on_a_cpu_a_long_training_is_compiled(composed, monkeypatch, settings, steps, compiled, processes):
    """One of at least 15 minutes at 55 GFLOP/s for each thread of each process."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    config = composed(*settings)
    per_window = training_flops_per_token(config.model) * config.model.context
    batch = round(processes * 2 * 15 * 60 * 55e9 / 100 / per_window)
    config = replace(config, data=replace(config.data, batch_windows=batch))
    hardware = Hardware("cpu", processes, "32-true", "cpu")
    assert compiles(config, hardware, config.model, steps, config.model.context) == compiled
    on_a_gpu = compiles(config, replace(hardware, accelerator="gpu"), config.model, 1, 1)
    assert on_a_gpu == ("trainer.compile=false" not in settings)


@pytest.mark.parametrize("asked", ["true", "null"])
def test_without_a_compiler_the_training_is_eager(composed, tmp_path, monkeypatch, capsys, asked):
    monkeypatch.setattr("slm.run.prepare.WORTH_COMPILING", 0)

    def refuse(*arguments, **settings):
        raise RuntimeError("\nno C++ compiler here\nat all")

    monkeypatch.setattr(torch, "compile", refuse)
    train(composed(f"trainer.compile={asked}"), run_dir=tmp_path / "run", overrides=[])
    printed = capsys.readouterr()
    assert "warning: torch.compile does not work here (no C++ compiler here); training" in printed.err
    assert ", compiled" not in printed.out
    assert {"status": "done", "compiled": False}.items() <= run_folder.read_run_json(tmp_path / "run").items()
