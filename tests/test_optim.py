"""Roles cover every parameter; AdamW and Muon are torch's; all options of conf/optimizer train and resume."""

import importlib
import itertools

import pytest
import torch
from conftest import CONF
from omegaconf import OmegaConf
from test_model import LATER, model_of

from slm.optim.adamw import AdamW
from slm.optim.muon import Muon, orthogonalized
from slm.optim.roles import roles

OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
SETTINGS = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "decay": "matrices"}
MUON = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.5}
MUON |= {"adamw_lr": 0.01, "adamw_betas": [0.9, 0.95], "adamw_eps": 1e-8, "adamw_weight_decay": 0.3}


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_a_role(tied):
    model = model_of(tied=tied, positions="learned", qk_norm=True, mlp="swiglu", **LATER)
    found = roles(model)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert found["tokens.weight"] == found["positions.weight"] == "embedding"
    assert found.get("head.weight") == (None if tied else "readout")
    assert found["blocks.0.attention.qkv.weight"] == found["blocks.1.mlp.out.weight"] == "hidden"
    assert found["blocks.0.attention.qkv.bias"] == found["norm.weight"] == found["head.bias"] == "vector"
    assert found["blocks.1.attention.query_norm.weight"] == "vector"
    assert found["blocks.1.attention.value_embedding.weight"] == "embedding"
    assert found["blocks.1.attention.value_gate.weight"] == "hidden"
    assert found["residual_scales"] == found["embedding_scales"] == "vector"


def test_a_parameter_without_a_role_is_refused():
    model = model_of()
    model.scale = torch.nn.Parameter(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match=r"no role for scale of shape \(2, 2, 2\)"):
        roles(model)


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_steps_are_those_of_plain_adamw(decay):
    """Those of torch's unfused AdamW, with decay on matrices or on everything."""
    ours, theirs = model_of(), model_of()
    tokens = torch.randint(17, (4, 12))
    decayed = [p for p in theirs.parameters() if decay == "all" or p.ndim == 2]
    plain = [p for p in theirs.parameters() if decay == "matrices" and p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    by_torch = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), foreach=False)
    for model, optimizer in ((ours, AdamW(**{**SETTINGS, "decay": decay})(ours)), (theirs, by_torch)):
        for _ in range(3):
            optimizer.zero_grad()
            model(tokens).logsumexp(-1).mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_matrices_are_all_but_biases_and_norms_by_name():
    """The rule of a loop that exempts names with `bias` or `norm`; a tied embedding is decayed."""
    model = model_of(positions="learned")
    decayed, plain = AdamW(**SETTINGS)(model).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    exempt = {id(p) for name, p in model.named_parameters() if "bias" in name or "norm" in name}
    assert {id(p) for p in plain["params"]} == exempt
    assert model.head.weight is model.tokens.weight
    assert any(p is model.tokens.weight for p in decayed["params"])


def take_steps(model, optimizer, count):
    """Steps on tokens that depend on nothing but the count; returns the losses."""
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(count):
        tokens = torch.randint(17, (4, 12), generator=generator)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), (tokens.flatten() + 1) % 17)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("choice", [{}, {"tied": False, "kv_heads": 2, "mlp": "swiglu", "positions": "learned"}, LATER])
def test_muon_is_torchs_on_hidden_matrices_and_adamw_torchs_on_the_rest(choice, monkeypatch):
    """Queries, keys and values are matrices of their own: torch gets them as parameters of their own."""
    monkeypatch.setattr("slm.optim.muon.has_fast_bfloat16", lambda device: True)  # torch takes it everywhere
    ours, theirs = model_of(**choice), model_of(**choice)
    optimizer = Muon(**MUON)(ours, bfloat16=True)
    role, shared = roles(theirs), 4 * choice.get("kv_heads", 4)
    rows = {f"blocks.{block}.attention.qkv.weight": [16, shared, shared] for block in (0, 1)}
    parts, decayed, plain = {}, [], []
    for name, p in theirs.named_parameters():
        if role[name] == "hidden":
            parts[name] = [torch.nn.Parameter(part.detach().clone()) for part in p.split(rows.get(name, p.size(0)))]
        else:
            (plain if role[name] == "vector" else decayed).append(p)
    matrices = list(itertools.chain(*parts.values()))
    by_torch = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.5, momentum=0.95, adjust_lr_fn="original"),
        torch.optim.AdamW(decayed, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3),
        torch.optim.AdamW(plain, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0),
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        gradients = {name: torch.randn(p.shape, generator=generator) for name, p in ours.named_parameters()}
        for (name, p), twin in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            p.grad, twin.grad = gradients[name].clone(), gradients[name].clone()
            for part, piece in zip(parts.get(name, []), p.grad.split(rows.get(name, p.size(0)))):
                part.grad = piece.clone()
        for each in (optimizer, *by_torch):
            each.step()
    for (name, p), twin in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        expected = torch.cat([part.detach() for part in parts[name]]) if name in parts else twin
        # the same to the bit on one CPU; another may round a stack of bfloat16 matrices otherwise than each
        torch.testing.assert_close(p, expected, atol=5e-4 if name in parts else 1e-6, rtol=1e-5)
        assert torch.equal(p.grad, gradients[name])


@pytest.mark.parametrize(
    ("given", "allowed", "fast", "expected"),
    [
        (torch.float32, True, True, torch.bfloat16),
        (torch.float32, True, False, torch.float32),
        (torch.float32, False, True, torch.float32),
        (torch.float64, False, True, torch.float64),
        (torch.bfloat16, True, False, torch.float32),
    ],
)
def test_orthogonalized(monkeypatch, given, allowed, fast, expected):
    """In every precision and of any size: the singular vectors stay, the values come near 1, each matrix is alone."""
    monkeypatch.setattr("slm.optim.muon.has_fast_bfloat16", lambda device: fast)
    matrices = torch.randn(5, 16, 64, generator=torch.Generator().manual_seed(0))
    matrices = (matrices * torch.logspace(-6, 3, 5).view(5, 1, 1)).to(given)
    result = orthogonalized(matrices, allowed)
    assert result.dtype == expected
    u, _, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    inner = u.mT @ result.double() @ vh.mT
    values = inner.diagonal(dim1=1, dim2=2)
    assert (values - 0.95).abs().max() < 0.3
    assert (inner - torch.diag_embed(values)).abs().max() < (0.1 if expected == torch.bfloat16 else 1e-4)
    for one, matrix in zip(result, matrices, strict=True):
        torch.testing.assert_close(one, orthogonalized(matrix[None], allowed)[0], atol=0.02, rtol=0)
    assert not orthogonalized(torch.zeros(1, 4, 8, dtype=given), allowed).any()


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_no_product_of_a_training_is_less_precise_than_asked(run, monkeypatch, precision):
    """Muon takes bfloat16 where it is fast, but not in a training in float32 or float64."""
    monkeypatch.setattr("slm.optim.muon.has_fast_bfloat16", lambda device: True)
    seen, real = set(), torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda x, *rest, **factors: seen.add(x.dtype) or real(x, *rest, **factors))
    run("optimizer=muon", f"trainer.precision={precision}", "budget.steps=1", "callbacks.samples=null")
    assert torch.bfloat16 in seen if precision == "bf16-mixed" else seen == {getattr(torch, f"float{precision[:2]}")}


def from_yaml(name):
    """What the composition root makes of conf/optimizer: our own take the model, torch's its parameters."""
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / f"{name}.yaml"))
    path, _, kind = settings.pop("_target_").rpartition(".")
    kind = getattr(importlib.import_module(path), kind)
    return kind(**settings) if path.startswith("slm.") else lambda model: kind(model.parameters(), **settings)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_to_the_bit(tmp_path, name):
    model, make = model_of(**LATER), from_yaml(name)
    optimizer = make(model)
    take_steps(model, optimizer, 2)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5  # as a schedule does: it belongs to the state
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state")
    take_steps(model, optimizer, 2)

    again = model_of(**LATER)
    resumed = make(again)
    take_steps(again, resumed, 1)  # to be forgotten
    saved = torch.load(tmp_path / "state", weights_only=True)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    take_steps(again, resumed, 2)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        assert optimizer.state[a].keys() == resumed.state[b].keys()
        assert all(torch.equal(optimizer.state[a][key], resumed.state[b][key]) for key in optimizer.state[a])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_learns(name):
    """With its own settings, and every parameter moves."""
    model = model_of(value_embeddings=True, residual_scalars=True)
    before = [p.detach().clone() for p in model.parameters()]
    losses = take_steps(model, from_yaml(name)(model), 120)
    assert losses[0] > 2.5
    assert losses[-1] < losses[0] - 0.5
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_muon_takes_a_closure_and_leaves_what_has_no_gradient():
    model = model_of()
    optimizer, first, tokens = Muon(**MUON)(model), model.blocks[0], torch.zeros(1, 4, dtype=torch.long)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first.requires_grad_(False)

    def closure():
        loss = model(tokens).logsumexp(-1).mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if not name.startswith("blocks.0.")}
