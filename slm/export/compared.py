"""A model beside what another program makes of its files: equal ids of difficult strings, and logits.

The strings are what tokenizers are known to get wrong, and random mixtures of it.
"""

import random
from collections.abc import Sequence

import numpy as np

from slm.errors import UserError, printable
from slm.generation.language_model import LanguageModel
from slm.tokenizers import Tokenizer

STRINGS = 4000  # on which the ids are compared
TOLERANCE = 1e-5  # of float32 logits, as a share of the largest: sums in another order
REPORT = "so nothing is written; that program may have changed, or this is a bug of the export: please report it"

SPACES = "| |  |   a|a   |\n|\r\n|\t\t|\x00|\x1c|\x85|\xa0|\u2028|\u3000|\ufeff| \u2581 |it's 1234567.89"
WORDS = (
    "\u2581 a\u2581b \u2585 \ufffd e\u0301 \xe9 \ufb01 \xbd \u2167 \u0660 <s> </s> <pad> <unk> <PAD> <UNK> "
    "<0x41> a<0x0A>b <|endoftext|> <|im_end|> [SEP] don't DON'T we'll a_b x==y f(x); http://a.b/c?d=e #!@ ... -- "
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u4f60\u597d \u05e9\u05dc \u0939\u093f "
    "\u212a\u017f \u0130I\u0131 \u1e9e\xdf \u200b \U000e0041 \U0010ffff \ue000 \u0e33 \uac00"
)
RANGES = (  # of characters
    *((0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x900, 0xE00)),
    *((0x2000, 0x2C00), (0x3040, 0x3100), (0x4E00, 0x9FFF)),
)


def difficult_strings(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[str]:
    """`count` strings: SPACES and WORDS, then mixtures of these, of runs of one character, of characters of many
    alphabets, and of pieces of the vocabulary."""
    rng, difficult = random.Random(seed), [*SPACES.split("|"), *WORDS.split(" ")]
    pieces = [tokenizer.token_bytes(token).decode("utf-8", errors="ignore") for token in range(tokenizer.vocab_size)]
    kinds = (
        lambda: rng.choice(difficult),
        lambda: rng.choice(("a", " ", "\n", "ab", "0", "-", "\u2581")) * rng.randint(1, 20),
        lambda: "".join(chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randint(1, 5))),
        *[lambda: "".join(rng.choices(pieces, k=rng.randint(1, 8)))] * 3,
    )
    mixed = ["".join(rng.choice(kinds)() for _ in range(rng.randint(1, 6))) for _ in range(count - len(difficult))]
    return [*difficult, *mixed][:count]


def differing(tokenizer: Tokenizer, texts: Sequence[str], others: Sequence[Sequence[int]]) -> dict[str, bool]:
    """The texts with other ids than those of the tokenizer; true: the same ones in another order."""
    pairs = zip(texts, tokenizer.encode_batch(texts), others, strict=True)
    return {text: sorted(ours) == sorted(its) for text, ours, its in pairs if [*ours] != [*its]}


def start_of(model: LanguageModel) -> list[int]:
    """The ids before a text: eos, if documents began with it in training."""
    return [model.tokenizer.eos] * model.eos_first


def check_ids(
    program: str, model: LanguageModel, texts: Sequence[str], others: Sequence[Sequence[int]], *, ties: bool = False
) -> int:
    """The number of texts with equal ids. Raises: UserError: for others, except with `ties` in another order."""
    start = start_of(model)
    behind = [its[len(start) :] if [*its[: len(start)]] == start else [-1] for its in others]
    different = differing(model.tokenizer, texts, behind)
    if wrong := [text for text, reordered in different.items() if not (ties and reordered)]:
        raise UserError(
            f"{program} gives {len(wrong):,} of {len(texts):,} strings other ids, such as "
            f"{printable(repr(min(wrong, key=len)), 100)}, so nothing is written; format=weights takes this tokenizer"
        )
    return len(texts) - len(different)


def check_logits(program: str, ours: np.ndarray, theirs: np.ndarray, share: float = TOLERANCE) -> tuple[float, float]:
    """The largest difference, and the largest absolute logit. Raises: UserError: above this share of the latter, or of
    1."""
    difference, largest = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
    if not difference <= share * max(1, largest):
        raise UserError(f"the logits of {program} differ by {difference:.1e}, of values up to {largest:.1f}, {REPORT}")
    return difference, largest
