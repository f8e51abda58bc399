"""A parser of stories: every derivation of a text, and the exact probability of each character given all before it.

Choices come in the order of the text (see grammar.py), so the bits of a character are those that the best possible
model must pay for it. Units: bits. Positions are indices into the text, in characters.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from slm.corpora.storyworld.grammar import Bindings, Choice, Slot, Story, Template, World, advance, list_name


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a story: the word of a variable, or literal text under the tag "template"."""

    start: int
    end: int
    tag: str
    chosen: bool  # a choice was made here; False for literal text and for a variable that already had a word


@dataclass(frozen=True, slots=True)
class Parse:
    """The result of parsing a text."""

    stories: tuple[Story, ...]  # every derivation of the text; empty if it is no story of this world
    end: int  # length of the longest prefix that some story of this world begins with
    sentences: int  # complete sentences in this prefix
    expected: str  # the tag of the most probable continuation; "" for a story
    spans: tuple[tuple[Span, ...], ...]  # of each sentence of the only derivation; otherwise empty
    character_bits: tuple[float, ...]  # of the only derivation: each character given all before it


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A parse of one sentence, or of its first pieces."""

    end: int
    bits: float
    choices: tuple[int, ...]
    bindings: Bindings
    spans: tuple[Span, ...]
    key: str
    character_bits: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class _Match:
    """The common prefix of the text and one option for a piece, with the probability of this option."""

    start: int
    end: int
    complete: bool  # the whole option matches
    probability: float
    tag: str


def parse(world: World, text: str) -> Parse:
    """All derivations of the text, by depth-first search over the choices that agree with it.

    A sentence may match in several ways, and each is a branch. Few branches survive the next sentence.
    """
    stories: list[Story] = []
    only: list[_Sentence] = []  # of the only story
    furthest, sentences, expected = 0, 0, Counter()  # over all branches; weights of the tags that could follow
    pending: list[list[_Sentence]] = [[]]
    while pending:
        parsed = pending.pop()
        start = parsed[-1].end if parsed else 0
        bindings: Bindings = {}
        program = world.program(bindings)
        choice: Choice[Template] | None = next(program)
        for sentence in parsed:  # run the program up to the start of this branch
            bindings.update((name, word) for name, word in sentence.bindings.items() if not name.startswith("~"))
            choice = advance(program, sentence.key)
        if choice is not None:
            matches, found = _match(world, choice, text, start, bindings)
            for match in matches:
                if match.end > furthest:
                    furthest, sentences, expected = match.end, len(parsed), Counter()
                if match.end == furthest and not match.complete:
                    expected[match.tag] += match.probability
            pending += ([*parsed, sentence] for sentence in reversed(found))
        elif start >= furthest:
            furthest, sentences, expected = start, len(parsed), Counter({"end": 1})
            if start == len(text):
                only = [] if stories else parsed
                choices = tuple(index for sentence in parsed for index in sentence.choices)
                stories.append(Story(text, math.fsum(sentence.bits for sentence in parsed), choices))
    return Parse(
        stories=tuple(stories),
        end=furthest,
        sentences=sentences,
        expected="" if stories else expected.most_common(1)[0][0],
        spans=tuple(sentence.spans for sentence in only),
        character_bits=tuple(bits for sentence in only for bits in sentence.character_bits),
    )


def _match(
    world: World, choice: Choice[Template], text: str, start: int, bindings: Bindings
) -> tuple[list[_Match], list[_Sentence]]:
    """Matches of every template with the text from `start` on, and all complete parses of the sentence."""
    matches: list[_Match] = []
    parses: list[_Sentence] = []

    def follow(pieces: Sequence[str | Slot], parsed: _Sentence):
        if not pieces:
            parses.append(parsed)
            return
        piece, rest = pieces[0], pieces[1:]
        tag = "template" if isinstance(piece, str) else list_name(piece.variable)
        for option, index, bits, bindings in _options(world, piece, parsed.bindings):
            length = _common_prefix(option, text, parsed.end)
            end, total = parsed.end + length, parsed.bits + bits
            complete = length == len(option)
            matches.append(_Match(parsed.end, end, complete, 2.0**-total, tag))
            if complete:
                spans = *parsed.spans, Span(parsed.end, end, tag, index is not None)
                choices = parsed.choices if index is None else (*parsed.choices, index)
                follow(rest, _Sentence(end, total, choices, bindings, spans, parsed.key))

    for index, (template, bits) in enumerate(zip(choice.items, choice.bits)):
        follow(template.pieces, _Sentence(start, bits, (index,), bindings, (), template.key))
    return matches, [replace(s, character_bits=_character_bits(matches, start, s.end)) for s in parses]


def _options(world: World, piece: str | Slot, bindings: Bindings) -> Iterator[tuple[str, int | None, float, Bindings]]:
    """Each text that a piece may have, the index and bits of this choice (None and 0 without one), new bindings."""
    if isinstance(piece, str):
        yield piece, None, 0.0, bindings
    elif piece.variable in bindings:
        yield bindings[piece.variable][piece.form], None, 0.0, bindings
    else:
        options = world.words(piece.variable, bindings)
        for index, (word, bits) in enumerate(zip(options.items, options.bits)):
            yield word[piece.form], index, bits, {**bindings, piece.variable: word}


def _common_prefix(option: str, text: str, start: int) -> int:
    """Length of the common prefix of `option` and text[start:]."""
    if text.startswith(option, start):
        return len(option)
    return next(i for i, character in enumerate(option) if not text.startswith(character, start + i))


def _character_bits(matches: Sequence[_Match], start: int, end: int) -> list[float]:
    """Bits of each character of a sentence: log2 of the prefix probability before it over that after it."""
    masses = [1.0] + [0.0] * (end - start)
    for match in matches:
        for position in range(match.start, min(match.end, end)):
            masses[position - start + 1] += match.probability
    return [math.log2(before / after) for before, after in pairwise(masses)]
