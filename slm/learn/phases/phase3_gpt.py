"""Phase 3: the GPT, piece by piece, in plain torch. Each piece equals a part of slm/model.py and slm/attention.py.

Shapes: B texts, T positions, C width, H heads, D = C / H the width of a head, V vocabulary.
A module's parameters have the names and shapes of the original, so that the weights of one fit the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def causal_mask(T):
    """A matrix (T, T) of True and False: may the position of the row see the position of the column?

    A position sees itself and all before it: row 0 is True, False, False, ...; the last row is all True.
    """
    # your code
    return torch.ones(T, T, dtype=torch.bool).tril()


def attention(q, k, v):
    """Softmax(q k^T / sqrt(D)) v over the visible positions: three tensors (..., T, D) to one (..., T, D).

    Scores (..., T, T): row i holds the products of query i with all keys, divided by sqrt(D), so that their variance
    does not grow with D. Hidden positions get -infinity, so their weight is 0. The softmax makes each row sum to 1.
    """
    # your code
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    scores = scores.masked_fill(~causal_mask(q.size(-2)).to(q.device), -math.inf)
    return F.softmax(scores, dim=-1) @ v


class Head(nn.Module):
    """One head: (B, T, C) to (B, T, D)."""

    def __init__(self, width, head_dim):
        super().__init__()
        self.query = nn.Linear(width, head_dim)
        self.key = nn.Linear(width, head_dim)
        self.value = nn.Linear(width, head_dim)

    def forward(self, x):
        """Attention of the three projections of x."""
        # your code
        return attention(self.query(x), self.key(x), self.value(x))


class MultiHead(nn.Module):
    """H heads at once, and a linear layer that mixes their results: (B, T, C) to (B, T, C)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)  # all queries, then all keys, then all values; each head after head
        self.out = nn.Linear(width, width)

    def forward(self, x):
        """One product for all projections; then (B, T, C) -> (B, H, T, D), attention, and back.

        `view` splits C into H and D; `transpose(1, 2)` exchanges T and H. A `view` straight to (B, H, T, D) has the
        right shape and mixes up positions and heads.
        """
        # your code
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(attention(q, k, v).transpose(1, 2).reshape(B, T, C))


class LayerNorm(nn.Module):
    """Each position's C numbers with mean 0 and variance 1, then a learned gain and bias: (B, T, C) to (B, T, C)."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        """(x - mean) / sqrt(variance + 1e-5) * weight + bias. The variance divides by C, not by C - 1."""
        # your code
        mean = x.mean(dim=-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class FeedForward(nn.Module):
    """Two linear layers around a GELU, for each position alone: (B, T, C) to (B, T, 4C) to (B, T, C)."""

    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x):
        """F.gelu is the exact GELU."""
        # your code
        return self.out(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention, then the feed-forward layer; each reads the normed x and adds its result to x: the residual stream."""

    def __init__(self, width, heads):
        super().__init__()
        self.attention_norm, self.attention = LayerNorm(width), MultiHead(width, heads)
        self.mlp_norm, self.mlp = LayerNorm(width), FeedForward(width)

    def forward(self, x):
        """x + attention(norm(x)), and that + mlp(norm(that))."""
        # your code
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Token ids (B, T) to logits (B, T, V) of the token after each position."""

    def __init__(self, vocab_size: int, context: int, width: int, heads: int, depth: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight  # one matrix reads tokens in and out: weight tying
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:  # their sum over all blocks stays of the size of one: GPT-2
            nn.init.normal_(block.attention.out.weight, std=0.02 / math.sqrt(2 * depth))
            nn.init.normal_(block.mlp.out.weight, std=0.02 / math.sqrt(2 * depth))

    def embed(self, tokens):
        """(B, T) to (B, T, C): the embedding of the token plus that of its position, 0 to T - 1 in every row."""
        # your code
        return self.tokens(tokens) + self.positions(torch.arange(tokens.size(1), device=tokens.device))

    def forward(self, tokens):
        """Embed, all blocks in their order, the last norm, the head."""
        # your code
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
