"""Runs on data=storyworld: the loss in bits per story above the exact entropy, by part and by skill, and the validity
of generated stories."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.corpora import made_by
from slm.corpora.storyworld.checker import estimate, judge, marked, summary
from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.storyworld.floor import PARTS, StoryFloor, story_floor, story_skills, tally
from slm.corpora.storyworld.world import StoryWorld
from slm.errors import UserError
from slm.generation.completion import Completion
from slm.generation.language_model import LanguageModel
from slm.generation.text_loss import padded, window_nats
from slm.security import corpus_node


def corpus_of(path: Path, config: Mapping[str, Any], fingerprint: str) -> Storyworld | None:
    """The storyworld that a checkpoint was trained on, None for any other corpus. No other class is ever built.

    Raises: UserError: for a damaged description of a storyworld, and for one whose stories have changed since.
    """
    try:
        corpus = made_by(Storyworld, corpus_node(config))
    except TypeError:
        raise UserError(f"{path} is damaged: its data.corpus is not a storyworld; take another checkpoint") from None
    if corpus and fingerprint != corpus.fingerprint():
        raise UserError(f"{path} was trained on another storyworld; evaluate it with the version that trained it")
    return corpus


def measure(
    model: LanguageModel, corpus: Storyworld, texts: Mapping[str, Sequence[Completion]], stories: int, seed: int
) -> dict[str, Any]:
    """The losses on validation stories and on those of held-out pairs, and the verdicts on generated texts."""
    count = min(stories, corpus.counts["validation"])
    seen = [corpus.story("validation", index).text for index in range(count)]
    held_out = [corpus.held_out(index).text for index in range(count)]
    verdicts = {name: [judge(corpus.all, c.text, c.finished) for c in row] for name, row in texts.items()}
    verdicts["real"] = [judge(corpus.all, text, True) for text in seen]
    valid = {verdict.text for judged in verdicts.values() for verdict in judged if verdict.valid}
    known = {text for text in corpus.documents("train") if text in valid}
    return {
        "level": corpus.level,
        "seen": Paid.of(model, corpus.seen, seen).losses(seed),
        "held_out": Paid.of(model, corpus.unseen, held_out).losses(seed),
        "samples": {name: summary(judged, known, seed) for name, judged in verdicts.items()},
        "examples": [marked(verdict) for verdict in next(iter(verdicts.values()))[:3]],
    }


@dataclass(frozen=True)
class Paid:
    """What a model pays for each token of stories, beside their floor."""

    texts: Sequence[str]
    floors: Sequence[StoryFloor]
    skills: Sequence[Sequence[str]]
    bits: Sequence[np.ndarray]

    @classmethod
    def of(cls, model: LanguageModel, world: StoryWorld, stories: Sequence[str]) -> "Paid":
        """Of the stories that fit into the context. Raises UserError if less than half of them do."""
        context, tokenizer = model.model.config.context, model.tokenizer
        texts = [text for text in stories if len(tokenizer.encode(text)) < context]
        if len(texts) < len(stories) / 2:
            raise UserError(
                f"only {len(texts)} of {len(stories)} stories fit into the model's context of {context} tokens"
            )
        windows = padded([[tokenizer.eos, *tokenizer.encode(text), tokenizer.eos] for text in texts])
        floors = [story_floor(world, text, tokenizer) for text in texts]
        bits = window_nats(model.model, windows).numpy() / math.log(2)
        skills = [story_skills(world, text, tokenizer, floor) for text, floor in zip(texts, floors)]
        return cls(texts, floors, skills, [row[: len(floor.bits)] for row, floor in zip(bits, floors)])

    def losses(self, seed: int) -> dict[str, Any]:
        """Mean bits per story: floor, model, excess, in all, by part, and by skill, the largest excess first."""
        tallies = np.stack([tally(bits, floor) for bits, floor in zip(self.bits, self.floors)])
        floor, bits, tokens = tallies.mean(0)
        differences = tallies[:, 1] - tallies[:, 0]
        names, excess = self.by_skill([bits - floor.bits for bits, floor in zip(self.bits, self.floors)])
        skills = {name: estimate(excess[:, i], seed) for i, name in enumerate(names)}
        return {
            "stories": len(self.texts),
            "bytes": sum(map(len, self.texts)) / len(self.texts),
            "floor": floor.sum(),
            "model": bits.sum(),
            "excess": estimate(differences.sum(1), seed),
            "parts": {
                part: {"tokens": tokens[i], "floor": floor[i], "excess": estimate(differences[:, i], seed)}
                for i, part in enumerate(PARTS)
            },
            "skills": dict(sorted(skills.items(), key=lambda item: -abs(item[1]["mean"]))),
        }

    def by_skill(self, values: Sequence[np.ndarray]) -> tuple[list[str], np.ndarray]:
        """Names of skills, and the sums of a value per token for each story and skill (stories, skills)."""
        names = sorted({skill for row in self.skills for skill in row})
        place = {name: i for i, name in enumerate(names)}
        sums = [
            np.bincount([place[skill] for skill in row], value, len(names)) for row, value in zip(self.skills, values)
        ]
        return names, np.stack(sums)
