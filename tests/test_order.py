"""Orders and layouts: which ids every position reads, against a few lines of NumPy; real runs resume with each."""

import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from conftest import exit_code, mistake, small_run
from forks import forked
from test_data import Stories, ids_of
from test_distributed import TWO
from test_lens import EXACT
from test_model import model_of
from test_resume import history, resumes_exactly

from slm import lens, verify
from slm.data import encode, preparation
from slm.data.order import InfiniteShuffle, Replacement
from slm.data.packing import best_fit
from slm.data.store import TokenStore, prepare
from slm.data.windows import ARRANGEMENTS, Aligned, Windows, split_windows
from slm.files import jsonl, run_folder
from slm.loss import IGNORE
from slm.run.resume import as_begun
from slm.tokenizers.bytes import ByteTokenizer

EOS = ByteTokenizer.eos
CHOICES = {  # of a run that reads its few windows several times
    "shuffle": ["data.order=shuffle"],
    "replacement": ["data.order=replacement"],
    "strided": ["data.order=strided", "data.stride=24"],
    "aligned": ["data.layout=aligned", "model.context=320", "data.attention_across_documents=false"],
    "masked": ["data.attention_across_documents=false"],
}
FEW = "data.train_ratio=0.03", "data.validation_windows=8", "data.batch_windows=4", "trainer.microbatch=2"


@pytest.fixture
def corpus() -> Stories:
    return Stories((f"story number {i}" + ", and so on" * (i % 7) for i in range(60)), ["it is the end of the story"])


@pytest.fixture
def store(corpus, tmp_path, monkeypatch) -> TokenStore:
    """Shards of at most 300 ids."""
    monkeypatch.setattr(preparation, "SHARD_TOKENS", 300)
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 100)
    return prepare(corpus, ByteTokenizer(), tmp_path)


def first(order, count, *place):
    return list(itertools.islice(order.indices(*(place or [0])), count))


@pytest.mark.parametrize("kind", [InfiniteShuffle, Replacement])
def test_every_position_is_a_function_of_seed_and_position(kind):
    targets = np.full(10, 16)
    order = first(kind(targets, 7, 16), 45)
    assert order != first(kind(targets, 8, 16), 45)
    for start, world in itertools.product((0, 3, 10, 27), (1, 2, 3)):
        ranks = [first(kind(targets, 7, 16), 6, start, rank, world) for rank in range(world)]
        together = [index for step in zip(*ranks, strict=True) for index in step]
        assert together == order[start : start + 6 * world]
    assert kind(targets, 7, 16).targets_before(27) == 27 * 16


def test_targets_are_counted_in_the_order_of_any_pass():
    targets = np.arange(1, 11)
    order = InfiniteShuffle(targets, seed=3)
    read = np.append(0, targets[first(order, 35)].cumsum())
    for position in (0, 35, 4, 10, 29):
        assert order.targets_before(position) == read[position]


def test_each_pass_reads_the_text_once_with_its_documents_in_another_order(corpus, store):
    """The first pass as it always was; each later one the ids of an arrangement of its own, past the end."""
    splits = split_windows(store, EOS, context=16)
    windows, count, texts = splits.train, len(splits.train), np.array(corpus.splits["train"], dtype=object)
    order, moves = first(splits.order(5), 5 * count), []
    assert order[:count] == torch.randperm(count, generator=torch.Generator().manual_seed(5 * 1_000_003)).tolist()
    for number in range(5):
        indices = order[number * count : (number + 1) * count]
        (arrangement,) = {index // count for index in indices}
        assert sorted(index % count for index in indices) == list(range(count))
        moved, documents, _ = windows.arrangement(arrangement)
        assert sorted(documents) == list(range(len(texts)))
        ids = np.array(ids_of(Stories(texts[documents]), "train"))
        for index in indices:
            place = index % count * 16 + moved
            assert windows[index].tolist() == np.take(ids, place + np.arange(17), mode="wrap").tolist()
            document, offset = windows.place(index)
            assert [*ByteTokenizer().encode(texts[document]), EOS][offset] == ids[place]
        moves.append((moved, *documents))
    assert moves[0] == (0, *range(len(texts)))
    assert len(set(moves)) == 5
    assert pickle.loads(pickle.dumps(windows))[order[-1]].tolist() == windows[order[-1]].tolist()


def test_a_single_document_is_cut_at_other_places(tmp_path):
    store = prepare(Stories(["abcdefghij" * 9], ["the end of it"]), ByteTokenizer(), tmp_path)
    splits = split_windows(store, EOS, context=8)
    order = first(splits.order(0), 8 * len(splits.train))
    assert len({splits.train.place(index)[1] % 8 for index in order}) > 3


def test_replacement_draws_every_start_equally_often(store):
    splits = split_windows(store, EOS, context=16, order="replacement")
    drawn = first(splits.order(1), 200 * len(splits.train))
    starts = np.bincount([splits.train.start(index) for index in drawn], minlength=16 * len(splits.train))
    assert len(starts) == 16 * len(splits.train)
    assert starts.mean() == pytest.approx(200 / 16)
    assert starts.var() == pytest.approx(starts.mean(), rel=0.2)  # as of Poisson's distribution


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_strided_windows_overlap(corpus, store, stride):
    windows, ids = Windows(store, "train", 16, stride), ids_of(corpus, "train")
    starts = range(0, len(ids) - 16, stride)
    assert len(windows) == len(starts)
    for index, start in enumerate(starts):
        assert windows[index].tolist() == ids[start : start + 17]
    splits = split_windows(store, EOS, context=16, order="strided", stride=stride)
    order = first(splits.order(0), 2 * len(windows))
    assert sorted(order[len(windows) :]) == sorted(order[: len(windows)]) == list(range(len(windows)))
    assert len(splits.validation) == len(split_windows(store, EOS, context=16).validation)


def bins_one_by_one(lengths, capacity):
    """What best-fit decreasing fills its bins with, by its definition."""
    room = []
    for length in sorted(lengths, reverse=True):
        fitting = [(left, place) for place, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting)[1]] -= length
        else:
            room.append(capacity - length)
    return sorted(capacity - left for left in room)


def test_best_fit():
    rng = np.random.default_rng(0)
    for _ in range(100):
        capacity = int(rng.integers(1, 40))
        lengths = rng.integers(1, capacity + 1, rng.integers(1, 100))
        order, bins = best_fit(lengths, capacity)
        assert sorted(order) == list(range(len(lengths)))
        assert (np.diff(bins) > 0).all()
        assert sorted(np.add.reduceat(lengths[order], bins[:-1])) == bins_one_by_one(lengths.tolist(), capacity)


def test_aligned_windows_have_every_document_once(corpus, store):
    windows, tokenizer, found = Aligned(store, "train", 64, EOS), ByteTokenizer(), []
    for index in range(len(windows)):
        row = windows.__getitems__([index])[0].tolist()
        kept = [token for token in row if token != IGNORE]
        assert row == kept + [IGNORE] * (65 - len(kept))
        assert len(kept) == windows.targets[index] + 1
        assert kept[0] == EOS
        *texts, cut = split_at(kept[1:], EOS)
        found += [*texts, *([cut] if cut else [])]
    whole = [tokenizer.encode(text)[:64] for text in corpus.splits["train"]]
    assert sorted(found) == sorted(whole)
    assert windows.targets.mean() > 0.9 * 64
    assert windows.longest > 64  # so the warning about what is cut counts them


def split_at(ids, end):
    """The lists between the ids `end`."""
    parts = [[]]
    for token in ids:
        if token == end:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


@pytest.mark.parametrize("choice", [{}, {"positions": "learned"}, {"window": [3, None]}, {"kv_heads": 1}])
def test_masked_documents_equal_each_alone(choice):
    torch.manual_seed(0)
    model, tokens = model_of(**choice, document_start=0).eval(), torch.randint(1, 17, (2, 12))
    tokens[0, [3, 4, 9]] = tokens[1, 0] = 0
    plain = model_of(**choice).eval()
    expected = [
        torch.cat([plain(tokens[:1, a:z])[0] for a, z in itertools.pairwise([0, 3, 4, 9, 12])]),
        plain(tokens)[1],
    ]
    torch.testing.assert_close(model(tokens), torch.stack(expected))
    assert (model(tokens) - plain(tokens)).abs().max() > 1e-3
    rounded = model.bfloat16()(tokens).float()  # in tiles
    torch.testing.assert_close(rounded, torch.stack(expected), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "name", [name if name in ("shuffle", "aligned") else pytest.param(name, marks=pytest.mark.slow) for name in CHOICES]
)
def test_a_run_resumes_in_any_order_and_its_windows_are_found_again(composed, tmp_path, monkeypatch, name):
    """Over several passes, bit for bit; lens reads the windows of a step again, with the loss that was logged."""
    kept = "callbacks.checkpoints.every_n_steps=3", "callbacks.checkpoints.keep_last=9", "val_every_n_steps=5"
    config = composed(*CHOICES[name], *FEW, *kept, *EXACT, "budget.steps=8")
    straight = resumes_exactly(config, tmp_path, monkeypatch, [9, 5])
    assert list(verify.find_problems(straight)) == []
    arguments = straight, 7, "--json", tmp_path / "found.json", "--cache-dir", tmp_path / "cache"
    assert exit_code(monkeypatch, lens.main, *map(str, arguments)) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    windows = {line["step"]: line["windows"] for line in jsonl.lines(straight / "windows.jsonl")}
    assert sorted(reading["index"] for reading in found["windows"]) == sorted(windows[7])
    nats = [value for reading in found["windows"] for value in reading["nats"]]
    losses = {line["step"]: line["train/loss"] for line in history(straight) if "train/loss" in line}
    assert sum(nats) / len(nats) == pytest.approx(losses[7], rel=1e-4)
    recorded = {"shuffle": ARRANGEMENTS, "masked": ARRANGEMENTS, "replacement": 64}.get(name, 1)
    assert run_folder.read_run_json(straight)["arrangements"] == recorded


def test_a_run_that_began_with_the_same_windows_in_every_pass_goes_on_so(store):
    splits = split_windows(store, EOS, context=16)
    assert splits.arrangements == ARRANGEMENTS
    assert as_begun(splits, None, {}).arrangements == ARRANGEMENTS
    assert as_begun(splits, {"windows": 4}, {"data": {}}).arrangements == 1
    assert as_begun(splits, {"arrangements": ARRANGEMENTS}, {"data": {"order": "shuffle"}}).arrangements == ARRANGEMENTS
    assert as_begun(splits, None, {"data": {"layout": "packed"}}).arrangements == 1  # a fork of such a run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.order=random"], "data.order"),
        (["data.order=replacement", "data.layout=documents"], "data.order=replacement needs data.layout=packed"),
        (["data.stride=8"], "data.stride=8 is for data.order=strided, not shuffle"),
        (["data.order=strided", "data.stride=0"], "data.stride=0 must be at least 1"),
        (["data.order=strided", "data.stride=65"], "data.stride=65 must be at most model.context=64"),
        (["+model.document_start=3"], "give data.attention_across_documents=false"),
    ],
)
def test_impossible_orders_are_refused_in_one_line(run, settings, message):
    with mistake(message):
        run(*settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shuffle", "aligned"])
def test_two_processes_read_the_windows_of_one(text_file, tmp_path, name):
    small = [*small_run(text_file, tmp_path), *CHOICES[name], *FEW, *EXACT, "budget.steps=8"]
    one = forked(*small, f"run_dir={tmp_path / 'one'}")
    two = forked(*small, f"run_dir={tmp_path / 'two'}", *TWO)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert (tmp_path / "one" / "windows.jsonl").read_text() == (tmp_path / "two" / "windows.jsonl").read_text()
    ours, theirs = (
        [line["train/loss"] for line in history(tmp_path / folder) if "train/loss" in line] for folder in ("one", "two")
    )
    assert ours == pytest.approx(theirs, abs=1e-4)
