"""Attention against its formula on every path: torch's kernel, tiles, windows, compiled for all lengths."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_model import PLAIN, model_of

from slm import attention
from slm.attention import Rotary, attend, attend_in_tiles, rotate, visible
from slm.model import GPTConfig


def by_formula(q, k, v, window):
    """Softmax(q k / sqrt(D)) v for each query alone, over a list of its keys."""
    (T, D), S, group = q.shape[2:], k.size(2), q.size(1) // k.size(1)
    y = torch.empty_like(q)
    for head, t in itertools.product(range(q.size(1)), range(T)):
        p = S - T + t
        keys = slice(0 if window is None else max(p - window + 1, 0), p + 1)
        scores = k[:, head // group, keys] @ q[:, head, t, :, None] / D**0.5
        y[:, head, t] = (scores.softmax(1) * v[:, head // group, keys]).sum(1)
    return y


@pytest.mark.parametrize("window", [None, 1, 5, 100, 200])
@pytest.mark.parametrize(("T", "S"), [(300, 300), (140, 150), (3, 150), (1, 150)])
@pytest.mark.parametrize("tiles", [True, False], ids=["tiles", "torch"])
def test_attention_is_its_formula_on_every_path(monkeypatch, tiles, T, S, window):
    """One tile and several, shared heads, cached keys; with gradients."""
    monkeypatch.setattr(attention, "tiles_are_faster", lambda q, window, dropout: tiles)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, n, 8, requires_grad=True) for h, n in ((4, T), (2, S), (2, S)))
    upstream = torch.randn(2, 4, T, 8)

    def run(function):
        y = function(q, k, v)
        return y, *torch.autograd.grad(y, (q, k, v), upstream)

    ours, formula = run(lambda *qkv: attend(*qkv, window=window)), run(lambda *qkv: by_formula(*qkv, window))
    torch.testing.assert_close(ours, formula, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("window", "keys"), [(None, 128 + 256 + 384 + 512), (64, 128 + 3 * (128 + 63)), (1, 4 * 128)])
def test_tiles_skip_the_keys_that_no_query_sees(window, keys):
    """Four tiles of 128 queries: two products with the keys up to their last one, from the window of their first."""
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(1, 1, 512, 8)
    with FlopCounterMode(display=False) as counter:
        attend_in_tiles(x, x, x, window, 0.0)
    assert counter.get_total_flops() == 2 * (2 * 128 * keys * 8)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_where_tiles_are_used(monkeypatch, window, dropout):
    """On a CPU in bfloat16, with dropout or with a window; never for a single query."""
    used = []
    monkeypatch.setattr(attention, "attend_in_tiles", lambda *qkv: used.append(True) or attend_in_tiles(*qkv))
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.randn(1, 2, 9, 8).to(dtype)
        used.clear()
        attend(q, q, q, window=window, dropout=dropout)
        assert bool(used) == (dtype == torch.bfloat16 or window is not None or dropout > 0)
        used.clear()
        attend(q[:, :, -1:], q, q, window=window, dropout=dropout)
        assert not used


def test_full_attention_takes_torchs_fast_path(monkeypatch):
    """Without a mask for a whole text, since torch then skips the future, and for a single query."""
    masks, kernel = [], F.scaled_dot_product_attention

    def spy(*qkv, **settings):
        masks.append((settings["attn_mask"], settings["is_causal"]))
        return kernel(*qkv, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    x = torch.randn(1, 2, 9, 8)
    attend(x, x, x)
    attend(x[:, :, -1:], x, x)
    attend(x[:, :, -1:], x, x, window=4)
    assert masks == [(None, True), (None, False), (None, False)]


@pytest.mark.parametrize("window", [None, 20])
def test_tiles_in_bfloat16_are_no_further_from_the_truth_than_torch(window):
    torch.manual_seed(0)
    tensors, upstream = [torch.randn(2, h, 300, 8) for h in (4, 2, 2)], torch.randn(2, 4, 300, 8)
    mask = visible(torch.arange(300), torch.arange(300), window)

    def run(function, dtype):
        q, k, v = (x.to(dtype).requires_grad_() for x in tensors)
        y = function(q, k, v)
        return y, *torch.autograd.grad(y, (q, k, v), upstream.to(dtype))

    def torchs(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    truth, theirs = run(torchs, torch.float32), run(torchs, torch.bfloat16)
    ours = run(lambda *qkv: attend(*qkv, window=window), torch.bfloat16)
    for our, their, true in zip(ours, theirs, truth, strict=True):
        assert (our - true).norm() <= max(1.5 * (their - true).norm(), 0.01 * true.norm())


def test_rope_sees_only_distances():
    rotary = Rotary(GPTConfig(**PLAIN))
    q, k = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)

    def turned(x, position):
        return rotate(x, rotary(slice(position, position + 1)))

    scores = [(turned(q, m) * turned(k, n)).sum().item() for m, n in ((3, 1), (7, 5), (11, 9))]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)
    assert (turned(q, 4) * turned(k, 1)).sum().item() != pytest.approx(scores[0], abs=1e-3)


def test_a_window_ends_what_a_position_sees():
    """One block of window 3 sees two positions back; a full block after it sees all that the first one has seen."""
    tokens = torch.randint(17, (1, 12))
    for window, back in ((3, 2), ([3, 4], 5), ([3, None], 9)):
        model = model_of(window=window, depth=1 if window == 3 else 2).eval()
        before = model(tokens)[:, 9]
        for position in range(10):
            changed = tokens.clone()
            changed[:, position] = (changed[:, position] + 1) % 17
            assert torch.equal(model(changed)[:, 9], before) == (position < 9 - back), (window, position)


def test_windows_of_the_blocks():
    """A pattern is repeated; a window that holds the whole context is none, and takes the fast path."""
    repeated, full = ([4, 6, None], [4, 6, None, 4, 6]), ([11, 12, 10**9], [11, None, None, 11, None])
    for window, expected in ((None, [None] * 5), (4, [4] * 5), repeated, full):
        assert GPTConfig(**{**PLAIN, "depth": 5, "window": window}).windows == expected


def test_an_attention_layer_is_its_formula():
    """Heads lie in the fused matrix in order. In the last block and every second one before it, embedded values are
    added: each head times 3 sigmoid(gate of the first 12 channels)."""
    model = model_of(value_embeddings=True, depth=5, kv_heads=2, positions="learned").eval()
    attentions = [block.attention for block in model.blocks]
    assert [layer.value_embedding is not None for layer in attentions] == [True, False, True, False, True]
    x, tokens = torch.randn(1, 6, 16), torch.randint(17, (1, 6))
    for layer in attentions[:2]:
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in layer.qkv(x).split([16, 8, 8], dim=-1))
        if layer.value_embedding:
            embedded, gates = layer.value_embedding.weight[tokens], 3 * layer.value_gate(x[..., :12]).sigmoid()
            v = v + torch.stack([gates[..., h, None] * embedded[..., 4 * h : 4 * h + 4] for h in range(2)], dim=1)
        expected = by_formula(q, k, v, None).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer(x, tokens, None, {}, None), layer.out(expected))


def test_queries_keys_and_values_are_of_one_type(monkeypatch):
    """In mixed precision too, where norms and embeddings are float32."""
    types = []
    monkeypatch.setattr(attention, "attend", lambda q, k, v, **_: types.append({q.dtype, k.dtype, v.dtype}) or q)
    model, tokens = model_of(qk_norm=True, value_embeddings=True), torch.randint(17, (2, 12))
    for sixteen_bit in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=sixteen_bit):
            model(tokens)
    assert types == 2 * [{torch.float32}] + 2 * [{torch.bfloat16}]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, about itself
@pytest.mark.parametrize("choice", [{}, {"window": [5, None], "value_embeddings": True, "residual_scalars": True}])
@pytest.mark.parametrize("sixteen_bit", [False, True])
def test_compiled_for_all_lengths_it_is_one_graph(choice, sixteen_bit):
    """Torch's kernel refuses a symbolic is_causal, and would so break the graph."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = model_of(**choice)
    features = torch.compile(model.features, backend="eager", dynamic=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=sixteen_bit):
        for length in (12, 11, 9, 7):
            tokens = torch.randint(17, (2, length))
            torch.testing.assert_close(features(tokens), model.features(tokens))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
