"""The log-likelihood of continuations of texts. A batch reads equal contexts once and keeps their keys and values.

Shapes: B rows of a batch, N targets of all rows, T ids after the shared part, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from slm.generation.reader import Reader
from slm.model import GPT

BATCH_IDS = 2**13  # of a forward pass
LOGITS = 2**26  # computed at a time


@dataclass(frozen=True)
class Continuation:
    """The last `targets` follow the last ids that the model reads, `ids`, each one place later."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]

    @classmethod
    def after(cls, context: Sequence[int], targets: Sequence[int], most: int) -> Self:
        """The targets after the newest ids of a context, so that the model reads at most so many ids.

        Raises: ValueError: for an empty context or no targets, or more targets than that.
        """
        if not context or not 0 < len(targets) <= most:
            raise ValueError(f"{len(context)} ids before {len(targets)} targets, of which a model reads {most}")
        return cls(tuple([*context, *targets][-most - 1 : -1]), tuple(targets))

    @property
    def first(self) -> int:
        """The place of the id before the first target."""
        return len(self.ids) - len(self.targets)


@torch.inference_mode()
def log_likelihoods(
    model: GPT, rows: Sequence[Continuation], done: Callable[[int], object] = lambda rows: None
) -> list[tuple[float, bool]]:
    """The log-probability of each continuation in nats, and whether greedy decoding would give it.

    The order does not matter: rows are sorted by context, and `done` receives the size of each batch.
    """
    order = sorted(range(len(rows)), key=lambda row: _by_context(rows[row]))
    found: dict[int, tuple[float, bool]] = {}
    for batch in _batches(rows, order):
        found.update(zip(batch, _batch(model, [rows[row] for row in batch])))
        done(len(batch))
    return [found[row] for row in range(len(rows))]


def _by_context(row: Continuation) -> tuple:
    return -row.first, row.ids[: row.first], -len(row.ids)


def _batches(rows: Sequence[Continuation], order: Sequence[int]) -> Iterator[list[int]]:
    """Rows in this order, as many as BATCH_IDS takes with the longest one."""
    batch, longest = [], 0
    for row in order:
        longest = max(longest, len(rows[row].ids))
        if batch and (len(batch) + 1) * longest > BATCH_IDS:
            yield batch
            batch, longest = [], len(rows[row].ids)
        batch.append(row)
    if batch:
        yield batch


def _batch(model: GPT, rows: Sequence[Continuation]) -> Iterator[tuple[float, bool]]:
    device, shared = next(model.parameters()).device, min(row.first for row in rows)
    contexts = list(dict.fromkeys(row.ids[:shared] for row in rows))
    cache = None
    if shared and len(contexts) < len(rows):
        reader = Reader(model, len(contexts), max(len(row.ids) for row in rows))
        cache = reader.cache
        model.features(torch.tensor(contexts, device=device), cache)
        reader.keep([contexts.index(row.ids[:shared]) for row in rows])
    else:
        shared = 0
    ids = pad_sequence([torch.tensor(row.ids[shared:]) for row in rows], batch_first=True).to(device)
    features = model.features(ids, cache)  # (B, T, C); what pads a row on the right is not seen from its left
    places = [range(row.first - shared, len(row.ids) - shared) for row in rows]
    numbers = torch.tensor([number for number, own in enumerate(places) for _ in own], device=device)
    chosen = features[numbers, torch.tensor([*chain(*places)], device=device)]  # (N, C)
    targets = torch.tensor([*chain(*(row.targets for row in rows))], device=device)
    sizes = [len(row.targets) for row in rows]
    nats, greedy = (part.cpu().split(sizes) for part in _scores(model, chosen, targets))
    return ((own.double().sum().item(), bool(best.all())) for own, best in zip(nats, greedy))


def _scores(model: GPT, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, C) and targets (N,) to log-probabilities (N,) and whether a target is the most likely id (N,)."""
    nats, greedy, rows = [], [], max(1, LOGITS // model.config.vocab_size)
    for part, wanted in zip(features.split(rows), targets.split(rows)):
        logits = model.logits(part).float()
        nats.append(logits.log_softmax(-1).gather(-1, wanted[:, None]).squeeze(-1))
        greedy.append(logits.argmax(-1) == wanted)
    return torch.cat(nats), torch.cat(greedy)
