"""Checks of phase 2: pairs, merges, encoding, each equal to slm/tokenizers/bpe.py."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from slm.learn.stories import stories, tokenizer_of
from slm.learn.verdict import require, same
from slm.tokenizers.bpe import BPETokenizer
from slm.tokenizers.merges import BYTES

SIZE = 400  # ids of the vocabulary that is compared
OTHER = "Naïve 猫 sat at 10:45;\n\n  she's <|endoftext|> \N{CAT FACE}"


def checks(own) -> Iterator[str]:
    pieces(own)
    yield "byte_ids, count_pairs and merge"
    texts = stories(60)
    reference = tokenizer_of(texts, SIZE)
    merges = learned(own, texts, reference)
    yield f"learn: {len(merges)} merges of 60 stories, equal to slm's one by one"
    words = sorted({word for text in [*texts, OTHER] for word in own.split(text)})
    for word in words:
        encoded(own, word, merges, reference)
    yield f"encode_word: the ids of {len(words)} words are slm's"
    tokenizer = own.BPE(merges)
    same("BPE(merges).vocab_size, the pieces and eos,", tokenizer.vocab_size, reference.vocab_size)
    for text in [*texts, OTHER, ""]:
        ids = tokenizer.encode(text)
        same("encode(text)", ids, reference.encode(text))
        same("decode(encode(text))", tokenizer.decode(ids), text)
        require(tokenizer.eos not in ids, "eos must never come from a text.")
    saved = sum(len(text.encode()) for text in texts) / sum(len(tokenizer.encode(text)) for text in texts)
    yield f"decode(encode(text)) is the text; {saved:.2f} bytes per token; <|endoftext|> in a text is not eos"


def pieces(own):
    expected = [BYTES.index(byte) for byte in "Aé ".encode()]
    hint = "These are the characters' code points or the plain bytes: an id is the place of a byte in BYTES."
    same('byte_ids("Aé ")', own.byte_ids("Aé "), expected, {hint: ([*map(ord, "Aé ")], [*"Aé ".encode()])})
    given = own.count_pairs({(1, 2, 1, 2): 5, (2, 1): 1})
    once = {(1, 2): 2, (2, 1): 2}
    hint = "Each pair must count as often as its word occurs."
    same("count_pairs({(1, 2, 1, 2): 5, (2, 1): 1})", dict(given or {}), {(1, 2): 10, (2, 1): 6}, {hint: once})
    for ids, expected in (([1, 1, 1, 2], [9, 1, 2]), ([1, 1, 1, 1], [9, 9]), ([2, 1, 1], [2, 9]), ([1], [1])):
        result = own.merge(ids, (1, 1), 9)
        same(f"merge({ids}, (1, 1), 9)", None if result is None else list(result), expected)


def learned(own, texts: list[str], reference: BPETokenizer) -> dict[tuple[int, int], int]:
    """The learner's merges. Raises: Wrong: at the first that is not slm's."""
    merges = own.learn(texts, SIZE - 1)
    require(
        isinstance(merges, dict), f"learn must return a dict {{pair: new id}}, and returns {type(merges).__name__}."
    )
    known = {bytes([byte]): place for place, byte in enumerate(BYTES)}
    for rank, (left, right) in enumerate(reference.merges):
        expected = ((known[left], known[right]), known.setdefault(left + right, len(known)))
        given = list(merges.items())[rank] if rank < len(merges) else None
        if given != expected:
            counts = own.count_pairs(words_before(own, texts, list(merges.items())[:rank]))
            line = f"Merge {rank + 1} must be {left!r} + {right!r}, {expected[0]} -> {expected[1]}, and is {given}."
            raise_for_merge(line, given, expected, counts)
    require(len(merges) == len(reference.merges), f"There must be {len(reference.merges)} merges, not {len(merges)}.")
    return merges


def words_before(own, texts: list[str], merges: list) -> Counter:
    """The words, with the merges that are right applied to them."""
    words = Counter(word for text in texts for word in own.split(text))
    result = Counter()
    for word, count in words.items():
        ids = own.byte_ids(word)
        for pair, new in merges:
            ids = own.merge(ids, pair, new)
        result[tuple(ids)] += count
    return result


def raise_for_merge(line: str, given, expected, counts: Counter):
    """Raises Wrong with the counts of both pairs, which show what was chosen wrongly."""
    if given is None or given[0] == expected[0]:
        require(False, line, "The pair is right, its id is not; ids go on from 256." if given else "It is missing.")
    mine, best = counts[given[0]], counts[expected[0]]
    rule = "The most frequent pair comes first, counted anew after every merge."
    if mine == best:
        rule = "Of equally frequent pairs the one with the smallest ids comes first."
    require(False, line, f"Yours occurs {mine} times, the expected one {best} times.", rule)


def encoded(own, word: str, merges: dict, reference: BPETokenizer):
    """Compares the ids of a word; names the order of merges from left to right, and by length."""
    greedy = longest(word, reference)
    left = from_left(own.byte_ids(word), merges)
    latest = by_rank(own.byte_ids(word), merges)
    rule = "of all pairs in the word, merge the one that was learned first, then look again."
    mistakes = {
        f"This is the order from left to right: {rule}": left,
        f"This merges the pair that was learned last: {rule}": latest,
        f"This takes the longest piece each time: {rule}": greedy,
    }
    result = own.encode_word(word, merges)
    same(f"encode_word({word!r})", None if result is None else list(result), reference.encode(word), mistakes)


def from_left(ids: list[int], merges: dict) -> list[int]:
    """The leftmost pair that is in the merges is merged first."""
    while place := next((place for place, pair in enumerate(pairwise(ids), 1) if pair in merges), 0):
        ids = [*ids[: place - 1], merges[tuple(ids[place - 1 : place + 1])], *ids[place + 1 :]]
    return ids


def by_rank(ids: list[int], merges: dict) -> list[int]:
    """The pair that was learned last is merged first."""
    rank = {pair: number for number, pair in enumerate(merges)}
    while known := [(rank[pair], -place) for place, pair in enumerate(pairwise(ids)) if pair in merges]:
        place = -max(known)[1]
        ids = [*ids[:place], merges[tuple(ids[place : place + 2])], *ids[place + 2 :]]
    return ids


def longest(word: str, reference: BPETokenizer) -> list[int]:
    """The longest piece at each place."""
    ids = {reference.token_bytes(token): token for token in range(reference.eos)}
    rest, result = word.encode(), []
    while rest:
        end = next(end for end in range(len(rest), 0, -1) if rest[:end] in ids)
        result.append(ids[rest[:end]])
        rest = rest[end:]
    return result
