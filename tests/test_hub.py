"""data=hub and its presets against a server like the Hub: layouts, splits, limits, mistakes, a killed preparation."""

import csv
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from conftest import ROOT
from hub import Hub, Hubs

TEXTS = [f"Story {number}: the cat sat, \u00e4\u2028 and the end." for number in range(40)]
ARTICLES = [f"= Title {number} = \n\n Words of {number} . \n\n = = Part = = \n\n More ." for number in range(6)]
LINES = [f"  line {number} of a talk" for number in range(250)]


def table(**columns: list) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def readme(*configurations: tuple[str, dict[str, str]]) -> bytes:
    """The YAML head of a README."""
    lines = ["---", "configs:"]
    for name, splits in configurations:
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    return "\n".join([*lines, "---", ""]).encode()


def wiki(articles: list[str]) -> bytes:
    """Rows are lines, each with its line end, after an empty one."""
    return table(text=["", *(f" {line.strip()} \n" if line else "" for text in articles for line in text.split("\n"))])


def records(texts: list[str | None]) -> bytes:
    lines = (json.dumps({"title": f"T{i}", "text": text, "tags": ["a"]}) for i, text in enumerate(texts))
    return "\n".join(lines).encode()


def comma_separated(texts: list[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["title", "text"], *([f"T{i}", text] for i, text in enumerate(texts))])
    return buffer.getvalue().encode()


MARKED = "\n<|endoftext|>\n".join([*TEXTS[:20], ""]).encode()
FILES = {  # repository -> its files, in the layout of the Hub
    "SimpleStories/SimpleStories": {
        "README.md": readme(("default", {"train": "data/train-*", "test": "data/test-*"})),
        "data/train-00000-of-00002.parquet": table(story=TEXTS[:10], topic=["x"] * 10),
        "data/train-00001-of-00002.parquet": table(story=["", *TEXTS[10:20], None], topic=["x"] * 12),
        "data/test-00000-of-00001.parquet": table(story=TEXTS[20:22], topic=["x"] * 2),
        "processed.parquet": table(story=["not to be read"]),
    },
    "HuggingFaceFW/fineweb-edu": {
        "README.md": readme(("default", {"train": "data/*/*"}), ("sample-10BT", {"train": "sample/10BT/*"})),
        "data/CC-MAIN-2013-20/train-00000-of-00001.parquet": table(text=["not to be read"]),
        "sample/10BT/000_00000.parquet": table(text=TEXTS[:20], score=[3.5] * 20),
        "sample/10BT/001_00000.parquet": table(text=TEXTS[20:], score=[3.5] * 20),
    },
    "HuggingFaceTB/cosmopedia": {
        "README.md": readme(*((name, {"train": f"data/{name}/train-*"}) for name in ("stories", "wikihow"))),
        "data/stories/train-00000-of-00001.parquet": table(prompt=["p"] * 40, text=TEXTS),
        "data/wikihow/train-00000-of-00001.parquet": table(prompt=["p"], text=["not to be read"]),
    },
    "BabyLM-community/BabyLM-2025-Strict-Small": {
        f"{name}.train.txt": "\n".join(LINES).encode() for name in ("childes", "switchboard")
    },
    "Salesforce/wikitext": {
        "README.md": readme(
            *(
                (name, {s: f"{name}/{s}-*" for s in ("test", "train", "validation")})
                for name in ("wikitext-103-raw-v1",)
            )
        ),
        "wikitext-103-raw-v1/train-00000-of-00002.parquet": wiki(ARTICLES[:2]),
        "wikitext-103-raw-v1/train-00001-of-00002.parquet": wiki(ARTICLES[2:5]),
        "wikitext-103-raw-v1/validation-00000-of-00001.parquet": wiki(ARTICLES[5:]),
        "wikitext-103-raw-v1/test-00000-of-00001.parquet": wiki(["= No ="]),
    },
    "Skylion007/openwebtext": {
        "README.md": readme(("plain_text", {"train": "plain_text/train-*"})),
        "plain_text/train-00000-of-00001.parquet": table(text=TEXTS),
    },
    "roneneldan/TinyStories": {
        "TinyStoriesV2-GPT4-train.txt": MARKED,
        "TinyStoriesV2-GPT4-valid.txt": "\n<|endoftext|>\n".join(TEXTS[20:22]).encode(),
        "data/train-00000-of-00001.parquet": table(text=["not to be read"]),
    },
    "roneneldan/TinyStoriesInstruct": {
        "TinyStories-Instruct-train.txt": MARKED,
        "TinyStories-Instruct-valid.txt": "\n<|endoftext|>\n".join(TEXTS[20:22]).encode(),
    },
    "own/mixed": {
        "d/train-a.jsonl.gz": gzip.compress(records(TEXTS[:20])),
        "d/train-b.jsonl.zst": zstandard.compress(records([None, *TEXTS[20:]])),
    },
    "own/table": {"train.csv": comma_separated(TEXTS[:20]), "validation.csv": comma_separated(TEXTS[20:22])},
    "own/gated": {"train.txt": b"secret"},
    "own/damaged": {"train.parquet": table(text=TEXTS)[:-9]},
    "own/pictures": {"train/cat.png": b"\x89PNG"},
}
SPLIT = (TEXTS[:20], TEXTS[20:22])
DRAWN = {"validation_share": 0.3}
MIXED = {"repository": "own/mixed", **DRAWN}
BYTES = sum(len(text.encode()) for text in TEXTS[:7]) + 5


def case(data: str, **settings) -> str:
    return f"{data} {json.dumps(settings)}"


PRESETS = {  # settings -> documents of train and validation; a list: validation is drawn from it
    case("simplestories"): SPLIT,
    case("fineweb_edu", **DRAWN): TEXTS,
    case("cosmopedia", **DRAWN): TEXTS,
    case("babylm_strict_small", **DRAWN, rows_per_document=10): [
        "\n".join(LINES[start : start + 10]).strip() for start in range(0, 250, 10)
    ]
    * 2,
    case("wikitext103"): (ARTICLES[:5], ARTICLES[5:]),
    case("openwebtext", **DRAWN): TEXTS,
    case("tinystories_v2"): SPLIT,
    case("tinystories_instruct"): SPLIT,
    case("hub", **MIXED): TEXTS,
    case("hub", **MIXED, template=r"{title}\n\n{text}"): [
        *(f"T{i}\n\n{text}" for i, text in enumerate(TEXTS[:20])),
        *(f"T{i}\n\n{text}" for i, text in enumerate(TEXTS[20:], start=1)),
    ],
    case("hub", **MIXED, files={"train": "d/*.gz"}): TEXTS[:20],
    case("hub", repository="own/table"): SPLIT,
    case("hub", repository="own/table", split="validation", validation_split="train"): SPLIT[::-1],
    case("simplestories", documents=12): (TEXTS[:12], TEXTS[20:22]),
    case("simplestories", bytes=BYTES): (TEXTS[:7], TEXTS[20:22]),
}
MISTAKES = {  # settings -> the line
    case("hub"): "data.repository is missing",
    case("hub", repository="own/absent"): r"no own/absent@main from .* \(HTTP 401\): check data.repository and",
    case("hub", **MIXED, revision="v9"): r"no own/mixed@v9 .*\(HTTP 404\): check data.repository and data.revision",
    case("hub", **MIXED, column="txt"): "train-a.jsonl.gz row 1 has no column 'txt': its columns are title, text",
    case("hub", **MIXED, column="tags"): "row 1 has a value of type list in column 'tags'",
    case("hub", **MIXED, split="test"): "has no split 'test': its splits are train; give data.split=",
    case("hub", **MIXED, validation_split="dev"): "no split 'dev': its splits are train; .*validation_split=null",
    case("hub", repository="HuggingFaceTB/cosmopedia"): r"Config name is missing.*\['stories', .*; give data.name",
    case("cosmopedia", name="novels"): r"'novels' not found. Available: \['stories', 'wikihow'\]; give data.name",
    case("simplestories", column="text"): "has no column 'text': its columns are story, topic",
    case("hub", repository="own/gated"): "it is gated: accept its terms on its page at the Hub, and log in",
    case("hub", repository="own/damaged"): "reading .*train.parquet failed, try again",
    case("hub", repository="own/pictures"): "own/pictures@main holds imagefolder data: only parquet, json, csv, text",
    case("hub", **MIXED, files={"train": "x/*.gz"}): "no train files in own/mixed@main: it must hold x/",
    case("hub", **MIXED, separator="a", document_start="b"): "exclude each other",
    case("hub", **MIXED, document_start="("): "data.document_start='\\(' is not a regular expression",
    case("hub", repository="own/mixed", validation_share=1): "data.validation_share=1 must be between 0 and 1",
    case("hub", repository="own/table", validation_split=None, validation_share=1e-9): "is no document: give a larger",
    case("hub", **MIXED, documents=0): "data.documents=0 must be at least 1, or null",
}
READ = """
import json, sys
from omegaconf import OmegaConf
from slm.corpora.hub import Hub
from slm.errors import UserError
cases, cache = json.loads(sys.argv[1])

def read(case, streaming):
    name, settings = case.split(" ", 1)
    given = OmegaConf.create(json.loads(settings))
    data = OmegaConf.merge(*(OmegaConf.load(f"conf/data/{part}.yaml") for part in ("hub", name)), given)
    data.pop("defaults", None)
    data.streaming = streaming
    try:
        settings = OmegaConf.to_container(OmegaConf.create({"cache_dir": cache, "data": data}), resolve=True)
        corpus = Hub(**{key: value for key, value in settings["data"]["corpus"].items() if key != "_target_"})
        fingerprint = corpus.fingerprint()
        return [fingerprint, *(list(corpus.documents(split)) for split in ("train", "validation"))]
    except UserError as error:
        return str(error)

print(json.dumps({case: [read(case, streaming) for streaming in (True, False)] for case in cases}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list]:
    """All cases streamed and downloaded, in one process: the Hub's libraries read the environment at their import."""
    folder = tmp_path_factory.mktemp("hub")
    for repository, files in FILES.items():
        for name, content in files.items():
            (folder / "repositories" / repository / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "repositories" / repository / name).write_bytes(content)
    with Hubs(folder / "repositories", gated="own/gated") as hubs:
        hidden = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = {**hidden, "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hubs.endpoint}
        cases = json.dumps([[*PRESETS, *MISTAKES], str(folder / "cache")])
        command = [sys.executable, "-W", "error", "-c", READ, cases]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", PRESETS)
def test_documents_are_those_of_the_repository_streamed_and_downloaded(found, case):
    streamed, downloaded = found[case]
    assert streamed == downloaded
    _, train, validation = streamed
    if isinstance(PRESETS[case], tuple):
        assert (train, validation) == PRESETS[case]
    else:  # each document is on one side, in its order
        sides = [[text for text in PRESETS[case] if (text in side)] for side in (train, validation)]
        assert sides == [train, validation]
        assert sorted([*train, *validation]) == sorted(PRESETS[case])
        assert 0 < len(validation) < len(train)


def test_every_choice_of_text_is_another_fingerprint(found):
    fingerprints = [found[case][0][0] for case in PRESETS]
    assert len(set(fingerprints)) == len(PRESETS)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_streamed_and_downloaded(found, case):
    for message in found[case]:
        assert isinstance(message, str)
        assert re.search(MISTAKES[case], message), message
        assert "\n" not in message


PREPARE = """
import json, os, signal, sys
from pathlib import Path
from hydra.utils import instantiate
from omegaconf import OmegaConf
from slm.data.store import prepare
from slm.tokenizers.bytes import ByteTokenizer
cache, streaming, deadly = json.loads(sys.argv[1])

class Killing(ByteTokenizer):
    def encode_batch(self, texts):
        if deadly in texts[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(texts)

data = OmegaConf.load("conf/data/hub.yaml")
data.repository, data.streaming = "own/six", streaming
corpus = instantiate(OmegaConf.create({"cache_dir": cache, "data": data}).data.corpus)
print(json.dumps(prepare(corpus, Killing(), Path(cache)).manifest["splits"]))
"""


@pytest.mark.slow
def test_a_stream_that_was_killed_goes_on_with_the_file_that_it_was_at(tmp_path):
    """The files before it are not asked for again, and the store is that of a download."""
    for number in range(6):
        name = tmp_path / "six" / "data" / f"train-0000{number}-of-00006.parquet"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(table(text=[f"file {number} {text}" for text in TEXTS]))
    (tmp_path / "six" / "data" / "validation-00000-of-00001.parquet").write_bytes(table(text=TEXTS[:3]))
    with Hub(tmp_path / "six", "own/six") as hub:

        def run(folder: str, *, streaming: bool, deadly: str = "never") -> subprocess.CompletedProcess:
            place = {"HF_HOME": str(tmp_path / folder / "hf"), "HF_ENDPOINT": hub.endpoint}
            command = sys.executable, "-c", PREPARE, json.dumps([str(tmp_path / folder), streaming, deadly])
            environment = {**os.environ, **place}
            return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100)

        whole = run("download", streaming=False)
        assert run("stream", streaming=True, deadly="file 3 ").returncode == -signal.SIGKILL
        asked = len(hub.requests)
        again = run("stream", streaming=True)
    assert (
        "going on with an earlier preparation: validation behind file 1 of 1, train behind file 3 of 6" in again.stderr
    )
    read = re.findall(r"data/(\w+-\d+)", "\n".join(hub.requests[asked:]))
    assert sorted(set(read)) == ["train-00003", "train-00004", "train-00005"]
    assert json.loads(again.stdout) == json.loads(whole.stdout)
