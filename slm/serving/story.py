"""Stories of a page: texts that come token by token side by side, stop, go on, and branch at another token."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm.chat_template import ChatTemplate
from slm.corpora.storyworld.checker import judge
from slm.corpora.storyworld.world import StoryWorld
from slm.errors import printable
from slm.generation.completion import TextDecoder
from slm.generation.language_model import LanguageModel
from slm.generation.prompt import encode_prompt
from slm.generation.sampling import Sampler
from slm.generation.scores import Scored, generate_scored
from slm.serving.choice import token_text

TEXT, CHOSEN = 0, 2  # in a row of the page: text, probability, whether a reader chose it, id, rivals
TOP = 8  # tokens that a reader may choose instead
REFRESH = 0.1  # seconds between two views, at least
MAX_SECONDS = 120.0  # of one run of all stories
IN_PROGRESS = "in progress"
MAX_TOTAL = 4000  # tokens of a story, with those of all continuations


@dataclass(kw_only=True)
class Story:
    """One text of one model. Equal to that of generate.py for the same settings, until another token is chosen."""

    name: str
    loaded: LanguageModel
    world: StoryWorld | None
    chat: ChatTemplate | None = None  # of a model of conversations, to which the prompt is a turn of the user
    prompt: str
    sampler: Sampler
    seed: int
    tokens: list[Scored] = field(default_factory=list)
    rows: list[list] = field(default_factory=list)  # the tokens as the page shows them
    status: str = ""
    ended: bool = False  # by itself

    def __post_init__(self):
        if self.chat:
            self.prompt = self.chat.text([{"role": "user", "content": self.prompt}], answers=False)
        self.start = encode_prompt(self.loaded.tokenizer, self.prompt, self.loaded.eos_first)
        self.decoder = TextDecoder(self.loaded.tokenizer, len(self.start.rest))

    def grow(self, count: int) -> Generator[None]:
        """Up to `count` more tokens, until eos. Raises: UserError: as `generate`."""
        count = min(count, MAX_TOTAL - len(self.tokens))
        if self.ended or count < 1:
            return
        self.status = IN_PROGRESS
        settings = {"sampler": self.sampler, "seed": self.seed, "eos": self.loaded.tokenizer.eos}
        prompt = self.start.followed_by([scored.token for scored in self.tokens])
        for new in generate_scored(self.loaded.model, [prompt], top=TOP, max_new_tokens=count, **settings):
            self.append(*new)
            if self.chat:
                self.end_before(self.chat.stop)
            yield
            if self.ended:
                break
        self.status = "ended" if self.ended else "at its length"

    def append(self, scored: Scored, chosen: bool = False):
        self.tokens.append(scored)
        self.ended = scored.token == self.loaded.tokenizer.eos
        text = None if self.ended else printable(self.decoder.text(scored.token))
        self.rows.append([text, share(scored.logprob), chosen, scored.token, self.rivals(scored)])

    def end_before(self, stop: str):
        """Ends the text where the model has begun the next turn of the user."""
        if (end := self.text().find(stop)) < 0:
            return
        self.ended = True
        while (excess := len(self.text()) - end) > 0:
            scored, row = self.tokens.pop(), self.rows.pop()
            if row[TEXT][:-excess]:
                self.tokens.append(scored)
                self.rows.append([row[TEXT][:-excess], *row[1:]])

    def branch(self, place: int, token: int) -> bool:
        """Puts another token at a place, and drops those after it. False if it was not on offer there."""
        if not 0 <= place < len(self.tokens):
            return False
        was = self.tokens[place]
        offered = {was.token: was.logprob, **dict(was.top)}
        if token not in offered:
            return False
        before = list(zip(self.tokens[:place], self.rows))
        self.tokens, self.rows = [], []
        self.decoder = TextDecoder(self.loaded.tokenizer, len(self.start.rest))
        for scored, row in before:
            self.append(scored, row[CHOSEN])
        self.append(Scored(0, token, offered[token], was.top), chosen=True)
        self.status = "ended" if self.ended else "stopped"
        return True

    def text(self) -> str:
        """Without the prompt."""
        return "".join(row[TEXT] or "" for row in self.rows)

    def view(self) -> dict[str, Any]:
        """What the page shows, as plain values. Control characters are escaped."""
        title = f"{self.name}, {'most likely' if self.sampler.greedy else f'temperature {self.sampler.temperature:g}'}"
        facts = [f"{len(self.tokens)} tokens", f"seed {self.seed}", self.status]
        if self.tokens:
            bits = -sum(scored.logprob for scored in self.tokens) / math.log(2)
            facts.insert(1, f"{bits / len(self.tokens):.2f} bits per token")
        shown = {"title": title, "prompt": printable(self.prompt), "tokens": [*self.rows]}
        return {**shown, "facts": ", ".join(filter(None, facts)), **self.verdict()}

    def rivals(self, scored: Scored) -> list[list]:
        return [[token, printable(token_text(self.loaded.tokenizer, token)), share(p)] for token, p in scored.top]

    def verdict(self) -> dict[str, Any]:
        """Of the storyworld's checker: a line, whether it is good, and the place in the text of the first error."""
        if not self.world or not self.tokens or self.status == IN_PROGRESS:
            return {"verdict": "", "good": True, "error": None}
        given = "" if self.chat else self.prompt
        found = judge(self.world, given + self.text(), self.ended)
        sentences = f"{found.sentences} sentence{'' if found.sentences == 1 else 's'}"
        if found.valid or found.error == "more":
            end = "✓ a valid story" if found.valid else "✓ valid so far"
            return {"verdict": f"{end}, {sentences}", "good": True, "error": None}
        errors = {"template": "no such sentence in the world", "end": "text after the end of the story"}
        line = f"✗ after {sentences}: {errors.get(found.error) or f'expected a {found.error}'}"
        return {"verdict": line, "good": False, "error": found.prefix - len(given)}


def share(logprob: float) -> float:
    """The probability, in three digits."""
    return float(f"{math.exp(logprob):.3g}")


class Session:
    """The stories of one reader. All grow at once, a token of each in turn."""

    def __init__(self):
        self.stories: list[Story] = []
        self.stopping = False
        self.choice: tuple = None, None, None  # story, place and token that the reader chose

    def grow(self, count: int, stories: Sequence[Story] | None = None) -> Iterator[list[dict]]:
        """Views, until all are done, the reader stops or the time is over."""
        growing = [(story, story.grow(count)) for story in (self.stories if stories is None else stories)]
        end, shown, self.stopping = time.monotonic() + MAX_SECONDS, 0.0, False
        while growing and not self.stopping and time.monotonic() < end:
            growing = [(story, steps) for story, steps in growing if next(steps, False) is None]
            if time.monotonic() - shown > REFRESH:
                yield self.views()
                shown = time.monotonic()
        for story, steps in growing:
            steps.close()
            story.status = "stopped" if self.stopping else f"stopped after {MAX_SECONDS:g} seconds"
        yield self.views()

    def views(self) -> list[dict]:
        return [story.view() for story in self.stories]
