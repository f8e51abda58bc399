"""Encoding of a corpus: equal ids in one process and in several, errors of processes, and the type of ids."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import mistake
from test_tokenizers import ADVERSARIAL, bpe_tokenizer, seeded_documents, sentencepiece_tokenizer

from slm.data import encode
from slm.data.encode import Encoder, write_split
from slm.data.preparation import Preparation
from slm.data.processes import Processes
from slm.data.store import id_type
from slm.errors import ResourceError
from slm.tokenizers.characters import CharacterTokenizer

DOCUMENTS = [text for pair in zip(seeded_documents(300), ADVERSARIAL * 30) for text in pair]
TOKENIZERS = {
    "bpe": bpe_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "characters": lambda: CharacterTokenizer.build((), alphabet="ascii"),
}


class Texts(list):
    """A corpus of these documents."""

    def documents(self, split):
        return iter(self)


def stored(documents: list[str], tokenizer, folder: Path) -> dict:
    """The counts and shards of the documents, which are written to the folder."""
    folder.mkdir(exist_ok=True)
    preparation = Preparation(folder, np.dtype(np.uint16))
    encoder = Encoder(tokenizer, preparation.dtype)
    with encoder.processes:
        return write_split(Texts(documents), encoder, preparation, "train")


@pytest.fixture
def two_cores(monkeypatch):
    """Every corpus is large, and there are two cores."""
    monkeypatch.setattr(encode, "cores", lambda: 2)
    monkeypatch.setattr(encode, "SMALL_BATCHES", 1)
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 2000)


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_several_processes_write_the_same_files(make, tmp_path, two_cores, monkeypatch):
    tokenizer, used, over = make(), [], Processes.map
    monkeypatch.setattr(Processes, "map", lambda self, items: used.append(self.count) or over(self, items))
    two = stored(DOCUMENTS, tokenizer, tmp_path / "two")
    monkeypatch.setattr(encode, "cores", lambda: 1)
    one = stored(DOCUMENTS, tokenizer, tmp_path / "one")
    assert used == [2]
    assert one == two
    assert one["documents"] == len(DOCUMENTS)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert [(tmp_path / "one" / n).read_bytes() for n in names] == [(tmp_path / "two" / n).read_bytes() for n in names]


@pytest.mark.parametrize("place", [0, len(DOCUMENTS)], ids=["first", "last"])
def test_half_of_a_surrogate_pair_is_one_line(place, tmp_path, two_cores):
    """Also in another process."""
    documents = [*DOCUMENTS[:place], "Lily \ud83d saw", *DOCUMENTS[place:]]
    with mistake(r"a document has half of a surrogate pair: 'Lily \\ud83d saw'"):
        stored(documents, bpe_tokenizer(), tmp_path)


def test_items_are_read_as_they_are_needed_and_errors_arrive():
    read = []
    with Processes(abs, 2) as processes:
        stream = processes.map(read.append(number) or -number for number in range(100))
        assert [next(stream) for _ in range(3)] == [0, 1, 2]
        assert len(read) <= 8
        stream.close()
        with pytest.raises(TypeError, match="bad operand"):
            list(processes.map(["text"]))
        assert list(processes.map([-1, -2])) == [1, 2]


def test_a_killed_process_is_one_line():
    with (
        Processes(lambda _: os.kill(os.getpid(), signal.SIGKILL), 2) as processes,
        pytest.raises(ResourceError, match="a process that tokenizes was killed"),
    ):
        list(processes.map(range(9)))


PARENT = """
import os, time
from slm.data.processes import Processes
def item(number):
    os.write(1, f"{os.getpid()}\\n".encode())  # at once: two processes write
    time.sleep(60)
list(Processes(item, 2).map(range(2)))
"""


def test_the_processes_end_with_the_one_that_started_them():
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        children = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() and running(child) for child in children):
        assert time.monotonic() < end
        time.sleep(0.01)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("vocab_size", "name"), [(2**16 - 1, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32")])
def test_the_type_of_ids_holds_the_largest(vocab_size, name, tmp_path):
    class Numbers:
        in_processes, eos = False, vocab_size - 1

        def encode_batch(self, texts):
            return [np.array([int(text)], dtype=np.int32) for text in texts]

        def token_bytes(self, token):
            return str(token).encode() if token != self.eos else b""

    tokenizer = Numbers()
    tokenizer.vocab_size = vocab_size
    dtype = id_type(vocab_size)
    ids = Encoder(tokenizer, dtype)([str(vocab_size - 2), "0"])
    assert (dtype.name, ids.lost_bytes) == (name, 0)
    assert ids.ids.tolist() == [vocab_size - 2, vocab_size - 1, 0, vocab_size - 1]


LANGUAGES = {
    "German": ["Es war einmal ein s\u00fc\u00dfes M\u00e4dchen. ", "Gr\u00f6\u00dfe: 3,50 m\u00b2 \u201eJa!\u201c\r\n"],
    "Chinese": [
        "\u4ece\u524d\u6709\u4e00\u53ea\u5c0f\u732b\uff0c\u5b83\u5f88\u5feb\u4e50\u3002",
        "\u201c\u4f60\u597d\uff01\u201d\u3000\u4e8c\u25cb",
    ],
    "emoji": [
        "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f ",
        "\U0001f44d\U0001f3fd\U0001f600\U0001f600 1\ufe0f\u20e3",
    ],
    "control characters": ["\0\x01\x02 \x07\t\x0b\x0c\r\n\x1b[31m\x7f\x85\u2028\ufeff ", "\u202eabc\u202c \u200b\x00"],
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ["bpe gpt2", "bpe gpt4", "bpe", "unigram", "library"])
def test_the_files_of_a_corpus_are_its_text(language, kind, tmp_path):
    documents = [
        first * number + second
        for number in range(1, 20)
        for first in LANGUAGES[language]
        for second in LANGUAGES[language]
    ]
    tokenizer = made(kind, documents)
    counts = stored(documents, tokenizer, tmp_path)
    ids = np.fromfile(tmp_path / counts["shards"][0]["file"], dtype=np.uint16)
    ends = np.flatnonzero(ids == tokenizer.eos)
    assert [tokenizer.decode(part[part != tokenizer.eos]) for part in np.split(ids, ends)[:-1]] == documents
    assert (counts["lost_bytes"], counts["documents"]) == (0, len(documents))
    assert counts["bytes"] == sum(len(text.encode()) for text in documents)


def made(kind: str, documents: list[str]):
    if kind == "library":
        library = pytest.importorskip("slm.tokenizers.huggingface").HuggingFaceTokenizer
        return library.train(documents, vocab_size=270, pattern="gpt4", sample_documents=50, seed=0)
    if kind.startswith("bpe "):
        return bpe_tokenizer(documents, vocab_size=270, pattern=kind.split()[1])
    characters = {character for text in documents for character in text if character not in " \0"}
    return sentencepiece_tokenizer(documents, vocab_size=4 + 256 + 1 + len(characters), algorithm=kind)
