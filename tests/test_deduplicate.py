"""data.deduplicate=exact: each document once, in every kind of preparation, and said at every start."""

import json
import random

import pytest
from conftest import mistake, small_run, trained

from slm.corpora.deduplicated import Deduplicated, Digests, deduplicated, digest
from slm.corpora.hub import Hub
from slm.corpora.mixture import Mixture, Source
from slm.data.store import prepare
from slm.tokenizers.bytes import ByteTokenizer


class Texts:
    """A corpus of two lists."""

    def __init__(self, train: list[str], validation: list[str]):
        self.splits = {"train": train, "validation": validation}

    def documents(self, split):
        return iter(self.splits[split])

    def fingerprint(self) -> str:
        return json.dumps(self.splits)


def drawn(rng: random.Random, count: int, kinds: int = 50) -> list[str]:
    return [f"document {rng.randrange(kinds)}" for _ in range(count)]


def test_each_document_stays_at_its_first_place_and_validation_has_precedence():
    rng = random.Random(0)
    train, validation = drawn(rng, 200), drawn(rng, 20)
    corpus = Deduplicated(Texts(train, validation))
    expected = list(dict.fromkeys(text for text in train if text not in validation))
    for _ in range(2):  # train alone, and after validation
        assert list(corpus.documents("train")) == expected
        assert list(corpus.documents("validation")) == list(dict.fromkeys(validation))
    held_out = sum(text in validation for text in train)
    assert corpus.dropped == {
        "held_out": held_out,
        "train": 200 - held_out - len(expected),
        "validation": 20 - len({*validation}),
    }
    assert corpus.fingerprint() != corpus.corpus.fingerprint()


def test_a_source_without_train_documents_is_one_line_and_no_endless_sample():
    """A mixture repeats its short sources for the sample of the tokenizer."""
    others = Texts(["a", "b"], ["c"])

    def sample(source, change) -> list[str]:
        sources = {"a": Source(corpus=others, weight=1), "b": Source(corpus=source, weight=1)}
        return list(change(Mixture(sources=sources)).documents("train"))

    with mistake("data.sources.b: data.deduplicate=exact leaves no train document: validation has all of them, too"):
        sample(Texts(["same"] * 9, ["same"]), deduplicated)
    with mistake("data.sources.b: the train split has no documents"):
        sample(Texts([], ["c"]), lambda mixture: mixture)


def test_a_set_of_digests_is_that_of_python():
    rng, known, digests = random.Random(0), set(), Digests()
    for _ in range(70_000):  # sorted in several times
        number = digest(f"{rng.randrange(60_000)}")
        assert digests.add(number) == (number not in known)
        known.add(number)


def hub(folder, **settings) -> Hub:
    """Eight files of text, a document per line, many of them repeated."""
    rng = random.Random(1)
    for number in range(8):
        (folder / f"{number}.txt").write_text("\n".join(drawn(rng, 60, 300)) + "\n")
    given = dict.fromkeys(("repository", "name", "template", "separator", "document_start", "documents", "bytes"))
    given |= {"revision": "main", "split": "train", "split_seed": 0, "rows_per_document": 1, "streaming": False}
    given |= {"column": "text", "cache": str(folder), "validation_share": 0.1, "path": str(folder)}
    return Hub(**given | settings)


def failing(calls: int) -> ByteTokenizer:
    """A tokenizer that ends the process, as it were, at the given call."""
    tokenizer, left = ByteTokenizer(), iter(range(1, calls))

    def encode_batch(batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return ByteTokenizer.encode_batch(tokenizer, batch)

    tokenizer.in_processes, tokenizer.encode_batch = False, encode_batch
    return tokenizer


@pytest.mark.parametrize("drawn_from_train", [True, False])
def test_a_preparation_that_ended_anywhere_goes_on_to_the_same_store(tmp_path, drawn_from_train, capsys):
    folder = tmp_path / "files"
    folder.mkdir()
    named = {"files": {"train": "[0-5].txt", "validation": "[67].txt"}, "validation_split": "validation"}
    settings = {"files": {"train": "*.txt"}, "validation_split": None} if drawn_from_train else named

    def manifest(place: str, tokenizer: ByteTokenizer) -> dict:
        return prepare(deduplicated(hub(folder, **settings)), tokenizer, tmp_path / place).manifest

    whole = manifest("whole", ByteTokenizer())
    assert whole["dropped"]["train"] > 50
    assert whole["repeated"] == 0
    resumed = 0
    for calls in (3, 11) if drawn_from_train else (2, 6):
        with pytest.raises(KeyboardInterrupt):
            manifest(f"ended {calls}", failing(calls))
        assert manifest(f"ended {calls}", ByteTokenizer()) == whole
        resumed += "going on with an earlier preparation" in capsys.readouterr().err
        assert not list((tmp_path / f"ended {calls}").rglob("*digests*"))
    assert resumed == 2


def test_a_run_says_it_at_every_start_and_refuses_another_setting(text_file, tmp_path, monkeypatch, capsys):
    path = tmp_path / "repeated.txt"
    text = text_file.read_text(encoding="utf-8")
    path.write_text(f"{text}\n<|endoftext|>\n{text}", encoding="utf-8")
    data = ["data=text", f"data.path={path}", "data.separator=<|endoftext|>"]
    own = [*small_run(path, tmp_path, data), f"run_dir={tmp_path / 'run'}"]
    line = (
        "data.deduplicate=exact drops, of 380 train documents, 180 that repeat an earlier one and 20 that validation "
        "has, and of 20 validation documents 0\n"
    )
    for steps in (2, 3):  # prepared, and from the cache
        assert trained(monkeypatch, *own, "data.deduplicate=exact", f"budget.steps={steps}") == 0
        assert line in capsys.readouterr().err
    assert trained(monkeypatch, *own, "budget.steps=4") == 2
    assert "data.deduplicate: exact -> None" in capsys.readouterr().err


def test_each_source_of_a_mixture_for_itself(composed, text_file):
    sources = [
        f"data.sources.{name}{rest}"
        for name in "ab"
        for rest in ("=text", f".path={text_file}", ".separator=<|endoftext|>", ".weight=1")
    ]
    plain = composed(data=["data=mixture", *sources]).data.corpus
    corpus = composed("data.deduplicate=exact", data=["data=mixture", *sources]).data.corpus
    assert all(isinstance(source.corpus, Deduplicated) for source in corpus.sources.values())
    assert len(list(corpus.sources["b"].corpus.documents("train"))) == 190
    assert corpus.fingerprint() != plain.fingerprint()
    with mistake("data.deduplicate='fuzzy' must be one of exact or null"):
        composed("data.deduplicate=fuzzy")
