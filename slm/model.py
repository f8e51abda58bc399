"""A decoder-only transformer: everything that defines the function tokens -> logits, and nothing else.

Pre-norm residual blocks as in GPT-2 (Radford et al., 2019), with the parts that later work put in their place as
options. Training, sampling, counting and export live elsewhere.

Shapes: B batch, T new positions, S cached plus new positions, C width, V vocabulary, H query heads, K key/value heads,
D head_dim.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slm.errors import UserError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu2": lambda x: F.relu(x).square(),  # arXiv:2109.08668
    "swiglu": F.silu,  # of the gate, arXiv:2002.05202
}


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """What fixes the shape and the arithmetic of a model. Stored in every checkpoint."""

    vocab_size: int
    context: int  # most positions one forward pass may see
    depth: int  # blocks
    width: int  # of the residual stream
    head_dim: int
    kv_heads: int | None = None  # fewer than heads: grouped-query attention (arXiv:2305.13245); None: as many as heads
    mlp_width: int | None = None  # None: 4 * width, or for swiglu about 8 / 3 * width, so that parameters are equal
    positions: Literal["rope", "learned"]
    norm: Literal["layernorm", "rmsnorm"]
    mlp: Literal["gelu", "swiglu", "relu2"]
    qk_norm: bool = False  # RMSNorm on queries and keys (arXiv:2302.05442)
    bias: bool  # in linear layers and LayerNorm; the head never has one
    dropout: float = 0.0  # on embeddings, attention weights and both residual branches
    tied: bool  # one matrix embeds tokens and reads them out (arXiv:1608.05859)
    rope_base: float = 10_000.0
    zero_init_residual: bool = (
        False  # what writes to the residual stream starts at zero, so that blocks start as identities
    )
    gradient_checkpointing: bool = False  # recompute each block in the backward pass to save memory

    def __post_init__(self):
        for name in ("vocab_size", "context", "depth", "width", "head_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.mlp_width is not None and self.mlp_width < 1:
            raise UserError(f"model.mlp_width={self.mlp_width} must be at least 1, or null")
        if not 1 <= self.rope_base <= 1e15:
            raise UserError(f"model.rope_base={self.rope_base} must be at least 1, at most 1e15")
        if self.width % self.head_dim:
            below, above = self.width // self.head_dim * self.head_dim, -(-self.width // self.head_dim) * self.head_dim
            fix = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"model.width={self.width} must be a multiple of model.head_dim={self.head_dim}; "
                f"try model.width={fix}, or another model.head_dim"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise UserError(f"model.kv_heads={self.kv_heads} must divide the {self.heads} heads (width / head_dim)")
        if self.positions == "rope" and self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim} must be even: model.positions=rope rotates pairs")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout={self.dropout} must be at least 0 and below 1")
        for name, known in (("positions", POSITIONS), ("norm", NORMS), ("mlp", ACTIVATIONS)):
            if getattr(self, name) not in known:
                raise UserError(f"model.{name}={getattr(self, name)} is not one of {', '.join(known)}")

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    @property
    def kv_width(self) -> int:
        return (self.kv_heads or self.heads) * self.head_dim

    @property
    def hidden_width(self) -> int:
        """Width of the MLP's hidden layer."""
        if self.mlp_width:
            return self.mlp_width
        return 32 * math.ceil(8 * self.width / 3 / 32) if self.mlp == "swiglu" else 4 * self.width


class RMSNorm(nn.RMSNorm):
    """arXiv:1910.07467, with the gain in the input's dtype: torch's fused kernels ask for it under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


POSITIONS = ("rope", "learned")
NORMS: dict[str, Callable[[GPTConfig, int], nn.Module]] = {
    "layernorm": lambda config, width: nn.LayerNorm(width, bias=config.bias),
    "rmsnorm": lambda config, width: RMSNorm(width, eps=1e-5),
}


class Cache:
    """Keys and values of the positions already seen, per block (B, K, positions, D), at most the context.

    Whoever generates owns it.
    """

    mask: Tensor | None = None  # which of the keys may be seen, where that is not told by their number

    def __init__(self, config: GPTConfig, batch: int, positions: int | None = None, device=None, dtype=None):
        heads = config.kv_width // config.head_dim
        shape = 2, batch, heads, min(positions or config.context, config.context), config.head_dim
        self.layers = [torch.zeros(shape, device=device, dtype=dtype).unbind() for _ in range(config.depth)]
        self.length = 0  # positions filled; moved once per forward pass, by GPT

    def begin(self, new: int) -> slice | Tensor:
        """The positions of the next `new` tokens, as an index."""
        return slice(self.length, self.length + new)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the new (B, K, T, D), returns all (B, K, S, D)."""
        keys, values = self.layers[layer]
        end = self.length + k.size(2)
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, rows: list[int]):
        """Drops the other rows of the batch."""
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]


class Rotary(nn.Module):
    """Rotates each pair (i, i + D/2) of a query or key by an angle that grows with position (arXiv:2104.09864)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        frequencies = config.rope_base ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.outer(torch.arange(config.context), frequencies)
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)  # (context, D)
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], dim=-1), persistent=False)

    def forward(self, positions: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, D) of the positions, which `rotate` takes."""
        return self.cos[positions], self.sin[positions]


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, H, T, D), turned by the angles of their positions."""
    cos, sin = (table.to(x.dtype) for table in rotation)
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, mask: Tensor | None = None) -> Tensor:
    """Causal softmax(q k / sqrt(D)) v, (B, H, T, D), of the last T of S positions; k and v are (B, K, S, D).

    A mask (T, S) says instead which keys each query sees.
    """
    (H, T), (K, S) = q.shape[1:3], k.shape[1:3]
    if mask is None and T > 1 and q.device.type == "cpu" and (q.dtype == torch.bfloat16 or dropout):
        return attend_in_tiles(q, k, v, dropout)
    if mask is None and 1 < T < S:  # is_causal aligns its triangle top-left, wrong where keys are more than queries
        mask = q.new_ones(T, S, dtype=torch.bool).tril(S - T)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, dropout_p=dropout, enable_gqa=H != K
    )


def attend_in_tiles(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """The same by plain products, on tiles of queries that skip most of the future.

    On a CPU torch's kernel takes up to four times as long in bfloat16, and more yet with dropout.
    """
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    q, k, v = q.reshape(B * K, H // K, T, D), k.flatten(0, 1), v.flatten(0, 1)
    outputs, end = [], S - T
    for tile in q.chunk(max(T // 128, 1), dim=2):  # (BK, H / K, t, D)
        start, end = end, end + tile.size(2)
        future = q.new_full((tile.size(2), end), -math.inf).triu(1 + start).repeat(H // K, 1)
        scores = torch.baddbmm(future, tile.flatten(1, 2), k[:, :end].mT, alpha=D**-0.5)
        outputs.append((F.dropout(scores.softmax(-1), dropout) @ v[:, :end]).view_as(tile))
    return torch.cat(outputs, dim=2).view(B, H, T, D)


class Attention(nn.Module):
    """Causal self-attention; with fewer key/value heads than query heads, each is shared by H / K of them."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, config.dropout
        self.heads, self.kv_heads = config.heads, config.kv_width // config.head_dim
        self.qkv = nn.Linear(config.width, config.width + 2 * config.kv_width, bias=config.bias)
        self.query_norm = RMSNorm(config.head_dim, eps=1e-5) if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_dim, eps=1e-5) if config.qk_norm else None
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: Cache | None) -> Tensor:
        heads = self.qkv(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, T, .) -> (B, H + 2K, T, D)
        qk, v = heads.split_with_sizes((self.heads + self.kv_heads, self.kv_heads), dim=1)
        if self.query_norm:
            qk = torch.cat([self.query_norm(qk[:, : self.heads]), self.key_norm(qk[:, self.heads :])], dim=1)
        if rotation:
            qk = rotate(qk, rotation)
        q, k = qk.split_with_sizes((self.heads, self.kv_heads), dim=1)
        if cache:
            k, v = cache.append(self.layer, k, v)
        y = attend(q, k, v, self.dropout if self.training else 0.0, cache.mask if cache else None)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)


class MLP(nn.Module):
    """Two linear layers around an activation; swiglu multiplies a second, activated projection in."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        gated = config.mlp == "swiglu"
        self.gate = nn.Linear(config.width, config.hidden_width, bias=config.bias) if gated else None
        self.up = nn.Linear(config.width, config.hidden_width, bias=config.bias)
        self.activation = ACTIVATIONS[config.mlp]
        self.out = nn.Linear(config.hidden_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.gate(x)) * self.up(x) if self.gate else self.activation(self.up(x))
        return self.out(hidden)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        norm = NORMS[config.norm]
        self.attention_norm, self.attention = norm(config, config.width), Attention(config, layer)
        self.mlp_norm, self.mlp = norm(config, config.width), MLP(config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: Cache | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        learned = config.positions == "learned"
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if learned else None
        self.rotary = None if learned else Rotary(config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = NORMS[config.norm](config, config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        self.reset_parameters()

    def reset_parameters(self):
        """GPT-2: normal(0, 0.02), and writers to the residual stream smaller by sqrt(2 * depth), or zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        writers_std = 0.0 if self.config.zero_init_residual else 0.02 / math.sqrt(2 * self.config.depth)
        for block in self.blocks:
            for writer in (block.attention.out, block.mlp.out):
                nn.init.normal_(writer.weight, std=writers_std)

    def features(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Tokens (B, T) to normed features (B, T, C). A cache supplies, and receives, the past."""
        start = cache.length if cache else 0
        end = start + tokens.size(1)
        if end > self.config.context:
            raise ValueError(f"{start} + {tokens.size(1)} positions exceed the context of {self.config.context}")
        positions = cache.begin(tokens.size(1)) if cache else slice(0, end)
        x = self.tokens(tokens)
        if self.positions:
            x = x + self.positions.weight[positions]
        rotation = self.rotary(positions) if self.rotary else None
        x = self.dropout(x)
        for block in self.blocks:
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rotation, cache, use_reentrant=False)
            else:
                x = block(x, rotation, cache)
        if cache:
            cache.length = end
        return self.norm(x)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) for the token after each position."""
        return self.head(self.features(tokens, cache))
