"""The entropy floor of each token of a story, and the decomposition of a model's loss by kind of token.

The loss on stories is their entropy, which no model can beat on average, plus an excess of the model. Both are sums
over tokens, so both can be summed for each kind of token.

Units: bits.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from slm.corpora.storyworld.parser import Parse, Span, parse
from slm.corpora.storyworld.world import PRONOUNS, StoryWorld
from slm.errors import UserError
from slm.tokenizers import Tokenizer

KINDS = {"hero": "name", "friend": "name", "place": "place", "spot": "place", "template": "template"}
KINDS |= dict.fromkeys(("size", "color", "toy", "thing", "tool", "gift", "animal"), "object")
PARTS = ("name", "object", "place", "word", "template", "recall", "end")
PERSONS, OBJECTS = {"hero", "friend", "relative"}, {"toy", "thing", "tool", "gift"}
PRONOUN_WORDS = {word for forms in PRONOUNS.values() for word in forms.values()}
TOLERANCE = 1e-9  # bits; rounding error of a sum


@dataclass(frozen=True, slots=True)
class StoryFloor:
    """For each token of a story and for its end: the bits that the best model pays, and its part (of PARTS).

    The last character of a token decides its part. In a word that is chosen there: "name", "object", "place" or
    "word"; in a repeated word, if nothing else is possible: "recall"; otherwise "template".
    """

    bits: np.ndarray  # (tokens,) float64
    parts: np.ndarray  # (tokens,) indices into PARTS


def story_floor(world: StoryWorld, text: str, tokenizer: Tokenizer) -> StoryFloor:
    """The floor of the text in the tokens of a tokenizer.

    Raises: ValueError: if the text is no story of the world; UserError: if the tokenizer changes it.
    """
    parsed = parse(world, text)
    if len(parsed.stories) != 1 or abs(sum(parsed.character_bits) - parsed.stories[0].bits) > TOLERANCE:
        raise ValueError(f"{len(parsed.stories)} derivations instead of one: {text}")
    ids = tokenizer.encode(text)
    ends = np.cumsum([len(tokenizer.token_bytes(token)) for token in ids])
    if ends[-1] != len(text.encode()):
        raise UserError("the entropy floor needs a lossless tokenizer; this one changes the text of a story")
    total = np.concatenate([[0.0], np.cumsum(parsed.character_bits)])[np.concatenate([[0], ends])]
    bits, parts = np.diff(total), _parts(parsed)[ends - 1]
    parts[(parts == PARTS.index("recall")) & (bits > TOLERANCE)] = PARTS.index("template")  # not the only option
    return StoryFloor(np.append(bits, 0.0), np.append(parts, PARTS.index("end")))


def story_skills(world: StoryWorld, text: str, tokenizer: Tokenizer, floor: StoryFloor) -> list[str]:
    """For each token of a story and for its end, what a model has to know there, by the last character of the token.

    choice of X: a word that is drawn here. recall of X: one that was drawn before; of a person in a sentence with a
    toy, thing, tool or gift: who holds the object. pronoun: she or he, by the hero. choice of sentence: any other text
    that may go on in several ways. wording: text without a choice. They divide the excess more finely than the parts.
    """
    ends = np.cumsum([len(tokenizer.token_bytes(token)) for token in tokenizer.encode(text)])
    known, chosen = [], []  # of each character
    for spans in parse(world, text).spans:
        has_object = not OBJECTS.isdisjoint(span.tag for span in spans)
        for span in spans:
            words = text[span.start : span.end]
            known += [_skill(span, words, has_object)] * len(words)
            chosen += [span.chosen] * len(words)
    several = (floor.bits[:-1] > TOLERANCE) & ~np.array(chosen)[ends - 1]
    return [*("choice of sentence" if s else known[end - 1] for s, end in zip(several, ends)), "end"]


def _skill(span: Span, words: str, has_object: bool) -> str:
    """Of the characters of a span, in a sentence with an object or without."""
    if span.tag == "template":
        return "wording"
    if words in PRONOUN_WORDS:
        return "pronoun"
    if span.chosen:
        return f"choice of {span.tag}"
    return "who holds the object" if has_object and span.tag in PERSONS else f"recall of {span.tag}"


def _parts(parsed: Parse) -> np.ndarray:
    """The part of each character. Stories are ASCII: characters are bytes."""
    parts = np.zeros(len(parsed.character_bits), dtype=np.int64)
    for span in chain.from_iterable(parsed.spans):
        kind = KINDS.get(span.tag, "word")
        repeated = kind != "template" and not span.chosen
        parts[span.start : span.end] = PARTS.index("recall" if repeated else kind)
    return parts


def tally(paid: np.ndarray, floor: StoryFloor) -> np.ndarray:
    """For each part of a story: its floor and the model's cost in bits, and its tokens. (tokens,) -> (3, PARTS)."""
    weights = floor.bits, paid, np.ones_like(paid)
    return np.stack([np.bincount(floor.parts, weight, len(PARTS)) for weight in weights])
