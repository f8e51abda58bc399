"""The GPT against independent references, equivalences that must hold, and the parameter counts of the presets."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from slm.attention import Cache
from slm.errors import UserError
from slm.estimate import parameters, training_flops_per_token
from slm.lora import LoRAConfig
from slm.loss import cross_entropy, token_nats
from slm.model import GPT, MLPS, GPTConfig
from slm.run import cli

SMALL = {"vocab_size": 17, "context": 12, "depth": 2, "width": 16, "head_dim": 4, "bias": True, "tied": True}
AXES = {
    "positions": ("rope", "learned"),
    "norm": ("layernorm", "rmsnorm"),
    "mlp": ("gelu", "gelu_tanh", "relu2", "swiglu", "geglu"),
    "kv_heads": (None, 1, 2),
    "qk_norm": (False, True),
}
PLAIN = {**SMALL, "positions": "rope", "norm": "layernorm", "mlp": "gelu"}
LATER = {"window": [3, None], "value_embeddings": True, "residual_scalars": True, "logit_softcap": 2.0}
LATER |= {"head_bias": True, "bigram_embeddings": 50}
GRID = [
    *(dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())),
    *({key: value} for key, value in LATER.items()),
    {"window": 4, "depth": 3, "positions": "learned"},
    {**LATER, "kv_heads": 1, "depth": 3, "qk_norm": True, "tied": False},
]


def model_of(**choices) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**PLAIN, **choices}))


def moved(model: GPT) -> GPT:
    """Away from its initialisation, at which some parameters do nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


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
    counts = parameters(GPTConfig(**cli.compose([f"model={name}"]).plain["model"], vocab_size=vocab_size))
    assert (counts.total, counts.non_embedding) == (total, non_embedding)


SEEDS = {  # the models of five systems that others have stated: keys, vocabulary -> parameters
    "smalllm": ("", 16_000, 20_340_480),
    "char_slm": ("context=256 depth=4 width=256 positions=learned tied=false head_bias=true", 99, 3_275_875),
    "char_slm gated": (
        "context=256 depth=4 width=256 positions=learned tied=false head_bias=true mlp=geglu mlp_width=1024",
        100,
        4_329_060,
    ),
    "sml": ("context=256 depth=6 positions=learned", 8_192, 10_745_856 + 384 * 8192),
    "slm_notebook": ("context=128 depth=6 positions=learned", 50_257, 29_995_392),
}


@pytest.mark.parametrize(("keys", "vocab_size", "total"), SEEDS.values(), ids=SEEDS)
def test_parameter_counts_of_stated_models(keys, vocab_size, total):
    words = [f"model.{word}" for word in keys.split()]
    assert parameters(GPTConfig(**cli.compose(words).plain["model"], vocab_size=vocab_size)).total == total


@pytest.mark.parametrize("choice", [{"kv_heads": 1, "mlp": "geglu"}, {"value_embeddings": True, "mlp_width": 8}])
def test_flops_are_those_that_torch_counts(choice):
    from torch.utils.flop_counter import FlopCounterMode

    config = GPTConfig(**{**PLAIN, "tied": False, **choice})
    with torch.device("meta"):
        model = GPT(config)
        tokens = torch.zeros(3, config.context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    assert 3 * counter.get_total_flops() == 3 * config.context * training_flops_per_token(config)


def test_flops_with_frozen_matrices_are_those_that_torch_counts():
    """But for the input gradients of the first adapted layer, which nothing needs."""
    from torch.utils.flop_counter import FlopCounterMode

    config = GPTConfig(**{**PLAIN, "tied": False, "depth": 3, "lora": LoRAConfig(rank=2)})
    with torch.device("meta"):
        model = GPT(config)
        tokens = torch.zeros(3, config.context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    first = model.blocks[0].attention.qkv
    missing = 2 * (first.weight.numel() + first.lora_a.numel())
    assert counter.get_total_flops() == 3 * config.context * (training_flops_per_token(config) - missing)


def test_a_window_saves_the_flops_of_the_positions_before_it():
    for window, seen in ((None, 12 + 12 + 12), (4, 4 + 4 + 4), ([4, None], 4 + 12 + 4), ([5, 30], 5 + 12 + 5)):
        configs = (GPTConfig(**{**PLAIN, "depth": 3, "window": choice}) for choice in (window, None))
        flops, full = map(training_flops_per_token, configs)
        assert full - flops == 12 * 16 * (36 - seen)


def test_parameters_of_later_parts():
    """Embeddings of values are embeddings; gates and scalars are not."""
    plain, later = (parameters(GPTConfig(**{**PLAIN, "depth": 3, **choice})) for choice in ({}, LATER))
    assert later.total - plain.total == 2 * (17 * 16 + 12 * 4) + 2 * 3 + 17 + 50 * 16
    assert later.non_embedding - plain.non_embedding == 2 * 12 * 4 + 2 * 3 + 17


@pytest.mark.parametrize("choice", GRID, ids=lambda choice: "-".join(map(str, choice.values())))
def test_cache_equals_full_and_future_is_unseen(choice):
    model = moved(model_of(**choice)).eval()
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


@pytest.mark.parametrize("name", MLPS)
def test_mlps_are_their_formulas(name):
    mlp, x = moved(model_of(mlp=name, mlp_width=24)).blocks[0].mlp, 2 * torch.randn(3, 16)
    up, gate = mlp.up(x), mlp.gate(x) if mlp.gate else None
    hidden = {
        "gelu": lambda: up * (1 + torch.erf(up / 2**0.5)) / 2,
        "gelu_tanh": lambda: up * (1 + torch.tanh((2 / math.pi) ** 0.5 * (up + 0.044715 * up**3))) / 2,
        "relu2": lambda: up.clamp(min=0) ** 2,
        "swiglu": lambda: up * gate * gate.sigmoid(),
        "geglu": lambda: up * gate * (1 + torch.erf(gate / 2**0.5)) / 2,
    }.get(name, lambda: pytest.fail(f"add the formula of {name} here"))()
    torch.testing.assert_close(mlp(x), mlp.out(hidden))


def test_bigram_embeddings():
    """Each pair of a token and the one before it has a row, added to the token's; a document's first has no pair."""
    model = model_of(bigram_embeddings=10_000, depth=1, document_start=3).eval()
    tokens = torch.tensor([[5, 6, 5, 6, 3, 6]])
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    model(tokens)
    rows = [(id + 1_000_003 * before) % 10_000 for id, before in ((5, 17), (6, 5), (5, 6), (6, 5), (3, 17), (6, 3))]
    assert len(set(rows)) == 5
    torch.testing.assert_close(seen[0], model.tokens.weight[tokens[0]] + model.bigrams.weight[rows])
    with pytest.raises(UserError, match=r"model\.bigram_embeddings=0 must be at least 1"):
        model_of(bigram_embeddings=0)


def test_residual_scalars():
    """Each block reads a * stream + b * embedding; at first a is 1 and b is 0, so the function is the same."""
    plain, model, tokens = model_of().eval(), model_of(residual_scalars=True).eval(), torch.randint(17, (2, 12))
    assert torch.equal(model(tokens), plain(tokens))
    with torch.no_grad():
        model.residual_scales.copy_(torch.tensor([0.5, 0.7]))
        model.embedding_scales.copy_(torch.tensor([0.3, -0.2]))
        embedding = model.tokens(tokens)
        x = model.blocks[0](0.8 * embedding, tokens, model.rotary(slice(0, 12)), {}, None)
        x = model.blocks[1](0.7 * x - 0.2 * embedding, tokens, model.rotary(slice(0, 12)), {}, None)
        torch.testing.assert_close(model(tokens), model.head(model.norm(x)))


def test_the_softcap_of_logits_and_loss():
    """The loss, which never sees the model's logits, is that of softcap * tanh(logits / softcap)."""
    plain, capped = moved(model_of()), moved(model_of(logit_softcap=2.0))
    windows = torch.randint(17, (2, 13))
    inputs, targets = windows[:, :-1], windows[:, 1:]
    logits = capped(inputs)
    assert plain(inputs).abs().max() > 2 > logits.abs().max()
    torch.testing.assert_close(logits, 2 * torch.tanh(plain(inputs) / 2))
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 12)
    torch.testing.assert_close(token_nats(capped.features(inputs), targets=targets, **capped.readout), expected)
    loss = cross_entropy(capped.features(inputs), targets=targets, **capped.readout)
    torch.testing.assert_close(loss, expected.mean())


@pytest.mark.parametrize("choice", [{}, LATER])
@pytest.mark.parametrize("sixteen_bit", [False, True])
def test_every_parameter_has_a_gradient(choice, sixteen_bit):
    model, windows = moved(model_of(depth=3, qk_norm=True, **choice)), torch.randint(17, (2, 13))
    with torch.autocast("cpu", torch.bfloat16, enabled=sixteen_bit):
        features = model.features(windows[:, :-1])
        cross_entropy(features, targets=windows[:, 1:], **model.readout).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), name


@pytest.mark.parametrize("choice", [{}, LATER])
def test_gradient_checkpointing_changes_no_gradient(choice):
    tokens = torch.randint(17, (2, 12))
    gradients = []
    for recompute in (False, True):
        model = moved(model_of(gradient_checkpointing=recompute, dropout=0.2, **choice)).train()
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
    tokens, residual, weights = torch.randint(17, (2, 12)), (12, 16), (12, 12)
    own = {"embedding_dropout": 0.1, "attention_dropout": 0.2, "residual_dropout": 0.4}
    for choice, (e, a, r) in ({}, (0.3, 0.3, 0.3)), (own, (0.1, 0.2, 0.4)):
        model = model_of(dropout=0.3, **choice)
        rates.clear()
        model.train()(tokens)
        assert rates == [(residual, e)] + 2 * [(weights, a), (residual, r), (residual, r)]
        rates.clear()
        model.eval()(tokens)
        assert {rate for _, rate in rates} == {0}
        assert torch.equal(model(tokens), model(tokens))
    model_of(dropout=0.3, **dict.fromkeys(own, 0.0)).train()(tokens)
    assert {rate for _, rate in rates} == {0}


def test_norms_are_their_formulas_with_their_epsilon():
    x = 0.1 * torch.randn(3, 12, 16)
    for eps in (1e-5, 0.1):
        layer, root = model_of(norm_eps=eps), model_of(norm_eps=eps, norm="rmsnorm", qk_norm=True)
        expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()
        torch.testing.assert_close(layer.blocks[1].mlp_norm(x), expected)
        torch.testing.assert_close(root.norm(x), x / (x.square().mean(-1, keepdim=True) + eps).sqrt())
        assert root.blocks[0].attention.query_norm.eps == root.blocks[0].attention.key_norm.eps == eps


@pytest.mark.parametrize(
    ("choice", "std", "writers"),
    [
        ({}, 0.02, 0.02 / math.sqrt(8)),
        ({"init_std": 0.05}, 0.05, 0.05 / math.sqrt(8)),
        ({"init_residual_scale": False, "head_bias": True}, 0.02, 0.02),
    ],
)
def test_initialisation(choice, std, writers):
    """GPT-2's: 0.02, residual writers smaller by sqrt(2 depth), no two blocks alike; the first loss is near ln V."""
    model = model_of(width=256, head_dim=64, depth=4, vocab_size=1000, tied=False, **choice)
    assert model.head.bias is None or not model.head.bias.any()
    assert model.tokens.weight.std().item() == pytest.approx(std, rel=0.05)
    for block in model.blocks:
        for matrix in (block.attention.qkv, block.mlp.up):
            assert matrix.weight.std().item() == pytest.approx(std, rel=0.05)
        for writer in (block.attention.out, block.mlp.out):
            assert writer.weight.std().item() == pytest.approx(writers, rel=0.05)
    if std != 0.02:
        return
    assert not torch.equal(model.blocks[0].mlp.up.weight, model.blocks[1].mlp.up.weight)
    tokens = torch.randint(1000, (8, 13))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), rel=0.02)


def test_impossible_configurations():
    """The remedy and the known names; tests/test_mistakes.py has the other impossible values."""
    for choice, message in (
        ({"width": 18}, r"model.width=18 must be a multiple of model.head_dim=4; try model.width=16 or 20"),
        ({"width": 2}, r"try model.width=4,"),
        ({"kv_heads": 3}, r"model.kv_heads=3 must divide the 4 heads"),
        ({"head_dim": 1}, r"model.head_dim=1 must be even"),
        ({"norm": "batchnorm"}, r"model.norm=batchnorm is not one of layernorm, rmsnorm"),
        ({"mlp": "glu"}, r"model.mlp=glu is not one of gelu, gelu_tanh, relu2, swiglu, geglu"),
        ({"positions": "none"}, r"model.positions=none is not one of rope, learned"),
        ({"logit_softcap": math.inf}, r"model.logit_softcap=inf must be above 0 and finite, or null"),
        *(({"window": window}, r"model.window=.* must be at least 1, null for") for window in ([], [None, -2])),
    ):
        with pytest.raises(UserError, match=message):
            model_of(**choice)


def test_too_many_positions_are_our_bug():
    with pytest.raises(ValueError, match="exceed the context of 12"):
        model_of()(torch.zeros(1, 13, dtype=torch.long))
