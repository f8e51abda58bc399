"""Requests for a story, each with a story of the storyworld that fulfils it; and whether another story does."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slm.chat_template import ChatTemplate
from slm.corpora import Split, digest_of
from slm.corpora.storyworld.checker import judge
from slm.corpora.storyworld.corpus import Storyworld
from slm.corpora.storyworld.grammar import Bindings, Program, Slot, Story, Template, advance, generate
from slm.corpora.storyworld.parser import parse
from slm.corpora.storyworld.world import StoryWorld

REQUEST = "Tell a story about {kind.a} named {hero} who "
PLOTS = {  # what happens, in the variables that every story of the plot has
    "lost": "loses {toy.a}.",
    "share": "shares {toy.a}.",
    "broke": "breaks {thing.a}.",
    "fear": "is afraid of {fear}.",
    "gift": "makes {gift.a} for {his} {relative}.",
    "rescue": "helps {animal.a} with {tool.a}.",
    "swap": "swaps {toy.a} for {toy2.a}.",
    "soup": "cooks soup for {number} {guests}.",
    "seed": "plants {seed.a} seed.",
    "wayhome": "finds the way back to {place}.",
    "race": "runs a race with {animal.a}.",
    "build": "builds {building.a}.",
    "sick": "brings {comfort.a} to a friend who is sick.",
    "newcomer": "meets {animal.a} without friends.",
    "promise": "promises to be back before {before}.",
    "treasure": "finds a treasure with an old map.",
    "night": "hears {sound.a} in the night.",
    "riddle": "solves the riddle of {animal.a}.",
}


class _Derivation:
    """A world that keeps the words and the plot of the story that it tells."""

    def __init__(self, world: StoryWorld):
        self.world, self.words, self.plot = world, world.words, ""
        self.bindings: Bindings = {}

    def program(self, bindings: Bindings) -> Program:
        self.bindings, program = bindings, self.world.program(bindings)
        choice = next(program)
        while choice is not None:
            key = yield choice
            self.plot = key if key in self.world.plots else self.plot
            choice = advance(program, key)


def request_for(world: StoryWorld, story: Story) -> str:
    """The request that a story fulfils: who the hero is, and what happens to whom or with what."""
    derived, choices = _Derivation(world), iter(story.choices)
    generate(derived, lambda choice: next(choices))
    template = Template(REQUEST + PLOTS[derived.plot])
    words = (derived.bindings[p.variable][p.form] if isinstance(p, Slot) else p for p in template.pieces)
    return "".join(words)


class StoryworldInstructions:
    """The stories of a `Storyworld`, each after its request. A document is the text of `ChatTemplate`.

    Raises: UserError: as `Storyworld` and `ChatTemplate`.
    """

    def __init__(self, *, user: str, assistant: str, **stories: Any):
        self.stories, self.chat = Storyworld(**stories), ChatTemplate(user=user, assistant=assistant)

    def pair(self, split: Split, index: int) -> tuple[str, str]:
        """A request and its story."""
        story = self.stories.story(split, index)
        return request_for(self.stories.seen, story), story.text

    def documents(self, split: Split) -> Iterator[str]:
        for index in range(self.stories.counts[split]):
            yield self.chat.text(_messages(*self.pair(split, index)))

    def fingerprint(self) -> str:
        return digest_of([self.stories.fingerprint(), REQUEST, PLOTS, self.chat.user, self.chat.assistant])


def _messages(request: str, story: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": story}]


@dataclass(frozen=True)
class Obedience:
    """What a text that was asked for is."""

    request: str
    text: str
    valid: bool  # a complete story
    obeys: bool  # hero and plot are as asked for
    hero: bool  # the kind and the name of the hero are as asked for
    plot: bool  # what happens is as asked for


def obedience(world: StoryWorld, request: str, text: str, finished: bool) -> Obedience:
    """Judges a text; `finished`: it ended by itself. An invalid text obeys in nothing."""
    text = text.strip()
    valid = judge(world, text, finished).valid
    fulfilled = request_for(world, parse(world, text).stories[0]) if valid else ""
    hero, plot = ([its.partition(" who ")[part] for its in (request, fulfilled)] for part in (0, 2))
    return Obedience(request, text, valid, fulfilled == request, hero[0] == hero[1], plot[0] == plot[1])
