"""Checks of phase 3: each piece against its original, with the same weights, to 1e-6."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.attention import Attention, attend
from slm.learn.verdict import close, require
from slm.model import GPT, Block, GPTConfig
from slm.model import MLP as OriginalMLP

WIDTH, HEADS, CONTEXT, DEPTH, VOCABULARY = 32, 4, 64, 3, 50


def config(**changes) -> GPTConfig:
    """Of a small GPT with learned positions."""
    sizes = {"vocab_size": VOCABULARY, "context": CONTEXT, "depth": DEPTH, "width": WIDTH, "head_dim": WIDTH // HEADS}
    kinds = {"positions": "learned", "norm": "layernorm", "mlp": "gelu", "tied": True, "bias": True}
    return GPTConfig(**{**sizes, **kinds, **changes})


def checks(own) -> Iterator[str]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # so that a mistake differs from rounding
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            yield from compared(own)
    finally:
        torch.set_default_dtype(before)


def compared(own) -> Iterator[str]:
    mask(own)
    yield "causal_mask: each position sees itself and those before it"
    yield f"attention equals slm.attention.attend, to {attention(own):.1e}"
    yield f"Head equals slm.attention.Attention with one head, to {head(own):.1e}"
    yield f"MultiHead equals slm.attention.Attention with {HEADS} heads, to {multi_head(own):.1e}"
    yield f"LayerNorm equals torch's, to {layer_norm(own):.1e}"
    yield f"FeedForward equals slm.model.MLP, to {feed_forward(own):.1e}"
    yield f"Block equals slm.model.Block, to {block(own):.1e}"
    model = GPT(config()).eval()
    mine = with_weights(own.GPT(VOCABULARY, CONTEXT, WIDTH, HEADS, DEPTH), model)
    tokens = torch.randint(VOCABULARY, (2, 10))
    embedding(mine, model, tokens)
    difference = close("GPT(tokens)", mine(tokens), model(tokens))
    parameters = sum(parameter.numel() for parameter in mine.parameters())
    yield f"GPT equals slm.model.GPT with its {parameters:,} weights, to {difference:.1e}"
    sees_no_future(mine, tokens)
    yield "changing a token changes no logit before it"


def with_weights(module: nn.Module, original: nn.Module) -> nn.Module:
    """The learner's module with the weights of the original, moved off their first values so that all of them count."""
    for parameter in original.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    mine, theirs = (
        {name: tuple(weight.shape) for name, weight in each.state_dict().items()} for each in (module, original)
    )
    for name in mine | theirs:
        given, expected = (shapes.get(name, "none") for shapes in (mine, theirs))
        line = f"The shape of the parameter {name} of {type(module).__name__} must be {expected}, and is {given}."
        require(given == expected, line)
    module.load_state_dict(original.state_dict())
    return module.eval()


def mask(own):
    given, ones = own.causal_mask(4), torch.ones(4, 4, dtype=torch.bool)
    require(isinstance(given, Tensor) and given.dtype == torch.bool, "causal_mask must be a tensor of bool.")
    mistakes = {
        "A position sees the one after it, the token that it must predict: off by one.": ones.tril(1),
        "A position must see itself, too: off by one.": ones.tril(-1),
        "The mask is upside down: rows are queries, columns are keys.": ones.triu(),
    }
    close("causal_mask(4)", given, ones.tril(), mistakes)


def attention(own) -> float:
    q, k, v = torch.randn(3, 2, HEADS, 6, 8).unbind()
    ones = torch.ones(6, 6, dtype=torch.bool)
    products = q @ k.mT
    scores, seen = products / math.sqrt(8), ones.tril()

    def weighted(scores: Tensor, seen: Tensor = seen, dim: int = -1, hidden: float = -math.inf) -> Tensor:
        return scores.masked_fill(~seen, hidden).softmax(dim) @ v

    over_queries = weighted(scores, dim=-2)
    with_zeros = weighted(scores, hidden=0.0)
    mistakes = {
        "The scores are not divided by sqrt(D).": weighted(products),
        "The scores are divided by D, not by sqrt(D).": weighted(products / 8),
        "A position sees the one after it: the mask is off by one.": weighted(scores, ones.tril(1)),
        "A position does not see itself: the mask is off by one.": weighted(scores, ones.tril(-1)),
        "There is no mask: each position sees all.": weighted(scores, ones),
        "The softmax is over the queries (dim=-2): the weights of a query's keys, dim=-1, must sum to 1.": over_queries,
        "Hidden scores are 0, which still has weight: they must be -infinity before the softmax.": with_zeros,
        "The mask comes after the softmax, so the visible weights do not sum to 1.": scores.softmax(-1) * seen @ v,
    }
    return close("attention(q, k, v) with the shapes (2, 4, 6, 8)", own.attention(q, k, v), attend(q, k, v), mistakes)


def head(own) -> float:
    original = Attention(config(width=8, head_dim=8), 0).eval()
    original.out.weight.copy_(torch.eye(8))
    original.out.bias.zero_()
    mine = own.Head(8, 8)
    parts = zip((mine.query, mine.key, mine.value), original.qkv.weight.chunk(3), original.qkv.bias.chunk(3))
    for linear, weight, bias in parts:
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    x = torch.randn(2, 10, 8)
    return close("Head(8, 8)(x)", mine(x), original(x, None, None, {}, None))


def multi_head(own) -> float:
    original = Attention(config(), 0).eval()
    mine = with_weights(own.MultiHead(WIDTH, HEADS), original)
    x = torch.randn(2, 10, WIDTH)
    q, k, v = (part.reshape(2, HEADS, 10, -1) for part in original.qkv(x).chunk(3, dim=-1))
    mixed = original.out(attend(q, k, v).transpose(1, 2).flatten(2))
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in original.qkv(x).chunk(3, dim=-1))
    merged = original.out(attend(q, k, v).reshape(2, 10, WIDTH))
    mistakes = {
        "x was viewed as (B, H, T, D) at once, which mixes up positions and heads: view, then transpose.": mixed,
        "The heads were put together without transposing (B, H, T, D) back to (B, T, H, D).": merged,
        "The last linear layer, self.out, is missing.": attend(q, k, v).transpose(1, 2).flatten(2),
    }
    return close(f"MultiHead({WIDTH}, {HEADS})(x)", mine(x), original(x, None, None, {}, None), mistakes)


def layer_norm(own) -> float:
    original = nn.LayerNorm(WIDTH)
    mine = with_weights(own.LayerNorm(WIDTH), original)
    x = 3 * torch.randn(2, 10, WIDTH) + 1
    centred, gain, bias = x - x.mean(-1, keepdim=True), original.weight, original.bias
    variance = centred.square().mean(-1, keepdim=True)
    unbiased = centred / torch.sqrt(variance * WIDTH / (WIDTH - 1) + 1e-5) * gain + bias
    over_positions = F.layer_norm(x.mT, (10,)).mT * gain + bias
    mistakes = {
        "The variance divides by C - 1 (torch's default): use unbiased=False, or a mean of squares.": unbiased,
        "Mean and variance are over the positions: they must be over the last dimension, C.": over_positions,
        "The gain and the bias are missing.": F.layer_norm(x, (WIDTH,)),
        "The division is by the variance, not by its square root.": centred / (variance + 1e-5) * gain + bias,
    }
    return close(f"LayerNorm({WIDTH})(x)", mine(x), original(x), mistakes)


def feed_forward(own) -> float:
    original = OriginalMLP(config())
    mine = with_weights(own.FeedForward(WIDTH), original)
    x = torch.randn(2, 10, WIDTH)
    mistakes = {
        "A ReLU is between the layers: it must be F.gelu.": original.out(original.up(x).relu()),
        "The activation is missing.": original.out(original.up(x)),
    }
    return close(f"FeedForward({WIDTH})(x)", mine(x), original(x), mistakes)


def block(own) -> float:
    original = Block(config(), 0).eval()
    mine = with_weights(own.Block(WIDTH, HEADS), original)
    x = torch.randn(2, 10, WIDTH)

    def attended(x: Tensor) -> Tensor:
        return original.attention(x, None, None, {}, None)

    def expanded(x: Tensor) -> Tensor:
        return original.mlp(original.mlp_norm(x))

    normed = original.attention_norm(x)
    alone, middle = attended(normed), x + attended(normed)
    added_normed = original.mlp_norm(normed + alone) + expanded(normed + alone)
    after = original.attention_norm(x + attended(x))
    after = original.mlp_norm(after + original.mlp(after))
    mistakes = {
        "The residual stream x is not added to the attention's result.": alone + expanded(alone),
        "The residual stream x is not added: x + attention(...), x + mlp(...).": expanded(alone),
        "The second branch is not added to the residual stream.": expanded(middle),
        "The normed x is added, not x: a norm is inside its branch only.": added_normed,
        "The norm comes after the addition (post-norm): it must be inside the branch.": after,
        "The MLP reads the stream of before the attention.": middle + expanded(x),
        "The norms are missing.": x + attended(x) + original.mlp(x + attended(x)),
    }
    return close(f"Block({WIDTH}, {HEADS})(x)", mine(x), original(x, None, None, {}, None), mistakes)


def embedding(mine, model: GPT, tokens: Tensor):
    rows, T = tokens.shape
    words, table = model.tokens(tokens), model.positions.weight
    running = torch.arange(rows * T).view(rows, T)
    mistakes = {
        "The positions go on from row to row: they must restart at 0 in each row.": words + table[running],
        "The positions are not added.": words,
        "The positions begin at 1, not at 0.": words + table[1 : T + 1],
    }
    close("embed(tokens)", mine.embed(tokens), words + table[:T], mistakes)


def sees_no_future(mine, tokens: Tensor):
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCABULARY
    close("The logits before a token that changed", mine(changed)[:, :5], mine(tokens)[:, :5])
