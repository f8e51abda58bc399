"""Other weights and another cache for the sake of speed: what they may change, and what they may not."""

import copy

import pytest
import torch
from test_model import LATER, model_of, moved

from slm.attention import Cache
from slm.errors import UserError
from slm.generation.quantize import Int8Linear, PackedLinear, fastest, for_decoding, has_packed_products
from slm.generation.reader import Reader, StaticCache, small_kernels
from slm.generation.sampling import Sampler
from slm.generation.stream import generate

PROMPTS = [[1, 2, 3], [4], [5, 6]]


def texts(model, **settings):
    settings = {"sampler": Sampler(greedy=True), "max_new_tokens": 30, "eos": 7, "seed": 0, **settings}
    return [pair for step in generate(model, PROMPTS, **settings) for pair in step]


class StaticReader(Reader):
    """What a CUDA graph repeats, without the graph: any device has it."""

    make_cache = StaticCache
    worth_dropping = 0.5

    def step(self, tokens):
        self.cache.position.fill_(self.cache.length)
        return super().step(tokens)


@pytest.mark.parametrize(
    "choice",
    [{}, {"kv_heads": 2, "qk_norm": True}, {"positions": "learned"}, {"window": 3}, {"window": [4, None, 2]}, LATER],
)
def test_a_static_cache_computes_what_a_growing_one_does(choice):
    """Chunks, single tokens and, after the context is full, a fresh start over what the slots held before."""
    model, tokens = moved(model_of(**choice, depth=3)).double().eval(), torch.randint(17, (2, 12))
    made = {"batch": 2, "positions": 12, "device": "cpu", "dtype": torch.float64}
    growing, static = Cache(model.config, **made), StaticCache(model.config, **made)
    with torch.no_grad():
        for begin, end in [(0, 5), (5, 6), (6, 7), (7, 9), (9, 10), (0, 1), (1, 2), (2, 8), (8, 9)]:
            if begin == 0:
                growing.length = static.length = 0
            static.position.fill_(begin)
            torch.testing.assert_close(model(tokens[:, begin:end], static), model(tokens[:, begin:end], growing))
            assert static.length == growing.length == end


@pytest.mark.parametrize("choice", [{}, {"kv_heads": 2, "qk_norm": True, "window": [4, None, 2]}])
def test_a_model_in_bfloat16_attends_in_float32(choice):
    """On a CPU: to several tokens and to one, no further from the truth than without a cache."""
    model, tokens = moved(model_of(**choice, depth=3)).eval(), torch.randint(17, (2, 12))
    with torch.no_grad():
        truth = model.bfloat16().double()(tokens)
        plain = model.bfloat16()(tokens)
        reader = Reader(model, 2, 12)
        steps = [reader.read(tokens[:, begin:end].tolist()) for begin, end in ((0, 7), (7, 8), (8, 11), (11, 12))]
    assert {part.dtype for layer in reader.cache.layers for part in layer} == {torch.float32}
    cached, plain, truth = torch.stack(steps, 1), *(logits[:, [6, 7, 10, 11]] for logits in (plain, truth))
    assert cached.dtype == torch.bfloat16
    assert (cached - truth).norm() <= 1.2 * (plain - truth).norm()


@pytest.mark.parametrize("sampler", [Sampler(greedy=True), Sampler(repetition_penalty=1.3)])
def test_rows_that_have_stopped_disturb_no_other(monkeypatch, sampler):
    """Rows stay in the batch until half of them have stopped: same texts, same order, beyond the context too."""
    model = model_of(width=32, head_dim=8).double()
    with torch.no_grad():
        model.tokens.weight.normal_(std=0.3)
    ends = 0
    for eos in range(17):
        with monkeypatch.context() as patch:
            plain = texts(model, sampler=sampler, eos=eos)
            patch.setattr("slm.generation.stream.Reader", StaticReader)
            assert texts(model, sampler=sampler, eos=eos) == plain
        lengths = [sum(row == r for row, _ in plain) for r in range(3)]
        ends += min(lengths) < max(lengths)
    assert ends > 2


def test_logits_that_are_read_are_the_models():
    """With their softcap, after a window has passed, from both caches."""
    model = moved(model_of(**LATER)).eval()
    ids = torch.randint(17, (2, 9)).tolist()
    for kind in (Reader, StaticReader):
        reader = kind(model, 2, 12)
        with torch.inference_mode():
            reader.read([row[:6] for row in ids])
            for place in range(6, 9):
                logits = reader.read([row[place : place + 1] for row in ids])
            torch.testing.assert_close(logits, model(torch.tensor(ids))[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", [{}, LATER])
def test_float32_for_decoding_is_the_same_function_and_bfloat16_works(choice):
    model, tokens = model_of(width=64, head_dim=16, **choice), torch.randint(17, (2, 12))
    expected, words = model(tokens), texts(model)
    faster = for_decoding(copy.deepcopy(model), "float32")
    assert faster.head.weight is faster.tokens.weight
    torch.testing.assert_close(faster(tokens), expected)
    assert texts(faster) == words
    assert for_decoding(model, "bfloat16").head.weight.dtype == torch.bfloat16
    assert texts(model)


@pytest.mark.skipif(not has_packed_products("float32"), reason="oneDNN is not used on this CPU")
@pytest.mark.parametrize("sixteen_bit", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [24, 56])  # fewer than inputs, and more
def test_a_packed_layer_is_the_layer(sixteen_bit, bias, outputs):
    """For one row and several, without oneDNN elsewhere, with new weights, as a copy; and it can be trained."""
    if sixteen_bit and not has_packed_products("bfloat16"):
        pytest.skip("this CPU multiplies bfloat16 slowly")
    dtype = torch.bfloat16 if sixteen_bit else torch.float32
    plain = torch.nn.Linear(40, outputs, bias=bias).to(dtype)
    packed = PackedLinear(copy.deepcopy(plain))

    def same():
        for shape in ((40,), (1, 1, 40), (3, 1, 40), (2, 5, 40)):
            x = torch.randn(shape, dtype=plain.weight.dtype)
            with torch.no_grad(), small_kernels(x):
                torch.testing.assert_close(packed(x), plain(x))

    same()
    assert packed.packed is not None
    for layer in (plain, packed):
        with torch.no_grad():
            layer.weight.mul_(2)
    same()
    packed = copy.deepcopy(packed)
    same()
    for number in range(9):
        plain.weight.data = torch.full((outputs, 40), number / 8, dtype=dtype)
        for _ in range(2):  # weights may take the memory of those before the last ones
            packed.weight.data = plain.weight.data.clone()
        same()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(packed(torch.ones(2, 40)), plain(torch.ones(2, 40)))
    for other in (torch.float64, torch.float32):
        plain, packed = plain.to(other), packed.to(other)
        same()
    packed(torch.ones(2, 40)).sum().backward()
    assert packed.weight.grad is not None


@pytest.mark.parametrize(
    "choice",
    [  # rows of whole sixteens, and others; the gates of value embeddings are the smallest linear layers
        *({}, {"mlp_width": 100}, {"width": 72, "head_dim": 24, "mlp_width": 33}),
        *(LATER, {"kv_heads": 1, **LATER}),
    ],
)
def test_int8_is_near(choice):
    """Weights round to 1 part in 254 of their row's largest; the logits follow."""
    model, tokens = model_of(**{"width": 128, "head_dim": 32, **choice}).eval(), torch.randint(17, (4, 12))
    with torch.no_grad():
        expected = model(tokens)
        eight = for_decoding(for_decoding(copy.deepcopy(model), "float32"), "int8")
        logits = eight(tokens)
    assert torch.equal(eight.tokens.weight, model.tokens.weight)
    linear = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert sum(isinstance(module, Int8Linear) for module in eight.modules()) == linear
    assert 0 < (logits - expected).norm() < 0.02 * expected.norm()
    assert sum(buffer.numel() * buffer.element_size() for buffer in eight.head.buffers()) < 17 * 128 + 100
    assert texts(eight)


def test_int8_takes_each_row_by_its_own_scale():
    linear = torch.nn.Linear(64, 3)
    with torch.no_grad():
        linear.weight[0] *= 1e-4
        linear.weight[1] *= 1e4
        linear.weight[2] = 0
    x = torch.randn(5, 64)
    ours, theirs = Int8Linear(linear)(x), linear(x)
    for row in range(3):
        assert (ours[:, row] - theirs[:, row]).norm() < 0.02 * theirs[:, row].norm()


@pytest.mark.parametrize(
    ("device", "texts", "has_bfloat16", "expected"),
    [
        ("cpu", 4, True, "int8"),
        ("cpu", 8, False, "int8"),
        ("cpu", 5, True, "bfloat16"),
        ("cpu", 9, False, "float32"),
        ("cuda", 1, True, "bfloat16"),
        ("cuda", 32, False, "float32"),
        ("mps", 1, False, "float32"),
    ],
)
def test_the_fastest_type_depends_on_device_and_texts(monkeypatch, device, texts, has_bfloat16, expected):
    monkeypatch.setattr("slm.generation.quantize.has_fast_bfloat16", lambda device: has_bfloat16)
    assert fastest(torch.device(device), texts) == expected


def test_int8_is_refused_on_a_gpu():
    with pytest.raises(UserError, match=r"dtype=int8 is for CPUs.* on device=meta use dtype=bfloat16"):
        for_decoding(model_of().to("meta"), "int8")
