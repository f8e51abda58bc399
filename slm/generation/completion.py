"""From prompts to texts: one continuation piece by piece, or completions of many prompts."""

import codecs
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from slm.generation.prompt import encode_prompt
from slm.generation.sampling import Sampler
from slm.generation.stream import check_count, generate
from slm.model import GPT
from slm.tokenizers import Tokenizer

MAX_ROWS = 64  # rows that `completions` decodes at once; each needs a key-value cache


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    stop_at_eos: bool = True,
    interrupted: Callable[[], bool] = lambda: False,
    eos_first: bool = True,
    **settings,
) -> Iterator[str]:
    """The continuation of a prompt: a piece of complete characters for every token, and a last piece, often empty.

    Ends early as soon as `interrupted` returns true. Settings and errors as in `generate`.
    """
    start = encode_prompt(tokenizer, prompt, eos_first)
    steps = generate(model, [start], eos=tokenizer.eos if stop_at_eos else None, **settings)

    def tokens() -> Iterator[int]:
        with contextlib.closing(steps):
            for [(_, token)] in steps:
                yield token
                if interrupted():
                    return

    return decoded(tokenizer, tokens(), skip=len(start.rest))


def decoded(tokenizer: Tokenizer, tokens: Iterable[int], skip: int = 0) -> Iterator[str]:
    """The text in pieces of complete characters, one for each token and a last one, as of a `TextDecoder`."""
    decoder = TextDecoder(tokenizer, skip)
    for token in tokens:
        yield decoder.text(token)
    yield decoder.end()


class TextDecoder:
    """Tokens to pieces of complete characters. Invalid bytes become U+FFFD; the first `skip` bytes are left out."""

    def __init__(self, tokenizer: Tokenizer, skip: int = 0):
        self.tokenizer, self.skip = tokenizer, skip
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def text(self, token: int) -> str:
        content = self.tokenizer.token_bytes(token)
        skipped, self.skip = self.skip, max(0, self.skip - len(content))
        return self.decoder.decode(content[skipped:])

    def end(self) -> str:
        return self.decoder.decode(b"", final=True)


def held_back(text: str, stops: Iterable[str]) -> int:
    """Characters at the end of a text with which one of these stop sequences may begin."""
    lengths = (size for stop in stops for size in range(min(len(stop), len(text)), 0, -1)
               if text.endswith(stop[:size]))  # fmt: skip
    return max(lengths, default=0)


@dataclass(frozen=True, kw_only=True)
class Completion:
    prompt: str
    text: str  # without the prompt
    tokens: int  # of the text, without eos
    finished: bool  # the text ended with eos


def complete(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], *, num_samples: int = 1, **settings
) -> list[list[Completion]]:
    """The `completions` of every prompt. Raises: UserError: for num_samples below 1, and as `generate`."""
    check_count("num_samples", num_samples)
    stream = completions(model, tokenizer, prompts, num_samples=num_samples, **settings)
    return [list(islice(stream, num_samples)) for _ in prompts]


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
    eos_first: bool = True,
) -> Iterator[Completion]:
    """Yields num_samples completions of each prompt in turn; decodes MAX_ROWS at a time.

    The completions of a prompt do not depend on later prompts. Raises: UserError: as `generate`.
    """
    eos = tokenizer.eos if stop_at_eos else None
    settings = {"sampler": sampler, "max_new_tokens": max_new_tokens, "eos": eos, "seed": seed}
    total = len(prompts) * num_samples
    for first in range(0, total, MAX_ROWS):
        batch = [prompts[row // num_samples] for row in range(first, min(first + MAX_ROWS, total))]
        starts = {prompt: encode_prompt(tokenizer, prompt, eos_first) for prompt in set(batch)}
        texts = _texts(generate(model, [starts[prompt] for prompt in batch], first_row=first, **settings))
        for row, prompt in enumerate(batch, first):
            text = texts.pop(row)
            finished = text[-1] == eos
            text = text[:-1] if finished else text
            new = "".join(decoded(tokenizer, text, skip=len(starts[prompt].rest)))
            if not prompt and getattr(tokenizer, "adds_space", False):  # at the start of a document
                new = new.removeprefix(" ")
            yield Completion(prompt=prompt, text=new, tokens=len(text), finished=finished)


def _texts(steps: Iterator[list[tuple[int, int]]]) -> dict[int, list[int]]:
    """Row -> its tokens."""
    texts = defaultdict(list)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # CUDA has no deterministic cumsum
    try:
        for step in steps:
            for row, token in step:
                texts[row].append(token)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    return texts
