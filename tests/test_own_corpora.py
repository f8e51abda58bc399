"""data=files: every format, encoding and split of one's own texts, and each mistake in one line."""

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import mistake

from slm.corpora import rows
from slm.corpora.files import Files
from slm.corpora.template import Template
from slm.errors import UserError

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
        ("text", None, {"text": ["a"]}, "a row 3 has a value of type list in column 'text': data.column needs text"),
        ("text", None, {"text": {"de": "a"}}, "a row 3 has a value of type dict in column 'text'"),
        ("id", None, {"text": "a", "id": 1}, "a row 3 has a value of type int in column 'id': data.column needs text"),
        ("text", None, {"text": "\ud800"}, "a row 3 has half of a surrogate pair"),
        (None, "{text", {}, "expected '}'"),
        (None, "text", {}, "names no column"),
        (None, "{}", {}, "must name columns"),
        (None, "{a!r}", {}, "without formats"),
        (None, "{a} {b}", {"a": "x", "bc": {}}, "no column 'b': its columns are a, bc; give data.template=...{bc}..."),
    ],
)
def test_a_wrong_column_or_template_is_named(column, template, row, message):
    with pytest.raises(UserError) as error:
        Template(column, template).text(row, "a row 3")
    assert message in str(error.value)
