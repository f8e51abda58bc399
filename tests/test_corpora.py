"""Corpora: the same stories by every way, errors that say what to do, splits that are what they claim to be."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet
import pytest
from hub import REPOSITORY, Hub
from hydra.utils import instantiate
from omegaconf import OmegaConf

from slm.corpora import shakespeare
from slm.corpora.download import fetch
from slm.corpora.shakespeare import Shakespeare
from slm.corpora.text import Text, split_stream
from slm.corpora.tinystories import TinyStories
from slm.errors import UserError
from slm.files import atomic

PROJECT = Path(__file__).parents[1]
REAL_DATA = PROJECT.parent / "shared" / "data"
STORIES = {
    "train": [
        f"Once upon a time, {name} found a {thing}.\n\nThe end."
        for name in ("Ann", "Ben", "Cas")
        for thing in ("hat", "key")
    ],
    "validation": [" One day, Dot sang.  ", "Eve slept."],
}


def real(name: str) -> Path:
    if not (REAL_DATA / name).exists():
        pytest.skip(f"needs {REAL_DATA / name}")
    return REAL_DATA / name


def write_shard(folder: Path, name: str, rows: list, column: str = "text", kind: str = "string") -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = pa.table({column: pa.array(rows, kind)})
    pyarrow.parquet.write_table(table, folder / "data" / name, compression="none")


def write_stories(folder: Path) -> Path:
    """STORIES among empty rows, in two shards and one without rows; and files that are none of the dataset's."""
    write_shard(folder, "train-00000-of-00003.parquet", ["", *STORIES["train"][:4]])
    write_shard(folder, "train-00001-of-00003.parquet", [])
    write_shard(folder, "train-00002-of-00003.parquet", [None, *STORIES["train"][4:]])
    write_shard(folder, "validation-00000-of-00001.parquet", STORIES["validation"])
    (folder / "TinyStories-train.txt").write_text("not to be read")
    return folder


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# TinyStories: a local folder


@pytest.fixture
def own_caches(tmp_path, monkeypatch) -> None:
    """The Hugging Face libraries' folders, which they read from the environment only when they are imported."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def tinystories(path: Path | None, *, streaming: bool = False, cache: Path = Path("unused")) -> TinyStories:
    return TinyStories(
        path=path and str(path), streaming=streaming, repository=REPOSITORY, revision="main", cache=str(cache)
    )


@pytest.mark.usefixtures("own_caches")
@pytest.mark.parametrize("name", ["plain", ".hidden", "od[d] n*me"])
def test_local_stories_come_in_order_and_as_they_are(tmp_path, name):
    corpus = tinystories(write_stories(tmp_path / name))
    for split, stories in STORIES.items():
        assert list(corpus.documents(split)) == stories
        assert list(corpus.documents(split)) == stories, "as often as asked for"
    assert not list((tmp_path / "hf").rglob("*.arrow")), "read in place, not copied"


@pytest.mark.usefixtures("own_caches")
def test_real_stories_equal_what_pyarrow_reads():
    folder = real("TinyStories")
    for split, count in {"train": 10_593, "validation": 560}.items():
        tables = [pyarrow.parquet.read_table(file) for file in sorted((folder / "data").glob(f"{split}-*"))]
        stories = list(tinystories(folder).documents(split))
        assert len(stories) == count
        assert stories == pa.concat_tables(tables)["text"].to_pylist()


def test_local_fingerprint_is_of_names_and_contents(tmp_path):
    first, second = (write_stories(tmp_path / name) for name in ("first", "second"))
    for file in (second / "data").iterdir():
        os.utime(file, (1, 1))
    fingerprint = tinystories(first).fingerprint()
    assert tinystories(second, streaming=True).fingerprint() == fingerprint

    write_shard(second, "validation-00000-of-00001.parquet", [*STORIES["validation"], "One more."])
    assert tinystories(second).fingerprint() != fingerprint
    write_shard(second, "validation-00000-of-00001.parquet", STORIES["validation"])
    assert tinystories(second).fingerprint() == fingerprint
    (second / "data" / "train-00001-of-00003.parquet").rename(second / "data" / "train-00001-of-00003-b.parquet")
    assert tinystories(second).fingerprint() != fingerprint


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def damage_nothing_there(folder: Path) -> None:
    for file in (folder / "data").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_nothing_there, "no train files in .*: the folder must hold data/train-"),
        (lambda folder: (folder / "data" / "train-00001-of-00003.parquet").unlink(), "one of 3 files but 2 are there"),
        (lambda folder: (folder / "data" / "train-00001-of-00003.parquet").write_bytes(b""), "not a parquet file"),
        (lambda folder: (folder / "data" / "train-00001-of-00003.parquet").write_text("no" * 50), "not a parquet file"),
        (lambda folder: write_shard(folder, "train-00001-of-00003.parquet", ["x"], "story"), r"columns \['story'\]"),
        (
            lambda folder: write_shard(folder, "train-00001-of-00003.parquet", [1, 2], kind="int64"),
            "`text` of int64 instead of text",
        ),
        (
            lambda folder: write_shard(folder, "train-00001-of-00003.parquet", [b"a"], kind="binary"),
            "`text` of binary instead of text",
        ),
        (lambda folder: pipe(folder / "data" / "train-00001-of-00003.parquet"), "one of 3 files but 2 are there"),
    ],
    ids=["empty", "half copied", "empty shard", "no parquet", "other column", "numbers", "bytes", "pipe"],
)
def test_local_folder_errors(tmp_path, damage: Callable[[Path], None], says: str):
    damage(write_stories(tmp_path))
    with pytest.raises(UserError, match=says) as error:
        next(tinystories(tmp_path).documents("train"))
    one_line(error)


@pytest.mark.usefixtures("own_caches")
def test_a_shard_cut_off_in_its_middle_is_one_line(tmp_path):
    shard = write_stories(tmp_path) / "data" / "train-00000-of-00003.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:8] + b"\xff" * 60 + content[68:])  # the footer is whole, the pages are not
    with pytest.raises(UserError, match="failed, try again or copy it again") as error:
        list(tinystories(tmp_path).documents("train"))
    one_line(error)


# TinyStories: the Hub. Its libraries read the environment when they are imported, so a process of its own reads.

READ = f"""
import json, sys, time
from slm.corpora.tinystories import TinyStories
streaming, cache, splits = json.loads(sys.argv[1])
corpus = TinyStories(path=None, streaming=streaming, repository="{REPOSITORY}", revision="main", cache=cache)
fingerprint = corpus.fingerprint()
early = "datasets" in sys.modules
documents = {{split: list(corpus.documents(split)) for split in splits}}
print(json.dumps(dict(fingerprint=fingerprint, imported_datasets=early, documents=documents)))
"""


@pytest.fixture
def read(tmp_path) -> Callable[..., SimpleNamespace]:
    def run(endpoint: str, *, streaming: bool, splits=tuple(STORIES), code: str = READ, **environment: str):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            **{"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(PROJECT)},
            **environment,
        }
        arguments = json.dumps([streaming, str(tmp_path / "cache"), splits])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return SimpleNamespace(**json.loads(done.stdout or "{}"), stderr=done.stderr)

    return run


@pytest.mark.slow
def test_hub_streamed_downloaded_and_gone(tmp_path, read):
    hub = Hub(write_stories(tmp_path / "repository"))
    with serving(hub):
        streamed = read(hub.endpoint, streaming=True)
        assert streamed.documents == STORIES
        assert not streamed.imported_datasets
        kept = [file for folder in ("hf", "cache") for file in (tmp_path / folder).rglob("*") if file.is_file()]
        assert kept, "at least the commit is remembered"
        assert not any(b"Once upon" in file.read_bytes() for file in kept), "streaming keeps no text"

        downloaded = read(hub.endpoint, streaming=False)
        assert downloaded.documents == STORIES
        assert downloaded.fingerprint == streamed.fingerprint
        probe = f"GET /api/datasets/{REPOSITORY}/revision/main"
        assert [request for request in hub.requests if "main" in request] == [probe, probe], "the rest is pinned"
        assert not list((tmp_path / "hf").rglob("*.arrow")), "one copy of the text is enough"

    prepared = read(hub.endpoint, streaming=False, splits=())
    assert prepared.fingerprint == streamed.fingerprint
    assert not prepared.imported_datasets
    assert len(prepared.stderr.splitlines()) == 1
    assert f"using commit {hub.commit[:12]}" in prepared.stderr

    gone = read(hub.endpoint, streaming=True, HF_HUB_OFFLINE="1")
    assert (gone.documents, gone.fingerprint) == (STORIES, streamed.fingerprint)


@pytest.mark.slow
def test_a_cache_that_load_dataset_filled_is_enough_offline(tmp_path, read):
    folder = write_stories(tmp_path / "repository")
    write_shard(folder, "train-00001-of-00003.parquet", [""])  # by itself load_dataset fails on a shard without rows
    hub = Hub(folder)
    with serving(hub):
        code = f"import datasets; datasets.load_dataset('{REPOSITORY}')"
        read(hub.endpoint, streaming=False, code=code, HF_UPDATE_DOWNLOAD_COUNTS="0")
    assert read(hub.endpoint, streaming=False).documents == STORIES


def test_the_stub_hub_by_hand(tmp_path):
    folder = write_stories(tmp_path)
    command = [sys.executable, str(PROJECT / "tests" / "hub.py"), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        endpoint = process.stdout.readline().strip().removeprefix("export HF_ENDPOINT=")
        answer = json.loads(fetch(f"{endpoint}/api/datasets/{REPOSITORY}/revision/main", seconds=5))
        process.terminate()
    assert re.fullmatch("[0-9a-f]{40}", answer["sha"])


class Broken(BaseHTTPRequestHandler):
    """Answers as its server's `behaviour` says: a status, or a way never to be done."""

    def do_GET(self) -> None:
        self.server.requests += 1
        behaviour = self.server.behaviour
        if isinstance(behaviour, int):
            self.send_response(behaviour)
            self.send_header("Content-Length", "13")
            self.end_headers()
            self.wfile.write(b"<html></html>")
        elif behaviour == "silent":
            self.server.closing.wait()
        elif behaviour == "trickling":
            while not self.server.closing.wait(0.1):
                self.wfile.write(b"H")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def broken_hub(behaviour: int | str) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    server.behaviour, server.requests, server.closing = behaviour, 0, threading.Event()
    with serving(server):
        try:
            yield server
        finally:
            server.closing.set()


@pytest.mark.usefixtures("own_caches")
@pytest.mark.parametrize(
    ("behaviour", "says", "limit"),
    [
        (500, "HTTP 500", 2),
        (404, "HTTP 404", 2),
        (200, "does not answer like a Hub", 2),
        ("silent", "no answer within 3 s|timed out", 5),
        ("trickling", "no answer within 3 s", 5),
    ],
)
def test_a_broken_hub_is_one_line_and_one_request(tmp_path, monkeypatch, behaviour, says, limit):
    with broken_hub(behaviour) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        started = time.monotonic()
        for use in (lambda corpus: corpus.fingerprint(), lambda corpus: next(corpus.documents("train"))):
            with pytest.raises(UserError, match=says) as error:
                use(tinystories(None, cache=tmp_path))
            assert "give data.path=<folder with data/train-*.parquet" in one_line(error)
        assert time.monotonic() - started < limit
        assert server.requests == 1


@pytest.mark.usefixtures("own_caches")
def test_no_hub_is_one_line(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    for url, says in {endpoint: "Connection refused", "nonsense": "unknown url type"}.items():
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(UserError, match=says) as error:
            tinystories(None, cache=tmp_path).fingerprint()
        one_line(error)


@pytest.mark.usefixtures("own_caches")
def test_offline_asks_nobody(tmp_path, monkeypatch):
    hub = Hub(write_stories(tmp_path / "repository"))
    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            tinystories(None, cache=tmp_path).fingerprint()
    assert hub.requests == []


@pytest.mark.usefixtures("own_caches")
def test_a_new_commit_is_a_new_fingerprint_and_a_damaged_memory_is_none(tmp_path, monkeypatch):
    fingerprints = []
    for last in ("Old.", "New."):
        write_shard(write_stories(tmp_path / last), "validation-00000-of-00001.parquet", [last])
        hub = Hub(tmp_path / last)
        with serving(hub):
            monkeypatch.setenv("HF_ENDPOINT", f"{hub.endpoint}/")
            fingerprints.append(tinystories(None, cache=tmp_path).fingerprint())
    assert len(set(fingerprints)) == 2
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert tinystories(None, cache=tmp_path).fingerprint() == fingerprints[1]
    (tmp_path / "hub_commits.json").write_text("{")
    with pytest.raises(UserError, match="no copy is in the local cache"):
        tinystories(None, cache=tmp_path).fingerprint()


# Text


def text(path: Path | str | None, **choices) -> Text:
    return Text(
        **{
            "separator": None,
            "split": "contiguous",
            "train_ratio": 0.5,
            "seed": 0,
            **choices,
            "path": path and str(path),
        }
    )


def both(corpus: Text | Shakespeare) -> tuple[list[str], list[str]]:
    return list(corpus.documents("train")), list(corpus.documents("validation"))


def test_text_from_a_file_a_folder_and_a_glob(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/y/x.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f" {name}\n")
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    assert both(text(tmp_path)) == ([" a/y/x.txt\n", " a/z.txt\n"], [" b.txt\n"])
    assert both(text(tmp_path / "**" / "[xz].txt")) == ([" a/y/x.txt\n"], [" a/z.txt\n"])
    assert both(text(tmp_path / "*.[tm]?*", train_ratio=0.1)) == ([" b.txt\n"], [" notes.md\n"])
    assert both(text(tmp_path / "notes.md")) == ([" note"], ["s.md\n"])


def test_text_relative_and_home_paths(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abcd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("a.txt", "*.txt", "~/a.txt", "~/*.txt", "."):
        assert both(text(path)) == (["ab"], ["cd"])


def test_text_by_separator_with_bom_and_any_newlines(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf\r\n one\r\ntwo \r<|end|>\n <|end|><|end|>three<|end|>f\xc3\xbcnf<|end|>\n")
    corpus = text(file, separator="<|end|>", train_ratio=0.6)
    assert both(corpus) == (["one\ntwo", "three"], ["fünf"])


@pytest.mark.parametrize("separator", ["a", "ab", "aa", "aab", "\n\n"])
def test_split_stream_equals_split(separator):
    for content in ("", "a", "ab", "aab", "xababy", "aaaaa", "ab" * 50 + "a", "xyz" * 40, "a\nab\n\nab\n\n\n"):
        for characters in (1, 2, 3, 7, 1000):
            chunks = [content[i : i + characters] for i in range(0, len(content), characters)]
            assert list(split_stream(chunks, separator)) == content.split(separator)


def test_a_long_text_without_its_separator_takes_linear_time(tmp_path):
    (tmp_path / "long.txt").write_text("never a line " * 4_000_000)  # 52 MB
    started = time.monotonic()
    train, validation = both(text(tmp_path / "long.txt", separator="<|end|>"))
    assert len(train[0]) + len(validation[0]) == 13 * 4_000_000 - 1
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("documents", "ratio", "train"),
    [(2, 0.01, 1), (2, 0.99, 1), (3, 0.5, 2), (10, 0.95, 9), (10, 0.74, 7), (100, 0.95, 95)],
)
def test_contiguous_documents_are_never_divided_nor_all_in_one_split(tmp_path, documents, ratio, train):
    (tmp_path / "a.txt").write_text("|".join(map(str, range(documents))))
    first, second = both(text(tmp_path / "a.txt", separator="|", train_ratio=ratio))
    assert first + second == [str(i) for i in range(documents)]
    assert len(first) == train


def test_seeded_documents_follow_from_seed_and_index_alone(tmp_path):
    def validation(documents: int, seed: int) -> list[int]:
        (tmp_path / "a.txt").write_text("|".join(map(str, range(documents))))
        train, validation = both(text(tmp_path / "a.txt", separator="|", split="seeded", train_ratio=0.9, seed=seed))
        assert sorted(map(int, train + validation)) == list(range(documents))
        return [int(document) for document in validation]

    drawn = validation(5_000, seed=0)
    assert 400 < len(drawn) < 600
    assert validation(2_500, seed=0) == [index for index in drawn if index < 2_500], "more documents move none"
    assert validation(5_000, seed=1) != drawn
    assert drawn[:6] == [15, 44, 46, 76, 87, 99], "a golden sample: the same on every machine and in every version"


TEXT_ERRORS = {
    "null": (None, {}, r"data=text needs data\.path=<file, folder or glob>"),
    "missing": ("tiny.txt", {}, "does not exist, did you mean .*tinny.txt"),
    "missing, nothing near": ("zzzzzzzz", {}, "zzzzzzzz does not exist$"),
    "nothing": ("", {}, r"data=text needs data\.path"),
    "pipe": ("pipe", {}, "pipe: that is neither a file nor a folder"),
    "device": ("/dev/zero", {}, "zero: that is neither a file nor a folder"),
    "unreadable": ("/proc/self/mem", {}, "mem cannot be read: Input/output error"),
    "link to nothing": ("gone", {}, "gone does not exist$"),
    "too long": ("x" * 300, {}, "names no file: File name too long"),
    "odd glob": ("a**b", {}, r"names no file: Invalid pattern"),
    "nobody's home": ("~nobody-of-that-name/x.txt", {}, "does not exist"),
    "UTF-16": ("utf16.txt", {}, "utf16.txt is not UTF-8 at byte 0"),
    "half a character": ("surrogate.txt", {}, "surrogate.txt is not UTF-8 at byte 3"),
    "missing folder": ("no/where/tiny.txt", {}, "does not exist$"),
    "glob": ("*.xml", {}, "no file matches"),
    "folder": ("folder", {}, r"no \*\.txt file in the folder"),
    "empty": ("empty.txt", {}, "is empty"),
    "blank": ("blank.txt", {}, "is empty"),
    "only separators": ("dots.txt", {"separator": "."}, "is empty"),
    "too short": ("one.txt", {}, "too short"),
    "too short after the cut": ("padded.txt", {}, "too short"),
    "too few for a draw": ("tinny.txt", {"separator": " ", "split": "seeded", "train_ratio": 0.999}, "too short"),
    "one for a draw": ("tinny.txt", {"split": "seeded"}, "data.separator or data.split=contiguous"),
    "separator": ("tinny.txt", {"separator": ""}, "data.separator is empty"),
    "split": ("tinny.txt", {"split": "random"}, "data.split=random must be"),
    "ratio 0": ("tinny.txt", {"train_ratio": 0.0}, "data.train_ratio=0.0 must be"),
    "ratio 1": ("tinny.txt", {"train_ratio": 1}, "data.train_ratio=1 must be"),
}


@pytest.mark.parametrize("case", TEXT_ERRORS)
def test_text_errors_come_before_the_first_document(tmp_path, case):
    contents = {
        "tinny.txt": "two words",
        "empty.txt": "",
        "blank.txt": " \n",
        "dots.txt": ". ..\n.",
        "one.txt": "a",
        "padded.txt": "a   ",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "utf16.txt").write_bytes("two words".encode("utf-16"))
    (tmp_path / "surrogate.txt").write_bytes(b"two\xed\xa0\x80")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.md").write_text("a")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    path, choices, says = TEXT_ERRORS[case]
    if path and not path.startswith(("/", "~")):
        path = tmp_path / path

    def read():
        corpus = text(path, **choices)
        corpus.fingerprint()  # what a training asks first
        next(corpus.documents("train"))

    with pytest.raises(UserError, match=says) as error:
        read()
    one_line(error)


def test_text_passes_over_what_is_no_text_file(tmp_path):
    """Among good files: an empty one, a folder, a link to nothing, a pipe, which nobody ever writes to."""
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.txt").mkdir()
    (tmp_path / "d.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "e.txt")
    (tmp_path / "f.txt").write_text("last")
    corpus = text(tmp_path, train_ratio=0.5)
    assert corpus.fingerprint()
    assert both(corpus) == (["first"], ["last"])


def test_text_keeps_what_is_odd_but_utf8(tmp_path):
    """NUL, control characters and a byte order mark that is not at the start."""
    odd = "a\0b \x01\x1b \ufeff \U0001f642"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + odd.encode() + b"\r\none\rtwo\nthree\r\n")
    (tmp_path / "b.txt").write_text("last")
    assert both(text(tmp_path, train_ratio=0.5))[0] == [odd + "\none\ntwo\nthree\n"]


@pytest.mark.parametrize("separator", [None, "|"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("before", "wrong"),
    [(0, b"\xff"), (3, b"\xe9 "), (8191, b"\xc3("), (8190, b"\xf0\x9f("), (3_000_000, b"\xff"), (5, b"\xe2\x82")],
)
def test_bytes_that_are_not_utf8_are_named_by_file_and_offset(tmp_path, separator, mark, before, wrong):
    (tmp_path / "a.txt").write_text("fine")
    file = tmp_path / "b.txt"
    file.write_bytes(mark + b"x" * before + wrong)
    with pytest.raises(UserError, match=rf"b\.txt is not UTF-8 at byte {len(mark) + before}: ") as error:
        next(text(tmp_path, separator=separator).documents("train"))
    one_line(error)


def test_text_fingerprint_changes_with_documents_and_with_nothing_else(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("a|b")
        (tmp_path / folder / "b.txt").write_text("c|d")
    os.utime(tmp_path / "two" / "a.txt", (1, 1))
    fingerprint = text(tmp_path / "one").fingerprint()
    assert text(tmp_path / "two").fingerprint() == fingerprint
    assert text(tmp_path / "one" / "*.txt", seed=1).fingerprint() == fingerprint, "the seed draws nothing here"
    changes = [{"separator": "|"}, {"train_ratio": 0.6}, {"split": "seeded"}, {"split": "seeded", "seed": 1}]
    (tmp_path / "two" / "a.txt").write_text("a|")
    (tmp_path / "two" / "b.txt").write_text("bc|d")
    others = [text(tmp_path / "one", **change).fingerprint() for change in changes] + [
        text(tmp_path / "two").fingerprint()
    ]
    assert len({fingerprint, *others}) == 6


# Shakespeare


def tiny_shakespeare(
    cache: Path, *, path: Path | None = None, url: str = "http://127.0.0.1:9/input.txt"
) -> Shakespeare:
    return Shakespeare(path=path and str(path), url=url, cache=str(cache), train_ratio=0.95)


def test_shakespeare_is_cut_at_95_percent(tmp_path):
    file = real("shakespeare/input.txt")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == shakespeare.SHA256
    (train,), (validation,) = both(tiny_shakespeare(tmp_path, path=file))
    assert (len(train), len(validation)) == (1_059_624, 55_770)
    assert train + validation == file.read_text(encoding="utf-8")


@contextmanager
def web_server(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A URL that serves the content, and the requests so far."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}/input.txt", asked


def test_shakespeare_is_downloaded_once(tmp_path):
    file = real("shakespeare/input.txt")
    with web_server(file.read_bytes()) as (url, asked):
        corpus = tiny_shakespeare(tmp_path, url=url)
        assert both(corpus) == both(tiny_shakespeare(tmp_path, path=file))
        assert corpus.fingerprint() == tiny_shakespeare(tmp_path, path=file).fingerprint()
        assert len(asked) == 1
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["input.txt"], "no partial file is left"


def test_shakespeare_that_is_something_else_is_not_kept(tmp_path):
    with web_server(b"Please log in.") as (url, _), pytest.raises(UserError, match="is not tiny Shakespeare") as error:
        next(tiny_shakespeare(tmp_path, url=url).documents("train"))
    assert f"place the file at {tmp_path}/shakespeare/input.txt" in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_shakespeare_without_network_names_the_url_and_the_place(tmp_path):
    with pytest.raises(UserError, match=re.escape("http://127.0.0.1:9/input.txt")) as error:
        tiny_shakespeare(tmp_path).fingerprint()
    assert f"place the file at {tmp_path}/shakespeare/input.txt" in one_line(error)


# Download, and the YAML files


def test_fetch_is_bounded_in_all():
    with broken_hub("trickling") as server:
        started = time.monotonic()
        with pytest.raises(OSError, match=r"no answer within 0\.5 s"):
            fetch(f"http://127.0.0.1:{server.server_port}/", seconds=0.5)
        assert time.monotonic() - started < 1.5


def test_a_file_is_replaced_whole(tmp_path):
    for content in (b"old", b"new"):
        atomic.write(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["tinystories", "shakespeare", "text"])
def test_yaml_builds_its_corpus_without_heavy_imports(tmp_path, name):
    data = OmegaConf.load(PROJECT / "conf" / "data" / f"{name}.yaml")
    data.path = str(tmp_path / "absent")
    corpus = instantiate(OmegaConf.create({"cache_dir": str(tmp_path), "data": data}).data.corpus)
    with pytest.raises(UserError, match="absent"):
        corpus.fingerprint()
    heavy = "{'torch', 'datasets', 'pyarrow', 'huggingface_hub'}"
    code = f"import sys, slm.corpora.{name}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
