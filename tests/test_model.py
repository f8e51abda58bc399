"""The GPT against independent references, equivalences that must hold, and the parameter counts of the presets."""

import itertools
import math

import hydra
import pytest
import torch
import torch.nn.functional as F
from conftest import CONF
from omegaconf import OmegaConf

from slm.errors import UserError
from slm.estimate import parameters, training_flops_per_token
from slm.model import GPT, Cache, GPTConfig, Rotary, attend, attend_in_tiles, rotate

SMALL = {"vocab_size": 17, "context": 12, "depth": 2, "width": 16, "head_dim": 4, "bias": True, "tied": True}
AXES = {
    "positions": ("rope", "learned"),
    "norm": ("layernorm", "rmsnorm"),
    "mlp": ("gelu", "swiglu", "relu2"),
    "kv_heads": (None, 1, 2),
    "qk_norm": (False, True),
}
GRID = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
PLAIN = {**SMALL, "positions": "rope", "norm": "layernorm", "mlp": "gelu"}


def model_of(**choices) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**PLAIN, **choices}))


def preset(name: str) -> dict:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("train", overrides=[f"model={name}"]).model)


@pytest.mark.parametrize(
    ("name", "vocab_size", "total", "non_embedding"),
    [
        ("tiny", 1_024, 924_416, 793_344),
        ("tiny", 16_000, 2_841_344, 793_344),
        ("small", 16_000, 20_340_480, 14_196_480),
        ("base", 16_000, 49_105_152, 39_889_152),
        ("gpt2_124m", 50_257, 124_439_808, 85_056_000),
        ("gpt2_350m", 50_257, 354_823_168, 302_311_424),
    ],
)
def test_parameter_counts(name, vocab_size, total, non_embedding):
    counts = parameters(GPTConfig(**preset(name), vocab_size=vocab_size))
    assert (counts.total, counts.non_embedding) == (total, non_embedding)


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = GPTConfig(**{**PLAIN, "kv_heads": 1, "mlp": "swiglu", "tied": False})
    with torch.device("meta"):
        model = GPT(config)
        tokens = torch.zeros(3, config.context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    assert 3 * counter.get_total_flops() == 3 * config.context * training_flops_per_token(config)


@pytest.mark.parametrize("choice", GRID, ids=lambda choice: "-".join(map(str, choice.values())))
def test_cache_equals_full_and_future_is_unseen(choice):
    model = model_of(**choice).eval()
    tokens = torch.randint(17, (2, 12))
    with torch.no_grad():
        full = model(tokens)
        cache = Cache(model.config, batch=2)
        uneven = [model(tokens[:, :5], cache), model(tokens[:, 5:7], cache)]
        uneven += [model(tokens[:, i : i + 1], cache) for i in range(7, 12)]
        torch.testing.assert_close(torch.cat(uneven, 1), full, atol=1e-5, rtol=1e-5)
        changed = tokens.clone()
        changed[:, 7] = (changed[:, 7] + 1) % 17
        assert torch.equal(model(changed)[:, :7], full[:, :7])
        assert not torch.equal(model(changed)[:, 7], full[:, 7])


def test_attention_equals_its_formula():
    """Four lines of softmax(q k / sqrt(d)) v, with the heads in the order in which the fused matrix holds them."""
    model = model_of(positions="learned", kv_heads=2).eval()
    attention, x = model.blocks[0].attention, torch.randn(1, 6, 16)
    q, k, v = attention.qkv(x).split([16, 8, 8], dim=-1)
    heads = []
    for head in range(4):
        at, shared = slice(4 * head, 4 * head + 4), slice(4 * (head // 2), 4 * (head // 2) + 4)
        scores = q[0, :, at] @ k[0, :, shared].T / 2 + torch.full((6, 6), -torch.inf).triu(1)
        heads.append(scores.softmax(-1) @ v[0, :, shared])
    torch.testing.assert_close(attention(x, None, None)[0], attention.out(torch.cat(heads, -1)))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "positions", "keys"), [(2, 2, 12, 12), (4, 2, 300, 300), (4, 1, 140, 150)]
)
def test_attention_on_a_cpu_equals_torchs_with_gradients(heads, kv_heads, positions, keys):
    """One tile and several, shared heads, a cache; in bfloat16 no further from float32 than torch's kernel is."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, h, n, 8) for h, n in ((heads, positions), (kv_heads, keys), (kv_heads, keys))]
    upstream = torch.randn(2, heads, positions, 8)
    past = torch.ones(positions, keys, dtype=torch.bool).tril(keys - positions)

    def run(function, dtype=torch.float32):
        q, k, v = (x.to(dtype).requires_grad_() for x in tensors)
        y = function(q, k, v)
        return y, *torch.autograd.grad(y, (q, k, v), upstream.to(dtype))

    def torchs(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=past, enable_gqa=heads != kv_heads)

    truth = run(torchs)
    torch.testing.assert_close(run(attend), truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run(lambda q, k, v: attend_in_tiles(q, k, v, 0.0)), truth, atol=1e-5, rtol=1e-5)
    for ours, theirs, true in zip(run(attend, torch.bfloat16), run(torchs, torch.bfloat16), truth, strict=True):
        assert (ours - true).norm() <= max(1.5 * (theirs - true).norm(), 0.01 * true.norm())


def test_rope_sees_only_distances():
    rotary = Rotary(GPTConfig(**PLAIN))
    q, k = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)

    def turned(x, position):
        return rotate(x, rotary(slice(position, position + 1)))

    scores = [(turned(q, m) * turned(k, n)).sum().item() for m, n in ((3, 1), (7, 5), (11, 9))]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)
    assert (turned(q, 4) * turned(k, 1)).sum().item() != pytest.approx(scores[0], abs=1e-3)


def test_gradient_checkpointing_changes_no_gradient():
    tokens = torch.randint(17, (2, 12))
    gradients = []
    for recompute in (False, True):
        model = model_of(gradient_checkpointing=recompute, dropout=0.2).train()
        torch.manual_seed(1)
        model(tokens).logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_is_where_it_is_promised(monkeypatch):
    """On the embeddings, on the attention weights and on both residual branches of every block; nowhere in eval."""
    rates, real = [], F.dropout
    monkeypatch.setattr(
        F, "dropout", lambda x, p, training=True, *_: rates.append((x.shape[1:], p * training)) or real(x, p, training)
    )
    model, tokens = model_of(dropout=0.3), torch.randint(17, (2, 12))
    residual, weights = (12, 16), (12, 12)
    model.train()(tokens)
    assert rates == [(residual, 0.3)] + 2 * [(weights, 0.3), (residual, 0.3), (residual, 0.3)]
    rates.clear()
    model.eval()(tokens)
    assert {rate for _, rate in rates} == {0}
    assert torch.equal(model(tokens), model(tokens))


def test_initialisation():
    """GPT-2's: 0.02, residual writers smaller by sqrt(2 depth), no two blocks alike; the first loss is near ln V."""
    model = model_of(width=256, head_dim=64, depth=4, vocab_size=1000, tied=False)
    for block in model.blocks:
        for matrix in (block.attention.qkv, block.mlp.up):
            assert matrix.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for writer in (block.attention.out, block.mlp.out):
            assert writer.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.05)
    assert not torch.equal(model.blocks[0].mlp.up.weight, model.blocks[1].mlp.up.weight)
    tokens = torch.randint(1000, (8, 13))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), rel=0.02)


def test_tied_and_untied():
    tied, untied = model_of(tied=True), model_of(tied=False)
    assert tied.head.weight is tied.tokens.weight
    assert untied.head.weight is not untied.tokens.weight
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 17 * 16


def test_it_learns_one_batch_by_heart():
    model, tokens = model_of(width=32, head_dim=8), torch.randint(17, (4, 13))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"width": 18}, r"model.width=18 must be a multiple of model.head_dim=4; try model.width=16 or 20"),
        ({"width": 2}, r"try model.width=4,"),
        ({"kv_heads": 3}, r"model.kv_heads=3 must divide the 4 heads"),
        ({"head_dim": 1}, r"model.head_dim=1 must be even"),
        ({"dropout": 1.5}, r"model.dropout=1.5"),
        ({"dropout": math.nan}, r"model.dropout=nan"),
        ({"depth": 0}, r"model.depth=0 must be at least 1"),
        ({"norm": "batchnorm"}, r"model.norm=batchnorm is not one of layernorm, rmsnorm"),
    ],
)
def test_impossible_configurations(choice, message):
    with pytest.raises(UserError, match=message):
        GPTConfig(**{**PLAIN, **choice})


def test_too_many_positions_are_our_bug():
    with pytest.raises(ValueError, match="exceed the context of 12"):
        model_of()(torch.zeros(1, 13, dtype=torch.long))
