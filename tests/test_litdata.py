"""data=litdata: its windows, which litdata itself reads alike; real runs on such a folder; folders that are damaged."""

import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from conftest import ROOT, exit_code, mistake, trained
from forks import forked
from test_distributed import TWO
from test_order import first
from test_resume import resumes_exactly

from slm import lens, verify
from slm.data import order
from slm.data.litdata import Litdata
from slm.data.order import Nearby
from slm.data.windows import Windows
from slm.tokenizers.bytes import ByteTokenizer

EOS = ByteTokenizer.eos
ABSENT = [module for module in ("litdata", "zstd") if importlib.util.find_spec(module) is None]


def stories() -> list[np.ndarray]:
    """Ids of documents of unequal length, each with its eos."""
    texts = (f"story number {number}" + ", and so on" * (number % 7) for number in range(60))
    return [np.array([*ByteTokenizer().encode(text), EOS]) for text in texts]


def written(folder, items, dtype=np.uint16, format_="no_header_numpy:5", loader="TokensLoader", **config):
    """A folder as litdata.optimize writes it, ten items to a chunk."""
    folder.mkdir(parents=True)
    chunks = []
    for number in range(0, len(items), 10):
        parts = [item.astype(dtype).tobytes() for item in items[number : number + 10]]
        if loader == "PyTreeLoader":
            parts = [len(part).to_bytes(4, "little") + part for part in parts]
        offsets = np.cumsum([4 * len(parts) + 8, *map(len, parts)]).astype("<u4")
        content = len(parts).to_bytes(4, "little") + offsets.tobytes() + b"".join(parts)
        name = f"chunk-0-{number // 10}.bin"
        (folder / name).write_bytes(content)
        tokens = sum(map(len, items[number : number + 10])) if loader == "TokensLoader" else None
        chunks.append({"dim": tokens, "chunk_bytes": len(content), "chunk_size": len(parts), "filename": name})
    spec = '[1, {"type": null, "context": null, "children_spec": []}]'
    facts = {"data_format": [format_], "data_spec": spec, "compression": None, "encryption": None, **config}
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": {**facts, "item_loader": loader}}))
    return folder


def corpus(path, **settings) -> Litdata:
    given = {"validation_path": None, "validation_share": 0.1, "keep_chunks": None, **settings}
    return Litdata(path=str(path), **given)


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "folder", stories())


@pytest.mark.parametrize(
    ("loader", "dtype", "format_"),
    [
        ("TokensLoader", np.uint16, "no_header_numpy:5"),
        ("TokensLoader", np.int32, "no_header_tensor:16"),
        ("PyTreeLoader", np.uint16, "no_header_tensor:20"),
        ("PyTreeLoader", np.int64, "no_header_tensor:18"),
    ],
)
def test_every_id_is_read(tmp_path, loader, dtype, format_):
    """Of all items in their order; the last ones are the validation, from the beginning of an item on."""
    folder, ids = written(tmp_path / "folder", stories(), dtype, format_, loader), np.concatenate(stories())
    store = corpus(folder).store(ByteTokenizer(), tmp_path)
    train = store.tokens("train")
    assert ids[train - 1] == EOS
    assert 0.1 * len(ids) <= store.tokens("validation") < 0.1 * len(ids) + max(map(len, stories()))
    assert store.manifest["splits"]["train"]["documents"] == (ids[:train] == EOS).sum()
    for split, part in {"train": ids[:train], "validation": ids[train:]}.items():
        windows = pickle.loads(pickle.dumps(Windows(store, split, 50)))
        for index in range(len(windows)):
            assert np.array_equal(windows[index], part[index * 50 :][:51])
        assert np.array_equal(store.bounds(split, EOS)[1:], np.flatnonzero(part == EOS) + 1)


def test_validation_from_another_folder_and_a_folder_that_moves(folder, tmp_path):
    other = written(tmp_path / "other", stories()[:7])
    store = corpus(folder, validation_path=str(other)).store(ByteTokenizer(), tmp_path)
    assert np.array_equal(store.shards("validation")[0][:], np.concatenate(stories()[:7]))
    assert store.tokens("train") == sum(map(len, stories()))
    before = corpus(folder).store(ByteTokenizer(), tmp_path)
    folder.rename(tmp_path / "moved")
    after = corpus(tmp_path / "moved").store(ByteTokenizer(), tmp_path)
    assert after.folder == before.folder
    assert len(after.shards("train")[0][:])


def test_windows_are_shuffled_among_few_stretches(monkeypatch):
    """Each pass reads every window once; of seven stretches, two at a time; from any position on alike."""
    monkeypatch.setattr(order, "STRETCH", 160)
    monkeypatch.setattr(order, "TOGETHER", 2)
    targets = np.broadcast_to(16, 65)
    positions = first(Nearby(targets, 7, 16), 3 * 65)
    for number in range(3):
        indices = np.array(positions[number * 65 :][:65])
        assert sorted(indices % 65) == list(range(65))
        assert len({*(indices // 65)}) == 1
        stretches = indices % 65 // 10
        groups = [{*stretches[:15]}, {*stretches[20:30]}, {*stretches[40:50]}]
        assert all(len(group) == 2 for group in groups)
        assert len({*stretches[:60]} - groups[0]) >= 4
    assert positions[:65] != positions[65:130]
    for start in (0, 1, 39, 40, 64, 65, 120):
        assert first(Nearby(targets, 7, 16), 50, start) == positions[start : start + 50]
    assert first(Nearby(targets, 7, 16), 20, 5, 1, 2) == positions[6:46:2]


def settings(folder):
    return "data=litdata", f"data.path={folder}", "data.validation_share=0.1", "model.context=32"


def test_a_run_is_resumed_verified_and_looked_into(folder, composed, tmp_path, monkeypatch, capsys):
    config = composed(
        "log_windows=true", "callbacks.checkpoints.every_n_steps=3", "callbacks.samples=null", data=settings(folder)
    )
    run = resumes_exactly(config, tmp_path, monkeypatch, [4])
    assert exit_code(monkeypatch, verify.main, str(run)) == 0
    capsys.readouterr()
    assert exit_code(monkeypatch, lens.main, str(run), "2") == 0
    assert "story number" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif("litdata" in ABSENT, reason="litdata is not installed")
@pytest.mark.parametrize("compressed", [False, True])
def test_the_script_of_the_docs_and_what_litdata_reads(tmp_path, text_file, compressed):
    """The script writes every document; blocks of ids are those that litdata cuts from the same folder."""
    if compressed and "zstd" in ABSENT:
        pytest.skip("zstd is not installed")
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(import sys.*?litdata.optimize.*?)```", page, re.S)
    size = 'chunk_bytes="20KB"' + compressed * ', compression="zstd", compression_level="chunk"'
    (tmp_path / "write.py").write_text(script.replace('chunk_bytes="64MB"', size))
    ByteTokenizer().save(tmp_path / "tokenizer")
    output, arguments = tmp_path / "output", ["tokenizer", "output", str(text_file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "write.py", *arguments], cwd=tmp_path, env=environment, check=True)
    store = corpus(output, keep_chunks=2).store(ByteTokenizer(), tmp_path)
    ids = np.concatenate([shard[:] for split in ("train", "validation") for shard in store.shards(split)])
    texts = [text.strip() for text in text_file.read_text().split("<|endoftext|>")]
    expected = [ids for text in texts for ids in (*ByteTokenizer().encode(text), EOS)]
    assert np.array_equal(ids, expected)
    if compressed:
        assert len([*store.folder.glob("train/*.bin")]) <= 2
        assert not corpus(f"local:{output}").is_local()
        return
    from litdata import StreamingDataset
    from litdata.streaming.item_loader import TokensLoader

    theirs = StreamingDataset(str(output), item_loader=TokensLoader(block_size=33))
    begins = [0, *np.cumsum([its["dim"] for its in json.loads((output / "index.json").read_text())["chunks"]])]
    places = [place for begin, end in pairwise(begins) for place in range(begin, end - 32, 33)]
    assert len(theirs) == len(places)
    assert all(np.array_equal(theirs[i].numpy(), ids[place : place + 33]) for i, place in enumerate(places))


@pytest.mark.slow
def test_two_processes_and_loader_processes_read_the_same_windows(folder, tmp_path):
    small = ["tokenizer=bytes", "trainer=cpu", "debug=default", f"cache_dir={tmp_path / 'cache'}", "log_windows=true"]
    logs = []
    for name, more in {"one": [], "two": TWO, "loaders": ["data.workers=2"]}.items():
        done = forked(*settings(folder), *small, *more, "trainer.microbatch=2", f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        logs.append((tmp_path / name / "windows.jsonl").read_text())
    assert logs[0] == logs[1] == logs[2]


def damaged(folder, change):
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


FOLDERS = {  # a change of a folder -> the message
    lambda folder: (folder / "index.json").unlink(): "index.json cannot be read .No such file",
    lambda folder: (folder / "index.json").write_text("{"): "index.json is damaged",
    lambda folder: damaged(folder, lambda index: index["chunks"][1].update(filename="../a.bin")): "is damaged",
    lambda folder: damaged(folder, lambda index: index["chunks"].clear()): "is damaged",
    lambda folder: damaged(folder, lambda index: index["config"].update(data_format=["int", "jpeg"])): "int, jpeg: ",
    lambda folder: damaged(folder, lambda index: index["config"].update(data_format=["jpeg"])): "jpeg: each must be",
    lambda folder: damaged(folder, lambda index: index["config"].update(data_format=["no_header_tensor:1"])): "each",
    lambda folder: damaged(folder, lambda index: index["config"].update(encryption={"a": 1})): "is encrypted",
    lambda folder: damaged(folder, lambda index: index["config"].update(item_loader="ParquetLoader")): "TokensLoader",
    lambda folder: damaged(
        folder,
        lambda index: index["config"].update(
            data_spec='[1, {"type": "builtins.dict", "context": "", "children_spec": [{}]}]'
        ),
    ): "the items of .* are builtins.dict of no_header_numpy:5: each must be one array of token ids",
    lambda folder: (folder / "chunk-0-3.bin").unlink(): "chunk-0-3.bin of .* cannot be read: No such file",
    lambda folder: (folder / "chunk-0-3.bin").write_bytes(b"1234"): "chunk-0-3.bin of .* has 4 bytes, but",
    lambda folder: (folder / "chunk-0-0.bin").write_bytes(
        bytes(len((folder / "chunk-0-0.bin").read_bytes()))
    ): "its head does not agree with index.json",
    lambda folder: (
        content := (folder / "chunk-0-0.bin").read_bytes(),
        (folder / "chunk-0-0.bin").write_bytes(content[:-2] + b"\xff\xff"),
    ): "has id 65535, but the vocabulary has 257 ids: give the tokenizer that made them",
}


@pytest.mark.parametrize("change", FOLDERS, ids=FOLDERS.values())
def test_a_damaged_folder_is_refused(folder, tmp_path, change):
    change(folder)
    with mistake(FOLDERS[change]):
        corpus(folder).store(ByteTokenizer(), tmp_path)


def test_mistakes(folder, tmp_path, monkeypatch, capsys):
    with mistake("folder.index.json cannot be read .*; did you mean .*folder/train"):
        written(tmp_path / "above" / "folder" / "train", stories())
        corpus(tmp_path / "above" / "folder").fingerprint()
    small = "trainer=cpu", "debug=default", f"cache_dir={tmp_path}", f"run_dir={tmp_path / 'run'}"
    assert trained(monkeypatch, *settings(folder), *small, "tokenizer=sentencepiece") == 2
    assert "data=litdata holds token ids and no text, neither to learn a tokenizer" in capsys.readouterr().err
    written(tmp_path / "wrong", [item[:-1] for item in stories()])
    corpus(tmp_path / "wrong").store(ByteTokenizer(), tmp_path)
    assert "warning: eos (id 256), which ends a document, is not in the first chunk" in capsys.readouterr().err
    later = stories()
    later[25][3] = 300
    written(tmp_path / "later", later)
    processes = "data.workers=1", "tokenizer=bytes"  # the error comes from a loader process
    assert trained(monkeypatch, *settings(tmp_path / "later"), *small, *processes) == 2
    assert re.search(r"error: chunk chunk-0-2.bin of \S+ has id 300, but", capsys.readouterr().err)
