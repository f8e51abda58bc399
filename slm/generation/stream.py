"""Text from a model: prefill once, then one token per step for all rows in one forward pass.

Prompts of different lengths share a batch without padding. All rows are read to the same length, first to that of
the shortest prompt; from there a row that still has prompt is fed its own next id, and every other one what was
sampled for it. So no mask is needed, and up to rounding each row computes what it would alone. When every row still
has prompt, it is read in one go up to the end of the shortest.

A text may outgrow the context: when the cache is full, the newest half of the context is read anew, from position 0,
and decoding goes on. A prompt longer than the context is cut where reading it token by token would have cut it.
"""

import codecs
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch import Tensor

from slm.errors import UserError
from slm.generation.reader import GraphReader, Reader
from slm.generation.sampling import Sampler
from slm.model import GPT
from slm.tokenizers import Tokenizer

MAX_COUNT = 1_000_000  # tokens of a text, and texts of a prompt
MAX_ROWS = 64  # that `completions` decodes at once; each holds a cache of its own


@dataclass(kw_only=True)
class Row:
    index: int
    ids: list[int]  # the prompt, then what was generated
    left: int  # tokens it may still generate
    random: Random  # its own, so that its text depends neither on its companions nor on the global generators
    stopped: bool = False

    def between(self, begin: int, end: int) -> list[int]:
        """Its ids; behind the end of a row that has stopped, but is read beside the others, any id will do."""
        ids = self.ids[begin:end]
        return ids + [0] * (end - begin - len(ids))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids that stand for a document beginning with the prompt: in training every document follows an eos."""
    return [tokenizer.eos, *tokenizer.encode(prompt)]


def check_count(name: str, value: int):
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise UserError(f"{name}={value!r} must be a whole number from 1 to {MAX_COUNT:,}")


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    sampler: Sampler,
    max_new_tokens: int,
    eos: int | None,
    seed: int,
    first_row: int = 0,
) -> Iterator[list[tuple[int, int]]]:
    """Yields, step by step, the new (row, token) pairs, never none; a row's last pair may hold eos.

    A row stops after its eos (None: never) or its max_new_tokens. Its text is a function of the model, its prompt, the
    sampler, the seed and its number, which counts from first_row. Prompts must not be empty (see `encode_prompt`).
    The repetition penalty counts the whole prompt and text, but never the eos that would stop the row.
    The model is in eval mode until the iterator ends or is closed.
    """
    check_count("max_new_tokens", max_new_tokens)
    vocab_size = model.config.vocab_size
    if not all(prompt and min(prompt) >= 0 and max(prompt) < vocab_size for prompt in prompts):
        raise ValueError(f"a prompt must hold at least one id, and only ids below the vocabulary size {vocab_size}")
    rows = [
        Row(index=index, ids=list(prompt), left=max_new_tokens, random=Random(f"{seed}/{index}"))
        for index, prompt in enumerate(prompts, first_row)
    ]
    return _steps(model, rows, sampler, eos)


@torch.inference_mode()  # as a decorator it is left at every yield
def _steps(model: GPT, rows: list[Row], sampler: Sampler, eos: int | None) -> Iterator[list[tuple[int, int]]]:
    device = model.tokens.weight.device
    kind = GraphReader if device.type == "cuda" else Reader
    reader = kind(model, len(rows), max((len(row.ids) + row.left for row in rows), default=1))
    seen = torch.zeros(len(rows), model.config.vocab_size, dtype=torch.bool, device=device)
    begin, end = 0, min((len(row.ids) for row in rows), default=0)  # the ids that this step reads of every row
    was_training = model.training
    model.eval()
    try:
        while rows:
            seen.scatter_(1, torch.tensor([row.between(begin, end) for row in rows], device=device), True)
            if eos is not None:
                seen[:, eos] = False
            first = reader.begin(end)
            logits = reader.read([row.between(first, end) for row in rows])
            new = _extend(rows, end, _sample(sampler, logits, seen, rows, end), eos)
            if new:
                yield new
            keep = [place for place, row in enumerate(rows) if not row.stopped]
            if len(keep) < len(rows) and len(keep) <= reader.worth_dropping * len(rows):
                rows, seen = [rows[place] for place in keep], seen[keep]
                reader.keep(keep)
            begin, end = end, max(end + 1, min((len(row.ids) for row in rows if not row.stopped), default=0))
    finally:
        model.train(was_training)


def _sample(sampler: Sampler, logits: Tensor, seen: Tensor, rows: Sequence[Row], end: int) -> list[int]:
    """An id per row, meaningless where the row still has prompt or has stopped; one transfer to the host."""
    uniform = [row.random.random() if len(row.ids) == end and not row.stopped else 0.0 for row in rows]
    ids = sampler(logits, seen, torch.tensor(uniform, device=logits.device))
    ids, finite = torch.stack([ids, logits.amax(-1).isfinite().long()]).tolist()
    if not all(finite):
        raise UserError("the model's logits are not finite: its training has diverged; use an earlier checkpoint")
    return ids


def _extend(rows: Sequence[Row], end: int, tokens: Sequence[int], eos: int | None) -> list[tuple[int, int]]:
    """Appends its token to every row that has been read to its end."""
    new = []
    for row, token in zip(rows, tokens):
        if len(row.ids) == end and not row.stopped:
            row.ids.append(token)
            row.left -= 1
            row.stopped = token == eos or not row.left
            new.append((row.index, token))
    return new


class TextStream:
    """Token ids in, text out piece by piece, as soon as the bytes are whole characters. Invalid bytes become U+FFFD."""

    def __init__(self, tokenizer: Tokenizer):
        self.token_bytes = tokenizer.token_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        return self.decoder.decode(self.token_bytes(token))

    def flush(self) -> str:
        """What is left of a character that never became whole."""
        return self.decoder.decode(b"", final=True)


@dataclass(frozen=True, kw_only=True)
class Completion:
    prompt: str
    text: str  # what follows the prompt
    tokens: int  # of the text; eos is not counted
    finished: bool  # the model ended the text itself


def complete(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], *, num_samples: int = 1, **settings
) -> list[list[Completion]]:
    """For every prompt its num_samples `completions`."""
    check_count("num_samples", num_samples)
    told = completions(model, tokenizer, prompts, num_samples=num_samples, **settings)
    return [list(islice(told, num_samples)) for _ in prompts]


def completions(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    sampler: Sampler,
    max_new_tokens: int,
    seed: int,
    num_samples: int = 1,
    stop_at_eos: bool = True,
) -> Iterator[Completion]:
    """num_samples completions of the first prompt, then of the next, MAX_ROWS in memory at a time.

    Further prompts after it do not change them.
    """
    eos = tokenizer.eos if stop_at_eos else None
    settings = {"sampler": sampler, "max_new_tokens": max_new_tokens, "eos": eos, "seed": seed}
    total = len(prompts) * num_samples
    for first in range(0, total, MAX_ROWS):
        asked = [prompts[row // num_samples] for row in range(first, min(first + MAX_ROWS, total))]
        ids = {prompt: encode_prompt(tokenizer, prompt) for prompt in set(asked)}
        texts = _texts(generate(model, [ids[prompt] for prompt in asked], first_row=first, **settings))
        for row, prompt in enumerate(asked, first):
            text = texts.pop(row)
            finished = text[-1] == eos
            text = text[:-1] if finished else text
            decoded = tokenizer.decode(text)
            yield Completion(prompt=prompt, text=decoded, tokens=len(text), finished=finished)


def _texts(steps: Iterator[list[tuple[int, int]]]) -> dict[int, list[int]]:
    """Row -> the tokens of all steps."""
    texts = defaultdict(list)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # a training may want them, but CUDA has no deterministic cumsum
    try:
        for step in steps:
            for row, token in step:
                texts[row].append(token)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    return texts
