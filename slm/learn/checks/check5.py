"""Checks of phase 5: from logits to an id, against slm/generation/sampling.py; then the text of a trained model."""

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from slm.generation import sampling
from slm.learn.phases import phase4_training as training
from slm.learn.phases.phase3_gpt import GPT
from slm.learn.stories import stories, story_ids
from slm.learn.verdict import close, require, same

CONTEXT, STEPS, TOKENS = 64, 300, 300
KNOWN = 0.8  # of the generated words, which must occur in the stories


def checks(own) -> Iterator[str]:
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 3
    for row in logits:
        same(f"greedy of logits whose largest is at {int(row.argmax())}", own.greedy(row), int(row.argmax()))
    yield "greedy takes the largest logit"
    filters(own, logits)
    yield "temperature and top_k equal slm's, of equal logits exactly k"
    choices(own, logits)
    yield "probabilities and sample equal slm's for 200 random numbers"
    loop(own)
    yield "generate reads the last position, crops to the context and appends"
    share, text = words_of_a_trained_model(own)
    line = f"Only {share:.1%} of the generated words occur in the stories, and 80 % are needed: {text[:100]!r}"
    require(share >= KNOWN, line)
    yield f"a GPT after {STEPS} updates writes: {text[:100]!r}"
    yield f"{share:.1%} of its words occur in the stories (at least 80 %)"


def filters(own, logits: Tensor):
    row = logits[0]
    for value in (0.5, 1.0, 2.0):
        hints = {"The logits are multiplied by the temperature: divide.": (row * value).softmax(0)}
        given = own.temperature(row, value)
        require(isinstance(given, Tensor), "temperature must return a tensor of logits.")
        expected = sampling.temperature(row, value).softmax(0)
        close(f"The softmax of temperature(logits, {value})", given.softmax(0), expected, hints)
    ties = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    for row, k in [*((row, k) for row in logits[:20] for k in (1, 5, 50, 80)), (ties, 2), (ties, 3), (ties, 6)]:
        expected = sampling.top_k(row, k)
        zero = expected.masked_fill(expected == -math.inf, 0.0)
        kept = row.topk(min(k, len(row)))
        picked = torch.full_like(row, -math.inf).scatter(0, kept.indices, kept.values)
        smallest = row.masked_fill(row < row.sort(descending=True).values[min(k, len(row)) - 1], -math.inf)
        mistakes = {
            "The others are 0, which is a logit like any other: they must be -infinity.": zero,
            "torch.topk takes any of several equal logits: a stable sort keeps their order.": picked,
            "More than k stay, since some logits are equal: keep the one with the smaller id.": smallest,
        }
        shown = row.tolist() if len(row) < 10 else f"{len(row)} logits"
        close(f"top_k({shown}, {k})", own.top_k(row.clone(), k), expected, mistakes)


def choices(own, logits: Tensor):
    large = torch.tensor([1000.0, 999.0, -1000.0])
    mistakes = {"exp(1000) is infinity: subtract the largest logit first.": large.exp() / large.exp().sum()}
    close("probabilities([1000, 999, -1000])", own.probabilities(large), large.softmax(0), mistakes)
    uniforms = torch.rand(len(logits), generator=torch.Generator().manual_seed(1))
    for row, uniform, expected in zip(logits, uniforms, sampling.choose(logits, uniforms).tolist()):
        close("probabilities(logits)", own.probabilities(row), row.softmax(0))
        given = own.sample(row, uniform.item())
        line = f"sample(logits, {uniform.item():.4f}) must be {expected}, and is {given}."
        hints = ["This is the most likely id: it does not depend on `uniform`."] if given == row.argmax() else []
        require(given == expected, line, *hints)


class Recorder(nn.Module):
    """A model that records what it reads; the next id is the last one plus 1, of 20."""

    def __init__(self):
        super().__init__()
        self.read: list[list[int]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        require(tokens.dim() == 2 and len(tokens) == 1, f"The model must get ids (1, T), not {tuple(tokens.shape)}.")
        require(not self.training, "generate must call model.eval() first, or dropout changes the text.")
        require(not torch.is_grad_enabled(), "generate must not compute gradients: with torch.no_grad().")
        self.read.append(tokens[0].tolist())
        return nn.functional.one_hot((tokens + 1) % 20, 20).float()


def loop(own):
    model = Recorder()
    result = own.generate(model, [3, 4], 8, 5, lambda logits: int(logits.argmax()))
    first = [3, 4]
    for _ in range(8):
        first.append((first[-5:][0] + 1) % 20)
    hints = {
        "The logits of the first position were used: those of the last are logits[0, -1].": first,
        "The prompt is missing in the result.": list(range(5, 13)),
    }
    same("generate(model, [3, 4], 8, context=5, greedy) of a model that counts", result, list(range(3, 13)), hints)
    longest = max(map(len, model.read))
    line = f"The model got {longest} ids and has 5 positions: give it ids[-context:]."
    require(longest <= 5, line)
    same("What the model reads for the last id", model.read[-1], [7, 8, 9, 10, 11])


def words_of_a_trained_model(own) -> tuple[float, str]:
    """The share of words in a generated text that the stories contain, and the text."""
    tokenizer, ids = story_ids(300)
    torch.manual_seed(0)
    model = GPT(tokenizer.vocab_size, CONTEXT, width=64, heads=4, depth=1)
    training.train(model, training.adamw(model), ids, STEPS, context=CONTEXT, peak=1e-2, every=STEPS)
    generated = own.generate(model, [tokenizer.eos], TOKENS, CONTEXT, own.sampler(seed=0, heat=0.7, k=20))
    require(len(generated) == TOKENS + 1, f"generate must return 1 + {TOKENS} ids, not {len(generated)}.")
    text, known = tokenizer.decode(generated), set(re.findall(r"\w+", " ".join(stories(300))))
    words = re.findall(r"\w+", text)
    return sum(word in known for word in words) / max(len(words), 1), text
