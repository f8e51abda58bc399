"""Cases on corpora and tokenizers of others: rows in every format and compression, copies of Hub repositories,
tokenizer.json and .model files, folders of litdata. Documents of files without a mutation are equal in all formats."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path

import mutations
import numpy as np
import pyarrow
import pyarrow.parquet
from files import DOCUMENTS, PROBE

from slm import tokenizers
from slm.corpora import rows as row_readers
from slm.corpora.files import Files
from slm.corpora.hub import Hub
from slm.data.litdata import Litdata
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.huggingface import HuggingFaceTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer
from slm.tokenizers.sentencepiece_model import SentencePieceModel

PIECES = (*string.printable, "\r\n", '""', "\n\n", "\u2028", "\x85", "\ufeff", "\0", "ä", "红", "\U0001f600", "x" * 99)
SEPARATOR = "<|sep|>"
COMPRESSIONS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}


def document(rng: random.Random) -> str:
    """Random text with what divides lines, fields and documents; without white space around it."""
    text = "".join(rng.choices(PIECES, k=rng.choice((1, 5, 50)))).strip()
    return text.replace("\r\n", "\n").replace("\r", "\n") or "a"


def separated(texts: list[str], delimiter: str, end: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "text"], *enumerate(texts)])
    return out.getvalue().encode()


def parquet(texts: list[str], rng: random.Random) -> bytes:
    column = pyarrow.array(texts, rng.choice((pyarrow.string(), pyarrow.large_string())))
    if rng.random() < 0.3:
        column = column.dictionary_encode()
    out = io.BytesIO()
    settings = {"compression": rng.choice(("none", "snappy", "zstd")), "row_group_size": rng.choice((1, 7, 99))}
    pyarrow.parquet.write_table(pyarrow.table({"id": [*range(len(texts))], "text": column}), out, **settings)
    return out.getvalue()


def contents(texts: list[str], rng: random.Random) -> dict[str, bytes]:
    """The same documents in every format, by the name of the file."""
    records = [{"id": index, "text": text} for index, text in enumerate(texts)]
    lines = [json.dumps(record, ensure_ascii=rng.random() < 0.5) for record in records]
    ends = ("\n", "\r\n")
    return {
        "a.txt": f"\n{SEPARATOR}\n".join(texts).encode(rng.choice(("utf-8", "utf-8-sig", "utf-16", "utf-32"))),
        "a.jsonl": rng.choice(ends).join(lines).encode(rng.choice(("utf-8", "utf-16"))),
        "a.json": json.dumps(records, indent=rng.choice((None, 2))).encode(),
        "a.csv": separated(texts, rng.choice(",;|\t"), rng.choice(ends)),
        "a.tsv": separated(texts, "\t", rng.choice(ends)),
        "a.parquet": parquet(texts, rng),
    }


def odd_table(rng: random.Random) -> bytes:
    """A parquet file with columns of types, nulls and names that no text has."""
    out, odd = io.BytesIO(), mutations.value(rng, plain=True)
    columns = ([odd], [None, "a"], [b"\xff"], [["a"], ["b"]], [{"a": "b"}], [1.5], [True])
    names = rng.choice((["text"], ["Text"], ["text", "text"], ["text", "\ud7ff"], ["a" * 9999, "text"]))
    column = rng.choice(columns)
    table = pyarrow.Table.from_arrays([pyarrow.array(column)] * len(names), names)
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def rows(rng: random.Random, folder: Path) -> Callable[[int], None]:
    def case(number: int):
        texts = [document(rng) for _ in range(rng.choice((2, 3, 30)))]
        name, content = rng.choice(list(contents(texts, rng).items()))
        kind = rng.choice("=caftbo")
        if kind == "f" and name == "a.parquet":  # the description of the columns at the end
            size = int.from_bytes(content[-8:-4], "little")
            footer = mutations.damaged(content[-8 - size : -8], rng)
            content = content[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1"
        elif kind == "t" and name == "a.parquet":
            with contextlib.suppress(pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
                content = odd_table(rng)
        elif kind in "cft":
            content = mutations.damaged(content, rng)
        elif kind == "b":
            content = (
                rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0", b"\x28\xb5\x2f\xfd", b"[")) + content
            )
        compression = rng.choice(list(COMPRESSIONS)) if name != "a.parquet" else ""
        content = COMPRESSIONS[compression](content)
        if kind == "a":
            content = mutations.damaged(content, rng)
        elif kind == "o" and compression:
            content = COMPRESSIONS[rng.choice(list(COMPRESSIONS))](content)
        path = folder / f"{name}{compression}"
        path.write_bytes(content)
        settings = {"split": rng.choice(("contiguous", "seeded")), "train_ratio": 0.5, "seed": rng.randrange(9)}
        corpus = Files(path=str(path), column="text", separator=SEPARATOR, **settings)
        try:
            corpus.fingerprint()
            found = [text for split in ("train", "validation") for text in corpus.documents(split)]
        finally:
            path.unlink()
        for text in found:
            text.encode()
        if kind == "=":
            assert sorted(found) == sorted(texts), f"other documents from {name}{compression}"

    row_readers.BATCH_ROWS = 3
    row_readers.decoded.CHUNK_CHARACTERS = 11
    return case


def hub(rng: random.Random, folder: Path) -> Callable[[int], None]:
    """A copy of a repository with a mutated README, file names or files."""
    files = {f"data/{split}-{index:05d}-of-00002.parquet": parquet(DOCUMENTS[:9], rng)
             for split in ("train", "test") for index in range(2)}  # fmt: skip
    files["more/a.jsonl"] = b'{"text": "one"}\n{"text": "two"}\n'
    files["more/a.csv.gz"] = gzip.compress(separated(DOCUMENTS[:3], ",", "\n"))
    head = {
        "configs": [
            {"config_name": "default", "default": True, "data_files": [{"split": "train", "path": "data/train-*"},
             {"split": "test", "path": "data/test-*"}]},
            {"config_name": "more", "data_files": "more/a.jsonl"},
            {"config_name": "table", "data_files": [{"split": "train", "path": ["more/a.csv.gz"]}], "sep": ","},
        ],
        "dataset_info": [{"config_name": "default", "features": [{"name": "text", "dtype": "string"}],
                          "splits": [{"name": "train", "num_bytes": 9, "num_examples": 18}]}],
    }  # fmt: skip

    def case(number: int):
        place = folder / "copy"
        shutil.rmtree(place, ignore_errors=True)
        changed = dict(files)
        if number % 3 == 0:
            name = rng.choice(list(changed))
            changed[name] = mutations.damaged(changed[name], rng)
        settings = mutations.changed(head, rng, plain=True) if number % 3 else head
        readme = f"---\n{json.dumps(settings)}\n---\n".encode("utf-8", "surrogatepass")
        changed["README.md"] = mutations.damaged(readme, rng) if number % 6 == 1 else readme
        for name, content in changed.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        choices = {"repository": "a/b", "revision": "main", "files": None, "split": "train", "split_seed": 0}
        choices |= {"validation_split": "auto", "validation_share": 0.5, "column": "text", "template": None}
        choices |= {"separator": None, "document_start": None, "rows_per_document": 1, "documents": None}
        corpus = Hub(name=rng.choice((None, "more", "table", "default")), bytes=None, path=str(place),
                     streaming=False, cache=str(folder / "cache"), **choices)  # fmt: skip
        corpus.fingerprint()
        for split in ("validation", "train"):
            for text in corpus.documents(split):
                text.encode()

    return case


def huggingface(rng: random.Random, folder: Path) -> Callable[[int], None]:
    from test_huggingface import EOS  # of an optional extra

    contents = [make().to_str() for make in EOS]
    patterns = ("(a+)+$", "(?=", "(.*)*x", "\\p{Q}", "[", "(?i:x", "", "a{1,99999}")

    def case(number: int):
        settings = json.loads(contents[number % len(contents)])
        match rng.choice("ccpd"):
            case "p":
                pattern = {rng.choice(("Regex", "String")): rng.choice(patterns)}
                split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": rng.random() < 0.5}
                replace = {"type": "Replace", "pattern": pattern, "content": rng.choice(("", "x", "\ufffd"))}
                key, step = rng.choice((("pre_tokenizer", split), ("normalizer", replace), ("decoder", replace)))
                settings[key] = step
                content = json.dumps(settings)
            case "d":
                content = mutations.damaged(json.dumps(settings).encode(), rng).decode("latin1")
            case _:
                part = rng.choice(("model", "added_tokens", "decoder", "normalizer", "pre_tokenizer", ""))
                if settings.get(part):
                    settings[part] = mutations.changed(settings[part], rng, plain=True)
                else:
                    settings = mutations.changed(settings, rng, plain=True)
                content = json.dumps(settings)
        (folder / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        used(HuggingFaceTokenizer.build([], path=str(folder)), folder)

    return case


def sentencepiece(rng: random.Random, folder: Path) -> Callable[[int], None]:
    choices = {"vocab_size": 278, "sample_documents": 50, "seed": 0}
    built = [SentencePieceTokenizer.build(DOCUMENTS, algorithm=name, **choices).model for name in ("bpe", "unigram")]

    def case(number: int):
        model = built[number % 2]
        model = mutations.damaged(model, rng) if number % 3 == 0 else mutations.changed_message(model, rng)
        path = folder / "a.model"
        path.write_bytes(model)
        with contextlib.redirect_stdout(io.StringIO()):
            used(SentencePieceModel.read(str(path)), folder)

    return case


def used(tokenizer: tokenizers.Tokenizer, folder: Path):
    """Encodes, decodes, saves and loads."""
    pieces = tokenizers.pieces(tokenizer)
    ids = tokenizer.encode(PROBE)
    assert all(0 <= token < tokenizer.vocab_size for token in [*ids, tokenizer.eos])
    assert tokenizer.eos not in ids, "the text has an end of a document"
    tokenizer.decode(ids).encode("utf-8", "surrogatepass")
    assert len(pieces) == tokenizer.vocab_size
    saved = folder / "saved"
    shutil.rmtree(saved, ignore_errors=True)
    saved.mkdir()
    tokenizer.save(saved)
    assert tokenizers.load(saved).encode(PROBE) == ids


def chunk(texts: list[str]) -> bytes:
    """The ids of these documents as one chunk of litdata."""
    items = [np.array([*text.encode(), ByteTokenizer.eos], "<u2").tobytes() for text in texts]
    offsets = np.cumsum([4 * len(items) + 8, *map(len, items)]).astype("<u4")
    return len(items).to_bytes(4, "little") + offsets.tobytes() + b"".join(items)


def litdata(rng: random.Random, folder: Path) -> Callable[[int], None]:
    """A folder of litdata.optimize with a mutated index, heads of chunks or ids; all windows of a store are read."""
    files = {f"chunk-0-{number}.bin": chunk(DOCUMENTS[number * 5 :][:5]) for number in range(3)}
    chunks = [{"filename": name, "chunk_bytes": len(content), "chunk_size": 5, "dim": len(content) // 2 - 14}
              for name, content in files.items()]  # fmt: skip
    spec = '[1, {"type": null, "context": null, "children_spec": []}]'
    config = {"data_format": ["no_header_numpy:5"], "data_spec": spec, "compression": None, "encryption": None,
              "item_loader": "TokensLoader", "chunk_bytes": 64000000, "chunk_size": None}  # fmt: skip

    def case(number: int):
        place = folder / str(number)
        place.mkdir()
        index = {"chunks": chunks, "config": config}
        text = json.dumps(mutations.changed(index, rng, plain=True) if number % 3 else index)
        content = text.encode("utf-8", "surrogatepass")
        (place / "index.json").write_bytes(mutations.damaged(content, rng) if number % 6 == 1 else content)
        name = rng.choice(list(files))
        head = mutations.damaged(files[name][:28], rng)
        damaged = mutations.damaged(files[name], rng) if number % 2 else head + files[name][28:]
        for other, its in files.items():
            (place / other).write_bytes(damaged if other == name and number % 3 == 0 else its)
        corpus = Litdata(path=str(place), validation_path=None, validation_share=0.2, keep_chunks=None)
        store = corpus.store(ByteTokenizer(), place / "cache")
        for split in ("train", "validation"):
            ids = np.concatenate([shard[:] for shard in store.shards(split)])
            assert len(ids) == store.tokens(split) == store.bounds(split, ByteTokenizer.eos)[-1]
            assert ids.max() < ByteTokenizer.vocab_size

    return case
