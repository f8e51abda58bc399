"""The loss of a model on texts: windows of ids as in a validation, to nats per token and bits per byte.

Shapes: B windows, T ids of a window, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from slm.errors import UserError
from slm.loss import IGNORE, bits_per_byte, ids_of, text_sizes
from slm.model import GPT
from slm.tokenizers import Tokenizer, text_lengths


@dataclass(frozen=True, kw_only=True)
class TextLoss:
    """What a model pays for a text."""

    nats: float  # mean per token
    bits_per_byte: float | None  # with the ends of documents; None if the tokenizer loses part of the text
    text_bits_per_byte: float | None  # without those ends
    tokens: int  # targets
    bytes: int  # of their text


def slices(ids: Sequence[int], context: int) -> list[Sequence[int]]:
    """Windows of up to `context` + 1 ids, in which every id but the first is a target once."""
    return [ids[start : start + context + 1] for start in range(0, len(ids) - 1, context)]


def text_loss(
    model: GPT, tokenizer: Tokenizer, documents: Sequence[str], layout: Literal["packed", "documents"]
) -> TextLoss:
    """The loss on documents in the windows of data.layout; the last, incomplete one of "packed" is used too.

    Raises: UserError: if there is no target.
    """
    context, eos = model.config.context, tokenizer.eos
    encoded = [ids.tolist() for ids in tokenizer.encode_batch(documents)]
    if layout == "packed":
        windows = slices([token for ids in encoded for token in [*ids, eos]], context)
    else:
        windows = [[eos, *ids, eos][: context + 1] for ids in encoded]
    lossless = all(tokenizer.decode(ids) == text for ids, text in zip(encoded, documents))
    return windows_loss(model, tokenizer, windows, lossless)


def padded(windows: Sequence[Sequence[int]]) -> Tensor:
    """Windows of ids as one tensor (B, T), filled with IGNORE."""
    return pad_sequence([torch.tensor(ids) for ids in windows], batch_first=True, padding_value=IGNORE)


@torch.inference_mode()
def window_nats(model: GPT, windows: Tensor) -> Tensor:
    """The nats (B, T - 1) of the targets of windows (B, T) in float64 on the CPU, 0 for IGNORE and for prompts."""
    device, rows = next(model.parameters()).device, max(1, 2**24 // (windows.size(1) * model.config.vocab_size))
    parts = []
    for batch in windows.to(device).split(rows):
        logits, targets = model(ids_of(batch[:, :-1])).float(), batch[:, 1:].clamp(min=IGNORE)
        parts += [F.cross_entropy(*row, ignore_index=IGNORE, reduction="none") for row in zip(logits, targets)]
    return torch.stack(parts).cpu().double()


def windows_loss(model: GPT, tokenizer: Tokenizer, windows: Sequence[Sequence[int]], lossless: bool) -> TextLoss:
    """The loss on windows of ids. Raises: UserError: if there is none."""
    if not windows:
        raise UserError("the text is empty; give at least one character")
    ids = padded(windows)
    nats, targets = window_nats(model, ids), ids[:, 1:]
    sizes, is_text = text_sizes(ids, torch.from_numpy(text_lengths(tokenizer)))
    total, tokens, size = nats.sum().item(), int((targets >= 0).sum()), int(sizes.sum())
    known = lossless and size > 0
    return TextLoss(
        nats=total / tokens,
        bits_per_byte=bits_per_byte(total, size) if known else None,
        text_bits_per_byte=bits_per_byte(nats[is_text].sum().item(), size) if known else None,
        tokens=tokens,
        bytes=size,
    )
