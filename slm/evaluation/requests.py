"""Runs on data=storyworld_instructions: the share of stories that obey the request."""

from collections.abc import Mapping
from typing import Any

from slm.corpora import made_by
from slm.corpora.storyworld.instructions import StoryworldInstructions, obedience
from slm.evaluation.intervals import share
from slm.generation.completion import completions
from slm.generation.language_model import LanguageModel
from slm.generation.sampling import Sampler
from slm.security import corpus_nodes

SHARES = "valid", "hero", "plot", "obeys"
EXAMPLES = 3


def corpus_of(config: Mapping[str, Any]) -> StoryworldInstructions | None:
    """The requests that a run was trained on, also as one source of a mixture; None without. No other class is built.

    Raises: UserError: for settings out of range, as of a damaged checkpoint.
    """
    found = (made_by(StoryworldInstructions, node) for node in corpus_nodes(config))
    return next(filter(None, found), None)


def measure(
    model: LanguageModel, corpus: StoryworldInstructions, samplers: Mapping[str, Sampler], count: int, seed: int
) -> dict[str, Any]:
    """For each temperature the shares of `count` stories, one for each of the first validation requests: those that are
    valid, and those that are valid and have the hero, the plot, or both as in the request."""
    count = min(count, corpus.stories.counts["validation"])
    requests = [corpus.pair("validation", index)[0] for index in range(count)]
    prompts = [corpus.chat.text([{"role": "user", "content": request}], answers=False) for request in requests]
    rows, examples = {}, []
    for name, sampler in samplers.items():
        settings = {"sampler": sampler, "max_new_tokens": model.model.config.context, "seed": seed}
        answers = completions(model.model, model.tokenizer, prompts, eos_first=model.eos_first, **settings)
        found = [obedience(corpus.stories.all, r, a.text, a.finished) for r, a in zip(requests, answers)]
        rows[name] = {key: share(sum(getattr(its, key) for its in found), count) for key in SHARES}
        examples = examples or [vars(its) for its in found[:EXAMPLES]]
    return {"n": count, "rows": rows, "examples": examples}
