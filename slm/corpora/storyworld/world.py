"""The world that stories are told about: its words and plots, how rich it is, and the program of a story.

Words and plots are data, in words.txt and in frame.txt, plots.txt and details.txt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from slm.corpora.storyworld.telling import Bound, Choice, Program, Template, Word

Pairs = Literal["seen", "unseen", "all"]
PAIRED = {"toy": "kind", "plot": "place"}  # one in HELD_OUT of these pairs never occurs in training
HELD_OUT = 6
NAMED = {"hero": "kind", "friend": "kind2"}  # latents that are called by name, and what says what they are
CAST = {"kind", "trait", "hero", "kind2", "friend", "size", "color", "toy"}  # what one scene leaves to the next
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
    details: int  # descriptive sentences before a plot
    scenes: int  # plots per story
    slope: float  # word r of a list weighs 1 / (r + 3) ** slope: 0 for equal weights, 1 for Zipf's


LEVELS = {
    "tiny": Level(words=8, templates=2, plots=6, details=0, scenes=1, slope=0.5),
    "standard": Level(words=28, templates=3, plots=99, details=2, scenes=1, slope=0.6),
    "rich": Level(words=99, templates=4, plots=99, details=7, scenes=2, slope=0.1),
}


class StoryWorld:
    """One level of the world, with only those pairs that occur in training, only the others, or all."""

    def __init__(self, level: Level, pairs: Pairs):
        self.level, self.pairs = level, pairs
        self.lists = {name: words[: level.words] for name, words in load_words().items()}
        self.frame = {name: self._sentence({name: sentences[0]}) for name, sentences in load_texts("frame").items()}
        self.details = {name: sentences[0] for name, sentences in load_texts("details").items()}
        self.plots = dict(list(load_texts("plots").items())[: level.plots])
        self.scenes = {name: [self._sentence({"": lines}) for lines in plot] for name, plot in self.plots.items()}
        self.choices: dict[tuple, Choice] = {}

    def program(self, bound: Bound) -> Program:
        yield self.frame["opening"]
        yield self.frame["possession"]
        yield self.frame["friend"]
        done: tuple[str, ...] = ()  # plots and details, none of which comes twice
        for scene in range(self.level.scenes):
            for latent in set(bound) - CAST:
                del bound[latent]
            yield self.frame["later" if scene else "going"]
            for _ in range(self.level.details):
                done += ((yield self._details(done)),)
            plot = yield self._openings(bound["place"][""], done)
            done += (plot,)
            _, *middle, moral = self.scenes[plot]
            for sentence in middle:  # noqa: UP028 (keys cannot be sent on to a list)
                yield sentence
        yield self.frame["home"]
        yield moral

    def words(self, latent: str, bound: Bound) -> Choice[Word]:
        """The latent's list without what others of its kind are already: two friends or colors are never alike."""
        family = _family(latent)
        taken = tuple(word[""] for other, word in bound.items() if _family(other) == family)
        given = PAIRED.get(latent) or NAMED.get(latent)
        key = latent, bound[given][""] if given else "", taken
        if key not in self.choices:
            self.choices[key] = self._words(*key)
        return self.choices[key]

    def _words(self, latent: str, given: str, taken: Sequence[str]) -> Choice[Word]:
        ranked = list(enumerate(self._list(latent, given)))
        if latent in PAIRED:
            ranked = [(rank, word) for rank, word in ranked if self._allows(given, PAIRED[latent], rank)]
        ranked = [(rank, word) for rank, word in ranked if word[""] not in taken]
        return Choice([word for _, word in ranked], [(rank + 3) ** -self.level.slope for rank, _ in ranked])

    def _list(self, latent: str, given: str) -> Sequence[Word]:
        if latent not in NAMED:
            return self.lists[_family(latent)]
        girls, boys = self.lists["girl"], self.lists["boy"]
        both = [name for pair in zip(girls, boys) for name in pair]
        return {"girl": girls, "boy": boys}.get(given, both)

    def _allows(self, given: str, family: str, rank: int) -> bool:
        """Whether number `rank` of a list goes with `given`, a word of `family`, in the stories of this world."""
        other = next(index for index, word in enumerate(self.lists[family]) if word[""] == given)
        return self.pairs == "all" or ((rank + other) % HELD_OUT == 0) == (self.pairs == "unseen")

    def _openings(self, place: str, done: Sequence[str]) -> Choice[Template]:
        key = "plot", place, done
        if key not in self.choices:
            allowed = [
                name
                for rank, name in enumerate(self.plots)
                if self._allows(place, PAIRED["plot"], rank) and name not in done
            ]
            self.choices[key] = self._sentence({name: self.plots[name][0] for name in allowed})
        return self.choices[key]

    def _details(self, done: Sequence[str]) -> Choice[Template]:
        key = "detail", *sorted(done)
        if key not in self.choices:
            left = {name: lines for name, lines in self.details.items() if name not in done}
            self.choices[key] = self._sentence(left)
        return self.choices[key]

    def _sentence(self, alternatives: dict[str, Sequence[str]]) -> Choice[Template]:
        """Each key is equally probable, and within a key each template that the level uses."""
        templates, weights = [], []
        for key, lines in alternatives.items():
            used = lines[: self.level.templates]
            templates += [Template(line if key == "opening" else f" {line}", key) for line in used]
            weights += [1 / len(used)] * len(used)
        return Choice(templates, weights)


@cache
def _family(latent: str) -> str:
    """Latents of one family are never alike: their list is the same."""
    return "name" if latent in NAMED else latent.rstrip("0123456789")


@cache
def load_words() -> dict[str, tuple[Word, ...]]:
    """Word lists by name, from lines such as "toy: ball, kite", "relative: mom (f)" and "animal: bee (home=hive)"."""
    lists: dict[str, tuple[Word, ...]] = {}
    for line in _lines("words"):
        name, _, rest = line.partition(": ")
        lists[name] = tuple(_word(text, name) for text in rest.split(", "))
    return lists


def _word(text: str, family: str) -> Word:
    plain, _, marks = text.rstrip(")").partition(" (")
    forms = {"": plain, "a": ("an " if plain[0] in "aeiou" else "a ") + plain}
    gender = {"girl": "f", "boy": "m"}.get(family)
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
