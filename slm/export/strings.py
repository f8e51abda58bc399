"""Strings on which two tokenizers are compared: what tokenizers are known to get wrong, and random mixtures of it."""

import random
from collections.abc import Sequence

from slm.tokenizers import Tokenizer

DIFFICULT = (
    *(
        "",
        " ",
        "  ",
        "   a",
        "a   ",
        "\n",
        "\r\n",
        "\t\t",
        "\x00",
        "\x1c",
        "\x85",
        "\u00a0",
        "\u2028",
        "\u3000",
        "\ufeff",
    ),
    *(
        "\u2581",
        "a\u2581b",
        " \u2581 ",
        "\u2585",
        "\ufffd",
        "e\u0301",
        "\u00e9",
        "\ufb01",
        "\u00bd",
        "\u2167",
        "\u0660",
    ),
    *("<s>", "</s>", "<pad>", "<unk>", "<PAD>", "<UNK>", "<0x41>", "a<0x0A>b", "<|endoftext|>", "<|im_end|>", "[SEP]"),
    *("don't", "DON'T", "we'll", "it's 1234567.89", "a_b", "x==y", "f(x);", "http://a.b/c?d=e", "#!@", "...", "--"),
    *(
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f1e9\U0001f1ea",
        "\u4f60\u597d",
        "\u05e9\u05dc",
        "\u0939\u093f",
    ),
    *(
        "\u212a\u017f",
        "\u0130I\u0131",
        "\u1e9e\u00df",
        "\u200b",
        "\U000e0041",
        "\U0010ffff",
        "\ue000",
        "\u0e33",
        "\uac00",
    ),
)
RANGES = (
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x370, 0x530),
    (0x900, 0xE00),
    (0x2000, 0x2C00),
    (0x3040, 0x3100),
    (0x4E00, 0x9FFF),
)


def difficult_strings(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[str]:
    """`count` strings: DIFFICULT, then mixtures of these, of runs of one character, of characters of many alphabets,
    and of pieces of the vocabulary."""
    rng = random.Random(seed)
    pieces = [tokenizer.token_bytes(token).decode("utf-8", errors="ignore") for token in range(tokenizer.vocab_size)]
    kinds = (
        lambda: rng.choice(DIFFICULT),
        lambda: rng.choice(("a", " ", "\n", "ab", "0", "-", "\u2581")) * rng.randint(1, 20),
        lambda: "".join(chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randint(1, 5))),
        *[lambda: "".join(rng.choices(pieces, k=rng.randint(1, 8)))] * 3,
    )
    mixed = ["".join(rng.choice(kinds)() for _ in range(rng.randint(1, 6))) for _ in range(count - len(DIFFICULT))]
    return [*DIFFICULT, *mixed][:count]


def differing(
    tokenizer: Tokenizer, texts: Sequence[str], others: Sequence[Sequence[int]], start: Sequence[int] = ()
) -> dict[str, bool]:
    """The texts to which the tokenizer, behind the ids `start`, gives other ids; true: behind these the same ones in
    another order."""
    found, begin = {}, len(start)
    for text, ours, theirs in zip(texts, tokenizer.encode_batch(texts), others, strict=True):
        if [*start, *ours.tolist()] != [*theirs]:
            found[text] = [*theirs[:begin]] == [*start] and sorted(ours.tolist()) == sorted(theirs[begin:])
    return found
