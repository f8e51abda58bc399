"""A probabilistic grammar of stories, and random stories from it.

A story is a run of a program, a generator that yields one `Choice` of templates per sentence and is sent the key of
the chosen template. The slots of a template name variables: who, what, where. A variable gets its word where it first
occurs, so the choices of a story come in the order of its text.
"""

import math
import re
from bisect import bisect
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
Word = dict[str, str]  # form -> text; the base form under ""
Bindings = dict[str, Word]  # the variables that have a word
Program = Generator["Choice[Template]", str, None]


class Choice(Generic[T]):
    """A categorical distribution over items, proportional to the weights or uniform."""

    def __init__(self, items: Sequence[T], weights: Sequence[float] | None = None):
        weights = weights or [1.0] * len(items)
        total = math.fsum(weights)
        self.items = tuple(items)
        self.probabilities = [weight / total for weight in weights]
        self.bits = [-math.log2(p) for p in self.probabilities]
        self.cumulative = [*list(accumulate(self.probabilities))[:-1], 1.0]


@dataclass(frozen=True, slots=True)
class Slot:
    """A variable in a template. A variable whose name begins with ~ loses its word at the end of the sentence."""

    variable: str
    form: str


class Template:
    """One form of a sentence, such as "{hero} lost {his} {toy}.", with the key that the program receives for it.

    {variable}, {variable.form}, {~list} for a temporary variable, and {he} for {hero.he}.
    """

    SLOT = re.compile(r"\{(~?\w+)(?:\.(\w+))?\}")

    def __init__(self, text: str, key: str = ""):
        self.key = key
        self.pieces: list[str | Slot] = []
        self.temporary: list[str] = []
        end = 0
        for found in self.SLOT.finditer(text):
            variable, form = found[1], found[2] or ""
            if variable in ("he", "He", "him", "his", "His"):
                variable, form = "hero", variable
            elif variable.startswith("~"):
                variable += str(len(self.temporary))
                self.temporary.append(variable)
            self.pieces += [text[end : found.start()], Slot(variable, form)]
            end = found.end()
        self.pieces = [piece for piece in [*self.pieces, text[end:]] if piece]


class World(Protocol):
    def program(self, bindings: Bindings) -> Program:
        """A program that may read the bindings while it runs."""

    def words(self, variable: str, bindings: Bindings) -> Choice[Word]:
        """The distribution of an unbound variable given the bindings."""


@dataclass(frozen=True, slots=True)
class Story:
    text: str
    bits: float  # -log2 of its probability
    choices: tuple[int, ...]  # the index of each choice: its derivation


def generate(world: World, choose: Callable[[Choice], int]) -> Story:
    """Runs a program to its end; `choose` returns an index for each choice."""
    bindings: Bindings = {}
    parts: list[str] = []
    choices: list[int] = []
    bits = 0.0

    def pick(choice: Choice[T]) -> T:
        nonlocal bits
        index = choose(choice)
        choices.append(index)
        bits += choice.bits[index]
        return choice.items[index]

    program = world.program(bindings)
    sentence: Choice[Template] | None = next(program)
    while sentence:
        template = pick(sentence)
        for piece in template.pieces:
            if isinstance(piece, Slot) and piece.variable not in bindings:
                bindings[piece.variable] = pick(world.words(piece.variable, bindings))
            parts.append(piece if isinstance(piece, str) else bindings[piece.variable][piece.form])
        for variable in template.temporary:
            del bindings[variable]
        sentence = advance(program, template.key)
    return Story("".join(parts), bits, tuple(choices))


def advance(program: Program, key: str) -> Choice[Template] | None:
    """The next sentence of a program after a template with this key; None at the end."""
    try:
        return program.send(key)
    except StopIteration:
        return None


def sample(world: World, random: Callable[[], float]) -> Story:
    """A random story; `random` returns numbers in [0, 1)."""
    return generate(world, lambda choice: bisect(choice.cumulative, random()))


def list_name(variable: str) -> str:
    """The word list of a variable: its name without tilde and number."""
    return variable.lstrip("~").rstrip("0123456789")
