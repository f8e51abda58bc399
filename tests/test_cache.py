"""The cache: a fault names the file, nothing half-written is used, and only what it owns and nobody uses is deleted."""

import io
import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import exit_code, mistake

import slm.cache
from slm.cache import changed_files
from slm.cache import main as cache_main
from slm.corpora.text import Text
from slm.data import encode, preparation
from slm.data.store import fingerprint, prepare, prepare_tokenizer
from slm.files import atomic
from slm.files.shared_lock import shared_lock
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import CharacterTokenizer


def corpus_of(folder: Path, *documents: str, **choices) -> Text:
    """The documents as files 0.txt, 1.txt, ...; half are train."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, document in enumerate(documents):
        (folder / f"{index}.txt").write_text(document)
    defaults = {"separator": None, "split": "contiguous", "train_ratio": 0.5, "seed": 0}
    return Text(path=str(folder), **{**defaults, **choices})


@pytest.fixture
def corpus(tmp_path) -> Text:
    return corpus_of(tmp_path / "text", "one two", "three", "four", "five six")


def prepared(corpus: Text, cache: Path, tokenizer=ByteTokenizer):
    return prepare(corpus, tokenizer(), cache)


def ids(store) -> list[int]:
    return np.concatenate(store.shards("train")).tolist()


# What a store knows


def test_lost_bytes_and_validation_documents_that_are_train_documents_are_counted(tmp_path, capsys):
    documents = ["Übung", "cat", "cat", "dog", "dog", "cat", "é", "new"]
    store = prepare(corpus_of(tmp_path / "text", *documents), CharacterTokenizer(" abcdefghijklmn"), tmp_path)
    splits = store.manifest["splits"]
    assert (splits["train"]["lost_bytes"], splits["validation"]["lost_bytes"]) == (len("Üutto".encode()), len(b"ot__w"))
    assert store.manifest["repeated"] == 2
    assert "2 of 4 validation documents (50.0%) are train documents, too" in capsys.readouterr().err
    unrelated = prepared(corpus_of(tmp_path / "other", "a", "b"), tmp_path)
    assert unrelated.manifest["repeated"] == unrelated.manifest["splits"]["train"]["lost_bytes"] == 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(("documents", "trained"), [(1, False), (3, False), (200, True)])
def test_eos_is_trained_if_documents_often_follow_each_other(tmp_path, documents, trained):
    text = "<>".join("a" * (40_000 // documents) for _ in range(2 * documents))
    choices = {"separator": "<>"} if documents > 1 else {}
    assert prepared(corpus_of(tmp_path / "text", text, **choices), tmp_path).eos_is_trained(64) is trained


# A tokenizer's folder


@pytest.mark.parametrize("stray", [".DS_Store", ".ipynb_checkpoints/tokenizer-checkpoint.json", "Thumbs.db"])
def test_a_stray_entry_in_a_tokenizers_folder_is_no_part_of_the_tokenizer(corpus, tmp_path, stray):
    def build(documents):
        return CharacterTokenizer.build(documents, alphabet="corpus")

    tokenizer = prepare_tokenizer({}, build, corpus, tmp_path)
    (folder,) = (path for path in (tmp_path / "tokenizers").iterdir() if path.is_dir())
    (folder / stray).parent.mkdir(exist_ok=True)
    (folder / stray).write_text("stray")
    again = prepare_tokenizer({}, build, corpus, tmp_path)
    assert fingerprint(again) == fingerprint(tokenizer)


# Faults


def full_disk(monkeypatch, cache: Path) -> str:
    monkeypatch.setattr(preparation, "open", lambda path, mode: io.FileIO("/dev/full", mode), raising=False)
    return r"cannot write .*/tokens/\w+\.\d+\.partial/\w+-00000\.bin in the cache: No space left .*; make room there"


def no_folder(monkeypatch, cache: Path) -> str:
    cache.write_text("a file")
    return r"cannot create .*/tokens in the cache: (Not a directory|File exists); give another cache_dir"


def vanishing(monkeypatch, cache: Path) -> str:
    line = encode.Pace.line
    monkeypatch.setattr(encode.Pace, "line", lambda *args: shutil.rmtree(cache, ignore_errors=True) or line(*args))
    return r"cannot (read|write) .*/tokens/\w+\.\d+\.partial.* in the cache: No such file or directory"


def long_name(monkeypatch, cache: Path) -> str:
    monkeypatch.setattr(atomic, "flush", lambda path: path.is_relative_to(cache) and (path / ("x" * 300)).stat())
    return r"cannot write .*xxx in the cache: (File name too long|Not a directory)"


@pytest.mark.parametrize("fault", [full_disk, no_folder, vanishing, long_name])
def test_a_fault_of_the_cache_names_file_and_operation_and_leaves_nothing_half_written(
    corpus, tmp_path, monkeypatch, fault
):
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch, mistake(fault(patch, cache)) as error:
        prepared(corpus, cache)
    assert error.value.exit_code == (2 if fault in (no_folder, long_name) else 4)
    assert not list(tmp_path.rglob("*.partial"))
    cache.unlink() if cache.is_file() else None
    assert ids(prepared(corpus, cache)) == [*b"one two", 256, *b"three", 256]


def test_a_cache_without_permission_is_read_but_not_written():
    """Root, for whom permissions do not hold, becomes nobody."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        corpus, other = corpus_of(folder / "text", "one", "two"), corpus_of(folder / "other", "three", "four")
        (folder / "cache").mkdir()
        ready = ids(prepared(corpus, folder / "cache"))
        for path in (folder / "cache", folder / "cache" / "tokens"):
            path.chmod(0o555)
        try:
            os.seteuid(65534 if root else os.geteuid())
            assert ids(prepared(corpus, folder / "cache")) == ready
            with mistake(r"cannot lock .*/tokens/\w+\.lock in the cache: Permission denied; give another") as error:
                prepared(other, folder / "cache")
            assert error.value.exit_code == 4
        finally:
            os.seteuid(0 if root else os.geteuid())
            for path in (folder / "cache", folder / "cache" / "tokens"):
                path.chmod(0o755)


def test_documents_that_change_while_they_are_read_are_not_cached(corpus, tmp_path):
    class Appending(ByteTokenizer):
        def encode_batch(self, texts):
            with open(Path(corpus.path) / "3.txt", "a") as file:
                file.write("more")
            return super().encode_batch(texts)

    with mistake(r"the documents changed while they were read \(changed: 3.txt\); start again"):
        prepared(corpus, tmp_path / "cache", Appending)
    assert not [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.suffix != ".lock"]


def test_the_files_that_changed_since_an_earlier_run_are_named(corpus, tmp_path):
    before = prepared(corpus, tmp_path / "cache").manifest["corpus"]
    for name, content in {"1.txt": "changed", "3.txt": None, "sub/9.txt": "new"}.items():
        file = Path(corpus.path) / name
        file.parent.mkdir(exist_ok=True)
        file.unlink() if content is None else file.write_text(content)
    assert corpus.fingerprint() != before
    names = changed_files(tmp_path / "cache", before, corpus)
    assert names == "changed: 1.txt; missing: 3.txt; new: sub/9.txt"
    assert changed_files(tmp_path / "cache", "unknown", corpus) == ""


def test_a_run_whose_files_changed_is_not_resumed_and_the_files_are_named(run, tmp_path):
    corpus_of(tmp_path / "text", *("one two three " * 20,) * 4)
    data = f"data.path={tmp_path / 'text'}", "data.separator=null", "data.split=seeded", "data.train_ratio=0.5"
    run(*data, "budget.steps=1")
    (tmp_path / "text" / "2.txt").write_text("another")
    cached = sorted((tmp_path / "cache" / "tokens").rglob("*"))
    with mistake(r"the corpus of .* is another one \(changed: 2\.txt\); give the same data, or another run_dir"):
        run(*data, "budget.steps=2")
    assert sorted((tmp_path / "cache" / "tokens").rglob("*")) == cached


# Several processes


def child(work) -> int:
    """The id of a forked process that does the work and ends with 0, or 1 if it raises."""
    if process := os.fork():
        return process
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def test_processes_prepare_one_cache_at_once_and_one_writes(corpus, tmp_path):
    begin, end = os.pipe()

    def work():
        os.close(end)
        os.read(begin, 1)  # until all are there
        store = prepare_noting(corpus, tmp_path / "cache", tmp_path / f"{os.getpid()}.wrote")
        assert ids(store) == [*b"one two", 256, *b"three", 256]

    processes = [child(work) for _ in range(4)]
    os.close(end)
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [0] * 4
    os.close(begin)
    assert len(list(tmp_path.glob("*.wrote"))) == 1


def prepare_noting(corpus: Text, cache: Path, note: Path):
    class Noting(ByteTokenizer):
        def encode_batch(self, texts):
            note.touch()
            return super().encode_batch(texts)

    return prepared(corpus, cache, Noting)


def test_waiting_for_another_process_is_announced_with_its_id(corpus, tmp_path, capsys, monkeypatch):
    store = prepared(corpus, tmp_path / "cache")
    shutil.rmtree(store.folder)
    (ready, done), (announced, announce), real = os.pipe(), os.pipe(), slm.cache.announce_wait

    def hold():
        with shared_lock(store.folder.with_suffix(".lock"), wait=True):
            os.write(done, b"x")
            os.read(announced, 1)

    monkeypatch.setattr(slm.cache, "announce_wait", lambda *its: (real(*its), os.write(announce, b"x")))

    process = child(hold)
    os.read(ready, 1)
    capsys.readouterr()
    assert ids(prepared(corpus, tmp_path / "cache")) == ids(store)
    os.waitpid(process, 0)
    line = capsys.readouterr().err.splitlines()[0]
    which = f"process {process} on {socket.gethostname()} has been preparing since 20"
    assert line.startswith(f"waiting for the tokens of this corpus, which {which}")


# The command


def test_the_cache_is_listed_and_pruned_but_for_what_is_used_or_foreign(corpus, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "cache"

    def command(*arguments: str) -> int:
        return exit_code(monkeypatch, cache_main, *arguments, f"--cache-dir={cache}")

    prepare_tokenizer({"_target_": "Bytes"}, lambda documents: ByteTokenizer(), corpus, cache)
    (tokenizer,) = (path for path in (cache / "tokenizers").iterdir() if path.is_dir())
    store = prepared(corpus, cache)
    old = prepared(corpus_of(tmp_path / "old", "a", "b"), cache).folder  # whose store is not used any more
    os.utime(old, (0, 0))
    killed = old.with_name(f"{'0' * 16}.7.partial")
    foreign = [
        cache / "tokens" / "mine",
        cache / "tokens" / ("f" * 16),
        cache / "hub_commits.json",
        cache / "x.partial",
    ]
    for folder in (killed, *foreign):
        folder.mkdir()
        (folder / "file").write_text("content")
    capsys.readouterr()

    assert command() == 0
    page = capsys.readouterr().out
    assert f"Text path='{corpus.path}' split='contiguous' train_ratio=0.5" in page
    assert all(f"{folder.parent.name}/{folder.name}" in page for folder in (store.folder, tokenizer, old, killed))
    assert "mine" not in page
    assert "4 folders" in page

    assert command("prune", "--older-than-days", "30") == 0
    assert [folder.exists() for folder in (old, store.folder, tokenizer, killed)] == [False, True, True, True]
    with shared_lock(killed.with_name(f"{'0' * 16}.lock"), wait=False):
        process = child(lambda: command("prune", "--all"))  # POSIX locks do not hold within a process
        assert os.waitpid(process, 0)[1] == 0
    assert [folder.exists() for folder in (store.folder, tokenizer, killed)] == [True, False, True]
    assert command("prune", "--all") == 0
    out = capsys.readouterr().out
    assert f"kept tokens/{store.folder.name}" in out
    assert "(in use)" in out
    assert not killed.exists()
    assert ids(store) == [*b"one two", 256, *b"three", 256]
    assert all((folder / "file").exists() for folder in foreign)
    folder = store.folder
    del store
    assert command("prune", "--all") == 0
    assert not folder.exists()
    assert sorted(path.suffix for path in folder.parent.iterdir() if path.is_file()) == [".lock"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "prune needs --older-than-days N"),
        (["prune", "--older-than-days", "-1"], "with N at least 0"),
        (["prune", "--older-than-days", "nan"], "with N at least 0"),
        (["--cache-dir=no/where"], "cache folder no/where does not exist"),
    ],
)
def test_mistakes_in_the_command_are_one_line(monkeypatch, capsys, arguments, message):
    assert exit_code(monkeypatch, cache_main, *arguments) == 2
    assert message in capsys.readouterr().err
