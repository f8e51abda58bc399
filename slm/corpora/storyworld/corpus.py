"""The corpus: an endless supply of stories, of which a run takes so many. No file, no network."""

import hashlib
import json
import zlib
from collections.abc import Iterator
from functools import cached_property
from importlib import resources
from random import Random

from slm.corpora import Split
from slm.corpora.storyworld.telling import Story, sample
from slm.corpora.storyworld.world import LEVELS, Pairs, StoryWorld
from slm.errors import UserError

FORMAT = 1  # to be raised when the same texts and seed make other stories
MAX_STORIES = 10**8  # at least 60 GB of text
VALIDATION = 8  # every eighth story, by a hash of its text, is one for validation, and can never be one for training


class Storyworld:
    """Stories 0 to `stories` - 1 of `seed` for training, and `validation_stories` others.

    Story i of a split is a function of the level, the seed, the split and i alone.
    """

    def __init__(self, *, level: str, stories: int, validation_stories: int, seed: int):
        if level not in LEVELS:
            raise UserError(f"data.level={level} is not one of {', '.join(LEVELS)}")
        for name, count in (("stories", stories), ("validation_stories", validation_stories)):
            if not 1 <= count <= MAX_STORIES:
                raise UserError(f"data.{name}={count} must be at least 1, at most {MAX_STORIES:,}")
        self.level, self.seed = level, seed
        self.counts = {"train": stories, "validation": validation_stories}

    def documents(self, split: Split) -> Iterator[str]:
        for index in range(self.counts[split]):
            yield self.story(split, index).text

    def fingerprint(self) -> str:
        files = sorted(resources.files(__package__).iterdir(), key=lambda file: file.name)
        texts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.name.endswith(".txt")]
        choices = [FORMAT, texts, LEVELS[self.level].__dict__, self.counts, self.seed]
        return hashlib.sha256(json.dumps(choices).encode()).hexdigest()

    def story(self, split: Split, index: int) -> Story:
        """A story of the pairs that training knows."""
        return self._story(self.seen, split, index)

    def held_out(self, index: int) -> Story:
        """A story whose pairs of hero and toy, and of place and plot, never occur in training."""
        return self._story(self.unseen, "validation", index)

    def _story(self, world: StoryWorld, split: Split, index: int) -> Story:
        random = Random(f"{self.seed}/{split}/{index}").random
        while True:
            story = sample(world, random)
            if (zlib.crc32(story.text.encode()) % VALIDATION == 0) == (split == "validation"):
                return story

    @cached_property
    def seen(self) -> StoryWorld:
        return self._world("seen")

    @cached_property
    def unseen(self) -> StoryWorld:
        return self._world("unseen")

    @cached_property
    def all(self) -> StoryWorld:
        """The world with every pair: what a story must keep to be one."""
        return self._world("all")

    def _world(self, pairs: Pairs) -> StoryWorld:
        return StoryWorld(LEVELS[self.level], pairs)
