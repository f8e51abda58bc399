"""Stores of any size: the permutation in closed form, a store of 100 GB in little memory, the index of documents."""

import itertools
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mistake
from test_data import Stories
from test_order import EOS, first

from slm.data import order, store
from slm.data.order import InfiniteShuffle, Replacement
from slm.data.permutation import ROUNDS, Permutation
from slm.data.store import TokenStore, prepare
from slm.data.windows import Documents, Rearranged, split_windows
from slm.files import atomic
from slm.tokenizers.bytes import ByteTokenizer
from slm.training.datamodule import WindowsData

MANY = 2**16 - 17


def permutation(length: int, seed: int = 0, first: int = 0) -> Permutation:
    keys = torch.randint(2**63 - 1, (ROUNDS,), generator=torch.Generator().manual_seed(seed))
    return Permutation(length, keys.numpy(), first)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 10, 4095, 4096, 4097, MANY])
def test_a_permutation_has_every_index_once_and_any_slice_of_it_is_the_same(length):
    indices = permutation(length)[:]
    assert sorted(indices) == list(range(length))
    assert permutation(length, first=7)[2:9].tolist() == (indices[2:9] + 7).tolist()
    assert length < 10 or permutation(length, seed=1)[:].tolist() != indices.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_looks_random(seed):
    """Places and indices, and neighbouring indices, fall evenly into cells, as in torch's permutations."""
    for indices in (permutation(MANY, seed)[:], torch.randperm(MANY, generator=torch.Generator().manual_seed(seed))):
        indices = np.asarray(indices)
        apart = [np.arange(MANY), *(np.roll(indices, shift) for shift in (1, 2, 16, 256))]
        for other, (rows, columns) in itertools.product(apart, [(8, 8), (64, 64)]):
            cells = np.histogram2d(other, indices, [rows, columns], [[0, MANY]] * 2)[0]
            degrees = (rows - 1) * (columns - 1)
            excess = ((cells - cells.mean()) ** 2).sum() / cells.mean() - degrees
            assert abs(excess) < 5 * (2 * degrees) ** 0.5  # deviations of chi-squared
            assert abs(np.corrcoef(other, indices)[0, 1]) < 5 / MANY**0.5
        low = np.histogram2d(np.arange(MANY) % 16, indices % 16, 16)[0]
        assert ((low - low.mean()) ** 2).sum() / low.mean() < 225 + 5 * 450**0.5
        assert (indices == np.arange(MANY)).sum() < 8  # Poisson's distribution of mean 1


@pytest.fixture
def long_passes(monkeypatch):
    """Passes of more than 20 windows are long."""
    monkeypatch.setattr(order, "LARGE", 20)
    monkeypatch.setattr(order, "BLOCK", 8)


@pytest.mark.parametrize("kind", [InfiniteShuffle, Replacement])
def test_a_long_pass_is_a_function_of_seed_and_position(kind, long_passes):
    targets = np.broadcast_to(16, 50)
    indices = first(kind(targets, 7, 16), 170)
    assert indices != first(kind(targets, 8, 16), 170)
    for start, world in itertools.product((0, 3, 49, 50, 120), (1, 2)):
        ranks = [first(kind(targets, 7, 16), 20, start, rank, world) for rank in range(world)]
        assert [index for step in zip(*ranks) for index in step] == indices[start : start + 20 * world]
    assert kind(targets, 7, 16).targets_before(120) == 120 * 16
    assert max(indices) < 50 * 16
    if kind is InfiniteShuffle:
        passes = [np.array(indices[start : start + 50]) for start in (0, 50, 100)]
        assert all(sorted(indices % 50) == list(range(50)) for indices in passes)
        assert len({tuple(indices // 50) for indices in passes}) == 3  # of one arrangement each
        assert set(passes[0] // 50) == {0}
        lengths = np.arange(1, 51)
        shuffle = InfiniteShuffle(lengths, 7, 16)
        read = np.append(0, lengths[np.array(indices) % 50].cumsum())
        assert [shuffle.targets_before(position) for position in (0, 49, 50, 121)] == read[[0, 49, 50, 121]].tolist()


def test_passes_over_many_windows_move_them_without_an_index(tmp_path, monkeypatch, long_passes):
    texts = prepare(Stories(["abcdefghij" * 20] * 2, ["the end of it"]), ByteTokenizer(), tmp_path)
    monkeypatch.setattr("slm.data.windows.LARGE", 20)
    splits = split_windows(texts, EOS, context=8)
    assert type(splits.train) is not Rearranged
    indices = first(splits.order(0), 3 * len(splits.train))
    starts = [splits.train.start(index) for index in indices]
    assert all(len({start % 8 for start in starts[at : at + 50]}) == 1 for at in (0, 50, 100))
    ids = np.concatenate(texts.shards("train"))
    for index, start in zip(indices, starts, strict=True):
        assert splits.train[index].tolist() == np.take(ids, start + np.arange(9), mode="wrap").tolist()


SHARD = 2**27  # ids, of 2 bytes


def sparse_store(folder: Path, gigabytes: int) -> TokenStore:
    """A verified store of zeros that need no disk."""
    folder.mkdir()
    counts, stamps = {"bytes": 1, "lost_bytes": 0}, {}
    splits = {"validation": {**counts, "documents": 10}, "train": {**counts, "documents": gigabytes * 10**6}}
    for split, shards in (("validation", 1), ("train", gigabytes * 10**9 // (2 * SHARD))):
        files = [{"file": f"{split}-{n:05d}.bin", "tokens": SHARD, "sha256": "0" * 64} for n in range(shards)]
        splits[split] |= {"shards": files, "tokens": SHARD * shards}
        for shard in files:
            with open(folder / shard["file"], "wb") as file:
                file.truncate(2 * SHARD)
            stat = (folder / shard["file"]).stat()
            stamps[shard["file"]] = [2 * SHARD, stat.st_ctime_ns, stat.st_ino, shard["sha256"], 257]
    manifest = {"dtype": "uint16", "repeated": 0, "vocab_size": 257, "corpus": "", "tokenizer": "", "splits": splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / store.VERIFIED).write_text(json.dumps(stamps))
    return TokenStore.open(folder, {"vocab_size": 257})


@pytest.fixture
def little_memory():
    """64 MiB more than now, of which a byte per window would take more than half."""
    used = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line).split()[1])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + 2**26, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("name", ["shuffle", "strided", "replacement"])
def test_a_store_of_100_gb_is_opened_and_read_at_any_position_in_little_memory(
    tmp_path, monkeypatch, little_memory, name
):
    monkeypatch.setattr(atomic, "sha256", None)  # nothing is read in full
    opened, late = sparse_store(tmp_path / "store", 100), 10**10
    splits = split_windows(opened, EOS, context=1024, order=name, stride=512 if name == "strided" else None)
    assert len(splits.chosen) > 4 * 10**7
    assert splits.targets_per_window == 1024
    data = WindowsData(splits, tokenizer=ByteTokenizer(), microbatch=4, seed=0, validation_windows=8)
    assert data.order.targets_before(late) == late * 1024
    indices = first(data.order, 4, late)
    assert data.train.__getitems__(indices).shape == (4, 1025)
    assert len(set(indices)) == 4


def test_the_index_of_documents_is_written_once_and_again_if_it_is_damaged(tmp_path, monkeypatch):
    texts = [f"story {number}" * (number % 5 + 1) for number in range(40)]
    prepared = prepare(Stories(texts, ["the end"]), ByteTokenizer(), tmp_path)
    path, expected = (
        prepared.folder / "train-documents.i64",
        np.cumsum([0, *(len(text) + 1 for text in texts)]).tolist(),
    )
    assert prepared.bounds("train", EOS).tolist() == np.fromfile(path, np.int64).tolist() == expected
    windows = Documents(prepared, "train", 16, EOS)
    assert windows.lengths.tolist() == np.diff(expected).tolist()
    monkeypatch.setattr(store.index, "PIECE", 7)
    for damage in (b"", path.read_bytes()[:-8], path.read_bytes()[:-1] + b"\1"):
        path.write_bytes(damage)
        assert prepared.bounds("train", EOS).tolist() == expected
        assert np.fromfile(path, np.int64).tolist() == expected
    path.unlink()  # as in a store of an earlier version, here in a cache that cannot be written
    monkeypatch.setattr(atomic, "replacing", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert prepared.bounds("train", EOS).tolist() == expected
    assert not path.exists()


def test_a_shard_without_the_end_of_a_document_is_refused(tmp_path):
    prepared = prepare(Stories(["one", "two"], ["the end"]), ByteTokenizer(), tmp_path)
    with mistake("the train split has a shard without an end of a document; delete"):
        Documents(prepared, "train", 16, eos=3)
