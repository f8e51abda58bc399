"""data.joined, data.order=sequential, data.validated_train_windows and tokenizer.character_coverage."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mistake
from test_data import Stories, ids_of

from slm import checkpoint, tokenizers
from slm.corpora.wrapped import joined
from slm.data.order import make_order
from slm.data.store import prepare
from slm.data.windows import evenly_spaced, split_windows
from slm.files import jsonl, run_folder
from slm.generation.text_loss import window_nats
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.sentencepiece import SentencePieceTokenizer

EOS = ByteTokenizer.eos


def first(order, count, start=0):
    return list(itertools.islice(order.indices(start), count))


def test_joined_documents_have_no_id_between_them(tmp_path):
    corpus = Stories([f"story number {i}" for i in range(60)], ["it is the end of the story"])
    store = prepare(joined(corpus), ByteTokenizer(), tmp_path)
    assert np.concatenate(store.shards("train")).tolist() == [*"".join(corpus.splits["train"]).encode()]
    assert not store.eos_is_trained(4)
    splits = split_windows(store, EOS, context=16)
    ids = np.concatenate(store.shards("train"))
    for index in first(splits.order(0), 3 * len(splits.train)):  # also later passes, which are cut at other places
        place = splits.train.start(index)
        assert splits.train[index].tolist() == np.take(ids, range(place, place + 17), mode="wrap").tolist()
    both = prepare(corpus, ByteTokenizer(), tmp_path)  # beside it in the cache
    assert np.concatenate(both.shards("train")).tolist() == ids_of(corpus, "train")


@pytest.mark.parametrize("other", ["data.layout=documents", "data.attention_across_documents=false"])
def test_joined_documents_have_no_ends(composed, other):
    with mistake(r"data.joined=true has no ends of documents, which .* needs"):
        composed("data.joined=true", other)


def test_sequential_order_reads_the_text_in_its_order_and_drops_an_incomplete_batch(tmp_path):
    store = prepare(
        Stories(["abcdefghij" * 17], ["the end of it"]), ByteTokenizer(), tmp_path
    )  # 171 ids: 21 windows of 8
    splits = split_windows(store, EOS, context=8, order="sequential", batch_windows=4)
    expected = [*range(20)] * 3
    assert first(splits.order(0), 60) == expected
    assert first(splits.order(5), 30, 27) == expected[27:57]
    assert splits.order(0).targets_before(23) == 23 * 8
    assert len(split_windows(store, EOS, context=8, order="sequential", batch_windows=40).chosen) == 21
    lengths = np.array([3, 1, 4, 1, 5])
    order = make_order("sequential", lengths, 0, 1)
    for position in range(14):
        assert order.targets_before(position) == sum(lengths[index % 5] for index in range(position))


def test_train_windows_are_validated_beside_an_equal_training(run, composed, finished):
    """Their loss is that of the model; the rest of the run is, bit for bit, that of a run without."""
    folder = run("data.validated_train_windows=6")
    before, after = (checkpoint.read(run_folder.checkpoints(path)[0])["state_dict"] for path in (finished, folder))
    assert all(torch.equal(before[name], weight) for name, weight in after.items())
    for name in ("train/loss", "val/loss"):
        assert [*jsonl.numbers(folder / "metrics.jsonl", name)] == [*jsonl.numbers(finished / "metrics.jsonl", name)]
    loaded, config = checkpoint.load(run_folder.checkpoints(folder)[0]), composed()
    store = prepare(config.data.corpus, loaded.tokenizer, Path(config.cache_dir))
    train = split_windows(store, EOS, context=64).train
    windows = train.__getitems__(evenly_spaced(len(train), 6))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = window_nats(loaded.model, windows).mean().item()
    found = [*jsonl.numbers(folder / "metrics.jsonl", "val/train_loss")]
    assert len(found) == 2
    assert found[-1] == pytest.approx(expected, rel=1e-3)


def test_characters_beyond_the_coverage_are_bytes():
    documents = ["the cat saw a dog and a bird " * 20] * 20 + ["caf\u00e9"]
    settings = {"vocab_size": 300, "algorithm": "bpe", "sample_documents": 100, "seed": 0}
    whole = SentencePieceTokenizer.build(documents, **settings)
    cut = SentencePieceTokenizer.build(documents, **settings, character_coverage=0.99)
    assert [len(tokenizer.encode("\u00e9")) for tokenizer in (whole, cut)] == [1, 2]
    assert cut.decode(cut.encode("caf\u00e9")) == "caf\u00e9"
    same = SentencePieceTokenizer.build(documents, **settings, character_coverage=None)
    assert tokenizers.files(same) == tokenizers.files(whole)
    assert tokenizers.identity({**settings, "path": None, "character_coverage": None}) == settings
    with mistake(r"character_coverage=0.5 must be from 0.98 to 1"):
        SentencePieceTokenizer.build(documents, **settings, character_coverage=0.5)
