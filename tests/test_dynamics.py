"""callbacks=dynamics: right numbers, and a training that is bit for bit that without it."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import mistake
from forks import forked
from test_distributed import TWO, small_run
from test_model import LATER, model_of, moved
from test_resume import assert_same, final_state, history, resumes_exactly

from slm import checkpoint
from slm.attention import attend
from slm.data.store import prepare
from slm.data.windows import Windows
from slm.files import jsonl
from slm.model import GPT
from slm.run.train import train
from slm.tokenizers.bytes import ByteTokenizer
from slm.training.callbacks.dynamics import attention_weights, membership, probe

DYNAMICS = "callbacks=dynamics", "callbacks.dynamics.every_n_steps=3"
EMA = "+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"
PLAIN = "callbacks.samples=null", "trainer.precision=32-true", "model.dropout=0.0"
BITS = "trainer.precision=bf16-mixed", "model.dropout=0.1"


def dynamics(folder) -> dict[int, dict[str, float]]:
    """Step -> quantities without the prefix."""
    lines = {line["step"]: line for line in history(folder) if "dynamics/all/grad_norm" in line}
    return {
        step: {name.removeprefix("dynamics/"): value for name, value in line.items() if name != "step"}
        for step, line in lines.items()
    }


@pytest.mark.parametrize(
    "settings",
    [
        (*PLAIN, "optimizer=muon", "model.tied=true", "model.norm=rmsnorm"),
        (*BITS, "trainer.microbatch=2", "trainer.compile=false"),
        pytest.param(
            (*BITS, "trainer.microbatch=2", "data.layout=documents", "trainer.compile=true"), marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler, about itself
def test_the_training_is_that_without_it(run, settings):
    common = *settings, "budget.steps=4", "log_every_n_steps=1"
    plain, observed = run(*common, folder="plain"), run(*common, *DYNAMICS, folder="observed")
    assert_same(final_state(plain), final_state(observed))
    assert [*dynamics(observed)] == [1, 3]
    assert history(plain) == [line for line in history(observed) if "dynamics/all/grad_norm" not in line]
    assert all(math.isfinite(value) for line in dynamics(observed).values() for value in line.values())


def test_the_first_step_against_a_loop_in_plain_torch(composed, tmp_path):
    """Of four microbatches: gradients, updates, activations, noise scale."""
    config = composed(*PLAIN, *DYNAMICS, "trainer.microbatch=1", "budget.steps=2", "log_windows=true")
    train(config, run_dir=tmp_path / "run", overrides=[])
    found = dynamics(tmp_path / "run")[1]
    store = prepare(config.data.corpus, ByteTokenizer(), tmp_path / "cache")
    chosen = next(jsonl.lines(tmp_path / "run" / "windows.jsonl"))["windows"]
    windows = Windows(store, "train", 64).__getitems__(chosen)
    sizes = checkpoint.load(tmp_path / "run").model.config
    torch.manual_seed(config.seed)
    model = GPT(sizes)
    before = [p.detach().clone() for p in model.parameters()]
    single = []
    for window in windows:
        loss = F.cross_entropy(model(window[None, :-1])[0], window[1:])
        single.append(torch.autograd.grad(loss, [*model.parameters()]))
    mean = [sum(parts) / 4 for parts in zip(*single)]
    power = [sum(g.square().sum() for g in gradients) for gradients in (*single, mean)]
    names = [name for name, _ in model.named_parameters()]
    in_block = [name.startswith("blocks.1.") for name in names]
    close = {"rel": 1e-3}
    assert found["all/grad_norm"] == pytest.approx(power[-1].sqrt().item(), **close)
    expected = torch.cat([g.flatten() for g, its in zip(mean, in_block) if its]).norm()
    assert found["block01/grad_norm"] == pytest.approx(expected.item(), **close)
    expected = torch.cat([p.flatten() for p, its in zip(before, in_block) if its]).norm()
    assert found["block01/weight_norm"] == pytest.approx(expected.item(), **close)
    # unbiased: the variance of single windows around their mean, and the mean's power without its part of it
    variance = sum(sum((g - m).square().sum() for g, m in zip(gradients, mean)) for gradients in single) / 3
    assert found["all/gradient_variance"] == pytest.approx(variance.item(), **close)
    assert found["all/gradient_power"] == pytest.approx((power[-1] - variance / 4).item(), **close)
    scale = variance / (power[-1] - variance / 4)
    assert found["all/gradient_noise_scale"] == pytest.approx(scale.item(), **close)


def test_updates_are_the_differences_of_checkpoints(run):
    folder = run(
        *PLAIN,
        *DYNAMICS,
        "budget.steps=3",
        "callbacks.checkpoints.every_n_steps=1",
        "callbacks.checkpoints.keep_last=20",
    )
    two, three = (checkpoint.load(folder / f"checkpoints/step-00000{step}.ckpt").model for step in (2, 3))
    for group, prefix in (("block00", "blocks.0."), ("embedding", "tokens."), ("all", "")):
        names = [name for name, _ in two.named_parameters() if name.startswith(prefix)]
        old, new = (torch.cat([dict(m.named_parameters())[n].flatten() for n in names]).detach() for m in (two, three))
        found = dynamics(folder)[3]
        assert found[f"{group}/update_norm"] == pytest.approx((new - old).norm().item(), rel=1e-4)
        assert found[f"{group}/update_ratio"] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-4)


@pytest.mark.parametrize("choice", [{}, {"kv_heads": 2}, {"positions": "learned"}, {**LATER, "qk_norm": True}])
def test_attention_weights_are_those_of_the_model(choice, monkeypatch):
    """With the values that the model pays them to, they give the results of its own attention."""
    model, seen = moved(model_of(**choice)).eval(), []
    real = attend

    def recorded(q, k, v, **settings):
        seen.append((v, real(q, k, v, **settings)))
        return seen[-1][1]

    monkeypatch.setattr("slm.attention.attend", recorded)
    inputs = []
    hooks = [
        block.attention.register_forward_pre_hook(lambda module, its: inputs.append((module, its[0], its[2])))
        for block in model.blocks
    ]
    with torch.no_grad():
        model(torch.randint(17, (2, 12)))
        for hook in hooks:
            hook.remove()
        for (attention, x, rotation), (v, result) in zip(inputs, seen, strict=True):
            weights = attention_weights(attention, x, rotation, torch.tensor([0, 3, 11]))
            v = v.repeat_interleave(attention.heads // attention.kv_heads, dim=1)
            torch.testing.assert_close(weights @ v, result[:, :, [0, 3, 11]], rtol=1e-4, atol=1e-5)


def test_known_activations():
    """Dead units and uniform attention, and no part of padding in either."""
    model = model_of(mlp="swiglu", bias=True)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.zero_()  # all scores equal: a query at p spreads over p + 1 keys
            block.mlp.gate.weight.zero_()
            block.mlp.gate.bias.fill_(1.0)
            block.mlp.gate.bias[:8] = -1.0
        windows = torch.randint(17, (3, 9))
        found = probe(model.train(), windows)
        padded = torch.cat([windows, torch.full((3, 4), -100)], dim=1)
        same = probe(model, padded)
    queries = torch.arange(1, 9).log().mean()
    torch.testing.assert_close(found["attention_entropy"], queries.expand(len(model.blocks)))
    units = model.config.hidden_width
    torch.testing.assert_close(found["dead_share"], torch.full((len(model.blocks),), 8 / units))
    torch.testing.assert_close(same["activation_rms"], found["activation_rms"])
    assert model.training


def test_groups_cover_every_parameter_once():
    groups, members = membership(model_of(**LATER, tied=False))
    assert groups[-1] == "all"
    assert {*groups} == {"all", "embedding", "readout", "vector", "block00", "block01"}
    assert (members[:-1].sum(0) == 1).all()


@pytest.mark.parametrize("extra", ["callbacks.samples=null", pytest.param(EMA, marks=pytest.mark.slow)])
def test_it_resumes_exactly(composed, tmp_path, monkeypatch, extra):
    config = composed(
        *DYNAMICS, "trainer.microbatch=2", "callbacks.checkpoints.every_n_steps=2", extra, "budget.steps=6"
    )
    straight = resumes_exactly(config, tmp_path, monkeypatch, [9])
    assert [*dynamics(straight)] == [1, 3, 6]


def test_one_microbatch_has_no_noise_scale(run, capsys):
    folder = run(*DYNAMICS, "callbacks.samples=null", "budget.steps=1")
    assert "needs trainer.microbatch below data.batch_windows" in capsys.readouterr().out
    assert not [name for name in dynamics(folder)[1] if name.startswith("all/gradient_")]
    with mistake("callbacks.dynamics.every_n_steps=0 must be at least 1"):
        run(*DYNAMICS, "callbacks.dynamics.every_n_steps=0", folder="other")


@pytest.mark.slow
def test_two_processes_log_what_one_does(text_file, tmp_path):
    """With microbatches of one window, which are the same ones however they are shared out."""
    small = *small_run(text_file, tmp_path), *PLAIN, *DYNAMICS, "trainer.microbatch=1", "budget.steps=3"
    for name, extra in (("one", ()), ("two", TWO)):
        done = forked(*small, *extra, f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    one, two = (dynamics(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    sizes = "weight_norm", "grad_norm", "update_norm", "gradient_variance", "gradient_power"
    for step in one:
        for name in filter(lambda name: name.endswith(sizes), one[step]):
            assert one[step][name] == pytest.approx(two[step][name], rel=2e-3), (step, name)
