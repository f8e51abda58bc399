"""Text generation: one forward pass for the prompts, then one token per step for all rows in one forward pass.

Prompts of different lengths share a batch without padding or mask. The first pass reads every row up to the length of
the shortest prompt. In each later step, the input of a row is the next id of its prompt, or else its last sampled id.
(If all rows are within their prompts, a step reads up to the end of the shortest.) Up to rounding, each row is computed
as if it were alone.

A text may be longer than the context: when the cache is full, the newest half of the context is read again from
position 0, and decoding continues. Long prompts are truncated at the same positions.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from slm.errors import UserError
from slm.generation.prompt import Prompt, spells
from slm.generation.reader import GraphReader, Reader
from slm.generation.sampling import Sampler
from slm.model import GPT

Pairs = list[tuple[int, int]]  # (row, token)
Observer = Callable[[Pairs, Tensor], None]  # new pairs, and logits (pairs, V) before the filters


@dataclass(kw_only=True)
class Row:
    index: int
    ids: list[int]  # the prompt and the generated ids
    remaining: int  # tokens
    random: Random  # of this row, so that its text depends neither on other rows nor on the global generators
    rest: bytes  # of the prompt, that the next tokens must spell
    vocabulary: Sequence[bytes]
    stopped: bool = False

    def is_next(self, end: int) -> bool:
        """True if the id at position `end` is to be generated."""
        return len(self.ids) == end and not self.stopped

    def slice(self, begin: int, end: int) -> list[int]:
        """ids[begin:end], padded with 0 for a stopped row that stays in the batch."""
        ids = self.ids[begin:end]
        return ids + [0] * (end - begin - len(ids))


def check_count(name: str, value: int):
    """Raises: UserError: if the value is not an int or below 1."""
    if type(value) is not int or value < 1:
        raise UserError(f"{name}={value!r} must be a whole number from 1")


def generate(
    model: GPT,
    prompts: Sequence[Prompt | Sequence[int]],
    *,
    sampler: Sampler,
    max_new_tokens: int,
    eos: int | None,
    seed: int,
    first_row: int = 0,
    observe: Observer | None = None,
) -> Iterator[Pairs]:
    """Yields the new (row, token) pairs of each step that has any; eos is included.

    Prompts are those of `encode_prompt`, or ids. A row stops after `eos` (None: never) or `max_new_tokens`. Its text is
    a function of the model, its prompt, the sampler, the seed and its number, which counts from `first_row`.
    The repetition penalty applies to all ids of prompt and text except eos. `observe` is called before each step with
    new pairs is yielded.
    The model is in eval mode until the iterator ends or is closed.
    Raises: UserError: for max_new_tokens below 1, and while iterating if logits are not finite; ValueError: for a
    prompt that is empty or has an id outside the vocabulary.
    """
    check_count("max_new_tokens", max_new_tokens)
    vocab_size = model.config.vocab_size
    starts = [prompt if isinstance(prompt, Prompt) else Prompt(ids=prompt) for prompt in prompts]
    if not all(start.ids and min(start.ids) >= 0 and max(start.ids) < vocab_size for start in starts):
        raise ValueError(f"a prompt must hold at least one id, and only ids below the vocabulary size {vocab_size}")
    rows = [
        Row(
            index=index,
            ids=list(start.ids),
            remaining=max_new_tokens,
            random=_random(f"{seed}/{index}", start.generated),
            rest=start.rest,
            vocabulary=start.vocabulary,
        )
        for index, start in enumerate(starts, first_row)
    ]
    return _steps(model, rows, sampler, eos, observe)


def _random(seed: str, drawn: int) -> Random:
    """A generator from which so many numbers were drawn."""
    random = Random(seed)
    for _ in range(drawn):
        random.random()
    return random


@torch.inference_mode()  # as a decorator it is off outside of this generator
def _steps(model: GPT, rows: list[Row], sampler: Sampler, eos: int | None, observe: Observer | None) -> Iterator[Pairs]:
    device = next(model.parameters()).device
    reader_class = GraphReader if device.type == "cuda" and isinstance(model, GPT) else Reader
    reader = reader_class(model, len(rows), max((len(row.ids) + row.remaining for row in rows), default=1))
    seen = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool, device=device)
    begin, end = 0, min((len(row.ids) for row in rows), default=0)  # the ids of this step
    was_training = model.training
    model.eval()
    try:
        while rows:
            seen.scatter_(1, torch.tensor([row.slice(begin, end) for row in rows], device=device), True)
            if eos is not None:
                seen[:, eos] = False
            places = [place for place, row in enumerate(rows) if row.is_next(end)]
            uniform = [row.random.random() if row.is_next(end) else 0.0 for row in rows]
            uniform = torch.tensor(uniform, device=device)  # before the step, for whose end a copy to a GPU waits
            first = reader.begin(end)
            logits = _spelled(reader.read([row.slice(first, end) for row in rows]), rows, end)
            new = _extend(rows, end, _sample(sampler, logits, seen, uniform), eos)
            if new:
                if observe:
                    observe(new, logits[places])
                yield new
            keep = [place for place, row in enumerate(rows) if not row.stopped]
            if len(keep) < len(rows) and len(keep) <= reader.worth_dropping * len(rows):
                rows, seen = [rows[place] for place in keep], seen[keep]
                reader.keep(keep)
            begin, end = end, max(end + 1, min((len(row.ids) for row in rows if not row.stopped), default=0))
    finally:
        model.train(was_training)


def _sample(sampler: Sampler, logits: Tensor, seen: Tensor, uniform: Tensor) -> list[int]:
    """One id per row, not used for a row within its prompt or stopped. One transfer to the host."""
    ids = sampler(logits, seen, uniform)
    ids, finite = torch.stack([ids, logits.amax(-1).isfinite().long()]).tolist()
    if not all(finite):
        raise UserError("the model's logits are not finite: its training has diverged; use an earlier checkpoint")
    return ids


def _spelled(logits: Tensor, rows: Sequence[Row], end: int) -> Tensor:
    """The logits, -inf for the ids that do not spell the rest of a row's prompt."""
    masks: dict[bytes, Tensor] = {}
    for place, row in enumerate(rows):
        if row.rest and row.is_next(end):
            if row.rest not in masks:
                excluded = [not spells(token, row.rest) for token in row.vocabulary]
                masks[row.rest] = torch.tensor(excluded, device=logits.device)
            own = torch.arange(len(rows), device=logits.device)[:, None] == place
            logits = logits.masked_fill(own & masks[row.rest], -math.inf)
    return logits


def _extend(rows: Sequence[Row], end: int, tokens: Sequence[int], eos: int | None) -> Pairs:
    """Appends the sampled tokens to the rows that were read to their end; returns the new (row, token) pairs."""
    new = []
    for row, token in zip(rows, tokens):
        if row.is_next(end):
            row.ids.append(token)
            row.rest = row.rest and row.rest[len(row.vocabulary[token]) :]
            row.remaining -= 1
            row.stopped = token == eos or not row.remaining
            new.append((row.index, token))
    return new
