"""Validity of generated stories: whether the grammar derives a text, and otherwise its first error."""

import math
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.corpora.storyworld.parser import parse
from slm.corpora.storyworld.world import StoryWorld


@dataclass(frozen=True, slots=True)
class Verdict:
    text: str
    valid: bool  # a complete story of the world, and finished
    prefix: int  # characters before the first error; all, if the text was only cut off
    sentences: int  # complete sentences before the first error
    error: str  # the expected word list, "template" or "end"; "more" if the text was cut off; "" if valid


def judge(world: StoryWorld, text: str, finished: bool) -> Verdict:
    """Checks a text; `finished`: it ended by itself and was not cut off at a limit."""
    parsed = parse(world, text)
    valid = finished and bool(parsed.stories)
    cut_off = not finished and parsed.end == len(text)
    error = "" if valid else "more" if cut_off else parsed.expected
    return Verdict(text, valid, parsed.end, parsed.sentences, error)


def estimate(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> dict[str, float]:
    """The `mean` of one value per story, `low` and `high` of its 95 % percentile bootstrap interval (Efron 1979).

    Where all values are 0, or all are 1, resamples are equal, and the interval is Wilson's.
    """
    sample = np.asarray(values, dtype=float)
    if sample[0] in (0, 1) and (sample == sample[0]).all():
        return wilson(int(sample.sum()), len(sample))
    indices = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[indices].mean(1), [0.025, 0.975])
    return {"mean": float(sample.mean()), "low": float(low), "high": float(high)}


def wilson(successes: int, n: int) -> dict[str, float]:
    """A share of n independent trials, `low` and `high` of its 95 % interval (Wilson 1927)."""
    mean, z2 = successes / n, 1.959964**2
    middle = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low, high = middle - half if successes else 0.0, middle + half if successes < n else 1.0
    return {"mean": mean, "low": low, "high": high}


def summary(verdicts: Sequence[Verdict], known: Container[str], seed: int) -> dict[str, Any]:
    """Number of verdicts, the `estimate` of each measure, and counts of the first errors.

    A story is novel if it is valid and not among the `known` texts.
    """
    measures = {
        "valid": [verdict.valid for verdict in verdicts],
        "novel": [verdict.valid and verdict.text not in known for verdict in verdicts],
        "prefix": [verdict.prefix / max(len(verdict.text), 1) for verdict in verdicts],
        "sentences": [verdict.sentences for verdict in verdicts],
    }
    errors = Counter(verdict.error for verdict in verdicts if verdict.error)
    return {
        "n": len(verdicts),
        **{name: estimate(values, seed) for name, values in measures.items()},
        "errors": dict(errors.most_common()),
    }


def marked(verdict: Verdict) -> str:
    """The text after a check mark, or with its first error marked."""
    if verdict.valid:
        return f"✓ {verdict.text}"
    good, bad = verdict.text[: verdict.prefix], verdict.text[verdict.prefix :]
    return f"✗ {good}⟦{verdict.error}?⟧{bad}"
