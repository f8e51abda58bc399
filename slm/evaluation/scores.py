"""What a model predicts for each target of windows, in one pass over them.

Shapes: N windows, T targets of a window, V vocabulary, K temperatures, M the first windows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from slm.data.encode import progress
from slm.loss import IGNORE, chunk_rows, ids_of
from slm.model import GPT
from slm.tables import clock

TEMPERATURES = np.round(np.geomspace(0.5, 2.0, 15), 4)  # steps of 10 %, 1 among them
TEMPERED = 2**30  # exponentials that the search for the best temperature may cost
LOGITS = 2**24  # that are in memory at a time


@dataclass(frozen=True)
class Scores:
    """Arrays (N, T); what lies at no target has no meaning."""

    kept: np.ndarray  # True for a target
    nats: np.ndarray
    confidence: np.ndarray  # the probability of the most probable id
    correct: np.ndarray  # it is the target
    tempered: np.ndarray  # (K, M, T) nats at each of TEMPERATURES


@torch.inference_mode()
def score(model: GPT, windows: Tensor) -> Scores:
    """The scores of windows of ids (N, T + 1), with a line of progress on stderr."""
    device, (count, length) = next(model.parameters()).device, windows.shape
    rows = max(1, LOGITS // (length * model.config.vocab_size))
    tempered = max(1, TEMPERED // (len(TEMPERATURES) * length * model.config.vocab_size))
    kept, parts, cooled, begin = windows[:, 1:] >= 0, [], [], time.perf_counter()
    done = 0

    def line() -> str:
        return f"loss: {done:,} of {count:,} windows, {clock(time.perf_counter() - begin)}"

    with progress(line) as show:
        for batch in windows.split(rows):
            used = int((batch[:, 1:] != IGNORE).sum(1).max())
            ids = ids_of(batch[:, : used + 1]).to(device)
            logits, targets = model(ids[:, :-1]).float(), ids[:, 1:]
            best, fill = logits.argmax(-1), partial(_filled, length=length - 1)
            found = nats(logits, targets)[0], (-nats(logits, best)[0]).exp(), best == targets
            parts.append([fill(values) for values in found])
            if done < tempered:
                cooled.append(np.stack([fill(values) for values in nats(logits, targets, TEMPERATURES)]))
            done += len(batch)
            show()
    columns = [np.concatenate(column) for column in zip(*parts)]
    return Scores(kept.numpy(), columns[0], columns[1], columns[2] > 0, np.concatenate(cooled, 1))


def nats(logits: Tensor, targets: Tensor, temperatures: Sequence[float] = (1.0,)) -> Tensor:
    """Of logits (B, T, V) and targets (B, T) at each temperature (K, B, T), some rows at a time."""
    parts, rows = [], chunk_rows(logits.size(-1) * 2**5, logits.device.type)
    for chunk, wanted in zip(logits.flatten(0, 1).split(rows), targets.flatten().split(rows)):
        own = chunk - chunk.amax(-1, keepdim=True)  # so that no exponential overflows
        at = own.gather(-1, wanted[:, None])[:, 0]
        parts.append(torch.stack([(own / value).exp_().sum(-1).log() - at / value for value in temperatures]))
    return torch.cat(parts, 1).view(-1, *targets.shape)


def _filled(values: Tensor, length: int) -> np.ndarray:
    """Rows of `length` with 0 behind their end, float64."""
    return torch.nn.functional.pad(values.double().cpu(), (0, length - values.size(1))).numpy()
