"""Corpora: equal documents from every source, errors with a remedy, correct splits and fingerprints."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import mistake
from hub import REPOSITORY, Hub, Server
from hydra.utils import instantiate
from omegaconf import OmegaConf

from slm.corpora.jsonl import JsonLines
from slm.corpora.rows import split_stream
from slm.corpora.shakespeare import Shakespeare
from slm.corpora.text import Text
from slm.corpora.tinystories import TinyStories

PROJECT = Path(__file__).parents[1]
SHAKESPEARE = PROJECT.parent / "shared" / "data" / "shakespeare" / "input.txt"
STORIES = {  # more than one batch of reading
    "train": [f"Once upon a time, number {i} sat.\n\nThe end." for i in range(2500)],
    "validation": [" One day, Dot sang.  ", "Eve slept."],
}
FIRST, EMPTY, LAST = (f"train-0000{number}-of-00003.parquet" for number in range(3))
VALIDATION = "validation-00000-of-00001.parquet"


def write_shard(folder: Path, name: str, rows: list, column: str = "text", kind: str | pa.DataType = "string") -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = pa.table({column: pa.array(rows, kind)})
    pyarrow.parquet.write_table(table, folder / "data" / name, compression="none")


def write_stories(folder: Path) -> Path:
    """STORIES and empty rows in two shards, a shard without rows, and a file that is not part of the dataset."""
    write_shard(folder, FIRST, ["", *STORIES["train"][:1400]])
    write_shard(folder, EMPTY, [])
    write_shard(folder, LAST, [None, *STORIES["train"][1400:]])
    write_shard(folder, VALIDATION, STORIES["validation"])
    (folder / "TinyStories-train.txt").write_text("not to be read")
    return folder


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch) -> None:
    """Folders of the Hugging Face libraries, which read the environment only when they are imported."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


# TinyStories: a local folder


def tinystories(path: Path | None, *, streaming: bool = False, cache: Path = Path("unused")) -> TinyStories:
    hub = {"repository": REPOSITORY, "revision": "main", "cache": str(cache)}
    return TinyStories(path=path and str(path), streaming=streaming, **hub)


@pytest.mark.parametrize("name", [".hidden", "od[d] n*me"])
def test_local_stories_are_read_in_order_in_place_and_repeatedly(tmp_path, name):
    corpus = tinystories(write_stories(tmp_path / name))
    for split, stories in [*STORIES.items(), *STORIES.items()]:
        assert list(corpus.documents(split)) == stories
    assert not list((tmp_path / "hf").rglob("*.arrow")), "a copy in the cache"


def test_the_fingerprint_of_a_folder_depends_on_names_and_contents(tmp_path):
    first, second = (write_stories(tmp_path / name) for name in ("first", "second"))
    for file in (second / "data").iterdir():
        os.utime(file, (1, 1))
    fingerprint = tinystories(first).fingerprint()
    assert tinystories(second, streaming=True).fingerprint() == fingerprint

    write_shard(second, VALIDATION, [*STORIES["validation"], "One more."])
    assert tinystories(second).fingerprint() != fingerprint
    write_shard(second, VALIDATION, STORIES["validation"])
    assert tinystories(second).fingerprint() == fingerprint
    (second / "data" / EMPTY).rename(second / "data" / "train-00001-of-00003-b.parquet")
    assert tinystories(second).fingerprint() != fingerprint


def damage_pages(shard: Path) -> None:
    content = shard.read_bytes()
    shard.write_bytes(content[:8] + b"\xff" * 60 + content[68:])  # the footer stays intact


def write_twice(shard: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, shard)


def write_bytes_as_text(shard: Path) -> None:
    array = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    pyarrow.parquet.write_table(pa.table({"text": array}), shard)


DAMAGES = {  # change of a folder `data` -> the message
    "empty": (lambda data: shutil.rmtree(data), "no train files in .*: it must hold data/"),
    "half copied": (lambda data: (data / EMPTY).unlink(), "one of 3 files, but 2 exist"),
    "pipe": (lambda data: ((data / EMPTY).unlink(), os.mkfifo(data / EMPTY)), "one of 3 files, but 2 exist"),
    "no parquet": (lambda data: (data / EMPTY).write_text("no" * 50), f"reading .*{EMPTY} failed.*not a parquet file"),
    "damaged pages": (lambda data: damage_pages(data / FIRST), "failed, try again or copy it again"),
    "other column": (
        lambda data: write_shard(data.parent, EMPTY, ["x"], "story"),
        "no column 'text': its columns are story",
    ),
    "a column twice": (lambda data: write_twice(data / EMPTY), "has 2 columns 'text'"),
    "lists": (
        lambda data: write_shard(data.parent, EMPTY, [["a"]], kind=pa.list_(pa.string())),
        "type list in column 'text'",
    ),
    "invalid UTF-8": (lambda data: write_bytes_as_text(data / LAST), f"reading .*{LAST} failed"),
    "truncated": (lambda data: (data / LAST).write_bytes((data / LAST).read_bytes()[:-9]), f"reading .*{LAST} failed"),
    "numbers": (lambda data: write_shard(data.parent, EMPTY, [1], kind="int64"), "type int in column 'text'"),
    "bytes": (lambda data: write_shard(data.parent, EMPTY, [b"a"], kind="binary"), "type bytes in column 'text'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(tmp_path, damage):
    change, message = DAMAGES[damage]
    change(write_stories(tmp_path) / "data")
    with mistake(message):
        list(tinystories(tmp_path).documents("train"))


# TinyStories: the Hub. Its libraries read the environment when they are imported, so a new process reads.

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
        command = sys.executable, "-W", "error", "-c", code, json.dumps([streaming, str(tmp_path / "cache"), splits])
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return SimpleNamespace(**json.loads(done.stdout or "{}"), stderr=done.stderr)

    return run


@pytest.mark.slow
def test_the_hub_streamed_downloaded_and_offline(tmp_path, read):
    with Hub(write_stories(tmp_path / "repository")) as hub:
        streamed = read(hub.endpoint, streaming=True)
        assert streamed.documents == STORIES
        assert not streamed.imported_datasets
        kept = [file for folder in ("hf", "cache") for file in (tmp_path / folder).rglob("*") if file.is_file()]
        assert kept, "at least the commit is stored"
        assert not any(b"Once upon" in file.read_bytes() for file in kept), "streaming stores no text"

        downloaded = read(hub.endpoint, streaming=False)
        assert downloaded.documents == STORIES
        assert downloaded.fingerprint == streamed.fingerprint
        probe = f"GET /api/datasets/{REPOSITORY}/revision/main"
        assert [request for request in hub.requests if "main" in request] == [probe, probe], "others name the commit"
        assert not list((tmp_path / "hf").rglob("*.arrow")), "a second copy of the text"

    prepared = read(hub.endpoint, streaming=False, splits=())
    assert prepared.fingerprint == streamed.fingerprint
    assert not prepared.imported_datasets
    assert len(prepared.stderr.splitlines()) == 1
    assert f"using the stored commit {hub.commit[:12]}" in prepared.stderr

    offline = read(hub.endpoint, streaming=True, HF_HUB_OFFLINE="1")
    assert (offline.documents, offline.fingerprint) == (STORIES, streamed.fingerprint)


@pytest.mark.slow
def test_the_cache_of_load_dataset_is_used_offline(tmp_path, read):
    folder = write_stories(tmp_path / "repository")
    write_shard(folder, EMPTY, [""])  # load_dataset fails for a shard without rows
    with Hub(folder) as hub:
        code = f"import datasets; datasets.load_dataset('{REPOSITORY}')"
        read(hub.endpoint, streaming=False, code=code, HF_UPDATE_DOWNLOAD_COUNTS="0")
    assert read(hub.endpoint, streaming=False).documents == STORIES


def test_without_a_hub_one_request_with_a_time_limit_and_one_line(tmp_path, monkeypatch):
    trickle = (time.sleep(0.1) or b"H" for _ in range(100))
    for server, endpoint, offline, message in (
        (Server(500), None, "", "HTTP 500"),
        (Server(), None, "", "does not answer like a Hub"),
        (Server(parts=trickle), None, "", r"no answer within 0\.3 s"),
        (Server(), None, "1", "HF_HUB_OFFLINE is set"),
        (Server(), "http://127.0.0.1:9", "", "Connection refused"),
        (Server(), "nonsense", "", "UnsupportedProtocol"),
    ):
        with server:
            monkeypatch.setenv("HF_ENDPOINT", endpoint or f"{server.endpoint}/")
            monkeypatch.setenv("HF_HUB_OFFLINE", offline)
            limit, started = 0.3 if server.fixed[2] is trickle else 30, time.monotonic()  # a busy machine answers late
            monkeypatch.setattr("slm.corpora.repository.PROBE_SECONDS", limit)
            for use in (lambda corpus: corpus.fingerprint(), lambda corpus: next(corpus.documents("train"))):
                with mistake(rf"{message}.*give data\.path=<folder with a copy>"):
                    use(tinystories(None, cache=tmp_path))
            assert time.monotonic() - started < 5
            assert len(server.requests) == (0 if endpoint or offline else 1)


def test_a_new_commit_is_a_new_fingerprint_and_a_damaged_file_of_commits_is_ignored(tmp_path, monkeypatch):
    fingerprints = []
    for last in ("Old.", "New."):
        write_shard(tmp_path / last, VALIDATION, [last])
        with Hub(tmp_path / last) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
            fingerprints.append(tinystories(None, cache=tmp_path).fingerprint())
    assert len(set(fingerprints)) == 2
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert tinystories(None, cache=tmp_path).fingerprint() == fingerprints[1]
    assert [path.name for path in tmp_path.glob("hub_commits*")] == ["hub_commits.json"], "a temporary file is left"
    (tmp_path / "hub_commits.json").write_text("{")
    with mistake("no copy is in the local cache"):
        tinystories(None, cache=tmp_path).fingerprint()


# Text


def text(path: Path | str | None, **choices) -> Text:
    defaults = {"separator": None, "split": "contiguous", "train_ratio": 0.5, "seed": 0}
    return Text(path=path and str(path), **{**defaults, **choices})


def both(corpus: Text | Shakespeare) -> tuple[list[str], list[str]]:
    return list(corpus.documents("train")), list(corpus.documents("validation"))


def test_text_from_files_folders_and_globs_absolute_relative_and_under_home(tmp_path, monkeypatch):
    """Without blank files, a folder, and hidden files and folders, unless the path names them."""
    for name in ("b.txt", "a/z.txt", "a/y/x.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f" {name}\n")
    for name, content in {"0.txt": "", "blank.txt": " \n\t\n"}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "c.txt").mkdir()
    for name in (".ipynb_checkpoints/b-checkpoint.txt", "a/.git/z.txt", "._b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hidden")
    assert text(tmp_path).fingerprint()
    assert both(text(tmp_path / ".ipynb_checkpoints")) == both(text(tmp_path / ".*" / "*.txt")) == (["hid"], ["den"])
    assert both(text(tmp_path)) == ([" a/y/x.txt\n", " a/z.txt\n"], [" b.txt\n"])
    assert both(text(tmp_path / "**" / "[xz].txt")) == ([" a/y/x.txt\n"], [" a/z.txt\n"])
    assert both(text(tmp_path / "*.[tm]?*", train_ratio=0.1)) == ([" b.txt\n"], [" notes.md\n"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "notes.md", "notes.md", "*.md", "~/notes.md", "~/*.md"):
        assert both(text(path)) == ([" note"], ["s.md\n"])
    assert both(text(".")) == both(text(tmp_path))


def test_text_with_separator_byte_order_mark_line_ends_and_unusual_characters(tmp_path):
    """NUL, control characters and a second byte order mark stay."""
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf\r\n one\r\ntwo \r<|end|>\n <|end|><|end|>three<|end|>f\xc3\xbcnf<|end|>\n")
    assert both(text(file, separator="<|end|>", train_ratio=0.6)) == (["one\ntwo", "three"], ["fünf"])
    odd = "a\0b \x01\x1b \ufeff \U0001f642"
    file.write_bytes(b"\xef\xbb\xbf" + odd.encode() + b"\r\none\rtwo\nthree\r\n")
    (tmp_path / "b.txt").write_text("last")
    assert both(text(tmp_path)) == ([odd + "\none\ntwo\nthree\n"], ["last"])


@pytest.mark.parametrize("separator", ["a", "ab", "aa", "aab", "\n\n"])
def test_split_stream_equals_split(separator):
    for content in ("", "a", "ab", "aab", "xababy", "aaaaa", "ab" * 50 + "a", "xyz" * 40, "a\nab\n\nab\n\n\n"):
        for characters in (1, 2, 3, 7, 1000):
            chunks = [content[i : i + characters] for i in range(0, len(content), characters)]
            assert list(split_stream(chunks, separator)) == content.split(separator)


def test_a_long_text_without_its_separator_takes_linear_time(tmp_path, capsys):
    started = time.monotonic()
    assert len(list(split_stream(["never a line "] * 50_000, "<|end|>"))) == 1
    assert time.monotonic() - started < 2  # 20 seconds if every chunk copies the earlier ones
    (tmp_path / "long.txt").write_text("never a line")
    assert both(text(tmp_path / "long.txt", separator="<|end|>")) == (["never "], ["a line"])
    assert "is one document, without '<|end|>' between texts" in capsys.readouterr().err


@pytest.mark.parametrize(("separator", "count"), [(None, 1), ("<|end|>", 2), ("<|endoftext|>", 0)])
def test_a_separator_that_is_not_given_is_in_a_warning(tmp_path, capsys, separator, count):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two<|end|>three<|endoftext|>four")
    both(text(tmp_path, separator=separator, train_ratio=0.5))
    warning = f"warning: <|endoftext|> in {count} of {count} documents"
    assert capsys.readouterr().err.count(warning) == (count > 0)


def test_contiguous_documents_are_not_divided_and_both_splits_have_one(tmp_path):
    file = tmp_path / "a.txt"
    for count, ratio, train in ((2, 0.01, 1), (2, 0.99, 1), (3, 0.5, 2), (10, 0.95, 9), (10, 0.74, 7), (100, 0.95, 95)):
        file.write_text("|".join(map(str, range(count))))
        first, second = both(text(file, separator="|", train_ratio=ratio))
        assert first + second == [str(i) for i in range(count)]
        assert len(first) == train


def test_a_seeded_split_depends_on_seed_and_index_alone(tmp_path):
    def validation(documents: int, seed: int) -> list[int]:
        (tmp_path / "a.txt").write_text("|".join(map(str, range(documents))))
        train, validation = both(text(tmp_path / "a.txt", separator="|", split="seeded", train_ratio=0.9, seed=seed))
        assert sorted(map(int, train + validation)) == list(range(documents))
        return [int(document) for document in validation]

    drawn = validation(5_000, seed=0)
    assert 400 < len(drawn) < 600
    assert validation(2_500, seed=0) == [index for index in drawn if index < 2_500]
    assert validation(5_000, seed=1) != drawn
    assert drawn[:6] == [15, 44, 46, 76, 87, 99], "a golden sample, equal on every machine and in every version"


TEXT_ERRORS = {
    "null": (None, {}, r"data.path is missing: give data\.path=<file, folder or glob>"),
    "missing": ("tiny.txt", {}, "does not exist, did you mean .*tinny.txt"),
    "pipe": ("pipe", {}, "pipe is neither a file nor a folder: leave it out"),
    "unreadable": ("/proc/self/mem", {}, "mem cannot be read: Input/output error"),
    "link to nothing": ("gone", {}, "gone does not exist$"),
    "odd glob": ("a**b", {}, r"a\*\*b: no file matches"),
    "long name": ("x" * 300, {}, "xxx cannot be read: File name too long"),
    "unknown user": ("~nobody-of-that-name/x.txt", {}, "does not exist"),
    "missing folder": ("no/where/tiny.txt", {}, "does not exist$"),
    "glob": ("*.xml", {}, "no file matches"),
    "folder": ("folder", {}, r"no \*\.txt file in the folder, compressed or not; '\S*folder/\*' names any file"),
    "blank": ("blank.txt", {}, "is empty"),
    "only separators": ("dots.txt", {"separator": "."}, "is empty"),
    "too short": ("one.txt", {}, "too short"),
    "too short after the cut": ("padded.txt", {}, "too short"),
    "too few for a draw": ("tinny.txt", {"separator": " ", "split": "seeded", "train_ratio": 0.999}, "too short"),
    "one for a draw": ("tinny.txt", {"split": "seeded"}, "data.separator, more documents or data.split=contiguous"),
    "separator": ("tinny.txt", {"separator": ""}, "data.separator is empty"),
    "split": ("tinny.txt", {"split": "random"}, "data.split=random must be"),
    "ratio 0": ("tinny.txt", {"train_ratio": 0.0}, "data.train_ratio=0.0 must be"),
    "ratio 1": ("tinny.txt", {"train_ratio": 1}, "data.train_ratio=1 must be"),
}


@pytest.mark.parametrize("case", TEXT_ERRORS)
def test_text_errors_come_before_the_first_document(tmp_path, case):
    contents = {"tinny": "two words", "blank": " \n", "dots": ". ..\n.", "one": "a", "padded": "a   "}
    for name, content in contents.items():
        (tmp_path / f"{name}.txt").write_text(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.md").write_text("a")
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    path, choices, message = TEXT_ERRORS[case]
    if path and not path.startswith(("/", "~")):
        path = tmp_path / path
    with mistake(message):
        corpus = text(path, **choices)
        corpus.fingerprint()  # the first call of a training
        next(corpus.documents("train"))


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content)


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    buffer, entry = io.BytesIO(), tarfile.TarInfo("a.txt")
    entry.size = len(content)
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


STORY = "One day, a cat sat on a mat.\n" * 40
FOREIGN = {  # name of a file -> (its content, the remedy)
    "stories.jsonl": (
        b'{"text": "a"}\n',
        r"is a \.jsonl file, not plain text: give data=files data\.path=.*; or rename it to \.txt",
    ),
    "stories.NDJSON": (b'{"text": "a"}\n', r"give data=files data\.path="),
    "stories.json": (b'[{"text": "a"}]', r"give data=files data\.path="),
    "stories.csv": (b"text\na\n", r"give data=files data\.path="),
    "stories.parquet": (b"PAR1", r"give data=files data\.path="),
    "page.HTML": (b"<html><p>One day.</html>", "is a .html file, not plain text: save it .* or rename it to .txt"),
    "notes.ipynb": (b'{"cells": []}', "is a .ipynb file, not plain text"),
    "parquet": (
        b"PAR1" + bytes(100),
        r"is a parquet file, not plain text: give it the suffix \.parquet",
    ),
    "a.txt": (gzipped(zipped(STORY.encode())), "archive or office document"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c", "is an archive, not plain text: unpack it first"),
    "h.txt": (gzipped(STORY.encode())[:-9], "is damaged or cut off, copy it again: Compressed file ended before"),
    "b.docx": (zipped(STORY.encode()), "archive or office document .*save it as plain text in UTF-8"),
    "c.txt": (tarred(STORY.encode()), "binary or UTF-16 without a byte order mark, by its NUL bytes"),
    "d.pdf": (b"%PDF-1.4\n1 0 obj\n", "is a PDF document, not plain text: extract its text"),
    "e.rtf": (rb"{\rtf1 One day}", "is an RTF document"),
    "g.txt": (STORY.encode("utf-16-le"), "by its NUL bytes: .*give data=files data.encoding=utf-16-le"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_not_plain_text_is_refused_with_a_remedy(tmp_path, name):
    content, remedy = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path / f"{name[:2]}*"):
        with mistake(rf"{re.escape(name)} .*{remedy}"):
            text(path).fingerprint()
        with mistake(rf"{re.escape(name)} .*{remedy}"):
            next(text(path).documents("train"))


def test_nothing_below_a_folder_is_left_out_silently(tmp_path, request):
    """Links are followed, each folder once; whatever cannot be read is named."""
    for name in ("in/a.txt", "in/sub/b.TXT", "out/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "loop").symlink_to(tmp_path / "in")
    for path in (tmp_path / "in", tmp_path / "in" / "**" / "*.[tT]*"):
        train, validation = both(text(path))
        assert train + validation == ["in/a.txt", "out/c.txt", "in/sub/b.TXT"]

    odd = tmp_path / "in" / "sub" / "odd.txt"
    for make, problem in (
        (lambda: odd.symlink_to("nowhere"), "odd.txt is a link to nowhere, which does not exist"),
        (lambda: odd.symlink_to("odd.txt"), "odd.txt .*(link to odd.txt|Too many levels)"),
        (lambda: os.mkfifo(odd), "odd.txt is neither a file nor a folder"),
    ):
        make()
        for path in (tmp_path / "in", tmp_path / "in" / "*" / "*.txt"):
            with mistake(problem):
                text(path).fingerprint()
        odd.unlink()


def test_a_folder_or_file_without_permission_is_named():
    """Root, for whom permissions do not hold, becomes nobody."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("a.txt", "sub/b.txt"):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text("text")
        folder.chmod(0o755)
        for closed in (folder / "sub", folder / "a.txt"):
            mode = closed.stat().st_mode
            closed.chmod(0)
            try:
                os.seteuid(65534 if root else os.geteuid())
                for path in (folder, folder / "*" / "*.txt", folder / "**" / "*.txt")[: 3 if closed.is_dir() else 1]:
                    with mistake(f"{closed} cannot be read: Permission denied") as error:
                        text(path).fingerprint()
                    assert error.value.exit_code == 4
            finally:
                os.seteuid(0 if root else os.geteuid())
                closed.chmod(mode)


@pytest.mark.parametrize("separator", [None, "|"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("before", "wrong"),
    [
        (0, b"\xff"),
        (3, b"\xed\xa0\x80"),
        (8191, b"\xc3("),
        (8190, b"\xf0\x9f("),
        (3_000_000, b"\xff"),
        (5, b"\xe2\x82"),
    ],
)
def test_an_error_of_utf8_names_file_and_offset(tmp_path, separator, mark, before, wrong):
    (tmp_path / "a.txt").write_text("fine")
    file = tmp_path / "b.txt"
    file.write_bytes(mark + b"x" * before + wrong)
    with mistake(rf"b\.txt is not UTF-8 at byte {len(mark) + before} \(0x{wrong[0]:x}\): give data=files"):
        next(text(tmp_path, separator=separator).documents("train"))


def test_the_fingerprint_of_text_changes_only_with_the_documents(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("a|b")
        (tmp_path / folder / "b.txt").write_text("c|d")
    os.utime(tmp_path / "two" / "a.txt", (1, 1))
    fingerprint = text(tmp_path / "one").fingerprint()
    assert text(tmp_path / "two").fingerprint() == fingerprint
    assert text(tmp_path / "one" / "*.txt", seed=1).fingerprint() == fingerprint, "a contiguous split has no seed"
    changes = [{"separator": "|"}, {"train_ratio": 0.6}, {"split": "seeded"}, {"split": "seeded", "seed": 1}]
    (tmp_path / "two" / "a.txt").write_text("a|")
    (tmp_path / "two" / "b.txt").write_text("bc|d")
    others = [text(tmp_path / "one", **change).fingerprint() for change in changes]
    assert len({fingerprint, *others, text(tmp_path / "two").fingerprint()}) == 6


# JSON Lines


def json_lines(path: Path, key: str = "text") -> JsonLines:
    return JsonLines(path=str(path), key=key, split="contiguous", train_ratio=0.5, seed=0)


def test_json_lines_are_documents(tmp_path):
    lines = [{"text": " one\ntwo\u2028"}, {"text": " "}, {"id": 7, "text": "é", "other": "x"}, {"text": "three"}]
    content = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{content}\n\n".encode())
    (tmp_path / "a.jsonl").write_text('{"text": "zero", "other": "y"}')
    (tmp_path / "c.txt").write_text("no JSON")
    corpus = json_lines(tmp_path)
    assert both(corpus) == (["zero", " one\ntwo\u2028"], ["é", "three"])
    assert len({corpus.fingerprint(), json_lines(tmp_path, "other").fingerprint(), text(tmp_path).fingerprint()}) == 3


OBJECT = "is not a JSON object, but "
JSON_LINES = {  # a line -> the message
    "{": OBJECT + ".*; each line must be a complete object, or the file one array of objects",
    '["text"]': OBJECT + '.*"text".*; each line must',
    "[" * 2000: OBJECT + r"\[+.*; each line must be a complete object",
    '{"text":' * 100_000: "; each line must be a complete object",
    "7": OBJECT + "7",
    '"text"': OBJECT + '"text"',
    "One day.": OBJECT + "One day",
    '{"txt": "a", "id": NaN}': "has no column 'text': its columns are txt, id; give data.key=txt",
    "{}": "its columns are none; give data.key=<one of them>",
    '{"text": 7}': "has a value of type int in column 'text': data.key needs text",
    '{"text": ["a"]}': "has a value of type list in column 'text'",
    '{"text": "\\ud800"}': "has half of a surrogate pair in its text",
}


@pytest.mark.parametrize("line", JSON_LINES, ids=lambda line: line[:12])
def test_a_wrong_json_line_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'\ufeff{{"text": "one"}}\n\n{line}\n')
    with mistake(rf"a\.jsonl line 3 .*{JSON_LINES[line]}"):
        next(json_lines(tmp_path).documents("train"))


def test_json_lines_under_other_names_are_read_and_other_files_refused(tmp_path):
    for name in ("a.json", "b.ndjson", "c.txt"):
        (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
        assert both(json_lines(tmp_path / name)) == (["one"], ["two"])
    for name in ("d.csv", "e.parquet"):
        (tmp_path / name).write_text("text\none\n")
        with mistake(r"not JSON Lines: give data=files data\.path=.*(csv|parquet)$"):
            json_lines(tmp_path / name).fingerprint()


# Shakespeare


def tiny_shakespeare(cache: Path, path: Path | None = None, url: str = "http://127.0.0.1:9/input.txt") -> Shakespeare:
    return Shakespeare(path=path and str(path), url=url, cache=str(cache), train_ratio=0.95)


def test_shakespeare_is_downloaded_once_and_split_at_95_percent(tmp_path):
    if not SHAKESPEARE.exists():
        pytest.skip(f"needs {SHAKESPEARE}")
    local = tiny_shakespeare(tmp_path, path=SHAKESPEARE)
    (train,), (validation,) = both(local)
    assert (len(train), len(validation)) == (1_059_624, 55_770)
    assert train + validation == SHAKESPEARE.read_text(encoding="utf-8")
    with Server(parts=[SHAKESPEARE.read_bytes()]) as server:
        corpus = tiny_shakespeare(tmp_path, url=f"{server.endpoint}/input.txt")
        assert both(corpus) == both(local)
        assert corpus.fingerprint() == local.fingerprint()
        assert len(server.requests) == 1
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["input.txt"], "a partial file is left"


def test_another_download_than_shakespeare_is_not_kept(tmp_path):
    remedy = re.escape(f"place the file at {tmp_path}/shakespeare/input.txt")
    with Server(parts=[b"Please log in."]) as server, mistake(f"is not tiny Shakespeare.*{remedy}"):
        next(tiny_shakespeare(tmp_path, url=server.endpoint).documents("train"))
    with mistake(rf"http://127\.0\.0\.1:9/input\.txt.*{remedy}"):
        tiny_shakespeare(tmp_path).fingerprint()
    assert list(tmp_path.iterdir()) == []


# The YAML files


def test_yaml_builds_its_corpus_without_heavy_imports(tmp_path):
    names = "tinystories", "shakespeare", "text", "jsonl", "files"
    for name in names:
        data = OmegaConf.load(PROJECT / "conf" / "data" / f"{name}.yaml")
        data.path = str(tmp_path / "absent")
        corpus = instantiate(OmegaConf.create({"cache_dir": str(tmp_path), "data": data}).data.corpus)
        with mistake("absent"):
            corpus.fingerprint()
    imports = ", ".join(f"slm.corpora.{name}" for name in names)
    code = f"import sys, {imports}; print({{'torch', 'datasets', 'pyarrow', 'huggingface_hub'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True) == "set()\n"
