"""What a second model saves on the same text, and where: by skill in stories, by kind of word in any other text.

The interval is over texts. Two runs differ by their seeds, too, which only several runs of each can tell apart.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from slm.analysis.evaluation_tables import shown
from slm.corpora.storyworld.corpus import Storyworld
from slm.evaluation.held_out import FEW, HeldOut
from slm.evaluation.intervals import Bootstrap
from slm.evaluation.stories import Paid
from slm.generation.language_model import LanguageModel
from slm.generation.text_loss import padded, slices, window_nats
from slm.security import differing, leaves
from slm.tables import columns

WORD = re.compile(r"\s*\w+")  # with the space before it, which most tokens hold, too
KINDS = "repeated words", "new words", "punctuation and white space", "ends of documents"
NOT_SHOWN = ("name", "run_dir", "runs_dir", "sweep_dir", "cache_dir", "tags", "variant", "report")
NOT_SHOWN += "callbacks.", "logger.", "data.corpus."  # the latter repeats other keys
MOST = 12  # differing keys that are named


def of_stories(first: LanguageModel, second: LanguageModel, corpus: Storyworld, stories: int, seed: int) -> dict:
    """By skill, in bits per validation story."""
    context = min(first.model.config.context, second.model.config.context)
    texts = [corpus.story("validation", i).text for i in range(min(stories, corpus.counts["validation"]))]
    texts = [text for text in texts if max(len(model.encode(text)) for model in (first, second)) < context]
    paid = [Paid.of(model, corpus.seen, texts) for model in (first, second)]
    tables = [dict(zip(names, sums.T)) for names, sums in (its.by_skill(its.bits) for its in paid)]
    names = sorted(tables[0].keys() | tables[1].keys())
    zero = np.zeros(len(texts))
    saved = np.stack([tables[0].get(name, zero) - tables[1].get(name, zero) for name in names], 1)
    return summary(first, second, names, saved, np.ones(len(texts)), seed) | {"unit": "story", "texts": len(texts)}


def of_text(first: LanguageModel, second: LanguageModel, held_out: HeldOut, seed: int) -> dict[str, Any]:
    """By kind of word, in bits per byte. The tokenizers may differ: the bits of a token are spread over its bytes."""
    parts = held_out.documents
    if len(parts) < FEW:
        parts = list(held_out.pieces(first.model.config.context))
    texts = [text for text in (first.decode(ids.tolist()) for ids in parts) if text]
    groups = [kinds(text) for text in texts]
    spent = [
        np.stack([np.bincount(of, bits, len(KINDS)) for of, bits in zip(groups, byte_bits(model, texts))])
        for model in (first, second)
    ]
    sizes = np.array([len(text.encode()) for text in texts], float)
    return summary(first, second, KINDS, spent[0] - spent[1], sizes, seed) | {"unit": "byte", "texts": len(texts)}


def kinds(text: str) -> np.ndarray:
    """The index in KINDS of each byte of a text and of its end."""
    found, seen, place, size = [], set(), 0, lambda part: len(part.encode())
    for match in WORD.finditer(text):
        found += [KINDS.index("punctuation and white space")] * size(text[place : match.start()])
        word, place = match[0].strip().lower(), match.end()
        found += [KINDS.index("repeated words" if word in seen else "new words")] * size(match[0])
        seen.add(word)
    found += [KINDS.index("punctuation and white space")] * size(text[place:])
    return np.array([*found, KINDS.index("ends of documents")])


def byte_bits(model: LanguageModel, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """The bits of each byte of each text, and of its end, behind eos and in windows of the context."""
    eos, context, tokenizer = model.tokenizer.eos, model.model.config.context, model.tokenizer
    streams = [[eos, *model.encode(text), eos] for text in texts]
    windows = [slices(stream, context) for stream in streams]
    nats = window_nats(model.model, padded([window for own in windows for window in own]))
    rows = iter(nats)
    for text, stream, own in zip(texts, streams, windows):
        bits = torch.cat([next(rows)[: len(window) - 1] for window in own]).numpy() / math.log(2)
        lengths = np.array([len(tokenizer.token_bytes(token)) for token in stream[1:-1]], np.int64)
        added = int(lengths.sum()) - len(text.encode())  # a space that the tokenizer puts before a text
        spread = np.repeat(bits[:-1] / np.maximum(lengths, 1), lengths)
        yield np.append(np.concatenate([[spread[: added + 1].sum()], spread[added + 1 :]]), bits[-1])


def summary(
    first: LanguageModel,
    second: LanguageModel,
    names: Sequence[str],
    saved: np.ndarray,
    weights: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """The saved bits (texts, names) per unit of `weights` (texts,), in all and by name, the largest first."""
    bootstrap, total = Bootstrap(len(saved), seed), saved.sum(1)
    rows = [
        {
            "name": name,
            "saved": bootstrap.ratio(saved[:, i], weights),
            "share": bootstrap.ratio(saved[:, i], total),
        }
        for i, name in enumerate(names)
        if saved[:, i].any()
    ]
    rows.sort(key=lambda row: -abs(row["saved"]["mean"]))
    return {
        "models": [{"checkpoint": str(model.path), "step": model.step} for model in (first, second)],
        "changed": changes(first.config, second.config),
        "saved": bootstrap.ratio(total, weights),
        "where": rows,
        "seed": seed,
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The keys of two configurations that differ, with both values."""
    kept = (dict(item for item in leaves(config) if not item[0].startswith(NOT_SHOWN)) for config in (before, after))
    return dict(sorted(differing(*kept).items()))


def sentence(found: Mapping[str, Any]) -> str:
    """The result in one sentence: what is saved, and the share of the largest part."""
    changed, saved = found["changed"], found["saved"]
    what = ", ".join(f"{key}={new} instead of {old}" for key, (old, new) in list(changed.items())[:2])
    what = what if 0 < len(changed) <= 2 else found["models"][1]["checkpoint"]
    unit = {"story": "bits per story", "byte": "bits per byte"}[found["unit"]]
    form = ".2f" if found["unit"] == "story" else ".4f"
    if saved["low"] <= 0 <= saved["high"]:
        return f"{what}: no difference beyond the noise of {found['texts']} texts, {shown(saved, form)} {unit} saved"
    verb, sign = ("saves", 1) if saved["mean"] > 0 else ("costs", -1)
    most = max(found["where"], key=lambda row: sign * row["saved"]["mean"])
    return f"{what} {verb} {abs(saved['mean']):{form}} {unit}, {most['share']['mean']:.0%} of it on {most['name']}"


def page(found: Mapping[str, Any]) -> str:
    """The ablation as text for a console."""
    first, second = found["models"]
    unit, form = ("story", ".2f") if found["unit"] == "story" else ("byte", ".4f")
    rows = [[f"bits per {unit}", "saved by the second", "share of all"]]
    rows += [[row["name"], shown(row["saved"], form), shown(row["share"], ".0%")] for row in found["where"][:MOST]]
    rows.append(["all", shown(found["saved"], form), ""])
    keys = [f"  {key}: {old} -> {new}" for key, (old, new) in list(found["changed"].items())[:MOST]]
    more = [f"  and {len(found['changed']) - MOST} more"] if len(found["changed"]) > MOST else []
    return "\n".join([
        f"{first['checkpoint']}, step {first['step']:,}",
        f"{second['checkpoint']}, step {second['step']:,}",
        *(keys or ["  the same configuration"]),
        *more,
        "",
        f"{found['text']}, {found['texts']} texts, seed {found['seed']}, 95 % intervals over texts in brackets",
        columns(rows),
        "",
        found["sentence"],
        "One run of each: the noise between seeds is not in the intervals.",
    ])  # fmt: skip
