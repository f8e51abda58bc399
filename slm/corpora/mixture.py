"""Several corpora as one: named sources, each with its weight in the training."""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

from slm.corpora import Corpus, Split, digest_of
from slm.errors import UserError

NAME = re.compile(r"[A-Za-z0-9_-]+")
SAMPLE_CHARACTERS = 2**27  # that a tokenizer sees at least, unless every source is read once before


@dataclass(frozen=True, kw_only=True)
class Source:
    """A corpus in a mixture.

    `weight`: its share of the targets, beside the weights of the others; or a mapping from shares of the steps (0 to 1)
    to weights, linear in between and constant outside. None: as many as it has tokens, if no source has a weight.
    `epochs`: so many passes at most, then the others go on; None: as many as the weight asks for.
    """

    corpus: Corpus
    data: str | None = None  # the option of conf/data that it comes from
    weight: float | Mapping[str, float] | None = None
    epochs: float | None = None
    layout: Literal["packed", "documents", "aligned", "instructions"] | None = None  # None: that of the mixture

    def check(self):
        """Raises UserError for a value that has no meaning."""
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise UserError(f"epochs={self.epochs} must be above 0 and finite, or null for no limit")
        for share, weight in self.knots or ():
            if not 0 <= share <= 1:
                raise UserError(f"weight={self.weight}: {share:g} is not a share of the steps, from 0 to 1")
            if not 0 <= weight < math.inf:
                raise UserError(f"weight={weight:g} must be at least 0 and finite")

    @property
    def knots(self) -> list[tuple[float, float]] | None:
        """(share of the steps, weight), sorted; None without weight. Raises: UserError: for anything but numbers."""
        if self.weight is None:
            return None
        given = self.weight if isinstance(self.weight, Mapping) else {0.0: self.weight}
        try:
            found = sorted((float(share), float(weight)) for share, weight in given.items())
        except (TypeError, ValueError):
            found = []
        if not found:
            raise UserError(
                f"weight={self.weight!r} must be a number, or {{share of the steps: number}}, as {{0: 1, 1: 3}}"
            )
        return found

    def weight_at(self, share: float) -> float:
        """The weight at a share of the steps."""
        knots = self.knots
        for (left, before), (right, after) in pairwise(knots):
            if left <= share <= right:
                return before + (after - before) * (share - left) / (right - left) if left < right else after
        return knots[0][1] if share < knots[0][0] else knots[-1][1]


class Mixture:
    """The documents of all sources. Those of the train split are a sample for a tokenizer, by the mean weights.

    `tokenizer_weights`: other weights for that sample, so that runs with different weights share one tokenizer.
    Raises: UserError: for a wrong name, for weights of some sources only or without a positive one.
    """

    def __init__(self, *, sources: Mapping[str, Source], tokenizer_weights: Mapping[str, float] | None = None):
        self.sources, self.tokenizer_weights = sources, tokenizer_weights
        for name in sources:
            if not NAME.fullmatch(name):
                raise UserError(f"data.sources.{name}: a name must consist of letters, digits, hyphens and underscores")
            with named(name):
                sources[name].check()
        without = [name for name, source in sources.items() if source.weight is None]
        if without and len(without) < len(sources):
            raise UserError(f"data.sources.{without[0]}.weight is missing: all sources have weights, or none has")
        for share in () if without or not sources else self.shares_of_steps:
            if not any(source.weight_at(share) for source in sources.values()):
                raise UserError(f"data.sources: all weights are 0 at {share:g} of the steps")
        if tokenizer_weights is not None:
            check_tokenizer_weights(tokenizer_weights, sources)

    @property
    def shares_of_steps(self) -> list[float]:
        """The shares of the steps at which a weight of some source begins or ceases to change, from 0 on."""
        return sorted({0.0, *(share for source in self.sources.values() for share, _ in source.knots or ())})

    def documents(self, split: Split) -> Iterator[str]:
        """Train: from each source by weight, short sources repeated, until all are read or the sample is large enough.

        Raises: UserError: from a source, with its name; for one without train documents.
        """
        if split == "validation":
            return chain.from_iterable(self._documents(name, split) for name in self.sources)
        return self._sample()

    def fingerprint(self) -> str:
        """Of the sources, and of the weights of the tokenizer's sample.

        Raises: UserError: from a source; if there is none.
        """
        if not self.sources:
            raise UserError("data.sources is empty: give data.sources.NAME=OPTION, as data.sources.stories=tinystories")
        found = {}
        for name, source in self.sources.items():
            with named(name):
                found[name] = source.corpus.fingerprint()
        return digest_of([found, self._weights()])

    def is_local(self) -> bool:
        """False if a source has to be downloaded."""
        return all(getattr(source.corpus, "is_local", lambda: True)() for source in self.sources.values())

    def size(self) -> tuple[int, int] | None:
        """Train documents and bytes of all sources; None if one of them cannot tell."""
        sizes = [getattr(source.corpus, "size", lambda: None)() for source in self.sources.values()]
        return None if None in sizes else (sum(its[0] for its in sizes), sum(its[1] for its in sizes))

    def _weights(self) -> dict[str, float] | None:
        """Those of the tokenizer's sample: given, or the means over the steps."""
        if self.tokenizer_weights is not None:
            return dict(self.tokenizer_weights)
        if any(source.weight is None for source in self.sources.values()):
            return None
        at = sorted({*self.shares_of_steps, 1.0})
        return {
            name: sum((b - a) * (source.weight_at(a) + source.weight_at(b)) / 2 for a, b in pairwise(at))
            for name, source in self.sources.items()
        }

    def _sample(self) -> Iterator[str]:
        weights = self._weights()
        wanted = {name: (weights or dict.fromkeys(self.sources, 1.0))[name] for name in self.sources}
        wanted = {name: weight for name, weight in wanted.items() if weight > 0}
        streams = {name: self._documents(name, "train") for name in wanted}
        taken, complete = dict.fromkeys(wanted, 0), set()
        while streams and not (len(complete) == len(wanted) or sum(taken.values()) >= SAMPLE_CHARACTERS):
            name = min(streams, key=lambda name: taken[name] / wanted[name])
            if (text := next(streams[name], None)) is not None:
                taken[name] += len(text)
                yield text
                continue
            complete.add(name)
            if not taken[name]:
                raise UserError(f"data.sources.{name}: the train split has no documents")
            if weights is None:
                del streams[name]
            else:
                streams[name] = self._documents(name, "train")

    def _documents(self, name: str, split: Split) -> Iterator[str]:
        with named(name):
            yield from self.sources[name].corpus.documents(split)


def by_source(corpus: Corpus) -> dict[str, Corpus]:
    """The corpora of a mixture by name; any other one by ""."""
    if isinstance(corpus, Mixture):
        return {name: source.corpus for name, source in corpus.sources.items()}
    return {"": corpus}


def check_tokenizer_weights(weights: Mapping[str, float], sources: Mapping[str, Source]):
    """Raises UserError unless each source has a weight, and one of them is positive."""
    valid = all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights.values())
    if set(weights) != set(sources) or not valid or not any(weights.values()):
        raise UserError(
            f"data.tokenizer_weights={dict(weights)} must give each of {', '.join(sources)} a weight, at least 0"
        )


@contextlib.contextmanager
def named(source: str) -> Iterator[None]:
    """Adds the name of a source, if it has one, to a UserError of the block."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"data.sources.{source}: {error}" if source else str(error)) from None
