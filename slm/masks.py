"""Masks with which the tokens of a document see only each other: dense ones, or of blocks for FlexAttention.

Shapes: B batch, T positions, N blocks of positions.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from slm.attention import AttentionConfig, Masks

BLOCK = 128  # positions that a kernel of FlexAttention reads together
LEAST_HEAD_DIM = 16  # of its kernels


def takes_blocks(config: AttentionConfig, device: str, training: bool) -> bool:
    """True if FlexAttention is used in a compiled function: on CUDA, and without dropout, which it does not have."""
    return device == "cuda" and config.head_dim >= LEAST_HEAD_DIM and not (training and config.dropout_of("attention"))


def document_starts(tokens: Tensor, start: int) -> Tensor:
    """The position (B, T) at which the document of each token (B, T) begins: that of the last id `start`, else 0."""
    positions = torch.arange(tokens.size(1), device=tokens.device)
    return torch.where(tokens == start, positions, 0).cummax(dim=1).values


def document_masks(starts: Tensor, windows: Iterable[int | None], blocks: bool = False) -> Masks:
    """The mask for each window, with which a query sees no key before its document's start (B, T).

    A dense one is (B, 1, T, T), one of `blocks` holds (B, 1, N, N) numbers.
    """
    make = block_mask if blocks else dense_mask
    return {window: make(first_keys(starts, window)) for window in set(windows)}


def first_keys(starts: Tensor, window: int | None) -> Tensor:
    """The first key (B, T) that each query sees: all from there to its own. It never falls from left to right."""
    if window is None:
        return starts
    return torch.maximum(starts, torch.arange(1 - window, starts.size(1) + 1 - window, device=starts.device))


def dense_mask(first: Tensor) -> Tensor:
    positions = torch.arange(first.size(1), device=first.device)
    return ((positions <= positions[:, None]) & (positions >= first[:, :, None]))[:, None]


def block_mask(first: Tensor) -> BlockMask:
    """Equal to torch's create_block_mask, which needs the dense mask: here the first and the last query of a block tell
    which blocks of keys it sees, in whole or in part."""
    T = first.size(1)
    begins = torch.arange(0, T, BLOCK, device=first.device)  # (N,), of queries and of keys
    ends = begins + BLOCK - 1
    lowest, highest = first[:, begins, None], first[:, ends.clamp(max=T - 1), None]  # (B, N, 1)
    whole = (begins < begins[:, None]) & (begins >= highest) & (ends[:, None] < T)  # (B, N queries, N keys)
    partly = (begins <= begins[:, None]) & (ends >= lowest) & ~whole

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[b, query])

    lists = *listed(partly[:, None]), *listed(whole[:, None])
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(T, T))


def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row (B, 1, N, N) are chosen, and the numbers of all, those first."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(dim=-1, dtype=torch.int32), order.int()
