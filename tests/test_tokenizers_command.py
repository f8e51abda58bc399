"""python -m slm.tokenizers: what it prints for tokenizers of every origin, and for mistakes."""

import sys

import pytest
from conftest import mistake
from test_tokenizers import bpe_tokenizer, foreign_model, seeded_documents

from slm.tokenizers import __main__ as command
from slm.tokenizers.characters import CharacterTokenizer


@pytest.fixture
def compare(monkeypatch, capsys):
    """A function from arguments to what the command prints."""

    def compare(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["slm.tokenizers", *map(str, arguments)])
        command.main()
        return capsys.readouterr().out

    return compare


@pytest.fixture
def folder(tmp_path):
    """A tokenizer in a run folder, two in their own folders, and a model file."""
    bpe_tokenizer().save(tmp_path / "run" / "tokenizer")
    CharacterTokenizer.build((), alphabet="ascii").save(tmp_path / "ascii")
    (tmp_path / "a.model").write_bytes(foreign_model())
    return tmp_path


def test_pieces_and_table(compare, folder):
    text = folder / "text.txt"
    text.write_text("\ufeffonce upon\n\nThe dog: \u00e9\U0001f600\x1b\n", encoding="utf-8")
    printed = compare(text, "bytes", folder / "run", folder / "ascii", folder / "a.model")
    assert "\n  o|n|c|e| |u|p|o|n|\\n|\\n|T|h|e| |d|o|g|:| |\\xc3|\\xa9|\\xf0|\\x9f|\\x98|\\x80|\\x1b|\\n\n" in printed
    assert "| upon|" in printed
    assert "\x1b" not in printed
    assert "28 bytes, 2 paragraphs" in printed
    rows = {line.split()[0].rpartition("/")[2]: line.split()[1:] for line in printed.splitlines() if " of 2 " in line}
    assert set(rows) == {"bytes", "run", "ascii", "a.model"}
    assert rows["bytes"][:7] == ["257", "28", "1.000", "0", "of", "2", "0"]
    assert rows["run"][3:7] == ["0", "of", "2", "0"]
    assert rows["ascii"][3:7] == ["1", "of", "2", "7"]
    assert "ascii does not restore 'The dog: " in printed


def test_a_text_of_the_command_and_a_tokenizer_of_the_library(compare, folder):
    library = pytest.importorskip("tokenizers")
    theirs = library.Tokenizer(library.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    theirs.pre_tokenizer = library.pre_tokenizers.Whitespace()
    theirs.save(str(folder / "tokenizer.json"))
    for argument in (folder, folder / "tokenizer.json"):
        printed = compare("a a b", argument, "--show", "0")
        assert "5 bytes, 1 paragraph\n" in printed
        assert "1 of 1" in printed
        assert "does not restore 'a a b': 'a a\ufffd'" in printed


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("text", "nowhere"), "nowhere holds no tokenizer; give a run folder, "),
        (("text", "{folder}"), "holds no tokenizer; give a run folder"),
        (("", "bytes"), "the text is empty"),
        (("{folder}/a.model", "bytes"), "is not text in UTF-8"),
        (("a \udcff", "bytes"), "is not text in UTF-8"),
        (("text", "{folder}/text.txt"), "holds no tokenizer"),
    ],
)
def test_mistakes(arguments, problem, folder, compare, capsys):
    (folder / "text.txt").write_text("text")
    with pytest.raises(SystemExit) as end:
        compare(*(argument.format(folder=folder) for argument in arguments))
    assert end.value.code == 2
    assert problem in capsys.readouterr().err


def test_speed_is_measured_on_paragraphs():
    measured = command.Measured.of(bpe_tokenizer(), seeded_documents(5))
    assert measured.tokens > 0 < measured.seconds
    assert (measured.failures, measured.lost_bytes) == ([], 0)
    with mistake("the text is empty"):
        command.text_of("")
