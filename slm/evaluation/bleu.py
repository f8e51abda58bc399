"""BLEU of a model's completions against the completions in a file (sacrebleu, Post 2018, arXiv:1804.08771)."""

import json
from pathlib import Path
from typing import Any

from slm.classes import optional
from slm.errors import UserError, file_operation
from slm.evaluation.intervals import RESAMPLES
from slm.generation.completion import completions
from slm.generation.language_model import LanguageModel
from slm.generation.sampling import Sampler

MOST = 1000  # lines of the file that are read
HINT = 'each line must be an object with "prompt" and "completion", two texts'


def read(path: Path) -> list[tuple[str, str]]:
    """The first MOST pairs of prompt and completion of a .jsonl file. Raises UserError."""
    pairs = []
    with file_operation("read", path), open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                pairs.append((record["prompt"], record["completion"]))
                if not all(isinstance(text, str) for text in pairs[-1]):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise UserError(f"bleu={path}, line {number}: {HINT}") from None
            if len(pairs) == MOST:
                break
    if not pairs:
        raise UserError(f"bleu={path} is empty; {HINT}")
    return pairs


def check() -> Any:
    """sacrebleu's BLEU. Raises UserError if it is not installed."""
    return optional("sacrebleu.metrics", "eval", "bleu=FILE").BLEU


def measure(model: LanguageModel, pairs: list[tuple[str, str]], longest: int, seed: int) -> dict[str, Any]:
    """Of greedy completions of up to `longest` tokens, with sacrebleu's bootstrap over the lines."""
    kind = check()
    settings = {"sampler": Sampler(greedy=True), "max_new_tokens": longest, "seed": seed, "eos_first": model.eos_first}
    prompts, references = zip(*pairs)
    texts = [c.text.strip() for c in completions(model.model, model.tokenizer, prompts, **settings)]
    metric = kind()
    several = RESAMPLES if len(pairs) > 1 else 1
    score = metric.corpus_score(texts, [[text.strip() for text in references]], n_bootstrap=several)
    low, high = (score._mean - score._ci, score._mean + score._ci) if several > 1 else (score.score, score.score)
    return {
        "n": len(pairs),
        "bleu": {"mean": score.score, "low": low, "high": high},
        "signature": str(metric.get_signature()),
        "example": [texts[0], references[0]],
    }
