"""Causal self-attention: its mask, kernels, rotary positions and key/value cache.

Left out: the residual stream around it (slm/model.py). `visible` makes every mask, from positions: for
training, tiles, growing and static caches; full causal attention leaves it to torch's kernel. slm/masks.py also
hides other documents.

Shapes: B batch, T new positions, S cached plus new positions, C width, H query heads, K key/value heads, D head_dim.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from slm.errors import UserError

GATE_CHANNELS = 12  # of the input, that the gate of a value embedding reads
Rotation = tuple[Tensor, Tensor]  # cosines and sines
Masks = dict[int | None, Tensor | BlockMask]  # by window
MAX_ANGLES = 2**25  # numbers in a table of rotary positions: 134 MB; no weights stand behind a context


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The sizes of a model and the choices of its attention. GPTConfig adds all other choices.

    Raises: UserError: if a value is impossible, alone or beside another.
    """

    vocab_size: int
    context: int  # most positions of one forward pass
    depth: int  # blocks
    width: int  # of the residual stream
    head_dim: int
    kv_heads: int | None = None  # fewer than heads: grouped-query attention (arXiv:2305.13245); None: as many as heads
    window: int | list[int | None] | None = None  # keys that a query sees (arXiv:2004.05150); see `windows`
    qk_norm: bool = False  # RMSNorm on queries and keys (arXiv:2302.05442)
    value_embeddings: bool = False  # in every second block a gated embedding of the token is added to the values
    rope_base: float = 10_000.0
    bias: bool  # in linear layers and LayerNorm; not in the head
    norm_eps: float = 1e-5  # added to the variance or mean square in every norm
    dropout: float = 0.0  # on embeddings, attention weights and both residual branches
    attention_dropout: float | None = None  # on attention weights; None: dropout
    document_start: int | None = None  # id with which a document begins, whose tokens see only each other; None: all

    def __post_init__(self):
        for name in ("vocab_size", "context", "depth", "width", "head_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} must be at least 1")
        if self.width % self.head_dim:
            below, above = self.width // self.head_dim * self.head_dim, -(-self.width // self.head_dim) * self.head_dim
            fix = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"model.width={self.width} must be a multiple of model.head_dim={self.head_dim}; "
                f"try model.width={fix}, or another model.head_dim"
            )
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise UserError(f"model.kv_heads={self.kv_heads} must divide the {self.heads} heads (width / head_dim)")
        if not self._pattern or any(window is not None and window < 1 for window in self._pattern):
            raise UserError(
                f"model.window={self.window} must be at least 1, null for full attention, or a list of these"
            )
        if not 1 <= self.rope_base <= 1e15:
            raise UserError(f"model.rope_base={self.rope_base} must be at least 1, at most 1e15")
        if self.context * self.head_dim > MAX_ANGLES:
            most = MAX_ANGLES // self.head_dim
            raise UserError(f"model.context={self.context} must be at most {most} with model.head_dim={self.head_dim}")
        if self.document_start is not None and not 0 <= self.document_start < self.vocab_size:
            raise UserError(f"model.document_start={self.document_start} is no id of {self.vocab_size}")
        if not 0 < self.norm_eps < 1:
            raise UserError(f"model.norm_eps={self.norm_eps} must be above 0 and below 1")
        for name in (name for name in vars(self) if name.endswith("dropout")):
            if (share := getattr(self, name)) is not None and not 0 <= share < 1:
                raise UserError(f"model.{name}={share} must be at least 0 and below 1")

    @property
    def heads(self) -> int:
        return self.width // self.head_dim

    @property
    def kv_width(self) -> int:
        return (self.kv_heads or self.heads) * self.head_dim

    @property
    def windows(self) -> list[int | None]:
        """The window of each block: the keys that a query sees, its own included; None: all up to its own.

        A list of windows is repeated over the blocks. A window of the whole context is None, which is faster.
        """
        short = [window if window and window < self.context else None for window in self._pattern]
        return list(itertools.islice(itertools.cycle(short), self.depth))

    @property
    def _pattern(self) -> list[int | None]:
        return list(self.window) if isinstance(self.window, list | tuple) else [self.window]

    def dropout_of(self, part: Literal["embedding", "attention", "residual"]) -> float:
        """The share of numbers that become 0 there: its own, or that of all parts."""
        own = getattr(self, f"{part}_dropout")
        return self.dropout if own is None else own

    def has_value_embedding(self, layer: int) -> bool:
        """Every second block, and always the last one, as in nanochat."""
        return self.value_embeddings and layer % 2 == (self.depth - 1) % 2


class RMSNorm(nn.RMSNorm):
    """arXiv:1910.07467, with the gain in the input's dtype: torch's fused kernels require that under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Cache:
    """Keys and values of the positions read before, per block (B, K, positions, D). Owned by the caller.

    `positions` is the most that it must hold, None or more than the context: the context.
    """

    def __init__(self, config: AttentionConfig, batch: int, positions: int | None = None, device=None, dtype=None):
        heads = config.kv_width // config.head_dim
        shape = 2, batch, heads, min(positions or config.context, config.context), config.head_dim
        self.layers = [torch.zeros(shape, device=device, dtype=dtype).unbind() for _ in range(config.depth)]
        self.ids = torch.full((batch, shape[3] + 1), config.vocab_size, device=device)  # each one position later
        self.length = 0  # positions filled; moved once per forward pass, by GPT
        self.masks: Masks = {}  # window -> (T, S), if only the device knows the positions

    def begin(self, new: int) -> slice | Tensor:
        """The positions of the next `new` tokens, as an index."""
        return slice(self.length, self.length + new)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the new (B, K, T, D), returns all (B, K, S, D)."""
        keys, values = self.layers[layer]
        new = k.size(2)
        keys.narrow(2, self.length, new).copy_(k)
        values.narrow(2, self.length, new).copy_(v)
        return keys.narrow(2, 0, self.length + new), values.narrow(2, 0, self.length + new)

    def preceding(self, tokens: Tensor) -> Tensor:
        """Takes the new ids (B, T), returns the id before each; vocab_size before the first position."""
        end = self.length + tokens.size(1)
        self.ids[:, self.length + 1 : end + 1] = tokens
        return self.ids[:, self.length : end]

    def keep(self, rows: list[int]):
        """Drops the other rows of the batch."""
        self.ids = self.ids[rows]
        self.layers = [(keys[rows], values[rows]) for keys, values in self.layers]


class Rotary(nn.Module):
    """Rotates each pair (i, i + D/2) of a query or key by an angle that grows with position (arXiv:2104.09864)."""

    def __init__(self, config: AttentionConfig):
        super().__init__()
        frequencies = config.rope_base ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.outer(torch.arange(config.context), frequencies)
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)  # (context, D)
        self.register_buffer("sin", torch.cat([-angles.sin(), angles.sin()], dim=-1), persistent=False)

    def forward(self, positions: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, D) of the positions, for `rotate`."""
        return self.cos[positions], self.sin[positions]


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, H, T, D), turned by the angles of their positions."""
    cos, sin = (table.to(x.dtype) for table in rotation)
    return (x * cos).addcmul_(x.roll(x.size(-1) // 2, dims=-1), sin)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """The mask (T, S) for positions (T,) and (S,): a query at p sees the keys at p - window + 1 to p; None: 0 to p."""
    seen = keys <= queries[:, None]
    return seen if window is None else seen & (keys > queries[:, None] - window)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    mask: Tensor | BlockMask | None = None,
) -> Tensor:
    """Softmax(q k / sqrt(D)) v over the visible keys: q and the result (B, H, T, D), k and v (B, K, S, D).

    The queries are the last T of S positions, unless a mask (T, S) or (B, 1, T, S) says which keys each of them sees;
    a mask of numbers, which are added to the scores, is for T = 1. A mask of blocks has no dropout. If k and v are of a
    wider type than q, as in a cache, their type is computed in, and the result has that of q.
    """
    if k.dtype != q.dtype:
        return attend(q.to(k.dtype), k, v, window=window, dropout=dropout, mask=mask).to(q.dtype)
    (H, T), (K, S) = q.shape[1:3], k.shape[1:3]
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=H != K)
    causal = False  # a Python bool: in a graph for all lengths T > 1 is symbolic, and torch's kernel refuses that
    if mask is None:
        if T == 1:
            k, v = (k, v) if window is None else (k[:, :, -window:], v[:, :, -window:])
        elif tiles_are_faster(q, window, dropout):
            return attend_in_tiles(q, k, v, window, dropout)
        elif window is None and T == S:  # torch aligns its triangle top-left, so only here
            causal = True
        else:
            positions = torch.arange(S, device=q.device)
            mask = visible(positions[S - T :], positions, window)
    elif mask.dim() == 4 and tiles_are_faster(q, window, dropout):
        return attend_in_tiles(q, k, v, window, dropout, mask)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout, enable_gqa=H != K
    )


def tiles_are_faster(q: Tensor, window: int | None, dropout: float) -> bool:
    """Than torch's kernel: on a CPU that takes up to four times as long in bfloat16, longer with dropout, and skips
    no keys for a window."""
    return q.device.type == "cpu" and (q.dtype == torch.bfloat16 or dropout > 0 or window is not None)


def attend_in_tiles(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, dropout: float, mask: Tensor | None = None
) -> Tensor:
    """The same by plain products, on tiles of queries without most of the keys that they do not see."""
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    q, k, v = q.reshape(B * K, H // K, T, D), k.flatten(0, 1), v.flatten(0, 1)
    outputs, end = [], S - T
    for tile in q.chunk(max(T // 128, 1), dim=2):  # (BK, H / K, t, D)
        start, end = end, end + tile.size(2)
        first = 0 if window is None else max(0, start - window + 1)
        queries = torch.arange(start, end, device=q.device).repeat(H // K)
        seen = visible(queries, torch.arange(first, end, device=q.device), window)
        if mask is not None:
            seen = mask[:, :, start:end, first:end].expand(B, H, -1, -1).reshape(B * K, -1, end - first)
        bias = torch.where(seen, q.new_zeros(()), -math.inf)  # (H / K * t, keys), with a mask (BK, H / K * t, keys)
        scores = torch.baddbmm(bias, tile.flatten(1, 2), k[:, first:end].mT, alpha=D**-0.5)
        outputs.append((F.dropout(scores.softmax(-1), dropout) @ v[:, first:end]).view_as(tile))
    return torch.cat(outputs, dim=2).view(B, H, T, D)


class Attention(nn.Module):
    """Causal self-attention of one block; each of K key/value heads serves H / K query heads."""

    def __init__(self, config: AttentionConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, config.dropout_of("attention")
        self.heads, self.kv_heads = config.heads, config.kv_width // config.head_dim
        self.window = config.windows[layer]
        self.qkv = nn.Linear(config.width, config.width + 2 * config.kv_width, bias=config.bias)
        self.query_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.value_embedding = self.value_gate = None
        if config.has_value_embedding(layer):
            self.value_embedding = nn.Embedding(config.vocab_size, config.kv_width)
            self.value_gate = nn.Linear(min(GATE_CHANNELS, config.width), self.kv_heads, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(
        self, x: Tensor, tokens: Tensor, rotation: Rotation | None, masks: Masks, cache: Cache | None
    ) -> Tensor:
        """Normed residual stream (B, T, C) and the token ids (B, T) to (B, T, C)."""
        heads = self.qkv(x).view(*x.shape[:2], -1, self.head_dim)  # (B, T, H + 2K, D)
        parts = heads.split_with_sizes((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q, k, v = (part.transpose(1, 2) for part in parts)  # apart, so that their gradients are joined in this order
        if self.value_embedding:
            v = v + self.token_values(x, tokens).to(v.dtype)
        if self.query_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotation:  # apart: in a graph for all lengths torch.compile fixes the strides of views of one result
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache:
            k, v = cache.append(self.layer, k, v)
        mask = masks.get(self.window)
        y = attend(q, k, v, window=self.window, dropout=self.dropout if self.training else 0.0, mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)

    def token_values(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The value embeddings (B, K, T, D), each head times a gate from 0 to 3 (nanochat; arXiv:2410.17897)."""
        gate = 3 * self.value_gate(x[..., :GATE_CHANNELS]).sigmoid()  # (B, T, K)
        values = self.value_embedding(tokens).unflatten(-1, (self.kv_heads, self.head_dim))
        return (gate.unsqueeze(-1) * values).transpose(1, 2)
