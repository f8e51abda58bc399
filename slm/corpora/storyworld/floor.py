"""What each token of a story must cost any model, and where a model pays more: the loss taken apart.

A model's loss on stories is their entropy, which nobody can beat on average, plus an excess, which is the model's
own. Both are sums over tokens; tokens are sorted by what they are.

Units: bits.
"""

from dataclasses import dataclass

import numpy as np

from slm.corpora.storyworld.telling import Reading, read
from slm.corpora.storyworld.world import StoryWorld
from slm.errors import UserError
from slm.tokenizers import Tokenizer

KINDS = {"hero": "name", "friend": "name", "place": "place", "spot": "place", "template": "template"}
KINDS |= dict.fromkeys(("size", "color", "toy", "thing", "tool", "gift", "animal"), "object")
PARTS = ("name", "object", "place", "word", "template", "recall", "end")
NOTHING = 1e-9  # bits; what sums leave of a zero


@dataclass(frozen=True, slots=True)
class StoryFloor:
    """For each token of a story, its end included: the bits that the best model pays, and its part (of PARTS).

    A token of a word that is chosen there is a "name", an "object", a "place" or another "word"; of a word that the
    story has settled before, and that could be no other, "recall"; the rest is "template". Its last character decides.
    """

    bits: np.ndarray  # (tokens,) float64
    parts: np.ndarray  # (tokens,) indices into PARTS


def story_floor(world: StoryWorld, text: str, tokenizer: Tokenizer) -> StoryFloor:
    """Raises ValueError for what is no story of the world, UserError for a tokenizer that changes it."""
    reading = read(world, text)
    if len(reading.stories) != 1 or abs(sum(reading.character_bits) - reading.bits) > NOTHING:
        raise ValueError(f"{len(reading.stories)} derivations, expected one of: {text}")
    ids = tokenizer.encode(text)
    ends = np.cumsum([len(tokenizer.token_bytes(token)) for token in ids])
    if ends[-1] != len(text.encode()):
        raise UserError("the floor is stated for the text itself, which this tokenizer does not keep")
    paid = np.concatenate([[0.0], np.cumsum(reading.character_bits)])[np.concatenate([[0], ends])]
    bits, parts = np.diff(paid), _parts(reading)[ends - 1]
    parts[(parts == PARTS.index("recall")) & (bits > NOTHING)] = PARTS.index("template")  # another one was possible
    return StoryFloor(np.append(bits, 0.0), np.append(parts, PARTS.index("end")))


def _parts(reading: Reading) -> np.ndarray:
    """The part of each character. Stories are ASCII: characters are bytes."""
    parts = np.zeros(len(reading.character_bits), dtype=np.int64)
    for span in reading.spans:
        kind = KINDS.get(span.tag, "word")
        settled = kind != "template" and not span.fresh
        parts[span.start : span.end] = PARTS.index("recall" if settled else kind)
    return parts


def tally(paid: np.ndarray, floor: StoryFloor) -> np.ndarray:
    """(3, PARTS): for each part of a story its floor, what a model paid, both in bits, and its tokens."""
    weights = floor.bits, paid, np.ones_like(paid)
    return np.stack([np.bincount(floor.parts, weight, len(PARTS)) for weight in weights])
