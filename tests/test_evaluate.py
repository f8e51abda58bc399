"""python -m slm.evaluate RUN --text FILE against the validation of the run itself; mistakes are one line."""

import json
import os
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import exit_code

from slm import evaluate
from slm.files import jsonl
from slm.generation.language_model import load
from slm.generation.text_loss import text_loss

SEPARATOR = "\n<|endoftext|>\n"


@pytest.fixture
def evaluated(monkeypatch, capsys):
    """A function from arguments to exit code and standard output."""

    def evaluated(*arguments):
        code = exit_code(monkeypatch, evaluate.main, *map(str, arguments))
        return code, capsys.readouterr().out

    return evaluated


@pytest.mark.parametrize(
    "layout", [["packed"], ["documents"], ["aligned", "model.context=512", "data.attention_across_documents=false"]]
)
def test_the_loss_on_the_validation_documents_is_that_of_the_validation(layout, run, text_file, tmp_path, evaluated):
    layout, *more = layout
    exact = "trainer.precision=32-true", "data.validation_windows=null"
    folder = run(f"data.layout={layout}", "model.context=64", *more, *exact)
    documents = text_file.read_text(encoding="utf-8").split(SEPARATOR)[-10:]
    halves = tmp_path / "a.txt", tmp_path / "b.txt"
    for path, part in zip(halves, (documents[:4], documents[4:])):
        path.write_text(SEPARATOR.join(part), encoding="utf-8")
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    last = list(jsonl.lines(folder / "metrics.jsonl"))[-1]
    checkpoint = folder / "checkpoints" / "step-000010.ckpt"
    for files in (halves, [tmp_path / "c.jsonl"], [tmp_path / "*.txt"]):
        code, page = evaluated(checkpoint, "--text", *files)
        assert code == 0
        # a validation leaves out the last, incomplete window of the packed layout
        close = partial(pytest.approx, rel=2e-3) if layout == "packed" else pytest.approx
        numbers = re.search(r"loss ([\d.]+) nats per token.*\n([\d.]+) bits per byte, ([\d.]+)", page).groups()
        assert [*map(float, numbers)] == close(
            [last[f"val/{name}"] for name in ("loss", "bits_per_byte", "text_bits_per_byte")], abs=6e-5
        )
        assert ("10 of the documents are cut" in page) == (layout == "documents")


def test_every_token_but_the_first_is_a_target_once(finished):
    """Against a loop over single windows."""
    model = load(finished)
    documents = ["the cat", "a" * 150, "dog ü 漢"]
    stream = [token for text in documents for token in [*model.encode(text), model.tokenizer.eos]]
    nats = 0.0
    with torch.inference_mode():
        for start in range(0, len(stream) - 1, 64):
            window = torch.tensor(stream[start : start + 65])
            nats += F.cross_entropy(model.model(window[None, :-1])[0], window[1:], reduction="sum").item()
    loss = text_loss(model.model, model.tokenizer, documents, "packed")
    assert (loss.tokens, loss.bytes) == (len(stream) - 1, len("".join(documents).encode()) - 1)
    assert loss.nats == pytest.approx(nats / loss.tokens, rel=1e-5)


def test_a_text_that_the_tokenizer_loses_has_no_bits_per_byte(run, tmp_path, evaluated):
    folder = run("tokenizer=characters")
    for text, reason in (("the cat 漢字", "the tokenizer loses part"), ("é", "no target has text"), ("a", "no target")):
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        code, page = evaluated(folder, "--text", tmp_path / "a.txt")
        assert (code, f"no bits per byte: {reason}" in page) == (0, True)
        assert "bits per byte," not in page
        assert " bytes" not in page


MISTAKES = {
    "{run} --text /no/such.txt": (2, "/no/such.txt"),
    "{run} --text {latin}": (2, "latin.txt"),
    "{run} --text {blank}": (2, "empty"),
    "{run} --text {binary}": (2, "binary"),
    "{run} --text {run}": (2, ""),
    "{run} data.pth={latin}": (2, "data.pth"),
    "{run} sampels=3": (2, "did you mean samples?"),
    "{run} samples=few": (2, "samples='few' must be"),
    "{run} split=test": (2, "split='test' must be"),
    "{run} measures=[loss,bleu]": (2, "measures=bleu is not one of loss, texts"),
    "{run} temperature=0": (2, "for the most likely token"),
    "{run} source=novels": (2, "source=novels is not one of"),
    "{run} data.path={binary}": (2, "binary"),
    "{run} {run} {run}": (2, "is given more than once"),
    "/no/such/run --text {latin}": (2, "does not exist"),
    "{latin}": (2, "not a checkpoint"),
    "latest --runs-dir {empty}": (2, "no run in"),
    "{run} samples=1": (2, "samples=1 must be at least 2"),
    "{run} limit=3": (2, "limit has no effect without tasks="),
    "{run} tasks=blimp seed=3": (2, "seed has no effect beside tasks="),
    "{run} samples=1,2": (2, "write a list as [a,b]"),
    "{run} samples=[1": (2, "cannot read samples"),
    "ckpt={run} samples=3 --text {latin}": (2, "samples=3 has no effect beside --text"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words, finished, tmp_path, monkeypatch, capsys):
    paths = {name: tmp_path / f"{name}.txt" for name in ("latin", "blank", "binary", "empty")}
    paths["latin"].write_bytes("grün".encode("latin-1"))
    paths["blank"].write_text(" \n")
    paths["binary"].write_bytes(os.urandom(2000))
    paths["empty"].mkdir()
    code, message = MISTAKES[words]
    arguments = [word.format(run=finished, **paths) for word in words.split(" ")]
    assert exit_code(monkeypatch, evaluate.main, *arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
