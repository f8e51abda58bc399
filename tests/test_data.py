"""The token store survives kills and is reused; windows equal the ids; the order is a pure function."""

import hashlib
import itertools
import json
import os
import pickle
import signal
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from slm.data import encode, preparation
from slm.data import store as store_module
from slm.data.order import InfiniteShuffle
from slm.data.store import TokenStore, fingerprint, prepare, prepare_tokenizer
from slm.data.windows import Documents, Windows, evenly_spaced
from slm.errors import UserError
from slm.loss import IGNORE
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.characters import ASCII, CharacterTokenizer
from slm.training.datamodule import Positions, identity_collate


class Stories:
    """A corpus in memory that counts its reads."""

    def __init__(self, train, validation=("the end",)):
        self.splits, self.reads = {"train": list(train), "validation": list(validation)}, 0

    def documents(self, split):
        self.reads += 1
        yield from self.splits[split]

    def fingerprint(self):
        return hashlib.sha256(json.dumps(self.splits).encode()).hexdigest()


def ids_of(corpus, split):
    tokenizer = ByteTokenizer()
    return [token for text in corpus.splits[split] for token in [*tokenizer.encode(text), tokenizer.eos]]


@pytest.fixture
def corpus():
    return Stories(f"story number {i}, which ends here" for i in range(100))


@pytest.fixture
def store(corpus, tmp_path, monkeypatch) -> TokenStore:
    """Shards of at most 300 ids, batches of about 100 characters."""
    monkeypatch.setattr(preparation, "SHARD_TOKENS", 300)
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 100)
    return prepare(corpus, ByteTokenizer(), tmp_path)


# The token store


def test_the_store_contains_the_documents_in_order_in_two_or_four_bytes_per_id(corpus, store, tmp_path):
    for split in ("train", "validation"):
        assert np.concatenate(store.shards(split)).tolist() == ids_of(corpus, split)
        counts = store.manifest["splits"][split]
        assert counts["documents"] == len(corpus.splits[split])
        assert counts["bytes"] == sum(len(text.encode()) for text in corpus.splits[split])
        assert counts["tokens"] == store.tokens(split) == len(ids_of(corpus, split))
    assert len(store.shards("train")) > 5
    assert store.dtype == np.uint16
    large = ByteTokenizer()
    large.vocab_size, large.token_bytes = 2**16 + 1, lambda token: bytes([token % 256])
    assert prepare(corpus, large, tmp_path / "large").dtype == np.uint32


def test_a_second_preparation_reads_no_document(corpus, store, tmp_path, capsys):
    assert corpus.reads == 2
    assert prepare(corpus, ByteTokenizer(), tmp_path) == store
    assert corpus.reads == 2
    assert prepare(corpus, CharacterTokenizer(ASCII), tmp_path).folder != store.folder
    validation, train = capsys.readouterr().err.splitlines()
    assert train.startswith("tokenizing train: 100 documents, 3,290 tokens, 0.0 MB, ")
    assert validation.startswith("tokenizing validation: 1 documents, 8 tokens")


def test_a_failed_preparation_leaves_no_folder(tmp_path):
    class Failing(Stories):
        def documents(self, split):
            yield from super().documents(split)
            if split == "validation":
                raise UserError("on purpose")

    with pytest.raises(UserError, match="on purpose"):
        prepare(Failing(["a story"]), ByteTokenizer(), tmp_path)
    assert [path.suffix for path in (tmp_path / "tokens").iterdir()] == [".lock"]


def test_the_cache_ignores_the_folder_of_a_killed_preparation(tmp_path, monkeypatch):
    """kill -9 in the middle of the second batch; the next preparation starts again and is complete."""
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 10)
    corpus = Stories(["one two three", "four five six", "seven"])

    class Killing(ByteTokenizer):
        def encode_batch(self, texts):
            if "seven" in texts:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode_batch(texts)

    if (child := os.fork()) == 0:
        try:
            prepare(corpus, Killing(), tmp_path)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert any(path.suffix == ".partial" for path in (tmp_path / "tokens").iterdir())
    store = prepare(corpus, ByteTokenizer(), tmp_path)
    assert np.concatenate(store.shards("train")).tolist() == ids_of(corpus, "train")


class InParts(Stories):
    """Stories in files of ten, which counts its reads."""

    reads = 0

    def parts(self, split, place):
        files = [self.splits[split][i : i + 10] for i in range(0, len(self.splits[split]), 10)]
        place.files = len(files)

        def part(file):
            for text in file:
                self.reads += 1
                yield text
            place.file += 1

        while place.file < len(files):
            yield part(files[place.file])


def broken(at: int, end: Callable) -> ByteTokenizer:
    """A tokenizer that ends the process, or raises, at one of its calls."""
    tokenizer, left = ByteTokenizer(), iter(range(at))

    def encode_batch(texts):
        if next(left, None) is None:
            end()
        return ByteTokenizer.encode_batch(tokenizer, texts)

    tokenizer.encode_batch = encode_batch
    return tokenizer


def test_a_preparation_that_ended_goes_on_behind_the_last_complete_file(tmp_path, monkeypatch, capsys):
    """Killed, failed, or with a damaged shard: the store is that of a preparation without interruption."""
    monkeypatch.setattr(preparation, "SHARD_TOKENS", 500)
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 100)
    stories = [f"story number {i}, which ends here" for i in range(100)]
    whole = prepare(Stories(stories), ByteTokenizer(), tmp_path / "whole")

    def files(store):
        return [np.concatenate(store.shards(split)).tolist() for split in ("validation", "train")]

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    for at in (0, 10, 20):
        cache = tmp_path / str(at)
        if (child := os.fork()) == 0:
            try:
                prepare(InParts(stories), broken(at, kill), cache)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with pytest.raises(ZeroDivisionError):
            prepare(InParts(stories), broken(1, lambda: 1 / 0), cache)
        (folder,) = (cache / "tokens").glob("*.partial")
        if damaged := at == 20:
            shard = sorted(folder.glob("train*"))[0]
            shard.write_bytes(b"x" + shard.read_bytes()[1:])
        corpus = InParts(stories)
        store = prepare(corpus, ByteTokenizer(), cache)
        assert files(store) == files(whole)
        counted = [{key: its[key] for key in preparation.COUNTS} for its in store.manifest["splits"].values()]
        assert counted == [{key: its[key] for key in preparation.COUNTS} for its in whole.manifest["splits"].values()]
        assert store.manifest["repeated"] == whole.manifest["repeated"]
        said = capsys.readouterr().err
        assert ("begins again" in said) == damaged
        assert (corpus.reads == len(stories) + 1) == damaged
        assert [path.name for path in (cache / "tokens").glob("*.partial")] == []


EMPTY = {"shards": [], "tokens": 0, "documents": 1, "bytes": 0, "lost_bytes": 0}
EXPECTED = {"format": store_module.FORMAT, "tokenizer": fingerprint(ByteTokenizer()), "vocab_size": 257}


def edit_shard(store: TokenStore, edit, *, digest: bool) -> None:
    """Changes the bytes of the second shard, and with `digest` also its sha256 in the manifest."""
    shard, manifest = store.folder / "train-00001.bin", json.loads((store.folder / "manifest.json").read_text())
    content = edit(shard.read_bytes())
    time.sleep(0.02)  # longer than the resolution of a file system's clock
    shard.unlink()
    if content is not None:
        shard.write_bytes(content)
    if digest:
        manifest["splits"]["train"]["shards"][1]["sha256"] = hashlib.sha256(content).hexdigest()
        (store.folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("edit", "digest", "message"),
    [
        (lambda ids: None, False, "cannot be read: No such file or directory; delete"),
        (lambda ids: ids[:-1], False, r"has (\d+) bytes, but its \d+ ids need \d+; delete .* to rebuild"),
        (lambda ids: b"", True, r"has 0 bytes, but its \d+ ids need"),
        (lambda ids: ids[:80] + bytes([ids[80] ^ 4]) + ids[81:], False, "has changed since .* sha256"),
        (lambda ids: ids[:80] + b"\x01\x01" + ids[82:], True, "contains id 257, but the vocabulary has 257"),
    ],
)
def test_a_verified_shard_that_was_edited_is_refused(store, edit, digest, message):
    assert set(json.loads((store.folder / "verified.json").read_text())) >= {"train-00001.bin", "validation-00000.bin"}
    edit_shard(store, edit, digest=digest)
    for _ in range(2):  # a failed verification is not recorded
        with pytest.raises(UserError, match=f"train-00001.bin {message}"):
            TokenStore.open(store.folder, EXPECTED)


def test_a_shard_is_read_again_only_if_its_stamp_is_lost(store, corpus, tmp_path, monkeypatch):
    read = []

    digest = store_module.atomic.sha256
    monkeypatch.setattr(store_module.atomic, "sha256", lambda path: read.append(path.name) or digest(path))
    assert TokenStore.open(store.folder, EXPECTED) == store
    assert read == []
    (store.folder / "verified.json").write_text("damaged")
    assert TokenStore.open(store.folder, EXPECTED) == store
    assert sorted(read) == sorted(path.name for path in store.folder.glob("*.bin"))
    read.clear()
    fresh = prepare(corpus, ByteTokenizer(), tmp_path / "fresh")
    shards = sorted(name for name in read if name.endswith(".bin"))
    assert shards == sorted(path.name for path in fresh.folder.glob("*.bin"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: None, "manifest.json is missing; delete .* to rebuild"),
        (lambda manifest: "", "manifest.json cannot be read or is damaged"),
        (lambda manifest: "[1]", "is damaged"),
        (lambda manifest: manifest | {"dtype": "float64"}, "is damaged"),
        (lambda manifest: manifest | {"splits": {"train": manifest["splits"]["train"]}}, "is damaged"),
        (lambda manifest: manifest | {"splits": {"train": EMPTY, "validation": EMPTY}}, "is damaged"),
        (lambda manifest: manifest | {"format": 7}, "has format=7, but this run needs format=2; delete"),
        (lambda manifest: manifest | {"tokenizer": "b"}, "has tokenizer=b, but this run needs tokenizer=\\w{64};"),
        (lambda manifest: manifest | {"vocab_size": 300}, "has vocab_size=300, but this run needs vocab_size=257"),
    ],
)
def test_a_foreign_or_damaged_manifest_is_refused(store, change, message):
    path = store.folder / "manifest.json"
    content = change(json.loads(path.read_text()))
    if content is None:
        path.unlink()
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        TokenStore.open(store.folder, EXPECTED)


def test_a_shard_without_eos_is_refused(store):
    edit_shard(store, lambda ids: bytes(len(ids)), digest=True)
    with pytest.raises(UserError, match="the train split has a shard without an end of a document"):
        Documents(TokenStore.open(store.folder, EXPECTED), "train", 64, ByteTokenizer.eos)


# The tokenizer cache


def test_a_tokenizer_is_built_once_per_corpus_and_settings(corpus, tmp_path):
    build = partial(CharacterTokenizer.build, alphabet="corpus")
    for settings in ({"size": 1}, {"size": 1}, {"size": 2}):
        tokenizer = prepare_tokenizer(settings, build, corpus, tmp_path)
        assert tokenizer.characters == "".join(sorted(set("".join(corpus.splits["train"]))))
    assert corpus.reads == 2
    assert fingerprint(tokenizer) == fingerprint(CharacterTokenizer(tokenizer.characters))


# Windows


def test_windows_are_consecutive_ids_across_shards(corpus, store):
    windows, ids = Windows(store, "train", 16), ids_of(corpus, "train")
    assert len(windows) == (len(ids) - 1) // 16
    for index in range(len(windows)):
        assert windows[index].tolist() == ids[16 * index : 16 * index + 17]
    assert torch.equal(windows.__getitems__([3, 0]), torch.stack([windows[3], windows[0]]))
    assert windows[0].dtype == torch.int64


def test_a_split_shorter_than_a_window(store):
    with pytest.raises(UserError, match=r"validation split has 8 tokens, fewer than one window of model.context=8"):
        Windows(store, "validation", 8)
    assert len(Windows(store, "validation", 7)) == 1


def test_documents_are_windows_of_their_own(corpus, store):
    """Over several shards, complete, in order, and equal in a loader process that maps the files itself."""
    documents, eos = Documents(store, "train", 64, ByteTokenizer.eos), ByteTokenizer.eos
    again = pickle.loads(pickle.dumps(documents))
    assert len(documents) == len(again) == 100
    assert documents.longest == max(len(text) + 1 for text in corpus.splits["train"])
    for index, text in enumerate(corpus.splits["train"]):
        assert documents[index].tolist() == again[index].tolist() == [eos, *ByteTokenizer().encode(text), eos]
    rows = documents.__getitems__([0, 50])
    short, long = (len(corpus.splits["train"][index]) for index in (0, 50))
    targets = min(-(-(long + 1) // 16) * 16, 64)
    assert rows.shape == (2, targets + 1)  # their number rounded up
    assert rows[0].tolist() == [*documents[0].tolist(), *[IGNORE] * (targets - short - 1)]
    assert rows[1].tolist() == [*documents[50].tolist(), *[IGNORE] * (targets - long - 1)]
    truncated, text = Documents(store, "train", 10, eos), corpus.splits["train"][3]
    assert truncated.longest == documents.longest
    assert truncated[3].tolist() == [eos, *ByteTokenizer().encode(text)[:10]]
    assert truncated.__getitems__([3, 4]).shape == (2, 11)  # never above the context


def test_evenly_spaced():
    assert evenly_spaced(10, None) == evenly_spaced(10, 20) == range(10)
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]


# The order


def shuffle(windows, seed):
    return InfiniteShuffle(np.broadcast_to(1, windows), seed)


def first(order, count, *place):
    return list(itertools.islice(order.indices(*(place or [0])), count))


def test_the_order_is_a_sequence_of_permutations_that_continues_from_any_position():
    order = first(shuffle(10, 7), 35)
    for epoch in range(3):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order != first(shuffle(10, 8), 35)
    for start in (0, 3, 10, 27):
        assert first(shuffle(10, 7), 8, start) == order[start : start + 8]


def test_ranks_divide_the_order():
    complete = first(shuffle(10, 7), 24, 4)
    ranks = [first(shuffle(10, 7), 8, 4, rank, 3) for rank in range(3)]
    assert [index for step in zip(*ranks, strict=True) for index in step] == complete


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("layout", [Windows, Documents])
def test_a_subset_of_windows_is_read_in_batches(store, monkeypatch, layout, workers):
    """For overfitting a few windows and for validation; equal batches from any number of workers."""
    windows = layout(store, "train", 16, *([ByteTokenizer.eos] if layout is Documents else []))
    chosen, batches, read = evenly_spaced(len(windows), 7), [], layout.__getitems__
    monkeypatch.setattr(layout, "__getitems__", lambda self, ids: batches.append(ids) or read(self, ids))
    few, order = Subset(windows, chosen), first(shuffle(7, 1), 12)
    loader = DataLoader(few, 3, sampler=Positions(shuffle(7, 1), 0), collate_fn=identity_collate, num_workers=workers)
    for batch, start in zip(loader, (0, 3, 6, 9), strict=False):
        assert torch.equal(batch, read(windows, [chosen[index] for index in order[start : start + 3]]))
    assert [index for ids in batches for index in ids][:12] == ([] if workers else [chosen[index] for index in order])
    assert all(len(ids) == 3 for ids in batches)
