"""Stories as programs of choices, and three ways to run one: sample it, replay it, find it in a text.

A program is a generator. It yields one `Choice` of templates after another, a sentence each, and is sent the key of
the template taken. A template's slots name latents: who, what, where. A latent is chosen where it is mentioned first,
so the choices of a story come in the order of its words. Then whoever knows the program can tell from each character
of a story how probable it was, and so how many bits the best possible model must pay for it.

Units: bits. Positions are indices into the text, in characters.
"""

import math
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
Word = dict[str, str]  # its forms by name; the plain one under ""
Bound = dict[str, Word]  # latents chosen so far
Program = Generator["Choice[Template]", str, None]


class Choice(Generic[T]):
    """One of several items, with probabilities proportional to the weights, or equal ones."""

    def __init__(self, items: Sequence[T], weights: Sequence[float] | None = None):
        weights = weights or [1.0] * len(items)
        total = math.fsum(weights)
        self.items = tuple(items)
        self.probabilities = [weight / total for weight in weights]
        self.bits = [-math.log2(p) for p in self.probabilities]
        self.cumulative = [*list(accumulate(self.probabilities))[:-1], 1.0]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a template names a latent. One whose name begins with ~ is forgotten at the end of the sentence."""

    latent: str
    form: str


class Template:
    """One way to write a sentence, such as "{hero} lost {his} {toy}.", and the key it is known by to the program.

    {latent}, {latent.form}, {~list} for a word that is chosen and forgotten, and {he} for {hero.he}.
    """

    SLOT = re.compile(r"\{(~?\w+)(?:\.(\w+))?\}")

    def __init__(self, text: str, key: str = ""):
        self.key = key
        self.pieces: list[str | Slot] = []
        self.forgotten: list[str] = []
        end = 0
        for found in self.SLOT.finditer(text):
            latent, form = found[1], found[2] or ""
            if latent in ("he", "He", "him", "his", "His"):
                latent, form = "hero", latent
            elif latent.startswith("~"):
                latent += str(len(self.forgotten))
                self.forgotten.append(latent)
            self.pieces += [text[end : found.start()], Slot(latent, form)]
            end = found.end()
        self.pieces = [piece for piece in [*self.pieces, text[end:]] if piece]


class World(Protocol):
    def program(self, bound: Bound) -> Program:
        """A story under way, which may look at the latents."""

    def words(self, latent: str, bound: Bound) -> Choice[Word]:
        """What an unbound latent may be, given the others."""


@dataclass(frozen=True, slots=True)
class Story:
    text: str
    bits: float  # -log2 of its probability
    choices: tuple[int, ...]  # the index taken at each choice: all there is to know about the story


def tell(world: World, choose: Callable[[Choice], int]) -> Story:
    """Runs a program to its end; `choose` picks an index at each choice."""
    bound: Bound = {}
    parts: list[str] = []
    choices: list[int] = []
    bits = 0.0
    program = world.program(bound)
    sentence = next(program, None)
    while sentence:
        index = choose(sentence)
        choices.append(index)
        bits += sentence.bits[index]
        template = sentence.items[index]
        for piece in template.pieces:
            if isinstance(piece, str):
                parts.append(piece)
                continue
            word = bound.get(piece.latent)
            if word is None:
                options = world.words(piece.latent, bound)
                index = choose(options)
                choices.append(index)
                bits += options.bits[index]
                word = bound[piece.latent] = options.items[index]
            parts.append(word[piece.form])
        for latent in template.forgotten:
            del bound[latent]
        try:
            sentence = program.send(template.key)
        except StopIteration:
            break
    return Story("".join(parts), bits, tuple(choices))


def sample(world: World, random: Callable[[], float]) -> Story:
    """A story drawn with its probability; `random` returns numbers in [0, 1)."""
    return tell(world, lambda choice: bisect(choice.cumulative, random()))


def replay(world: World, choices: Sequence[int]) -> Story:
    """The story of these choices."""
    indices = iter(choices)
    return tell(world, lambda choice: next(indices))


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a story: a word of a latent or, with the tag "template", words between."""

    start: int
    end: int
    tag: str
    fresh: bool  # chosen here; else known, or no choice at all


@dataclass(frozen=True, slots=True)
class Reading:
    """What the program makes of a text."""

    stories: tuple[Story, ...]  # every derivation of the text: none, if it is no story of this world
    end: int  # characters from the start on that some story of this world agrees with
    sentences: int  # whole sentences among them
    expected: str  # the tag of what most probably would have followed; "" for a story
    spans: tuple[Span, ...]  # of the only derivation; else empty
    character_bits: tuple[float, ...]  # of the only derivation: each character's, given all before it

    @property
    def bits(self) -> float:
        """-log2 of the text's probability; infinite for what is no story."""
        least = min((story.bits for story in self.stories), default=math.inf)
        return least - math.log2(math.fsum(2 ** (least - story.bits) for story in self.stories) or 1)


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to go on reading: a sentence's choices, and what is known after it."""

    end: int
    bits: float
    choices: tuple[int, ...]
    bound: Bound
    spans: tuple[Span, ...]
    key: str = ""


@dataclass(frozen=True, slots=True)
class _Match:
    """Characters that one alternative of a sentence has in common with the text, and how probable it is."""

    start: int
    end: int
    whole: bool  # all of what the alternative has there
    probability: float
    tag: str


def read(world: World, text: str) -> Reading:
    """All derivations of the text, by a search over the choices that the text does not settle.

    Where several ways through a sentence agree with the text, each is followed to its end; few do for long.
    """
    stories: list[Story] = []
    only: tuple[tuple[Span, ...], tuple[float, ...]] = (), ()
    furthest, sentences, expected = 0, 0, Counter()  # of all branches; the tags of what could have followed there
    pending: list[tuple[list[_Way], list[float]]] = [([], [])]
    while pending:
        ways, revealed = pending.pop()
        bound: Bound = {}
        program = world.program(bound)
        sentence = next(program)
        for way in ways:  # catch up with where this branch began
            sentence = _advance(program, bound, way)
        while sentence is not None:
            start = ways[-1].end if ways else 0
            matches, found = _match(world, sentence, text, start, bound)
            for match in matches:
                if match.end > furthest:
                    furthest, sentences, expected = match.end, len(ways), Counter()
                if match.end == furthest and not match.whole:
                    expected[match.tag] += match.probability
            if not found:
                break
            (ways, revealed), *others = [([*ways, way], revealed + _reveal(matches, start, way.end)) for way in found]
            pending += others
            sentence = _advance(program, bound, ways[-1])
        else:
            if ways[-1].end == len(text):
                choices = tuple(index for way in ways for index in way.choices)
                stories.append(Story(text, math.fsum(way.bits for way in ways), choices))
                only = tuple(span for way in ways for span in way.spans), tuple(revealed)
            elif ways[-1].end >= furthest:
                furthest, sentences, expected = ways[-1].end, len(ways), Counter({"end": 1})
    if stories:
        return Reading(tuple(stories), len(text), len(ways), "", *(only if len(stories) == 1 else ((), ())))
    return Reading((), furthest, sentences, expected.most_common(1)[0][0], (), ())


def _advance(program: Program, bound: Bound, way: _Way) -> Choice[Template] | None:
    bound.update((latent, word) for latent, word in way.bound.items() if not latent.startswith("~"))
    try:
        return program.send(way.key)
    except StopIteration:
        return None


def _match(
    world: World, sentence: Choice[Template], text: str, start: int, bound: Bound
) -> tuple[list[_Match], list[_Way]]:
    """How far each alternative of a sentence agrees with the text from `start` on, and the ways through it whole."""
    matches: list[_Match] = []
    ways: list[_Way] = []

    def follow(pieces: Sequence[str | Slot], way: _Way):
        if not pieces:
            ways.append(way)
            return
        piece, rest = pieces[0], pieces[1:]
        tag = "template" if isinstance(piece, str) else list_name(piece.latent)
        for emitted, index, bits, bound in _candidates(world, piece, way.bound):
            agreed = _agreement(emitted, text, way.end)
            end, total = way.end + agreed, way.bits + bits
            whole = agreed == len(emitted)
            matches.append(_Match(way.end, end, whole, 2.0**-total, tag))
            if whole:
                span = Span(way.end, end, tag, index is not None)
                choices = way.choices if index is None else (*way.choices, index)
                follow(rest, _Way(end, total, choices, bound, (*way.spans, span), way.key))

    for index, (template, bits) in enumerate(zip(sentence.items, sentence.bits)):
        follow(template.pieces, _Way(start, bits, (index,), bound, (), template.key))
    return matches, ways


def list_name(latent: str) -> str:
    """The list that a latent is a word of: its name without tilde and number."""
    return latent.lstrip("~").rstrip("0123456789")


def _candidates(world: World, piece: str | Slot, bound: Bound) -> Iterator[tuple[str, int | None, float, Bound]]:
    """What a piece may emit, with the index and bits of the choice (None and 0 if there is none), and what it binds."""
    if isinstance(piece, str):
        yield piece, None, 0.0, bound
    elif piece.latent in bound:
        yield bound[piece.latent][piece.form], None, 0.0, bound
    else:
        options = world.words(piece.latent, bound)
        for index, (word, bits) in enumerate(zip(options.items, options.bits)):
            yield word[piece.form], index, bits, {**bound, piece.latent: word}


def _agreement(emitted: str, text: str, start: int) -> int:
    """Characters from the start of `emitted` that the text has at `start`."""
    if text.startswith(emitted, start):
        return len(emitted)
    count = 0
    for a, b in zip(emitted, text[start : start + len(emitted)]):
        if a != b:
            break
        count += 1
    return count


def _reveal(matches: Sequence[_Match], start: int, end: int) -> list[float]:
    """Bits of each character of a sentence: how much less probable the text so far became by it."""
    masses = [1.0] + [0.0] * (end - start)
    for match in matches:
        for position in range(match.start, min(match.end, end)):
            masses[position - start + 1] += match.probability
    return [math.log2(before / after) for before, after in pairwise(masses)]
