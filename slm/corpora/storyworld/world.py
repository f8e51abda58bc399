"""The world that stories are told about: its words and plots, how rich it is, and the program of a story.

Words and plots are data, in words.txt and in frame.txt, plots.txt and details.txt.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Literal

from slm.corpora.storyworld.telling import Bound, Choice, Program, Template, Word, list_name

Pairs = Literal["seen", "unseen", "all"]
PAIRED = {"toy": "kind", "plot": "place"}  # one in HELD_OUT of these pairs never occurs in training
HELD_OUT = 6
NAMED = {"hero": "kind", "friend": "kind2"}  # latents that are called by name, and what says what they are
PRONOUNS = {
    "f": {"he": "she", "He": "She", "him": "her", "his": "her", "His": "Her"},
    "m": {"he": "he", "He": "He", "him": "him", "his": "his", "His": "His"},
}


@dataclass(frozen=True, kw_only=True)
class Level:
    """How much of the world a corpus uses: more of anything is more bits."""

    words: int  # of each list, from the top
    templates: int  # of each sentence, from the top
    plots: int  # from the top
    details: int  # descriptive sentences before the plot
    slope: float  # word r of a list weighs 1 / (r + 3) ** slope: 0 for equal weights, 1 for Zipf's


LEVELS = {
    "tiny": Level(words=8, templates=2, plots=6, details=0, slope=0.5),
    "standard": Level(words=28, templates=3, plots=99, details=3, slope=0.4),
    "rich": Level(words=99, templates=4, plots=99, details=12, slope=0.0),
}


class StoryWorld:
    """One level of the world, with only those pairs that occur in training, only the others, or all."""

    def __init__(self, level: Level, pairs: Pairs):
        self.level, self.pairs = level, pairs
        self.lists = {name: words[: level.words] for name, words in load_words().items()}
        self.frame = {name: self._templates(name, sentences) for name, sentences in load_texts("frame").items()}
        self.details = {name: self._templates(name, sentences) for name, sentences in load_texts("details").items()}
        plots = list(load_texts("plots").items())[: level.plots]
        self.plots = {name: self._templates(name, sentences) for name, sentences in plots}
        self._words = lru_cache(2**14)(self._words_without)  # the same few come again and again
        self._detail = lru_cache(2**10)(lambda left: _one_of(self.details[name][0] for name in left))
        self._opening = lru_cache(lambda place: _one_of(self.plots[name][0] for name in self._plots_at(place)))

    def program(self, bound: Bound) -> Program:
        for name in ("opening", "possession", "friend", "going"):
            yield self.frame[name][0]
        left = tuple(self.details)
        for _ in range(self.level.details):
            told = yield self._detail(left)
            left = tuple(name for name in left if name != told)
        plot = yield self._opening(bound["place"][""])
        *middle, moral = self.plots[plot][1:]
        for sentence in (*middle, self.frame["home"][0], moral):  # noqa: UP028 (keys cannot be sent on to a tuple)
            yield sentence

    def words(self, latent: str, bound: Bound) -> Choice[Word]:
        """The latent's list without what others of its kind are already: two friends or colors are never alike."""
        pool = _pool(latent)
        taken = tuple(word[""] for other, word in bound.items() if _pool(other) == pool)
        given = PAIRED.get(latent) or NAMED.get(latent)
        return self._words(latent, bound[given][""] if given else "", taken)

    def _words_without(self, latent: str, given: str, taken: Sequence[str]) -> Choice[Word]:
        ranked = list(enumerate(self._list(latent, given)))
        if latent in PAIRED:
            ranked = [(rank, word) for rank, word in ranked if self._allows(given, PAIRED[latent], rank)]
        ranked = [(rank, word) for rank, word in ranked if word[""] not in taken]
        return Choice([word for _, word in ranked], [(rank + 3) ** -self.level.slope for rank, _ in ranked])

    def _list(self, latent: str, given: str) -> Sequence[Word]:
        if latent not in NAMED:
            return self.lists[_pool(latent)]
        girls, boys = self.lists["girl"], self.lists["boy"]
        both = [name for pair in zip(girls, boys) for name in pair]
        return {"girl": girls, "boy": boys}.get(given, both)

    def _plots_at(self, place: str) -> list[str]:
        return [name for rank, name in enumerate(self.plots) if self._allows(place, PAIRED["plot"], rank)]

    def _allows(self, given: str, name: str, rank: int) -> bool:
        """Whether number `rank` of a list goes with `given`, a word of list `name`, in the stories of this world."""
        other = next(index for index, word in enumerate(self.lists[name]) if word[""] == given)
        return self.pairs == "all" or ((rank + other) % HELD_OUT == 0) == (self.pairs == "unseen")

    def _templates(self, title: str, sentences: Sequence[Sequence[str]]) -> list[Choice[Template]]:
        """The sentences under a title, with those templates that the level uses."""
        space, count = "" if title == "opening" else " ", self.level.templates
        return [Choice([Template(space + line, title) for line in lines[:count]]) for lines in sentences]


def _one_of(sentences: Iterable[Choice[Template]]) -> Choice[Template]:
    """A choice among sentences, then among the templates of the one taken, as a single choice of a template."""
    sentences = list(sentences)
    templates = [template for sentence in sentences for template in sentence.items]
    return Choice(templates, [p for sentence in sentences for p in sentence.probabilities])


@cache
def _pool(latent: str) -> str:
    """What a latent is drawn from: latents of one pool are never alike."""
    return "name" if latent in NAMED else list_name(latent)


@cache
def load_words() -> dict[str, tuple[Word, ...]]:
    """Word lists by name, from lines such as "toy: ball, kite", "relative: mom (f)" and "animal: bee (home=hive)"."""
    lists: dict[str, tuple[Word, ...]] = {}
    for line in _lines("words"):
        name, _, rest = line.partition(": ")
        lists[name] = tuple(_word(text, name) for text in rest.split(", "))
    return lists


def _word(text: str, list_title: str) -> Word:
    plain, _, marks = text.rstrip(")").partition(" (")
    forms = {"": plain, "a": ("an " if plain[0] in "aeiou" else "a ") + plain}
    gender = {"girl": "f", "boy": "m"}.get(list_title)
    for mark in marks.split("; ") if marks else ():
        form, _, value = mark.partition("=")
        if value:
            forms[form] = value
        else:
            gender = form
    return forms | PRONOUNS.get(gender or "", {})


@cache
def load_texts(name: str) -> dict[str, list[list[str]]]:
    """Sentences by title: "# title", then for each sentence its templates, a line each, and an empty line."""
    texts: dict[str, list[list[str]]] = {}
    for line in _lines(name, empty=True):
        if line.startswith("# "):
            sentences = texts[line.removeprefix("# ")] = [[]]
        elif line:
            sentences[-1].append(line)
        elif texts and sentences[-1]:
            sentences.append([])
    return {title: [lines for lines in sentences if lines] for title, sentences in texts.items()}


def _lines(name: str, empty: bool = False) -> Iterator[str]:
    text = resources.files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return (line for line in text.splitlines() if (line or empty) and not line.startswith("//"))
