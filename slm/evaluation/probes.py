"""Two-choice probes, built by rule from held-out text: the true passage against one with a small change.

A model is right if it gives the true passage the higher probability, as in BLiMP (arXiv:1912.00582); by chance it is in
half of them. The rules for names and pronouns are for English.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from slm.evaluation.held_out import HeldOut
from slm.evaluation.intervals import Bootstrap, share
from slm.generation.language_model import LanguageModel
from slm.generation.text_loss import padded, window_nats

MOST = 200  # items of a kind
LENGTH = 256  # ids of a passage at most
SENTENCE = re.compile(r"[^.!?]*[.!?]+[\"'”’]*\s*|[^.!?]+\Z")
NAME = re.compile(r"(?<![.!?\"“'‘\n] )(?<=[a-z,;] )[A-Z][a-z]{2,}\b")  # a capital within a sentence
WORD = re.compile(r"(?<![\w'’])[a-z]+(?= )")
OTHER = {"he": "she", "she": "he", "He": "She", "She": "He"}
PRONOUN = re.compile(rf"\b(?:{'|'.join(OTHER)})\b")


@dataclass(frozen=True)
class Item:
    """Two passages with the same beginning, as text; the first is the true one."""

    true: str
    changed: str


def names(text: str, random: Random) -> Item | None:
    """The last mention of a name is replaced by another name of the text before it."""
    found = list(NAME.finditer(text))
    for match in reversed(found):
        earlier = {other[0] for other in found if other.end() <= match.start()}
        if match[0] in earlier and (others := sorted(earlier - {match[0]})):
            return changed(text, match.span(), random.choice(others))
    return None


def pronouns(text: str, random: Random) -> Item | None:
    """The last he or she, in a text that had only this one of the two, becomes the other."""
    found = [*PRONOUN.finditer(text)]
    if len(found) < 2 or len({match[0].lower() for match in found}) > 1:
        return None
    return changed(text, found[-1].span(), OTHER[found[-1][0]])


def word_order(text: str, random: Random) -> Item | None:
    """Two neighbouring words of the last sentence with three of them change places."""
    for sentence in reversed([*SENTENCE.finditer(text)]):
        words = list(WORD.finditer(text, *sentence.span()))
        pairs = [(a, b) for a, b in pairwise(words) if a.end() + 1 == b.start() and a[0] != b[0]]
        if len(words) >= 3 and pairs:
            a, b = random.choice(pairs)
            return changed(text, (a.start(), b.end()), f"{b[0]} {a[0]}")
    return None


def changed(text: str, span: tuple[int, int], new: str) -> Item:
    """The text up to the end of the sentence in which a stretch is replaced."""
    end = next((match.end() for match in SENTENCE.finditer(text) if match.end() >= span[1]), len(text))
    return Item(text[:end].rstrip(), (text[: span[0]] + new + text[span[1] : end]).rstrip())


RULES: dict[str, Callable[[str, Random], Item | None]] = {
    "names": names,
    "pronouns": pronouns,
    "word order": word_order,
}


def build(rule: Callable[[str, Random], Item | None], passages: Sequence[str], seed: int) -> list[Item]:
    """At most one item of each passage, so that items are independent."""
    random, items = Random(seed), []
    for passage in passages:
        if item := rule(passage, random):
            items.append(item)
            if len(items) == MOST:
                break
    return items


def measure(model: LanguageModel, held_out: HeldOut, seed: int) -> dict[str, Any]:
    """The share of right choices of each kind, the mean distance in bits, and an example."""
    passages = [model.decode(ids.tolist()) for ids in held_out.pieces(LENGTH)]
    found = {}
    for kind, rule in RULES.items():
        items = build(rule, passages, seed)
        if not items:
            found[kind] = {"n": 0}
            continue
        true, other = costs(model, items)
        bits = other - true
        example = items[int(np.argsort(bits)[len(bits) // 2])]
        found[kind] = {
            "n": len(items),
            "right": share(int((bits > 0).sum()), len(items)),
            "bits": Bootstrap(len(items), seed).mean(bits),
            "example": [example.true[-160:], example.changed[-160:]],
        }
    return found


def costs(model: LanguageModel, items: Sequence[Item]) -> np.ndarray:
    """The bits of the true and of the changed passage behind eos (2, items). What both begin with is cut from the left
    where they exceed the context."""
    context, eos, rows = model.model.config.context, model.tokenizer.eos, ([], [])
    for item in items:
        both = [[eos, *model.encode(text)] for text in (item.true, item.changed)]
        same = next((i for i, (a, b) in enumerate(zip(*both)) if a != b), min(map(len, both)))
        start = max(0, min(same - 1, max(map(len, both)) - context - 1))
        for row, ids in zip(rows, both):
            row.append(ids[start : start + context + 1])
    return window_nats(model.model, padded([*rows[0], *rows[1]])).sum(1).numpy().reshape(2, -1) / math.log(2)
