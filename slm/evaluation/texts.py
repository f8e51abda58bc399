"""Generated texts beside held-out text of equal length: how varied they are, how much they repeat themselves.

A word is a run of letters and digits, or one other character that is no space.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm.data.encode import progress
from slm.evaluation.held_out import HeldOut, first_pieces
from slm.evaluation.intervals import Bootstrap, share
from slm.generation.completion import Completion, completions
from slm.generation.language_model import LanguageModel
from slm.generation.sampling import Sampler
from slm.tables import clock

GROUP = 10  # texts that are compared with one another: distinct-n falls with the length of what it is taken of
PROMPT = 8  # ids of a prompt, where texts cannot begin with eos
LONGEST = 200  # new tokens of a text, unless it is a story
LOOP = 3  # times that the end of a text occurs in a row
PERIOD = 40  # words of the longest loop
WORD = re.compile(r"\w+|[^\w\s]")


def generated(
    model: LanguageModel, held_out: HeldOut, samplers: Mapping[str, Sampler], count: int, longest: int, seed: int
) -> dict[str, list[Completion]]:
    """`count` texts by each sampler. They begin as documents do; if the run's windows rarely show a document's start,
    they go on from PROMPT ids of held-out text."""
    prompts, found, begin = [""] * count, {}, time.perf_counter()
    if not model.eos_first:
        starts = [model.decode(ids[:PROMPT].tolist()) for ids in first_pieces(held_out, longest, count)]
        prompts = [starts[number % len(starts)] for number in range(count)]
    settings = {"max_new_tokens": longest, "seed": seed, "eos_first": model.eos_first}

    def line() -> str:
        done = sum(map(len, found.values()))
        return f"texts: {done} of {count * len(samplers)} generated, {clock(time.perf_counter() - begin)}"

    with progress(line) as show:
        for name, sampler in samplers.items():
            found[name] = []
            for completion in completions(model.model, model.tokenizer, prompts, sampler=sampler, **settings):
                found[name].append(completion)
                show()
    return found


def references(model: LanguageModel, held_out: HeldOut, count: int, longest: int) -> list[str]:
    """Held-out text from the start of documents, or from behind what would be a prompt."""
    skip = 0 if model.eos_first else PROMPT
    return [model.decode(ids[skip:].tolist()) for ids in first_pieces(held_out, longest, count, least=skip + 1)]


def measure(rows: Mapping[str, Sequence[str]], seed: int) -> dict[str, Any]:
    """The measures of each row of texts. Text i of all rows is cut to as many words as the shortest text i has."""
    words = {name: [WORD.findall(text) for text in texts] for name, texts in rows.items()}
    count = min(map(len, words.values()))
    lengths = [min(len(texts[i]) for texts in words.values()) for i in range(count)]
    places = [i for i in range(count) if lengths[i] >= 4]
    if len(places) < 2:
        return {"n": len(places), "rows": {}}
    bootstraps = Bootstrap(len(places), seed), Bootstrap(max(1, len(places) // GROUP), seed)
    cut = {name: [texts[i][: lengths[i]] for i in places] for name, texts in words.items()}
    mean = sum(lengths[i] for i in places) / len(places)
    found = {name: measured(texts, *bootstraps) for name, texts in cut.items()}
    return {"n": len(places), "words": mean, "group": min(GROUP, len(places)), "rows": found}


def measured(texts: Sequence[Sequence[str]], each: Bootstrap, grouped: Bootstrap) -> dict[str, Any]:
    """distinct-n and self-BLEU of groups of texts; repeated 4-grams and loops of single texts."""
    groups = [texts[start : start + GROUP] for start in range(0, len(texts), GROUP)]
    groups = [group for group in groups if len(group) == GROUP] or [texts]
    ones = np.ones(len(groups))
    found: dict[str, Any] = {
        f"distinct_{n}": grouped.ratio(np.array([distinct([ngrams(t, n) for t in group]) for group in groups]), ones)
        for n in (1, 2, 3)
    }
    found["self_bleu"] = grouped.ratio(np.array([np.mean(self_bleu(group)) for group in groups]), ones)
    found["repeated_4_grams"] = each.mean([1 - distinct([ngrams(text, 4)]) for text in texts])
    found["loops"] = share(sum(map(loops, texts)), len(texts))
    return found


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n))))


def distinct(counts: Sequence[Counter]) -> float:
    """Different n-grams of several texts over all of them (Li et al., arXiv:1510.03055)."""
    return len(set().union(*counts)) / max(1, sum(map(Counter.total, counts)))


def loops(words: Sequence[str]) -> bool:
    """True if the text ends with the same words LOOP times in a row."""
    longest = min(PERIOD, len(words) // LOOP)
    return any(all(words[-n:] == words[-n * (k + 1) : -n * k] for k in range(1, LOOP)) for n in range(1, longest + 1))


def self_bleu(texts: Sequence[Sequence[str]]) -> list[float]:
    """BLEU of each text against all others (Zhu et al., arXiv:1802.01886), 0 to 1: geometric mean of the precisions of
    1- to 4-grams, of which one without a match counts as half a match, and brevity penalty."""
    counts = [[ngrams(text, n) for n in range(1, 5)] for text in texts]
    return [
        bleu(
            counts[i],
            [counts[j] for j in range(len(texts)) if j != i],
            len(text),
            [len(t) for t in texts if t is not text],
        )
        for i, text in enumerate(texts)
    ]


def bleu(own: Sequence[Counter], others: Sequence[Sequence[Counter]], length: int, lengths: Sequence[int]) -> float:
    logs = 0.0
    for n, counts in enumerate(own):
        most = Counter()
        for other in others:
            most |= other[n]
        total = counts.total()
        if not total:
            continue
        logs += math.log(max((counts & most).total(), 0.5) / total) / len(own)
    closest = min(lengths, key=lambda other: (abs(other - length), other))
    return math.exp(logs + min(0.0, 1 - closest / length))
