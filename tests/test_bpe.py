"""Byte-pair encoding and its split patterns against references: a naive trainer, `regex` and `tokenizers`."""

import hashlib
import json
import random
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
from conftest import mistake
from test_tokenizers import ADVERSARIAL, TEXTS, bpe_tokenizer, random_unicode, seeded_documents

from slm import tokenizers
from slm.tokenizers import bpe, merges, split

NAMED = ["<|endoftext|>", "a<|endoftext|>b <|endoftext|> <|endoftext|>", "</s><eos>"]
TRICKY = [
    *("it's IT'S we'll WE'LL they'Ve don\u2019t '\u017f '\u017fx 'S", "12345 1234.5 \u00bd\u2167\u3007 \u0661\u0662"),
    *(
        "a_b __init__ _",
        " \x1c\x1d\x1e\x1f\x85\x0b x",
        "a  b   c \t d\u3000\u3000e",
        "x\r\n\r\n  y \n",
        "!\n\n?\r\n..  \n",
    ),
    *(
        "\u0301\u0301a\u0301 \U0001f600\ufe0f",
        "\u4e00\u4e8c\u4e09\uff0c\u4f60\u597d",
        "Stra\u00dfe \u00dcber 3,50 \u20ac",
    ),
    *(" ", "  ", "\n", "'", "a" * 99),
]
PIECES = [*" \t\n\r\x0b\x1c\x85\u3000''sdmtlLvVeErR_019\u00bd\u2167\u4e00\u017f\u00e9\u0301\U0001f600.,!-", "ll", "  "]


def mixed(number: int) -> list[str]:
    """Short strings, mostly of characters that the patterns distinguish."""
    rng = random.Random(1)
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    return [
        "".join(rng.choice(PIECES if rng.random() < 0.9 else known) for _ in range(rng.randrange(25)))
        for _ in range(number)
    ]


def assigned(text: str) -> bool:
    """False for characters that are letters only in a newer version of Unicode than Python's."""
    return all(unicodedata.category(character) != "Cn" for character in text)


def naive(words: dict[bytes, int], size: int) -> list[tuple[bytes, bytes]]:
    """The textbook: count all pairs anew for each merge."""
    order = {piece: place for place, piece in enumerate(bytes([byte]) for byte in merges.BYTES)}
    spelled = {word: [bytes([byte]) for byte in word] for word in words}
    learned = []
    while len(order) < size:
        counts: Counter = Counter()
        for word, pieces in spelled.items():
            for pair in pairwise(pieces):
                counts[pair] += words[word]
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], order[pair[0]], order[pair[1]]))
        learned.append(best)
        order.setdefault(b"".join(best), len(order))
        spelled = {word: joined(pieces, best) for word, pieces in spelled.items()}
    return learned


def joined(pieces: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """The pieces with this pair merged, from left to right."""
    done, place = [], 0
    while place < len(pieces):
        width = 2 if tuple(pieces[place : place + 2]) == pair else 1
        done.append(b"".join(pieces[place : place + width]))
        place += width
    return done


def naive_encode(word: bytes, learned: list[tuple[bytes, bytes]]) -> list[bytes]:
    pieces = [bytes([byte]) for byte in word]
    for pair in learned:
        pieces = joined(pieces, pair)
    return pieces


@pytest.mark.parametrize("pattern", split.PATTERNS)
def test_words_are_those_of_the_published_pattern(pattern):
    regex = pytest.importorskip("regex")
    words = split.splitter(pattern)
    for text in filter(assigned, [*TRICKY, *ADVERSARIAL, *random_unicode(300), *mixed(3000)]):
        assert words(text) == regex.findall(split.PATTERNS[pattern], text)


def test_long_words_are_cut_and_nothing_is_lost():
    text = "x" * 40_000 + " yes " + "\U0001f600" * 20_000
    words = split.splitter("gpt4")(text)
    assert "".join(words) == text
    assert max(map(len, words)) == split.MAX_CHARACTERS
    tokenizer = bpe_tokenizer([text], vocab_size=260)
    assert tokenizer.decode(tokenizer.encode(text)) == text


RUNS = ["a" * number for number in range(1, 12)] + ["ab" * number for number in range(1, 8)]


@pytest.mark.parametrize(
    "texts", [seeded_documents(60), mixed(150), TRICKY * 3, RUNS * 2], ids=["words", "mixed", "tricky", "runs"]
)
def test_merges_are_those_of_the_textbook(texts):
    words = bpe.count_words(texts, "gpt4")
    learned = merges.learn(words, 400)
    assert learned == naive(words, 400)
    assert len(learned) > 5
    tokenizer = bpe.BPETokenizer(learned, {"pattern": "gpt4"})
    for word in [*words, *(text.encode() for text in RUNS)]:
        ids = tokenizer.encode(word.decode())
        parts = [part.encode() for part in split.splitter("gpt4")(word.decode())]
        assert [tokenizer.token_bytes(token) for token in ids] == [
            p for part in parts for p in naive_encode(part, learned)
        ]


@pytest.mark.parametrize("pattern", split.PATTERNS)
def test_merges_and_ids_are_those_of_hugging_face(pattern):
    library = pytest.importorskip("tokenizers")
    texts = [*seeded_documents(300), *mixed(500), *TRICKY]
    pre = library.pre_tokenizers
    theirs = library.Tokenizer(library.models.BPE())
    cut = pre.Split(library.Regex(split.PATTERNS[pattern]), "isolated")
    theirs.pre_tokenizer = pre.Sequence([cut, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    theirs.train_from_iterator(
        texts,
        library.trainers.BpeTrainer(
            vocab_size=599, min_frequency=2, show_progress=False, initial_alphabet=pre.ByteLevel.alphabet()
        ),
    )
    ours = bpe_tokenizer(texts, vocab_size=600, sample_documents=len(texts), pattern=pattern)
    learned = json.loads(theirs.to_str())["model"]["merges"]
    assert [[bpe.in_characters(piece) for piece in pair] for pair in ours.merges] == learned
    for text in filter(assigned, [*TEXTS, *TRICKY, *mixed(300)]):
        assert ours.encode(text) == theirs.encode(text).ids


def test_no_text_is_the_end_of_a_document():
    tokenizer = bpe_tokenizer(NAMED * 100, vocab_size=270)
    for text in NAMED:
        assert tokenizer.eos not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_that_no_text_allows_is_one_line():
    for vocab_size in (-1, 0, 257):
        with mistake(f"vocab_size={vocab_size} is too small: .* need 258"):
            bpe_tokenizer(vocab_size=vocab_size)
    with mistake(r"vocab_size=9999 is too large .* use tokenizer.vocab_size=(\d+) or less") as error:
        bpe_tokenizer(vocab_size=9999)
    largest = int(str(error.value).split("vocab_size=")[2].split()[0])
    assert bpe_tokenizer(vocab_size=largest).vocab_size == largest
    for documents, problem in (([""], "no text"), (["abc"], "no pair of bytes occurs twice")):
        with mistake(problem):
            bpe_tokenizer(documents)
    with mistake("tokenizer.pattern=gpt5: must be gpt2 or gpt4"):
        bpe_tokenizer(pattern="gpt5")


@pytest.mark.parametrize(
    "content", ["a", "a b c\n", "a bc\n", " \n", "\u4e00 a\n", "a b\n\nb c\n", "\ufeffa b\n"], ids=repr
)
def test_malformed_merges_are_damaged(content, tmp_path):
    bpe_tokenizer().save(tmp_path)
    path, settings = tmp_path / "merges.txt", tokenizers.read_settings(tmp_path)
    path.write_text(content, encoding="utf-8")
    for sha256 in (settings["sha256"], hashlib.sha256(path.read_bytes()).hexdigest()):
        tokenizers.write_settings(tmp_path, settings | {"sha256": sha256})
        with mistake("is missing or damaged"):
            tokenizers.load(tmp_path)


def test_merges_are_written_as_gpt2_writes_them(tmp_path):
    bpe_tokenizer(["the the the\n\n"] * 3, vocab_size=260).save(tmp_path)
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["h e", "t he", "\u0120 the"]
