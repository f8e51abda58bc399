"""The token store survives kills and never re-tokenizes; windows are the ids; the order is pure."""

import hashlib
import io
import itertools
import json
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from slm.data import store as store_module
from slm.data.store import TokenStore, fingerprint, prepare, prepare_tokenizer
from slm.data.windows import Documents, InfiniteShuffle, Windows, evenly_spaced
from slm.errors import UserError
from slm.loss import IGNORE
from slm.tokenizers.bytes import ByteTokenizer
from slm.training.datamodule import identity_collate


class Stories:
    """A corpus in memory that counts how often it is read."""

    def __init__(self, train, validation=("the end",)):
        self.splits, self.read = {"train": list(train), "validation": list(validation)}, 0

    def documents(self, split):
        self.read += 1
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
    """In shards of at most 300 ids and batches of about 100 characters."""
    monkeypatch.setattr(store_module, "SHARD_TOKENS", 300)
    monkeypatch.setattr(store_module, "BATCH_CHARACTERS", 100)
    return prepare(corpus, ByteTokenizer(), "fingerprint", tmp_path)


def test_the_store_holds_the_documents_in_order(corpus, store):
    for split in ("train", "validation"):
        assert np.concatenate(store.shards(split)).tolist() == ids_of(corpus, split)
        counts = store.manifest["splits"][split]
        assert counts["documents"] == len(corpus.splits[split])
        assert counts["bytes"] == sum(len(text.encode()) for text in corpus.splits[split])
        assert counts["tokens"] == store.tokens(split) == len(ids_of(corpus, split))
    assert len(store.shards("train")) > 5
    assert store.dtype == np.uint16


def test_large_vocabularies_take_four_bytes(corpus, tmp_path):
    tokenizer = ByteTokenizer()
    tokenizer.vocab_size = 2**16 + 1
    assert prepare(corpus, tokenizer, "fingerprint", tmp_path).dtype == np.uint32


def test_a_second_preparation_reads_nothing(corpus, store, tmp_path):
    reads = corpus.read
    again = prepare(corpus, ByteTokenizer(), "fingerprint", tmp_path)
    assert again == store
    assert corpus.read == reads
    assert prepare(corpus, ByteTokenizer(), "another tokenizer", tmp_path).folder != store.folder


def test_a_failed_preparation_leaves_nothing(tmp_path):
    class Torn(Stories):
        def documents(self, split):
            yield from super().documents(split)
            if split == "validation":
                raise UserError("torn")

    with pytest.raises(UserError, match="torn"):
        prepare(Torn(["a story"]), ByteTokenizer(), "fingerprint", tmp_path)
    assert [path.suffix for path in (tmp_path / "tokens").iterdir()] == [".lock"]


def test_a_killed_preparation_is_not_trusted(tmp_path):
    """kill -9 in the middle of the second batch; the next preparation starts anew and is whole."""
    program = textwrap.dedent(f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from slm.data import store
        from slm.tokenizers.bytes import ByteTokenizer
        from test_data import Stories
        store.BATCH_CHARACTERS = 10
        class Killing(ByteTokenizer):
            def encode_batch(self, texts):
                if any("seven" in text for text in texts): os.kill(os.getpid(), 9)
                return super().encode_batch(texts)
        store.prepare(Stories(["one two three", "four five six", "seven"]), Killing(), "f", Path({str(tmp_path)!r}))
    """)
    killed = subprocess.run([sys.executable, "-c", program])
    assert killed.returncode == -9
    assert any(path.suffix == ".partial" for path in (tmp_path / "tokens").iterdir())
    corpus = Stories(["one two three", "four five six", "seven"])
    store = prepare(corpus, ByteTokenizer(), "f", tmp_path)
    assert np.concatenate(store.shards("train")).tolist() == ids_of(corpus, "train")


EXPECTED = {"format": 1, "tokenizer": "fingerprint", "vocab_size": 257}


def edited(store: TokenStore, edit, *, honest: bool) -> None:
    """Changes the bytes of the second shard; an honest editor puts the new digest into the manifest."""
    shard, manifest = store.folder / "train-00001.bin", json.loads((store.folder / "manifest.json").read_text())
    content = edit(shard.read_bytes())
    time.sleep(0.02)  # a file system's clock may tick no faster
    shard.write_bytes(content)
    if honest:
        manifest["splits"]["train"]["shards"][1]["sha256"] = hashlib.sha256(content).hexdigest()
        (store.folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("edit", "honest", "message"),
    [
        (
            lambda ids: ids[:-1],
            False,
            r"train-00001.bin has (\d+) bytes, not the \d+ of its \d+ ids; delete .* to rebuild",
        ),
        (lambda ids: b"", True, r"train-00001.bin has 0 bytes, not the \d+ of its \d+ ids"),
        (lambda ids: ids[:80] + bytes([ids[80] ^ 4]) + ids[81:], False, "train-00001.bin was changed after .* sha256"),
        (
            lambda ids: ids[:80] + b"\x01\x01" + ids[82:],
            True,
            "train-00001.bin holds the id 257 of a vocabulary of 257",
        ),
    ],
    ids=["odd", "empty", "one bit", "beyond the vocabulary"],
)
def test_an_edited_shard_is_refused_although_it_was_found_sound_before(store, edit, honest, message):
    assert set(json.loads((store.folder / "verified.json").read_text())) >= {"train-00001.bin", "validation-00000.bin"}
    edited(store, edit, honest=honest)
    for _ in range(2):  # a refusal is not remembered as a success
        with pytest.raises(UserError, match=message):
            TokenStore.open(store.folder, EXPECTED)


def test_a_lost_shard_is_refused(store):
    (store.folder / "train-00001.bin").unlink()
    with pytest.raises(UserError, match=r"train-00001.bin cannot be read: No such file or directory; delete"):
        TokenStore.open(store.folder, EXPECTED)


def test_an_untouched_shard_is_read_once(store, monkeypatch):
    read = []

    def spy(path, mode):
        read.append(path.name)
        return io.FileIO(path, mode)

    monkeypatch.setattr(store_module, "open", spy, raising=False)
    assert TokenStore.open(store.folder, EXPECTED) == store
    assert read == []
    (store.folder / "verified.json").write_text("damaged")
    assert TokenStore.open(store.folder, EXPECTED) == store
    assert sorted(read) == sorted(path.name for path in store.folder.glob("*.bin"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: None, "manifest.json is missing; delete .* to rebuild"),
        (lambda manifest: "", "manifest.json cannot be read or is damaged"),
        (lambda manifest: "[1]", "is damaged"),
        (lambda manifest: {**manifest, "dtype": "float64"}, "is damaged"),
        (lambda manifest: {**manifest, "splits": {"train": manifest["splits"]["train"]}}, "is damaged"),
        (
            lambda manifest: {
                **manifest,
                "splits": {s: {**v, "shards": [], "tokens": 0} for s, v in manifest["splits"].items()},
            },
            "damaged",
        ),
        (lambda manifest: {**manifest, "format": 7}, "says format=7, but this run needs format=1; delete"),
        (
            lambda manifest: {**manifest, "tokenizer": "other"},
            "tokenizer=other, but this run needs tokenizer=fingerprint",
        ),
        (lambda manifest: {**manifest, "vocab_size": 300}, "vocab_size=300, but this run needs vocab_size=257"),
    ],
    ids=["missing", "empty", "a list", "dtype", "one split", "no shards", "format", "tokenizer", "vocabulary"],
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


def test_documents_that_never_end_are_refused(store):
    """By an editor who put the digest right: it must not end in an index out of range."""
    edited(store, lambda ids: bytes(len(ids)), honest=True)
    with pytest.raises(UserError, match="the train split has a shard without an end of a document"):
        Documents(TokenStore.open(store.folder, EXPECTED), "train", 64, ByteTokenizer.eos)


def test_a_tokenizer_is_built_once_per_corpus_and_settings(corpus, tmp_path):
    built = []

    def make(documents):
        built.append(len(list(documents)))
        return ByteTokenizer()

    for settings in ({"size": 1}, {"size": 1}, {"size": 2}):
        tokenizer, folder = prepare_tokenizer(settings, make, corpus, tmp_path)
        assert tokenizer.vocab_size == 257
    assert built == [100, 100]
    assert fingerprint(folder) == fingerprint(folder)


def test_windows_are_consecutive_ids_across_shards(corpus, store):
    windows, ids = Windows(store, "train", 16), ids_of(corpus, "train")
    assert len(windows) == (len(ids) - 1) // 16
    for index in range(len(windows)):
        assert windows[index].tolist() == ids[16 * index : 16 * index + 17]
    assert torch.equal(windows.__getitems__([3, 0]), torch.stack([windows[3], windows[0]]))
    assert windows[0].dtype == torch.int64


def test_too_short_for_a_window(store):
    with pytest.raises(UserError, match=r"validation split has 8 tokens, fewer than one window of model.context=8"):
        Windows(store, "validation", 8)
    assert len(Windows(store, "validation", 7)) == 1


def first(order, count):
    return list(itertools.islice(order, count))


def test_the_order_is_a_chain_of_permutations():
    order = first(InfiniteShuffle(10, seed=7), 35)
    for epoch in range(3):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order != first(InfiniteShuffle(10, seed=8), 35)


@pytest.mark.parametrize("start", [0, 3, 10, 27])
def test_the_order_goes_on_from_any_position(start):
    assert first(InfiniteShuffle(10, seed=7, start=start), 20) == first(InfiniteShuffle(10, seed=7), start + 20)[start:]


def test_ranks_share_the_order():
    whole = first(InfiniteShuffle(10, seed=7, start=4), 24)
    ranks = [first(InfiniteShuffle(10, seed=7, start=4, rank=rank, world=3), 8) for rank in range(3)]
    assert [index for together in zip(*ranks, strict=True) for index in together] == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_no_batch(store, workers):
    windows = Windows(store, "train", 16)
    loader = DataLoader(
        windows, 4, sampler=InfiniteShuffle(len(windows), 1), collate_fn=identity_collate, num_workers=workers
    )
    order = first(InfiniteShuffle(len(windows), 1), 12)
    for batch, start in zip(loader, (0, 4, 8), strict=False):
        assert torch.equal(batch, windows.__getitems__(order[start : start + 4]))


def test_spread():
    assert evenly_spaced(10, None) == evenly_spaced(10, 20) == list(range(10))
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]


def test_documents_are_rows_of_their_own(corpus, store):
    """Over several shards, whole, in order, and the same in a loader process that maps the files itself."""
    documents, eos = Documents(store, "train", 64, ByteTokenizer.eos), ByteTokenizer.eos
    again = pickle.loads(pickle.dumps(documents))
    assert len(documents) == len(again) == 100
    assert documents.cut == 0
    assert documents.longest == max(len(text) + 1 for text in corpus.splits["train"])
    for index, text in enumerate(corpus.splits["train"]):
        assert documents[index].tolist() == again[index].tolist() == [eos, *ByteTokenizer().encode(text), eos]
    rows = documents.__getitems__([0, 50])
    short, long = (len(corpus.splits["train"][index]) for index in (0, 50))
    assert rows.shape == (2, long + 2)
    assert rows[0, short + 2 :].tolist() == [IGNORE] * (long - short)


def test_long_documents_are_cut(corpus, store):
    documents, text = Documents(store, "train", 10, ByteTokenizer.eos), corpus.splits["train"][3]
    assert documents.cut == 100
    assert documents[3].tolist() == [ByteTokenizer.eos, *ByteTokenizer().encode(text)[:10]]
