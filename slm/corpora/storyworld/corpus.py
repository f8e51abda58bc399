"""The storyworld as a corpus: stories generated on request, without file or network."""

import hashlib
import zlib
from collections.abc import Iterator
from functools import cached_property
from importlib import resources
from random import Random

from slm.corpora import Split, digest_of
from slm.corpora.storyworld.grammar import Story, sample
from slm.corpora.storyworld.world import LEVELS, StoryWorld
from slm.errors import UserError

FORMAT = 1  # increase it when the same texts and seed give other stories
VALIDATION = 8  # one in eight stories, by a hash of the text, is a validation story and never a training story


class Storyworld:
    """`stories` training stories and `validation_stories` others. No story is in both splits.

    Story i of a split is a function of the level, the seed, the split and i alone.
    Raises: UserError: for an unknown level or a count below 1.
    """

    seen = cached_property(lambda self: StoryWorld(LEVELS[self.level], "seen"))
    unseen = cached_property(lambda self: StoryWorld(LEVELS[self.level], "unseen"))
    all = cached_property(lambda self: StoryWorld(LEVELS[self.level], "all"))  # decides whether a story is valid

    def __init__(self, *, level: str, stories: int, validation_stories: int, seed: int):
        if level not in LEVELS:
            raise UserError(f"data.level={level} is not one of {', '.join(LEVELS)}")
        for name, count in (("stories", stories), ("validation_stories", validation_stories)):
            if count < 1:
                raise UserError(f"data.{name}={count} must be at least 1")
        self.level, self.seed = level, seed
        self.counts = {"train": stories, "validation": validation_stories}

    def documents(self, split: Split) -> Iterator[str]:
        for index in range(self.counts[split]):
            yield self.story(split, index).text

    def size(self) -> tuple[int, int]:
        """Training stories, and about their bytes, by the first of them."""
        first = [len(self.story("train", index).text) for index in range(min(50, self.counts["train"]))]
        return self.counts["train"], round(self.counts["train"] * sum(first) / len(first))

    def fingerprint(self) -> str:
        files = sorted(resources.files(__package__).iterdir(), key=lambda file: file.name)
        texts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.name.endswith(".txt")]
        return digest_of([FORMAT, texts, vars(LEVELS[self.level]), self.counts, self.seed])

    def story(self, split: Split, index: int) -> Story:
        """A story whose pairs occur in training."""
        return self._story(self.seen, split, index)

    def held_out(self, index: int) -> Story:
        """A validation story whose pairs (hero and toy, place and plot) never occur in training."""
        return self._story(self.unseen, "validation", index)

    def _story(self, world: StoryWorld, split: Split, index: int) -> Story:
        random = Random(f"{self.seed}/{split}/{index}").random
        while True:
            story = sample(world, random)
            if (zlib.crc32(story.text.encode()) % VALIDATION == 0) == (split == "validation"):
                return story
