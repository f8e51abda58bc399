"""Next-token cross-entropy from features, without ever holding the logits of a whole batch.

The (N, V) float32 logits are the largest tensor of a small model's training step. Here they exist for a few rows at a
time, and so does their gradient, which is computed in the same pass: nothing is computed twice.

Shapes: N rows (batch times positions), C width, V vocabulary. Units: nats.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100  # a target that counts for nothing, as in torch
PROMPT = -1000  # PROMPT - id, in a window: an id that is read, and is no target

# loss_of_rows, or a compiled version
RowLoss = Callable[
    [Tensor, Tensor, Tensor | None, Tensor, float | None, int], tuple[Tensor, Tensor, Tensor, Tensor | None]
]


def cross_entropy(
    features: Tensor,
    weight: Tensor | None,
    targets: Tensor,
    softcap: float | None = None,
    bias: Tensor | None = None,
    row_loss: RowLoss | None = None,
) -> Tensor:
    """Mean nats per target of features (..., C) read out by weight (V, C) and bias (V,). Targets (...) may hold IGNORE.

    `softcap` is the model's `logit_softcap`: the logits are `softcapped`. Without a weight, features are the logits.
    `row_loss` replaces `loss_of_rows`. For training: gradients are computed at once.
    """
    if weight is None:
        total = F.cross_entropy(_wide(features).flatten(0, -2), targets.flatten(), reduction="sum")
        return total / (targets != IGNORE).sum().clamp(min=1)
    rows = features.flatten(0, -2)
    return _ChunkedCrossEntropy.apply(rows, weight, targets.flatten(), softcap, bias, row_loss or loss_of_rows)


@torch.no_grad()
def token_nats(
    features: Tensor, weight: Tensor | None, targets: Tensor, softcap: float | None = None, bias: Tensor | None = None
) -> Tensor:
    """Nats of each target, in the shape of targets; 0 where it is IGNORE. For evaluation: no gradient."""
    rows, flat = features.flatten(0, -2), targets.flatten()
    if weight is None:
        return F.cross_entropy(_wide(rows), flat, reduction="none").view_as(targets)
    size, weight, bias = len(weight), _aligned(weight), _aligned(bias)
    logits = ((c, _logits(rows[c], weight, bias, softcap)[:, :size]) for c in _chunks(rows, size))
    nats = torch.cat([_nats(chunk, flat[c].clamp(min=0).unsqueeze(1)) for c, chunk in logits])
    return nats.view_as(targets).masked_fill(targets == IGNORE, 0)


def loss_of_rows(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The nats of rows (n, C), as (n, 1), and the gradients of their sum: of the rows, of weight and of bias.

    Rows, weight and bias have one dtype; if they are `_aligned`, weight and bias have more entries than the vocabulary.
    The only sums over rows are products of matrices: others would be ordered by the first n that is compiled.
    """
    kept, target = (targets != IGNORE).unsqueeze(1), targets.clamp(min=0).unsqueeze(1)
    logits = _logits(rows, weight, bias, softcap)
    slope = None if softcap is None else 1 - (logits / softcap).square()  # of the tanh
    if len(weight) > vocab_size:
        logits = logits.masked_fill(torch.arange(len(weight), device=logits.device) >= vocab_size, -math.inf)
    nats = _nats(logits, target)
    error = logits.softmax(1)  # minus the one-hot target
    error[torch.arange(len(error), device=error.device), target[:, 0]] -= 1
    if slope is not None:
        error = (error * slope).to(rows.dtype)
    by_bias = None if bias is None else (error.t() @ kept.to(error.dtype)).squeeze(1)
    return nats * kept, (error @ weight) * kept, error.t() @ (rows * kept), by_bias


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = rows @ weight.t()
    return softcapped(logits if bias is None else logits + bias, softcap)


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    """Nats (n, 1) of the targets (n, 1), in at least float32."""
    return -logits.log_softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32)).gather(1, target)


def _aligned(head: Tensor | None) -> Tensor | None:
    """A weight or bias, on CUDA with zeros up to a multiple of 64: products of odd sizes take several times as long
    there."""
    if head is None or head.device.type != "cuda" or not (missing := -len(head) % 64):
        return head
    return F.pad(head, (0, 0) * (head.ndim - 1) + (0, missing))


def softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits limited smoothly to (-softcap, softcap), in at least float32 (arXiv:2408.00118); None: as they are."""
    return logits if softcap is None else softcap * torch.tanh(_wide(logits) / softcap)


def _wide(x: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """The loss that runs with different tokenizers may be compared by."""
    return nats / math.log(2) / text_bytes


def chunk_rows(vocab_size: int, device: str, compiled: bool = False) -> int:
    """Rows whose logits stay in a CPU's cache, or fill a GPU. A `compiled` loss, which makes no copy
    of them in float32, takes twice as many of these."""
    return max(64, (2**23 if device == "cpu" else 2 ** (27 + compiled)) // vocab_size)


def _chunks(rows: Tensor, vocab_size: int, compiled: bool = False) -> Iterator[slice]:
    """Slices of the rows, all of one size if their number has a divisor near it: a compiled function has one shape."""
    size = chunk_rows(vocab_size, rows.device.type, compiled)
    if rows.dtype == torch.float16:  # whose sums over many rows overflow before the loss scale can shrink them
        size = min(size, 4096)
    least = math.ceil(len(rows) / size)
    size = next((len(rows) // n for n in range(least, 2 * least) if len(rows) % n == 0), size)
    return (slice(start, start + size) for start in range(0, len(rows), size))


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
        ctx,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        bias: Tensor | None,
        row_loss: RowLoss,
    ) -> Tensor:
        device, size = features.device.type, len(weight)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
        with torch.autocast(device, enabled=False):
            x, w = features.to(dtype), _aligned(weight.to(dtype))
            b = None if bias is None else _aligned(bias.to(dtype))
            wide = torch.promote_types(dtype, torch.float32)  # of sums, whatever torch's default
            total = torch.zeros((), dtype=wide, device=x.device)
            grad_x, grad_w = torch.empty_like(x), torch.zeros_like(weight, dtype=wide)
            grad_b = None if bias is None else torch.zeros_like(bias, dtype=wide)
            for rows in _chunks(x, size, row_loss is not loss_of_rows):
                nats, grad_x[rows], by_weight, by_bias = row_loss(x[rows], w, b, targets[rows], softcap, size)
                total += nats.sum()
                grad_w += by_weight[:size]
                if grad_b is not None:
                    grad_b += by_bias[:size]
        # sums, not means: the mean's factor would vanish in float16; it comes in with the loss scale in backward
        count = (targets != IGNORE).sum().clamp(min=1)
        ctx.save_for_backward(grad_x, grad_w, grad_b, count)
        ctx.dtypes = features.dtype, weight.dtype
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grad_x, grad_w, grad_b, count = ctx.saved_tensors
        scale = grad / count
        grad_b = None if grad_b is None else (grad_b * scale).to(ctx.dtypes[1])
        return (grad_x * scale).to(ctx.dtypes[0]), (grad_w * scale).to(ctx.dtypes[1]), None, None, grad_b, None
