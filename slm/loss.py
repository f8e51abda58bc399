"""Next-token cross-entropy from features, without ever holding the logits of a whole batch.

The (N, V) float32 logits are the largest tensor of a small model's training step. Here they exist for a few rows at a
time, and so does their gradient, which is computed in the same pass: nothing is computed twice.

Shapes: N rows (batch times positions), C width, V vocabulary. Units: nats.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100  # a target that counts for nothing, as in torch
PROMPT = -1000  # PROMPT - id, in a window: an id that is read, and is no target


def cross_entropy(
    features: Tensor, weight: Tensor | None, targets: Tensor, softcap: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Mean nats per target of features (..., C) read out by weight (V, C) and bias (V,). Targets (...) may hold IGNORE.

    `softcap` is the model's `logit_softcap`: the logits are `softcapped`. Without a weight, features are the logits.
    """
    if weight is None:
        total = F.cross_entropy(_wide(features).flatten(0, -2), targets.flatten(), reduction="sum")
        return total / (targets != IGNORE).sum().clamp(min=1)
    return _ChunkedCrossEntropy.apply(features.flatten(0, -2), weight, targets.flatten(), softcap, bias)


@torch.no_grad()
def token_nats(
    features: Tensor, weight: Tensor | None, targets: Tensor, softcap: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Nats of each target, in the shape of targets; 0 where it is IGNORE. For evaluation: no gradient."""
    rows, flat = features.flatten(0, -2), targets.flatten()
    if weight is None:
        return F.cross_entropy(_wide(rows), flat, reduction="none").view_as(targets)
    logits = ((c, _wide(_logits(rows[c], weight, bias, softcap))) for c in _chunks(rows, weight))
    return torch.cat([F.cross_entropy(chunk, flat[c], reduction="none") for c, chunk in logits]).view_as(targets)


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = rows @ weight.t()
    return softcapped(logits if bias is None else logits + bias, softcap)


def softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits limited smoothly to (-softcap, softcap), in at least float32 (arXiv:2408.00118); None: as they are."""
    return logits if softcap is None else softcap * torch.tanh(_wide(logits) / softcap)


def _wide(x: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """The loss that runs with different tokenizers may be compared by."""
    return nats / math.log(2) / text_bytes


def chunk_rows(vocab_size: int, device: str) -> int:
    """Rows whose logits stay in a CPU's cache, or are large enough to fill a GPU."""
    return max(64, (2**23 if device == "cpu" else 2**27) // vocab_size)


def _chunks(rows: Tensor, weight: Tensor) -> Iterator[slice]:
    size = chunk_rows(weight.size(0), rows.device.type)
    if rows.dtype == torch.float16:  # whose sums over many rows overflow before the loss scale can shrink them
        size = min(size, 4096)
    return (slice(start, start + size) for start in range(0, rows.size(0), size))


def ids_of(windows: Tensor) -> Tensor:
    """The ids that are read in windows, with 0 for IGNORE."""
    return torch.where(windows <= PROMPT, PROMPT - windows, windows.clamp(min=0))


def text_sizes(windows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes of text of each target of windows (B, T + 1), and whether it is an id of text; both (B, T).

    `lengths` (2, V) holds the bytes of each id within a document and at its start (slm.tokenizers.text_lengths). An id
    without text ends a document. Only an id that is a target has a size.
    """
    ids, kept = ids_of(windows), windows[:, 1:] >= 0
    inputs, targets = ids[:, :-1], ids[:, 1:]
    starts = (lengths[0, inputs] == 0).long()
    return lengths[starts, targets] * kept, (lengths[0, targets] > 0) & kept


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, features: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, bias: Tensor | None
    ) -> Tensor:
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
        with torch.autocast(device, enabled=False):
            x, w, b = features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            kept = (targets != IGNORE).unsqueeze(1)
            x_kept = x * kept
            wide = torch.promote_types(dtype, torch.float32)  # of sums, whatever torch's default
            total = torch.zeros((), dtype=wide, device=x.device)
            grad_x, grad_w = torch.empty_like(x), torch.zeros_like(weight, dtype=wide)
            grad_b = None if bias is None else torch.zeros_like(bias, dtype=wide)
            for rows in _chunks(x, w):
                target = targets[rows].clamp(min=0).unsqueeze(1)
                logits = _logits(x[rows], w, b, softcap)
                nats = -_wide(logits).log_softmax(1).gather(1, target)
                total += (nats * kept[rows]).sum()
                if any(ctx.needs_input_grad):
                    error = logits.softmax(1)  # minus the one-hot target
                    error[torch.arange(len(error), device=x.device), target[:, 0]] -= 1
                    if softcap is not None:  # times the slope of the tanh
                        error = (error * (1 - (logits / softcap).square())).to(dtype)
                    grad_x[rows] = error @ w
                    grad_w += error.t() @ x_kept[rows]
                    if grad_b is not None:
                        grad_b += (error * kept[rows]).sum(0, dtype=wide)
            grad_x *= kept
        # sums, not means: the mean's factor would vanish in float16; it comes in with the loss scale in backward
        count = kept.sum().clamp(min=1)
        ctx.save_for_backward(grad_x, grad_w, grad_b, count)
        ctx.dtypes = features.dtype, weight.dtype
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grad_x, grad_w, grad_b, count = ctx.saved_tensors
        scale = grad / count
        grad_b = None if grad_b is None else (grad_b * scale).to(ctx.dtypes[1])
        return (grad_x * scale).to(ctx.dtypes[0]), (grad_w * scale).to(ctx.dtypes[1]), None, None, grad_b
