"""The loss of a model on texts: windows of ids as in a validation, to nats per token and bits per byte.

Shapes: B windows, T ids of a window, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from slm.errors import UserError
from slm.loss import IGNORE, bits_per_byte
from slm.model import GPT
from slm.tokenizers import Tokenizer, pieces


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


@torch.inference_mode()
def windows_loss(model: GPT, tokenizer: Tokenizer, windows: Sequence[Sequence[int]], lossless: bool) -> TextLoss:
    """The loss on windows of ids. Raises: UserError: if there is none."""
    if not windows:
        raise UserError("the text is empty; give at least one character")
    device, longest, vocab_size = model.tokens.weight.device, max(map(len, windows)), tokenizer.vocab_size
    lengths = torch.tensor([*map(len, pieces(tokenizer))], device=device)  # bytes of every id
    rows, sums = max(1, 2**24 // (longest * vocab_size)), torch.zeros(4, dtype=torch.float64, device="cpu")
    for first in range(0, len(windows), rows):
        batch = [[*ids, *[IGNORE] * (longest - len(ids))] for ids in windows[first : first + rows]]
        window = torch.tensor(batch, device=device)
        targets, logits = window[:, 1:].flatten(), model(window[:, :-1].clamp(min=0)).float().flatten(0, 1)
        nats = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
        size = lengths[targets.clamp(min=0)] * (targets != IGNORE)
        values = nats.sum(), (nats * (size > 0)).sum(), (targets != IGNORE).sum(), size.sum()
        sums += torch.stack([value.float() for value in values]).cpu()
    total, of_text, tokens, size = sums.tolist()
    known = lossless and size > 0
    return TextLoss(
        nats=total / tokens,
        bits_per_byte=bits_per_byte(total, size) if known else None,
        text_bits_per_byte=bits_per_byte(of_text, size) if known else None,
        tokens=int(tokens),
        bytes=int(size),
    )
