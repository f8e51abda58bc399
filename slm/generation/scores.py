"""Log-probabilities of tokens, in nats, beside the most likely ids: of generated ones, and of those of a text.

They are the model's own, before the filters of the sampler. Shapes: T ids of a text, N rows, V vocabulary.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.errors import UserError
from slm.generation.prompt import Prompt
from slm.generation.stream import generate
from slm.model import GPT


@dataclass(frozen=True)
class Scored:
    row: int
    token: int
    logprob: float
    top: list[tuple[int, float]]  # ids and log-probabilities of the most likely ids, best first


def generate_scored(model: GPT, prompts: Sequence[Prompt], *, top: int, **settings) -> Generator[list[Scored]]:
    """The new tokens of each step, with their `top` most likely rivals. Settings and errors as in `generate`."""
    found: list[Scored] = []

    def observe(new: list[tuple[int, int]], logits: Tensor):
        rows, tokens = zip(*new)
        found[:] = map(Scored, rows, *scores(logits, tokens, top))

    for _ in generate(model, prompts, observe=observe, **settings):
        yield [*found]


def scores(logits: Tensor, tokens: Sequence[int], top: int) -> tuple[Sequence, ...]:
    """Logits (N, V) and ids (N) to the ids, their log-probabilities and their most likely rivals."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])
    values, ids = (part.tolist() for part in logprobs.topk(min(top, logits.size(-1))))
    return tokens, own.squeeze(-1).tolist(), [[*zip(*pair)] for pair in zip(ids, values)]


@torch.inference_mode()
def text_scores(model: GPT, ids: Sequence[int], top: int) -> list[Scored]:
    """All ids of a text but the first, each given those before it. Raises: UserError: if it exceeds the context."""
    if len(ids) > model.config.context:
        raise UserError(f"the text has {len(ids)} tokens, the model reads {model.config.context}; shorten it")
    if len(ids) < 2:
        return []
    logits = model(torch.tensor([ids[:-1]], device=next(model.parameters()).device))[0]
    return [*map(Scored, [0] * (len(ids) - 1), *scores(logits, ids[1:], top))]
