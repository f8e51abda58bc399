"""The chunked loss against torch's own on whole logits."""

import math

import pytest
import torch
import torch.nn.functional as F

from slm import loss as module
from slm.loss import IGNORE, bits_per_byte, cross_entropy, token_nats


@pytest.fixture(params=[64, 2**23], ids=["many chunks", "one chunk"])
def rows(request, monkeypatch):
    """Chunks of 64 rows and one chunk for all."""
    monkeypatch.setattr(
        module, "_chunks", lambda x, *_: (slice(i, i + request.param) for i in range(0, len(x), request.param))
    )


def problem(dtype=torch.float32):
    torch.manual_seed(0)
    features = torch.randn(3, 50, 16).to(dtype).requires_grad_()
    weight = torch.randn(101, 16).to(dtype).requires_grad_()
    targets = torch.randint(101, (3, 50))
    targets[0, 10:20] = IGNORE
    return features, weight, targets


def gradients(loss, *parameters):
    return torch.autograd.grad(3 * loss, parameters)


def by_torch(features, weight, targets, softcap, bias=None):
    logits = F.linear(features, weight, bias).flatten(0, 1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_equals_torch_with_gradients(softcap):
    features, weight, targets = problem()
    ours = cross_entropy(features, weight, targets, softcap)
    theirs = by_torch(features, weight, targets, softcap)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(gradients(ours, features, weight), gradients(theirs, features, weight), strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture(params=[0, 27], ids=["as it is", "aligned"])
def aligned(request, monkeypatch):
    """Heads with so many more rows of zeros, as on CUDA."""
    pad = lambda head: F.pad(head, (0, 0) * (head.ndim - 1) + (0, request.param))  # noqa: E731
    monkeypatch.setattr(module, "_aligned", pad)


@pytest.mark.usefixtures("rows", "aligned")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_bias_of_the_head(softcap, precision):
    features, weight, targets = problem()
    bias = torch.randn(101).requires_grad_()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        ours = cross_entropy(features, weight, targets, softcap, bias)
        nats = token_nats(features, weight, targets, softcap, bias).sum() / (targets != IGNORE).sum()
    theirs = by_torch(features, weight, targets, softcap, bias)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if precision == torch.float32 else {"rtol": 3e-2, "atol": 3e-3}
    torch.testing.assert_close(ours, theirs, **tolerance)
    torch.testing.assert_close(nats, theirs, **tolerance)
    parameters = features, weight, bias
    for mine, true in zip(gradients(ours, *parameters), gradients(theirs, *parameters), strict=True):
        assert (mine - true).norm() <= (1e-5 if precision == torch.float32 else 3e-2) * true.norm()


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_bfloat16_is_as_close_to_float32_as_torch_is(softcap):
    features, weight, targets = problem()
    exact = by_torch(features, weight, targets, softcap)
    with torch.autocast("cpu", torch.bfloat16):
        ours = cross_entropy(features, weight, targets, softcap)
        theirs = by_torch(features, weight, targets, softcap)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    truth = gradients(exact, features, weight)
    for mine, other, true in zip(
        gradients(ours, features, weight), gradients(theirs, features, weight), truth, strict=True
    ):
        assert (mine - true).norm() <= 1.2 * (other - true).norm()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_are_as_precise_as_asked_and_at_least_float32(dtype, default, softcap):
    """Whatever torch's default, which bf16-true changes: sums of bfloat16 would stop growing."""
    features, weight, targets = problem(dtype)
    exact = by_torch(features.double(), weight.double(), targets, softcap)
    torch.set_default_dtype(default)
    try:
        loss = cross_entropy(features, weight, targets, softcap)
        nats = token_nats(features, weight, targets, softcap)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.dtype == nats.dtype == torch.promote_types(dtype, torch.float32)
    rel = {torch.float64: 1e-14, torch.float32: 1e-5}.get(dtype, 5e-3)
    assert loss.item() == pytest.approx(exact.item(), rel=rel)
    assert nats.sum().item() / (targets != IGNORE).sum().item() == pytest.approx(exact.item(), rel=rel)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_nats_of_each_token(softcap):
    features, weight, targets = problem()
    nats = token_nats(features, weight, targets, softcap)
    assert nats.shape == targets.shape
    assert (nats[0, 10:20] == 0).all()
    torch.testing.assert_close(nats.sum() / (targets != IGNORE).sum(), by_torch(features, weight, targets, softcap))


def test_half_precision_gradients_do_not_vanish_before_the_loss_scale():
    """One token among 100,000 rows: the mean's factor must not enter float16 before the loss scale does."""
    features, weight = torch.randn(2000, 16).half().requires_grad_(), torch.randn(101, 16).half().requires_grad_()
    loss = cross_entropy(features, weight, torch.randint(101, (2000,)))
    (grad,) = torch.autograd.grad(65536.0 * loss, features)
    assert (grad != 0).float().mean() > 0.99


@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_a_softcap_in_half_precision(softcap):
    """The gradient is that of float32 to half precision, also where the tanh is flat."""
    features, weight, targets = problem(torch.float16)
    exact = [x.detach().float().requires_grad_() for x in (features, weight)]
    ours = gradients(cross_entropy(features, weight, targets, softcap), features, weight)
    truth = gradients(by_torch(*exact, targets, softcap), *exact)
    for mine, true in zip(ours, truth, strict=True):
        assert (mine - true).norm() < 5e-3 * true.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [0, 1, 4096, 4099, 12_288, 30_000])
def test_chunks_cover_all_rows_once(count, dtype):
    slices = list(module._chunks(torch.empty(count, 1, dtype=dtype), 1001))
    assert [row for part in slices for row in range(count)[part]] == list(range(count))
    sizes = [len(range(count)[part]) for part in slices]
    assert max(sizes, default=0) <= (4096 if dtype == torch.float16 else module.chunk_rows(1001, "cpu"))
    assert len(set(sizes)) <= (2 if count == 4099 else 1)


def test_bits_per_byte():
    assert bits_per_byte(nats=8 * math.log(2), text_bytes=4) == pytest.approx(2)
