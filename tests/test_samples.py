"""Prompts from the validation split, samples.md, and loss.png: what a run shows of itself."""

import numpy as np
import pytest
from conftest import small_run, trained

from slm import report
from slm.files import jsonl
from slm.generation.prompt import opening
from slm.tokenizers.bytes import ByteTokenizer
from slm.training.callbacks.samples import validation_prompts

TOKENIZER = ByteTokenizer()


@pytest.mark.parametrize(
    ("document", "prompt"),
    [
        ("Once upon a time, there was a girl called Lily.", "Once upon a time,"),
        ("\n\n  \n  ROMEO:\tO, it was\tthe  nightingale\n", "ROMEO:\tO, it"),
        ("yes or no", "yes"),
        ("emma", "em"),
        ("a", "a"),
        ("从前有一个小女孩，她住在森林里，每天都和小动物们一起玩。", "从前有一个小女孩，她住在"),
        (
            "Donaudampfschifffahrtsgesellschaft und Rindfleischetikettierung usw. und so fort.",
            "Donaudampfschifffahrtsgesellschaft und",
        ),
        ('It\'s a "test" $HOME; rm -rf / `x` and more of it', 'It\'s a "test" $HOME;'),
        ("first\x1b[31m words of it", "fi"),
        ("\ufffd\ufffd the cat sat down", "the cat"),
        (" \n\t\x00", ""),
        ("", ""),
    ],
)
def test_a_prompt_is_the_first_words_of_a_document(document, prompt):
    assert opening(document) == prompt


@pytest.mark.parametrize(
    ("documents", "prompts"),
    [
        (
            ["the cat sat on the mat", "a dog ran to the big tree", "one bird flew away from here"],
            ["the cat sat", "one bird flew"],
        ),
        (["one long text without an end of a document " * 3000], ["one long text without", "long text without an"]),
        (["equal words in all of them"] * 9, ["equal words in"]),
        (["\ufeff \n"], ["\ufeff"]),
        (["   "], []),
    ],
)
def test_prompts_come_from_the_validation_split(documents, prompts):
    ids = np.array([id_ for text in documents for id_ in [*TOKENIZER.encode(text), TOKENIZER.eos]], dtype=np.uint16)
    assert validation_prompts(ids, TOKENIZER) == prompts


def test_samples_begin_like_validation_documents_and_stories_are_checked(finished, text_file, tmp_path, monkeypatch):
    documents = text_file.read_text().split("\n<|endoftext|>\n")
    samples = list(jsonl.lines(finished / "samples.jsonl"))
    assert [sample["step"] for sample in samples] == [0, 0, 5, 5, 10, 10]
    assert all(any(text.startswith(sample["prompt"]) for text in documents[-10:]) for sample in samples)
    assert len({sample["prompt"] for sample in samples}) == 2

    data = "data=storyworld", "data.level=tiny", "data.stories=20", "data.validation_stories=4"
    folder = tmp_path / "stories"
    small = *small_run(text_file, tmp_path, data), "model.context=900", "callbacks.stories=null"
    assert trained(monkeypatch, *small, f"run_dir={folder}") == 0
    page = (folder / "samples.md").read_text(encoding="utf-8")
    assert page.count("⟦") == page.count("✗ Once ") == 3
    assert all(sample["finished"] is False for sample in jsonl.lines(folder / "samples.jsonl"))


METRICS = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0, "val/loss": 1.5}]


@pytest.fixture
def metrics(tmp_path):
    def write(name):
        folder = tmp_path / name
        folder.mkdir()
        for line in METRICS:
            jsonl.append(folder / "metrics.jsonl", line)
        return folder

    return write


@pytest.mark.parametrize("name", ["a$b$", "$\\frac{$", "a_b^c", "漢字🙂", "x" * 250, "\x1b[31m", "%s {0}"])
def test_no_name_of_a_run_prevents_its_picture(name, metrics, capsys, drawn):
    assert report.loss_curve(metrics(name)).read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr() == ("", "")


def test_a_picture_that_fails_is_one_warning(metrics, capsys, monkeypatch, drawn):
    folder = metrics("run")
    (folder / "loss.png").mkdir()
    assert report.loss_curve(folder) is None
    monkeypatch.setattr(report, "draw", lambda folder: 1 / 0)
    assert report.loss_curve(folder) is None
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == ["warning: loss.png was not written"] * 2
    assert "ZeroDivisionError" in lines[1]
