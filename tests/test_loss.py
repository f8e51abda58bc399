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
        module, "_chunks", lambda x, w: (slice(i, i + request.param) for i in range(0, len(x), request.param))
    )


def problem(dtype=torch.float32):
    torch.manual_seed(0)
    features = torch.randn(3, 50, 16).to(dtype).requires_grad_()
    weight = torch.randn(101, 16).to(dtype).requires_grad_()
    targets = torch.randint(101, (3, 50))
    targets[0, 10:20] = IGNORE
    return features, weight, targets


def gradients(loss, features, weight):
    return torch.autograd.grad(3 * loss, (features, weight))


@pytest.mark.usefixtures("rows")
def test_equals_torch_with_gradients():
    features, weight, targets = problem()
    ours = cross_entropy(features, weight, targets)
    theirs = F.cross_entropy((features @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(gradients(ours, features, weight), gradients(theirs, features, weight), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("rows")
def test_bfloat16_is_as_close_to_float32_as_torch_is():
    features, weight, targets = problem()
    exact = F.cross_entropy((features @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    with torch.autocast("cpu", torch.bfloat16):
        ours = cross_entropy(features, weight, targets)
        logits = (features @ weight.T).flatten(0, 1)
    theirs = F.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORE)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    truth = gradients(exact, features, weight)
    for mine, other, true in zip(
        gradients(ours, features, weight), gradients(theirs, features, weight), truth, strict=True
    ):
        assert (mine - true).norm() <= 1.2 * (other - true).norm()


@pytest.mark.usefixtures("rows")
def test_nats_of_each_token():
    features, weight, targets = problem()
    nats = token_nats(features, weight, targets)
    assert nats.shape == targets.shape
    assert (nats[0, 10:20] == 0).all()
    torch.testing.assert_close(nats.sum() / (targets != IGNORE).sum(), cross_entropy(features, weight, targets))


def test_half_precision_gradients_do_not_vanish_before_the_loss_scale():
    """One token among 100,000 rows: the mean's factor must not enter float16 before the loss scale does."""
    features, weight = torch.randn(2000, 16).half().requires_grad_(), torch.randn(101, 16).half().requires_grad_()
    loss = cross_entropy(features, weight, torch.randint(101, (2000,)))
    (grad,) = torch.autograd.grad(65536.0 * loss, features)
    assert (grad != 0).float().mean() > 0.99


def test_bits_per_byte():
    assert bits_per_byte(nats=8 * math.log(2), text_bytes=4) == pytest.approx(2)
