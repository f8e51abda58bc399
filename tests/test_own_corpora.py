"""data=files: every format, encoding and split of one's own texts, and each mistake in one line."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT, mistake

from slm.corpora import file_digests, rows
from slm.corpora.files import Files
from slm.corpora.jsonl import JsonLines
from slm.corpora.template import Template
from slm.corpora.text import Text
from slm.data.store import prepare
from slm.errors import UserError
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

TEXTS = ['Über allen Gipfeln\nist Ruh\', "in" allen', "红楼梦\u2028第一回", "a 😀👩‍👩‍👧 b; c\td", "the\u0085 end"]
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".BZ2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: (
        pyarrow.compress(content[:50], "zstd", asbytes=True) + pyarrow.compress(content[50:], "zstd", asbytes=True)
    ),  # two frames, as of pzstd
}


def files(path: Path | str, **choices) -> Files:
    defaults = {"split": "contiguous", "train_ratio": 0.5, "seed": 0, "column": "text"}
    return Files(path=str(path), **{**defaults, **choices})


def both(corpus: Files) -> tuple[list[str], list[str]]:
    return list(corpus.documents("train")), list(corpus.documents("validation"))


def table(delimiter: str, texts: list[str] = TEXTS, end: str = "\r\n") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    writer.writerows([["id", "text"], *enumerate(texts)])
    return out.getvalue().encode()


def parquet(columns: dict) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out, row_group_size=3)
    return out.getvalue()


ROWS = [{"id": index, "text": text} for index, text in enumerate(TEXTS)]
FORMATS = {  # name of a file -> its content with TEXTS
    "a.txt": "|".join(TEXTS).encode(),
    "a.md": "|".join(TEXTS).replace("\n", "\r\n").encode("utf-16"),
    "a.jsonl": "\r\n".join(map(json.dumps, ROWS)).encode(),
    "a.ndjson": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode("utf-8-sig"),
    "a.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "a.csv": table(","),
    "b.csv": table(";", end="\n"),
    "a.tsv": table("\t"),
    "a.parquet": parquet({"id": [*range(4)], "text": TEXTS}),
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, name, compression, monkeypatch):
    """German, Chinese and emoji, in chunks and batches that divide characters, objects and fields."""
    monkeypatch.setattr("slm.corpora.decoded.CHUNK_CHARACTERS", 7)
    monkeypatch.setattr(rows, "BATCH_ROWS", 3)
    path = tmp_path / (name + compression)
    path.write_bytes(COMPRESS[compression](FORMATS[name]))
    corpus = files(tmp_path, separator="|")
    if name == "a.parquet" and compression:
        with mistake("is compressed twice: unpack it first"):
            corpus.fingerprint()
        return
    assert both(corpus) == (TEXTS[:2], TEXTS[2:])
    corpus.fingerprint()
    assert list(corpus.digests) == [path.name]


def test_a_template_joins_columns_and_a_row_with_a_null_has_no_text():
    template = Template("ignored", "{title}\\n\\n{a.b} {{{score}}}")
    assert template.columns == ("title", "a.b", "score")
    row = {"title": "Ü", "a.b": "x", "score": 7, "other": [1]}
    assert template.text(row, "a line 1") == "Ü\n\nx {7}"
    assert template.text({**row, "score": None}, "a line 1") is None
    assert Template("title", None).text({"title": " as it is\n"}, "a line 1") == " as it is\n"
    assert Template("title", None).text({"title": None}, "a line 1") is None


@pytest.mark.parametrize(
    ("column", "template", "row", "message"),
    [
        (None, None, {}, "data.column and data.template are null"),
        (
            "txt",
            None,
            {"text": "a", "id": 1},
            "3 has no column 'txt': its columns are text, id; give data.column=text",
        ),
        ("x", None, {}, "its columns are none"),
        (
            "text",
            None,
            {"text": ["a"]},
            "a row 3 has a value of type list in column 'text': data.column needs text; write",
        ),
        ("text", None, {"text": {"de": "a"}}, "a row 3 has a value of type dict in column 'text'"),
        (
            "id",
            None,
            {"text": "a", "id": 1},
            "a row 3 has a value of type int in column 'id': data.column needs text; or data.template='{id}'",
        ),
        ("text", None, {"text": "\ud800"}, "a row 3 has half of a surrogate pair"),
        (None, "{text", {}, "expected '}'"),
        (None, "text", {}, "names no column"),
        (None, "{}", {}, "must name columns"),
        (None, "{a!r}", {}, "without formats"),
        (None, "{a} {b}", {"a": "x", "bc": {}}, "no column 'b': its columns are a, bc; did you mean {bc}?"),
    ],
)
def test_a_wrong_column_or_template_is_named(column, template, row, message):
    with pytest.raises(UserError) as error:
        Template(column, template).text(row, "a row 3")
    assert message in str(error.value)


MALFORMED = {  # name -> (content, settings, message)
    "cut.json": (b'[{"text": "one"}, {"text": "tw', {}, "cut.json object 2 of the array .*Unterminated string"),
    "open.json": (b'[{"text": "one"}', {}, "object 2 of the array .*the array has no end"),
    "comma.json": (
        b'[{"text": "one"} {"text": "two"}]' + b" " * 100,
        {},
        'object 2 of the array .*{"text": "two"}.* follows',
    ),
    "after.json": (b'[{"text": "one"}] 7', {}, "object 2 of the array .*7 follows"),
    "list.json": (b'[{"text": "one"}, ["two"]]', {}, r"object 2 of the array .*\["),
    "quote.json": (
        b'[{"text": "one"}, {"text" "two"}, {"text": "three"}]',
        {},
        "object 2 of the array .*Expecting ':'",
    ),
    "deep.json": (b'[{"text": "one"}, {"text": ' + b"[" * 10**5, {}, "object 2 of the array .*recursion"),
    "whole.json": (
        b'{\n"data": []\n}',
        {},
        "line 1 is not a JSON object, but { .*; each line .* one array of",
    ),
    "blank.jsonl": (b" \n\r\n ", {}, "blank.jsonl is empty: it contains only white space"),
    "brace.jsonl": (b'{"text": "one"}\n{"text": "two"\n', {}, r"line 2 .*two. \(column 15: Expecting ',' delimiter"),
    "half.jsonl": (b'{"text": "one"}\n{"text": "\\udc00"}', {}, "half.jsonl line 2 has half of a surrogate pair"),
    "few.csv": (b'id,text\n1,"a\nb"\n\n2\n', {}, "few.csv line 5 has 1 fields instead of 2"),
    "quote.csv": (b'id,text\n1,a\n2,"b\n3,c\n', {}, "quote.csv line 3 is not CSV: unexpected end of data"),
    "names.csv": (b"One day,a cat\n", {}, "names.csv line 1 has no column 'text': its columns are One day, a cat"),
    "semicolon.csv": (b"id;te,xt;z\n1;a\n", {}, "line 1 has no column 'text': its columns are id, te,xt, z; give"),
    "twice.tsv": (b"text\ttext\na\tb\n", {}, "twice.tsv line 1 has 2 columns 'text'"),
    "empty.csv": (b"", {}, "empty.csv line 1 has no column 'text': its columns are none"),
    "no.parquet": (b"PAR1 and no table", {}, "no.parquet after row 0 is not parquet, or damaged"),
    "column.parquet": (parquet({"txt": ["a"]}), {}, "column.parquet has no column 'text': .*give data.column=txt"),
    "nested.parquet": (parquet({"text": [["a"], ["b"]]}), {}, "nested.parquet row 1 has a value of type list"),
    "number.parquet": (parquet({"text": [1, 2]}), {}, "nu.* row 1 has a value of type int in column 'text'"),
    "bytes.parquet": (parquet({"text": [b"a"]}), {"template": "{text}"}, "row 1 has a value of type bytes"),
    "latin.txt": (
        "größer".encode("latin-1"),
        {},
        r"is not UTF-8 at byte 2 \(0xf6\): .*give data=files data.encoding=<its encoding, such as latin-1",
    ),
    "cp.csv": ("text\ngrö\x81".encode("latin-1"), {"encoding": "cp1252"}, r"is not CP1252 at byte 8 \(0x81\)"),
    "odd.txt": ("größer".encode("utf-16")[:-1], {}, "odd.txt is not UTF-16 at byte"),
    "cut.txt.gz": (gzip.compress(bytes(range(65, 91)) * 9999)[:-20], {}, "is damaged or cut off, copy it again"),
    "cut.txt.zst": (pyarrow.compress(b"abc" * 9999, "zstd", asbytes=True)[:-2], {}, "cannot be read: Truncated"),
    "crc.txt.gz": (gzip.compress(b"abc" * 9999)[:-8] + bytes(8), {}, "cannot be read: CRC check failed"),
    "cut.txt.xz": (lzma.compress(b"abc" * 9999)[:-9], {}, "is damaged or cut off, copy it again"),
    "a.arrow": (b"ARROW1", {}, "a.arrow is a .arrow file, not plain text: convert it with datasets.load_dataset"),
    "c.txt": (b"a b", {"encoding": "latin-0"}, "data.encoding=latin-0 is not known"),
    "d.txt": (b"a b", {"encoding": "hex"}, "data.encoding=hex is not known"),
    "e.csv": (b"text\na\nb", {"template": "{a"}, "data.template='{a': expected '}'"),
    "f.csv": (b"text\na\nb", {"column": None}, "data.column and data.template are null"),
    "g.txt": (b"a b", {"split": "files"}, "data.split=files needs at least two files, and there is only g.txt"),
    "h.txt": (
        b"a b",
        {"validation_files": "dev*"},
        "data.validation_files=dev.* needs data.split=files, not contiguous",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_named_with_line_or_row_before_the_first_document(tmp_path, name):
    content, choices, message = MALFORMED[name]
    (tmp_path / name).write_bytes(content)
    with mistake(message):
        next(files(tmp_path / name, **choices).documents("train"))


def test_what_is_skipped_and_changed_is_counted_and_said_once(tmp_path, capsys):
    (tmp_path / "a.csv").write_bytes(b'id,text\r\n1,one\r\n2,\r\n3,"two\r\n2"\r\n')
    (tmp_path / "b.jsonl").write_bytes(b'{"text": null}\r\n\r\n{"text": "three\\r\\n"}\n{"text": " "}')
    (tmp_path / "c.parquet").write_bytes(parquet({"text": ["four", None, ""], "id": [None, 1, 2]}))
    corpus = files(tmp_path)
    assert both(corpus) == (["one", "two\n2"], ["three\r\n", "four"])
    expected = "4 documents: skipped 2 null rows and 3 blank documents; 5 line ends \\r\\n or \\r became \\n\n"
    assert capsys.readouterr().err == f"data.path={tmp_path}, {expected}"
    corpus = files(tmp_path / "c.parquet", template="{id}: {text}")
    assert list(corpus.all_documents()) == ["2: "], "a row is null if one of its columns is"


def test_a_file_in_utf8_among_others_is_noticed(tmp_path, capsys):
    for name, encoding in {"a.txt": "latin-1", "b.md": "utf-8", "c.csv": "utf-8-sig", "d.jsonl": "latin-1"}.items():
        (tmp_path / name).write_bytes(('{"text": "' + "größer " * 99 + '"}').encode(encoding))
    with contextlib.suppress(UserError):
        next(files(tmp_path, encoding="latin-1").documents("train"))
    assert "b.md (1 of 4 files) is UTF-8, but is read as iso8859-1 (data.encoding)" in capsys.readouterr().err


def test_blank_parts_between_separators_are_counted_and_a_table_beside_prose_is_noticed(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one\n---\n\n---\ntwo\n---\n")
    (tmp_path / "b.tsv").write_text("text\tid\nthree\t1\n")
    assert both(files(tmp_path, separator="---")) == (["one", "two"], ["three"])
    warning, notes = capsys.readouterr().err.splitlines()
    assert "holds plain text (1 of 2 files) and rows, and all are read" in warning
    assert notes.endswith("3 documents: skipped 1 blank document")


def test_a_split_by_files_is_drawn_or_named(tmp_path):
    for name in ("train/a.txt", "train/b.txt", "dev/c.txt", "dev/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name} 1|{name} 2")
    train, validation = both(files(tmp_path, separator="|", split="files", validation_files="dev/*"))
    assert {name[:3] for name in train} == {"tra"}
    assert len(train) == 4
    assert {name[:3] for name in validation} == {"dev"}

    drawn = [files(tmp_path, separator="|", split="files", train_ratio=0.9, seed=seed) for seed in range(20)]
    for corpus in drawn:
        train, validation = both(corpus)
        assert (len(train), len(validation)) == (6, 2)
        assert len({document[:-2] for document in validation}) == 1, "a file is in one split"
    assert len({tuple(corpus.documents("validation")) for corpus in drawn}) == 4, "the seed draws"
    for pattern, count in (("*", "all"), ("x*", "none")):
        with mistake(f"data.validation_files=.* matches {count} of the 4 files, such as dev/c.txt"):
            next(files(tmp_path, split="files", validation_files=pattern).documents("train"))
    named = [files(tmp_path, split="files", validation_files=pattern) for pattern in ("dev/*", "*a.txt", "[d]*")]
    first, second, third = (corpus.fingerprint() for corpus in named)
    assert first == third != second


def test_a_file_is_hashed_again_only_if_it_may_have_changed(tmp_path, monkeypatch):
    """Also where size and time of writing are the old ones; a file that was written just now is."""
    path, read, cache = tmp_path / "a.txt", [], tmp_path / "cache"
    digest = file_digests.atomic.sha256
    monkeypatch.setattr(file_digests.atomic, "sha256", lambda file: read.append(file.name) or digest(file))
    path.write_text("a first text")
    assert files(path, cache=str(cache)).fingerprint() == files(path, cache=str(cache)).fingerprint()
    assert read == ["a.txt"] * 2
    monkeypatch.setattr(file_digests, "RECENT", 0)
    time.sleep(0.02)  # the clock of a file system
    before = files(path, cache=str(cache)).fingerprint()
    assert files(path, cache=str(cache)).fingerprint() == before
    assert read == ["a.txt"] * 3
    written = path.stat().st_mtime_ns
    path.write_text("a fresh text")
    os.utime(path, ns=(written, written))
    assert files(path, cache=str(cache)).fingerprint() != before
    (kept,) = (cache / "digests").iterdir()
    for damage in ("[1]", f'{{"{path}": []}}', f'{{"{path}": 1}}', "{"):
        kept.write_text(damage)
        kept.with_name(f"{kept.name}.1.partial").touch()  # of a killed process
        assert files(path, cache=str(cache)).fingerprint() != before
        assert list(kept.parent.iterdir()) == [kept]


def test_the_recipe_for_chats_gives_texts(tmp_path):
    """Of both usual forms, as the page prints it; without it a list is refused in one line."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (recipe,) = (block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "conversations" in block)
    (tmp_path / "chats.py").write_text(recipe, encoding="utf-8")
    turns = [("user", "Where is the cät? "), ("assistant", "On the\nroof."), ("user", None)]
    chats = [
        {"messages": [{"role": who, "content": said} for who, said in turns]},
        {"conversations": [{"from": who, "value": said} for who, said in turns], "id": 2},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(f"{json.dumps(chat)}\n" for chat in chats))
    command, environment = [sys.executable, tmp_path / "chats.py"], {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(command, input=path.read_bytes(), capture_output=True, env=environment, check=True)
    (tmp_path / "texts.jsonl").write_bytes(done.stdout)
    expected = ["user: Where is the cät?\n\nassistant: On the\nroof."]
    assert both(files(tmp_path / "texts.jsonl")) == (expected, expected)
    with mistake("line 1 has a value of type list in column 'messages': data.column needs text"):
        both(files(path, column="messages"))


def test_a_cache_below_the_path_is_no_corpus(tmp_path):
    for name in ("a.txt", "cache/b.txt", "cache/deep/c.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a text")
    cache = str(tmp_path / "cache")
    assert [file.name for file in files(tmp_path, cache=cache).files()] == ["a.txt"]
    assert [file.name for file in files(tmp_path / "**" / "*.txt", cache=cache).files()] == ["a.txt"]
    assert [file.name for file in files(tmp_path / "cache" / "*.txt", cache=cache).files()] == ["b.txt"]
    with mistake("has only files of cache_dir=.*, which are left out"):
        files(tmp_path / "*" / "b.txt", cache=cache).files()


def test_presets_keep_the_names_of_their_caches(tmp_path):
    """The digests are those of version 0.2."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo|three|four|five")
    (tmp_path / "sub" / "b.txt").write_text("six|seven|acht \u00e9|nine")
    (tmp_path / "c.jsonl").write_text('{"text":"one","x":"y"}\n\n{"text":"two","x":"z"}\n')
    place = {"path": str(tmp_path), "train_ratio": 0.5}
    text = Text(**place, separator="|", split="seeded", seed=3)
    assert text.fingerprint() == "793bba50ea529e7ec9d8d52fc198e4ccc07757b9c6d6483f356d85644e2702c0"
    lines = JsonLines(**place, key="x", split="seeded", seed=3)
    assert lines.fingerprint() == "997431b0e27e76861c77c2009a4def161e6817bc12e366b7943280e0452c70e4"
    same = files(tmp_path / "**" / "*.txt", separator="|", split="seeded", seed=3)
    assert same.fingerprint() == text.fingerprint(), "data=files of plain text finds the store of data=text"
    choices = [{}, {"column": "id"}, {"template": "{text}"}, {"encoding": "latin-1"}, {"split": "files"}]
    assert len({files(tmp_path, **choice).fingerprint() for choice in choices}) == 5
    (tmp_path / "c.jsonl").rename(tmp_path / "c.csv")
    assert files(tmp_path).fingerprint() != files(tmp_path / "*.txt").fingerprint()


LANGUAGES = {
    "german": "Wer reitet so spät durch Nacht und Wind? Es ist der Vater mit seinem Kind; größer, süßer, Straße.",
    "chinese": "道可道，非常道。名可名，非常名。無名天地之始；有名萬物之母。𠀀𪚥",
    "emoji": "👩‍👩‍👧‍👦 loves 🏳️‍🌈 and 🇩🇪, e\u0301 is not é, \u200d\ufeff\U0001f600\t\u00a0.",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_ids_on_disk_decode_to_the_documents(tmp_path, language):
    words = LANGUAGES[language].split(" ")
    texts = [f"{index} {' '.join(words[index % len(words) :])}\n" for index in range(40)]
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(table(";", texts, end="\n")))
    corpus = files(tmp_path / "a.csv.gz")
    settings = {"vocab_size": 320, "algorithm": "bpe", "sample_documents": 1000, "seed": 0}
    tokenizer = SentencePieceTokenizer.build(corpus.documents("train"), **settings)
    store = prepare(corpus, tokenizer, tmp_path / "cache")
    found = []
    for split in ("train", "validation"):
        ids = np.concatenate(store.shards(split))
        found += [tokenizer.decode(part[:-1]) for part in np.split(ids, np.flatnonzero(ids == tokenizer.eos) + 1)[:-1]]
        assert store.manifest["splits"][split]["lost_bytes"] == 0
    assert found == texts
