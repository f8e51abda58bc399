"""Whether a text is a story of the world, and if not, where it goes wrong: the world judges, not another model."""

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slm.corpora.storyworld.telling import read
from slm.corpora.storyworld.world import StoryWorld


@dataclass(frozen=True, slots=True)
class Verdict:
    text: str
    valid: bool  # a whole story of the world, and ended
    prefix: int  # characters before the first error; all of them, if the text was cut short
    sentences: int  # whole sentences before the first error
    error: str  # "" or what should have stood there: a list of the world, "template", "end"; "more" if it was cut short


def judge(world: StoryWorld, text: str, finished: bool) -> Verdict:
    """`finished`: the writer has ended the text, instead of having been cut short."""
    reading = read(world, text)
    valid = finished and bool(reading.stories)
    cut = not finished and reading.end == len(text)
    error = "" if valid else "more" if cut else reading.expected
    return Verdict(text, valid, reading.end, reading.sentences, error)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with a 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> Estimate:
    """The mean over stories, and the interval that 95 % of the means of stories drawn with replacement fall into."""
    drawn = np.asarray(values, dtype=float)
    indices = np.random.default_rng(seed).integers(len(drawn), size=(resamples, len(drawn)))
    low, high = np.quantile(drawn[indices].mean(1), [0.025, 0.975])
    return Estimate(float(drawn.mean()), float(low), float(high))


def summary(verdicts: Sequence[Verdict], known: Container[str], seed: int) -> dict[str, Any]:
    """Their number, of each measure an `Estimate` as a dictionary, and how often which error came first.

    Novel is a story that is valid and not among the known ones.
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
        **{name: asdict(estimate(values, seed)) for name, values in measures.items()},
        "errors": dict(errors.most_common()),
    }


def marked(verdict: Verdict) -> str:
    """The text with a tick before it, or with its first error marked."""
    if verdict.valid:
        return f"✓ {verdict.text}"
    good, bad = verdict.text[: verdict.prefix], verdict.text[verdict.prefix :]
    return f"✗ {good}⟦{verdict.error}?⟧{bad}"
