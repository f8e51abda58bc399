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
from test_data import Stories
from test_tokenizers import ADVERSARIAL, bpe_tokenizer, seeded_documents, sentencepiece_tokenizer

from slm.data import encode
from slm.data.encode import Encoder, write_split
from slm.data.preparation import Preparation
from slm.data.processes import mapped
from slm.data.store import id_type
from slm.errors import ResourceError
from slm.tokenizers.characters import CharacterTokenizer

DOCUMENTS = [text for pair in zip(seeded_documents(300), ADVERSARIAL * 30) for text in pair]
TOKENIZERS = {
    "bpe": bpe_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "characters": lambda: CharacterTokenizer.build((), alphabet="ascii"),
}


@pytest.fixture
def two_cores(monkeypatch):
    """Every corpus is large, and there are two cores."""
    monkeypatch.setattr(encode, "cores", lambda: 2)
    monkeypatch.setattr(encode, "SMALL_BATCHES", 1)
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 2000)


def written(documents, tokenizer, folder):
    return write_split(Stories(documents), tokenizer, Preparation(folder, np.dtype(np.uint16)), "train")


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_several_processes_write_the_same_files(make, tmp_path, two_cores, monkeypatch):
    tokenizer, used = make(), []
    monkeypatch.setattr(encode, "mapped", lambda *arguments: used.append(arguments[2]) or mapped(*arguments))
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    two = written(DOCUMENTS, tokenizer, tmp_path / "two")
    monkeypatch.setattr(encode, "cores", lambda: 1)
    one = written(DOCUMENTS, tokenizer, tmp_path / "one")
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
        written(documents, bpe_tokenizer(), tmp_path)


def test_items_are_read_as_they_are_needed_and_errors_arrive():
    read = []
    stream = mapped(abs, (read.append(number) or -number for number in range(100)), 2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    assert len(read) <= 8
    stream.close()
    with pytest.raises(TypeError, match="bad operand"):
        list(mapped(abs, iter(["text"]), 2))


def test_a_killed_process_is_one_line():
    with pytest.raises(ResourceError, match="a process that tokenizes was killed"):
        list(mapped(lambda _: os.kill(os.getpid(), signal.SIGKILL), iter(range(9)), 2))


PARENT = """
import os, time

from slm.data.processes import mapped
def item(number):
    print(os.getpid(), flush=True)
    time.sleep(60)
list(mapped(item, iter(range(2)), 2))
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
