"""The grammar of the storyworld: its words and plots, its levels, and the program of a story.

Words and sentences are data, in words.txt, frame.txt, plots.txt and details.txt.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Literal

from slm.corpora.storyworld.grammar import Bindings, Choice, Program, Template, Word, list_name

Pairs = Literal["seen", "unseen", "all"]
PAIRED = {"toy": "kind", "plot": "place"}  # one in HELD_OUT of these pairs never occurs in training
HELD_OUT = 6
NAMED = {"hero": "kind", "friend": "kind2"}  # variables with a name -> the variable of their kind
PRONOUNS = {
    "f": {"he": "she", "He": "She", "him": "her", "his": "her", "His": "Her"},
    "m": {"he": "he", "He": "He", "him": "him", "his": "his", "His": "His"},
}


@dataclass(frozen=True, kw_only=True)
class Level:
    """The part of the world that a corpus uses. More of anything is more bits."""

    words: int  # the first of each list
    templates: int  # the first of each sentence
    plots: int  # the first
    details: int  # descriptive sentences before the plot
    slope: float  # the weight of word r of a list is 1 / (r + 3) ** slope: 0 is uniform, 1 is Zipf's law


LEVELS = {
    "tiny": Level(words=8, templates=2, plots=6, details=0, slope=0.5),
    "standard": Level(words=28, templates=3, plots=99, details=3, slope=0.4),
    "rich": Level(words=99, templates=4, plots=99, details=12, slope=0.0),
}


class StoryWorld:
    """One level of the world with the pairs that occur in training ("seen"), with the others ("unseen"), or with all.

    A `World` of grammar.py.
    """

    def __init__(self, level: Level, pairs: Pairs):
        self.level, self.pairs = level, pairs
        self.lists = {name: words[: level.words] for name, words in load_words().items()}
        self.frame = {name: self._templates(name, sentences) for name, sentences in load_texts("frame").items()}
        self.details = {name: self._templates(name, sentences) for name, sentences in load_texts("details").items()}
        plots = list(load_texts("plots").items())[: level.plots]
        self.plots = {name: self._templates(name, sentences) for name, sentences in plots}
        self._words = lru_cache(2**14)(self._words_without)  # few distinct arguments
        self._detail = lru_cache(2**10)(lambda unused: _one_of(self.details[name][0] for name in unused))
        self._opening = lru_cache(lambda place: _one_of(self.plots[name][0] for name in self._plots_at(place)))

    def program(self, bindings: Bindings) -> Program:
        for name in ("opening", "possession", "friend", "going"):
            yield self.frame[name][0]
        unused = tuple(self.details)
        for _ in range(self.level.details):
            used = yield self._detail(unused)
            unused = tuple(name for name in unused if name != used)
        plot = yield self._opening(bindings["place"][""])
        *middle, moral = self.plots[plot][1:]
        for sentence in (*middle, self.frame["home"][0], moral):  # noqa: UP028 (a tuple has no send)
            yield sentence

    def words(self, variable: str, bindings: Bindings) -> Choice[Word]:
        """The word list of a variable without the words of its pool that are in use: no two friends share a name."""
        pool = _pool(variable)
        taken = tuple(word[""] for other, word in bindings.items() if _pool(other) == pool)
        given = PAIRED.get(variable) or NAMED.get(variable)
        return self._words(variable, bindings[given][""] if given else "", taken)

    def _words_without(self, variable: str, given: str, taken: Sequence[str]) -> Choice[Word]:
        ranked = [(rank, word) for rank, word in enumerate(self._list(variable, given)) if word[""] not in taken]
        if variable in PAIRED:
            ranked = [(rank, word) for rank, word in ranked if self._allows(given, PAIRED[variable], rank)]
        return Choice([word for _, word in ranked], [(rank + 3) ** -self.level.slope for rank, _ in ranked])

    def _list(self, variable: str, given: str) -> Sequence[Word]:
        if variable not in NAMED:
            return self.lists[_pool(variable)]
        girls, boys = self.lists["girl"], self.lists["boy"]
        both = [name for pair in zip(girls, boys) for name in pair]
        return {"girl": girls, "boy": boys}.get(given, both)

    def _plots_at(self, place: str) -> list[str]:
        return [name for rank, name in enumerate(self.plots) if self._allows(place, PAIRED["plot"], rank)]

    def _allows(self, given: str, name: str, rank: int) -> bool:
        """Whether item number `rank` may occur with `given`, a word of list `name`."""
        other = next(index for index, word in enumerate(self.lists[name]) if word[""] == given)
        return self.pairs == "all" or ((rank + other) % HELD_OUT == 0) == (self.pairs == "unseen")

    def _templates(self, title: str, sentences: Sequence[Sequence[str]]) -> list[Choice[Template]]:
        """The sentences under a title, with the templates of the level."""
        space, count = "" if title == "opening" else " ", self.level.templates
        return [Choice([Template(space + line, title) for line in lines[:count]]) for lines in sentences]


def _one_of(sentences: Iterable[Choice[Template]]) -> Choice[Template]:
    """A uniform choice of a sentence and then of its template, as one choice."""
    sentences = list(sentences)
    templates = [template for sentence in sentences for template in sentence.items]
    return Choice(templates, [p for sentence in sentences for p in sentence.probabilities])


@cache
def _pool(variable: str) -> str:
    """The set of words of a variable. Two variables with the same pool have different words."""
    return "name" if variable in NAMED else list_name(variable)


@cache
def load_words() -> dict[str, tuple[Word, ...]]:
    """Name -> word list, from lines such as "toy: ball, kite", "relative: mom (f)" and "animal: bee (home=hive)"."""
    lines = (line.partition(": ") for line in _read("words").splitlines() if line)
    return {name: tuple(_word(text, name) for text in words.split(", ")) for name, _, words in lines}


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
    """Title -> sentences, from "# title", then the templates of each sentence, one per line, and an empty line."""
    texts = {}
    for section in re.split("^# ", _read(name), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        texts[title] = [sentence.splitlines() for sentence in re.split("\n\n+", body.strip())]
    return texts


def _read(name: str) -> str:
    """A text file of this package without its comments, the lines that begin with //."""
    text = resources.files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return re.sub("^//.*\n", "", text, flags=re.MULTILINE)
