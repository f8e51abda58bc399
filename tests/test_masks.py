"""Masks of blocks hide the same keys as dense ones; a compiled model takes them in one graph for all lengths."""

from dataclasses import replace

import pytest
import torch
from test_model import model_of
from test_plan import SMALL, adamw
from torch.nn.attention import flex_attention as flex

from slm.attention import attend
from slm.masks import BLOCK, block_mask, dense_mask, document_masks, document_starts, first_keys, takes_blocks
from slm.planning.memory import training_memory


@pytest.fixture
def flex_on_a_cpu(monkeypatch):
    """FlexAttention as plain operations, also backward, which torch refuses on a CPU since its kernels have none."""
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.parametrize("window", [None, 1, 40, 200])
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK])
def test_blocks_are_those_that_torch_finds_in_the_dense_mask(length, window):
    tokens = torch.randint(150, (3, length))
    tokens[2] = 1  # one document
    first = first_keys(document_starts(tokens, 0), window)
    mask, dense = block_mask(first), dense_mask(first)
    theirs = flex.create_block_mask(lambda b, h, q, k: dense[b, 0, q, k], 3, None, length, length, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):  # the last two are read by the backward pass
        for part in (f"{name}_num_blocks", f"{name}_indices"):
            ours, expected = getattr(mask, part), getattr(theirs, part)
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert torch.equal(flex.create_mask(mask.mask_mod, 3, 1, length, length, device="cpu"), dense)


@pytest.mark.parametrize(("window", "kv_heads"), [(None, 4), (90, 2)])
def test_attention_in_blocks_equals_that_of_a_dense_mask(flex_on_a_cpu, window, kv_heads):
    torch.manual_seed(0)
    starts = document_starts(torch.randint(60, (2, 300)), 0)
    q, k, v = (torch.randn(2, heads, 300, 16, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    upstream, found = torch.randn(2, 4, 300, 16), []
    for blocks in (False, True):
        y = attend(q, k, v, window=window, mask=document_masks(starts, [window], blocks)[window])
        found.append([y, *torch.autograd.grad(y, (q, k, v), upstream)])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, about itself
@pytest.mark.parametrize("choice", [{"window": [5, None]}, {"positions": "learned", "gradient_checkpointing": True}])
def test_documents_in_blocks_are_one_graph_for_all_lengths(flex_on_a_cpu, monkeypatch, choice):
    monkeypatch.setattr("slm.model.takes_blocks", lambda *_: True)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = model_of(**choice, document_start=0).train()
    features = torch.compile(model.features, backend="eager", dynamic=True)
    for length in (12, 7, 9):
        tokens, found = torch.randint(5, (2, length)), []
        for compute in (features, model.features):
            model.zero_grad()
            y = compute(tokens)
            y.square().sum().backward()
            found.append([y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


def test_only_a_dense_mask_is_planned_for():
    """With each of the layers' copies of it, which the backward pass needs."""
    windows, masked = 4, replace(SMALL, document_start=0)
    settings = {"microbatch": windows, "device": torch.device("cpu"), "precision": "32-true"}
    plain, dense = (training_memory(config, adamw, **settings).peak for config in (SMALL, masked))
    assert dense > plain + windows * SMALL.context**2
    assert takes_blocks(masked, "cuda", training=True)
    for choice in ({"dropout": 0.1}, {"head_dim": 8}):  # no kernel
        assert not takes_blocks(replace(masked, **choice), "cuda", training=True)
    assert takes_blocks(replace(masked, dropout=0.1), "cuda", training=False)
    assert not takes_blocks(masked, "cpu", training=True)
    settings["device"] = torch.device("cuda")
    compiled = training_memory(masked, adamw, **settings, compiles=True).peak
    assert compiled == training_memory(SMALL, adamw, **settings).peak < training_memory(masked, adamw, **settings).peak
