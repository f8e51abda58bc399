"""python -m slm.data: counts, repetitions and overlaps against plain Python, and the command on damaged text."""

import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from conftest import exit_code, small_run

from slm.analysis import corpus_batches, corpus_overlap
from slm.analysis.corpus import measure
from slm.analysis.corpus_batches import batches
from slm.analysis.corpus_characters import Trigrams
from slm.analysis.corpus_overlap import NearDuplicates
from slm.data import __main__ as command

WORDS = ["Der", "kleine", "HUND", "sah-die", "Katze;", "größe", "7", "été", "道可道", "и", "кот"]


class Texts:
    """A corpus of two lists."""

    def __init__(self, train: list[str], validation: list[str]):
        self.splits = {"train": train, "validation": validation}

    def documents(self, split):
        return iter(self.splits[split])


def drawn(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randrange(40))) for _ in range(count)]


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"[一-鿿]|[^\W_一-鿿]+", text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_hashes_of_ngrams_are_equal_where_words_are(monkeypatch):
    """In documents of every length, empty ones too, several to a batch."""
    monkeypatch.setattr(corpus_batches, "CHARACTERS", 500)
    texts = ["", *drawn(random.Random(0), 200), "", "道", " \n", "a"]
    for n in (1, 3):
        known: dict[int, tuple[str, ...]] = {}
        found = [[] for _ in texts]
        for batch in batches(texts):
            for number, piece in zip(*batch.ngrams(n)):
                found[batch.numbers[piece]].append(int(number))
        for text, hashes in zip(texts, found):
            expected = ngrams(text, n)
            assert len(hashes) == len(expected)
            assert all(known.setdefault(number, gram) == gram for number, gram in zip(hashes, expected))
        assert len(set(known.values())) == len(known)


@pytest.mark.parametrize("limit", [10**6, 400])
def test_overlap_and_repetitions_are_those_of_sets(monkeypatch, limit):
    """Below the limit exactly; above it by a sample of the n-grams."""
    monkeypatch.setattr(corpus_overlap, "MAX_HASHES", limit)
    monkeypatch.setattr(corpus_batches, "CHARACTERS", 3000)
    rng = random.Random(1)
    texts = [" ".join(f"w{rng.randrange(3000)}" for _ in range(60)) for _ in range(150)]
    validation = texts[:50]
    train = [f"{text[:150]} {rng.choice(texts)}" for text in texts[:80]] + texts[45:] + rng.choices(texts[60:], k=30)
    found = measure(Texts(train, validation))[0]
    its, sampled = found["overlap"]["8_grams"], found["overlap"]["8_grams"]["sampled"]
    having = {gram for text in train for gram in ngrams(text, 8)}
    hits = [[gram in having for gram in ngrams(text, 8)] for text in validation]
    if limit > 1000:
        assert its["in_train"] == sum(map(sum, hits))
        assert its["ngrams"] == sum(map(len, hits))
        assert its["documents_with_one"] == sum(map(any, hits))
        assert its["documents_with_half"] == sum(sum(row) * 2 >= len(row) for row in hits)
    else:
        assert sampled < 0.5
        assert its["ngrams"] == pytest.approx(sum(map(len, hits)) * sampled, rel=0.2)
        assert its["in_train"] / its["ngrams"] == pytest.approx(sum(map(sum, hits)) / sum(map(len, hits)), abs=0.1)
    assert found["overlap"]["documents"] == sum(text in train for text in validation)
    assert found["splits"]["train"]["repeated_documents"] == len(train) - len({*train})
    most = found["splits"]["train"]["most_repeated"][0]
    assert (
        most["times"]
        == Counter(train).most_common(1)[0][1]
        == train.count(next(t for t in train if t[:200] == most["text"]))
    )


def test_near_duplicates_are_those_of_jaccard_similarity():
    """Documents with one word changed (0.88), three (about 0.7), and unrelated ones, against all others."""
    rng = random.Random(2)
    texts = [" ".join(f"w{rng.randrange(500)}" for _ in range(80)) for _ in range(200)]
    for number in range(40):
        words = texts[number].split()
        for place in (20,) if number < 20 else (10, 35, 60):
            words[place] = "changed"
        texts.append(" ".join(words))
    near = NearDuplicates(dict(enumerate(texts)))
    for batch in batches(texts):
        near.look(batch)
    assert {*near.similar} == {*range(20), *range(200, 220)}
    result = near.result()
    assert result["similar"] == 40
    assert result["low"] < 40 / 240 < result["high"]


def test_a_trigram_model_gives_the_bits_of_its_formula():
    texts = ["abab" * 30, "the cat " * 20, "xqzj" * 20]
    batch = next(batches(texts))
    model, counts = Trigrams(), np.bincount(batch.codes, minlength=corpus_batches.CODES)
    model.add(batch)
    bits, pieces = model.bits(batch, counts)
    joined = "".join(texts)
    triples = Counter(joined[i : i + 3] for i in range(len(joined) - 2))
    pairs = Counter(joined[i : i + 2] for i in range(len(joined) - 2))
    for text, value in zip(texts, bits[np.argsort(pieces)]):
        each = [
            -np.log2(
                (triples[t := text[i : i + 3]] + 5 * (joined.count(t[2]) + 0.5) / len(joined)) / (pairs[t[:2]] + 5)
            )
            for i in range(len(text) - 2)
        ]
        assert value == pytest.approx(np.mean(each))


def test_long_documents_are_read_in_pieces_and_their_signs_counted_once(monkeypatch):
    monkeypatch.setattr(corpus_batches, "CHARACTERS", 100)
    text = "a\r\nb &amp; " * 50 + "\n\n<b>Ã¤</b>\x1b"
    train = measure(Texts([text, "one", "\n" + text], ["two"]))[0]["splits"]["train"]
    assert (train["documents"], train["characters"], train["bytes"]) == (
        3,
        2 * len(text) + 4,
        2 * len(text.encode()) + 4,
    )
    sign = train["signs"]["UTF-8 read as another encoding"]
    assert (sign["count"], sign["documents"]) == (2, 2)
    assert "<b>Ã¤</b>" in sign["example"]
    assert train["signs"]["line ends \\r\\n or \\r"]["documents"] == 2
    assert train["empty_lines"] == 3, "of the first text one, of the second two"
    assert train["scripts"]["Latin"] == 3 + 2 * sum(c.isalpha() for c in text)


def test_the_command_reports_and_escapes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(3)
    texts = [*drawn(rng, 60), *["again and again, and once more for the sake of it"] * 9, "\x1b[31mred\ufffd " * 20]
    rng.shuffle(texts)
    (tmp_path / "own.txt").write_text("<>".join(texts), encoding="utf-8")
    data = ["data=files", "data.path=own.txt", "data.separator=<>", "data.split=seeded", "data.train_ratio=0.8"]
    assert exit_code(monkeypatch, command.main, *small_run(tmp_path, tmp_path, data), "out=report") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "U+FFFD, in place of damaged bytes" in shown
    assert re.search(r"tokens \(bytes\) +about", shown)
    found = json.loads((tmp_path / "report" / "corpus.json").read_text(encoding="utf-8"))
    assert found["splits"]["train"]["most_repeated"][0]["text"].startswith("again")
    assert (tmp_path / "report" / "corpus.png").read_bytes()[:4] == b"\x89PNG"
    assert exit_code(monkeypatch, command.main, *small_run(tmp_path, tmp_path, data), "data.deduplicate=exact") == 0
    (again,) = tmp_path.glob("reports/*/corpus.json")
    assert json.loads(again.read_text(encoding="utf-8"))["splits"]["train"]["repeated_documents"] == 0


def test_a_run_folder_names_its_corpus_and_mistakes_are_one_line(finished, tmp_path, monkeypatch, capsys):
    assert exit_code(monkeypatch, command.main, str(finished), f"out={tmp_path}") == 0
    found = json.loads((tmp_path / "corpus.json").read_text(encoding="utf-8"))
    assert found["tokenizer"] == {"name": "bytes", "estimated": False}
    assert found["splits"]["train"]["documents"] == 190
    (tmp_path / "empty.txt").write_text("")
    for words, message in {
        ("data=files", f"data.path={tmp_path}/empty.txt"): "is empty: it contains only white space",
        ("nowhere",): "'nowhere' is not key=value",
        ("--out", "x"): "is not",
        (str(finished), f"out={tmp_path}/empty.txt"): (
            f"{tmp_path}/empty.txt cannot be made: {tmp_path}/empty.txt is a file; give another folder"
        ),
    }.items():
        capsys.readouterr()
        assert exit_code(monkeypatch, command.main, *words) == 2
        assert re.fullmatch(f"(.*\n)?error: .*{re.escape(message)}.*\n", capsys.readouterr().err)
