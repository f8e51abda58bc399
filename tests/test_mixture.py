"""Mixtures: quotas against a walk from the start; real runs that resume exactly; the validation of each source."""

import itertools
import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from conftest import mistake, small_run, trained
from faults import override as fault
from forks import forked
from test_distributed import TWO
from test_lens import EVERY_STEP, EXACT, looked  # noqa: F401
from test_resume import history, resumes_exactly

from slm import checkpoint, verify
from slm.analysis import curves
from slm.analysis.run_charts import main_charts, source_charts
from slm.corpora.mixture import Mixture, Source
from slm.data.quotas import Quotas
from slm.data.store import prepare
from slm.data.windows import evenly_spaced, split_windows
from slm.files import jsonl, run_folder
from slm.generation.text_loss import window_nats
from slm.loss import IGNORE
from slm.run.plan import make_plan
from slm.run.train import train
from slm.tokenizers.bytes import ByteTokenizer

SMALL = "data.batch_windows=10", "trainer.microbatch=5", "data.validation_windows=8", "data.sources.b.layout=documents"


class Lines:
    def __init__(self, *lines: str):
        self.lines = lines

    def documents(self, split):
        return iter(self.lines if split == "train" else self.lines[:1])

    def fingerprint(self):
        return str(hash(self.lines))


@pytest.fixture
def sources(text_file, tmp_path) -> list[str]:
    """Overrides for two sources: `a` by number of windows the larger one, with three quarters of the weight."""
    (tmp_path / "b.txt").write_text(
        "\n\n".join(f"line {n} of another text, {'so ' * (n % 9)}it ends" for n in range(80))
    )
    return [
        *("data=mixture", "data.sources.a=text", f"data.sources.a.path={text_file}", "data.sources.a.weight=3"),
        *("data.sources.b=text", f"data.sources.b.path={tmp_path / 'b.txt'}", "data.sources.b.weight=1"),
        *("data.sources.a.separator=<|endoftext|>", r"data.sources.b.separator=\n\n"),
    ]


def drawn(rng: random.Random, length: int) -> Quotas:
    """Quotas of up to five sources, with weights that change and may be 0, and limits."""
    size = rng.randint(1, 5)
    places = sorted({0, *(rng.randint(1, length) for _ in range(rng.randint(0, 3)))})
    knots = [(place, [rng.choice([0, 1]) * rng.random() for _ in range(size)]) for place in places]
    knots = [(place, shares if any(shares) else [1.0] * size) for place, shares in knots]
    return Quotas(knots, [rng.choice([math.inf, rng.randint(1, length)]) for _ in range(size)])


@pytest.mark.parametrize("seed", range(40))
def test_counts_in_closed_form_are_those_of_a_walk(seed):
    rng, length = random.Random(seed), 700
    quotas = drawn(rng, length)
    size = len(quotas.limits)
    walk = list(itertools.islice(quotas.sources([0] * size), length))
    for position in (0, 1, length, *(rng.randint(0, length) for _ in range(25))):
        counts = quotas.counts(position)
        assert counts == [walk[:position].count(source) for source in range(size)]
        phase = [phase for phase in quotas.phases if phase.start <= position][-1]
        assert all(abs(count - phase.count(source, position)) < size for source, count in enumerate(counts))
        if position <= quotas.end:
            assert all(count <= limit for count, limit in zip(counts, quotas.limits))


def test_shares_add_up_to_the_integral_of_the_weights():
    """Against a sum over 10,000 positions: two knots, and a source that ends at its limit."""
    quotas, length = Quotas([(0, [0.9, 0.1, 0.0]), (8000, [0.0, 0.5, 0.5])], [math.inf, 2000, math.inf]), 10_000
    weights = np.array(
        [np.interp(np.arange(length) + 0.5, [0, 8000], pair) for pair in ((0.9, 0), (0.1, 0.5), (0, 0.5))]
    )
    full = int(np.searchsorted(weights[1].cumsum(), 2000))
    assert quotas.counts(full) == pytest.approx(weights[:, :full].sum(1), abs=2)
    assert quotas.counts(length)[1] == 2000
    assert quotas.counts(length)[0] < quotas.counts(length)[2]


def test_the_sample_for_a_tokenizer_has_the_weights_and_repeats_what_is_short():
    sources = {
        "a": Source(corpus=Lines("aa", "bb"), weight={"0": 1, "1": 0}),
        "b": Source(corpus=Lines(*"c" * 300), weight=1.5),
    }
    counts = Counter(map(len, Mixture(sources=sources).documents("train")))  # mean weights 0.5 and 1.5
    assert counts[1] == 300
    assert counts[2] * 2 == pytest.approx(100, abs=2)


def test_a_resumed_run_reads_by_weight_and_validates_each_source(composed, sources, tmp_path, monkeypatch, looked):  # noqa: F811
    """Packed windows and documents in one run that is killed in a step: its windows, their loss, its validation."""
    config = composed(*SMALL, *EVERY_STEP, *EXACT, data=sources)
    folder = resumes_exactly(config, tmp_path, monkeypatch, [5])
    assert [*verify.find_problems(folder)] == []
    metrics = {key: value for line in jsonl.lines(folder / "metrics.jsonl") for key, value in line.items()}
    targets: Counter[str] = Counter()
    for line in jsonl.lines(folder / "windows.jsonl"):
        assert looked(folder, line["step"], "--json", tmp_path / "found.json")[0] == 0
        found = json.loads((tmp_path / "found.json").read_text())["windows"]
        assert sorted(w["index"] * 2 + (w["source"] == "b") for w in found) == sorted(line["windows"])
        targets.update({name: sum(len(w["nats"]) for w in found if w["source"] == name) for name in "ab"})
    nats = [value for window in found for value in window["nats"]]
    assert sum(nats) / len(nats) == pytest.approx(metrics["train/loss"], rel=1e-4)
    assert targets["b"] / targets.total() == pytest.approx(0.25, abs=0.05)

    chart, losses, _ = source_charts(curves.read(folder))
    assert [line.name for line in chart.series] == ["all", "a", "b"]
    assert [line.y[-1] for line in losses.series] == [metrics[f"val/{name}loss"] for name in ("", "a/", "b/")]
    assert chart.title in [shown.title for shown in main_charts(curves.read(folder))]

    model = checkpoint.load(run_folder.checkpoints(folder)[0]).model
    for name, layout in (("a", "packed"), ("b", "documents")):
        store = prepare(config.data.corpus.sources[name].corpus, ByteTokenizer(), tmp_path / "cache")
        windows = split_windows(store, ByteTokenizer.eos, context=64, layout=layout).validation
        ids = windows.__getitems__(evenly_spaced(len(windows), 8))
        mean = window_nats(model, ids).sum() / (ids[:, 1:] != IGNORE).sum()
        assert metrics[f"val/{name}/loss"] == pytest.approx(float(mean), rel=1e-4)


@pytest.mark.slow
def test_weights_that_change_and_epochs_that_end(sources, composed, tmp_path):
    """The plan tells it, and another length, or one that the epochs do not allow, is refused."""
    changing = ["data.sources.a.weight={0:1,1:0}", "data.sources.b.weight={0:0,1:1}"]
    train(composed(*SMALL, *changing, "budget.steps=4", data=sources), run_dir=tmp_path / "run", overrides=[])
    first, *_, last = json.loads((tmp_path / "run" / "run.json").read_text())["sources"]["b"]["shares"]
    assert (first[1], last[1]) == (0, 1)
    plan = make_plan(composed(*SMALL, *changing, "budget.steps=40", "data.sources.b.epochs=1", data=sources))
    assert plan.passes["b"] == 1
    with mistake("give budget.steps=4, or another run_dir"):
        train(composed(*SMALL, *changing, "budget.steps=6", data=sources), run_dir=tmp_path / "run", overrides=[])
    ends = ["data.sources.a.epochs=0.1", "data.sources.b.epochs=1", "budget.steps=99"]
    with mistake("the epochs of data.sources allow .* windows, and the run reads"):
        train(composed(*SMALL, *ends, data=sources), run_dir=tmp_path / "other", overrides=[])
    assert not (tmp_path / "other" / "run.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.sources.c=tinystoris"], "data.sources.c=tinystoris is not one of .*; did you mean tinystories?"),
        (["data.sources.c=text"], "data.sources.c.weight is missing: all sources have weights, or none has"),
        (["data.sources.b.pth=x"], "there is no key data.sources.b.pth; did you mean data.sources.b.path?"),
        (["data.sources.b.weight=-1"], "data.sources.b: weight=-1 must be at least 0"),
        (["data.sources.b.weight={2:1}"], "2 is not a share of the steps"),
        (["data.sources.b.epochs=x"], "data.sources.b.epochs='x' must be a number or null"),
        (["data.sources.b.path=/nowhere/b.txt"], "data.sources.b: data.path=/nowhere/b.txt does not exist"),
        (["data.tokenizer_weights={a:1}"], "must give each of a, b a weight"),
        (["optimized_metric=val/c/loss"], "val/a/loss"),
    ],
)
def test_mistakes_are_one_line(composed, sources, tmp_path, settings, message):
    with mistake(message):
        train(composed(*SMALL, *settings, data=sources), run_dir=tmp_path / "run", overrides=[])


@pytest.mark.slow
def test_two_processes_read_the_windows_of_one(sources, text_file, tmp_path):
    """Aligned windows and single documents, each document on its own; stopped and resumed, bit for bit."""
    masked = "data.sources.a.layout=aligned", "data.attention_across_documents=false"
    small = [*small_run(text_file, tmp_path, sources), *SMALL, *EXACT, *masked]
    two = "trainer.microbatch=null", *TWO
    stop = *two, fault("terminate", step=2)
    for folder, more, code in (("one", (), 0), ("two", two, 0), ("stopped", stop, 143), ("stopped", two, 0)):
        done = forked(*small, *more, f"run_dir={tmp_path / folder}")
        assert done.returncode == code, done.stderr
    assert verify.first_difference(tmp_path / "two", tmp_path / "stopped") is None
    assert [*verify.find_problems(tmp_path / "stopped")] == []
    assert (tmp_path / "one" / "windows.jsonl").read_text() == (tmp_path / "two" / "windows.jsonl").read_text()
    one, two = ([line for line in history(tmp_path / folder) if "val/b/loss" in line] for folder in ("one", "two"))
    assert [line["val/b/loss"] for line in one] == pytest.approx([line["val/b/loss"] for line in two], abs=1e-4)


@pytest.mark.slow
def test_a_fork_reads_on_as_a_mixture_with_its_weights(sources, text_file, tmp_path, monkeypatch):
    """From its step on the windows are those of a run that had these weights from the start; and of one corpus."""
    small = [*small_run(text_file, tmp_path, sources), *SMALL[:-1], *EXACT, "budget.steps=8"]
    trunk, other, weights = tmp_path / "trunk", tmp_path / "other", "data.sources.a.weight=1"
    assert trained(monkeypatch, *small, "callbacks.checkpoints.keep_at=[4]", f"run_dir={trunk}") == 0
    assert trained(monkeypatch, *small, weights, f"run_dir={other}") == 0
    assert trained(monkeypatch, f"fork={trunk}@4", weights, f"run_dir={tmp_path / 'fork'}") == 0
    read = {path.name: [*jsonl.lines(path / "windows.jsonl")] for path in (trunk, other, tmp_path / "fork")}
    assert read["fork"] == read["trunk"][:4] + read["other"][4:8]
    assert read["trunk"][4:8] != read["other"][4:8]
    changed = run_folder.require_run_json(tmp_path / "fork")["fork"]["changed"]
    assert changed.keys() == {"data.corpus", "data.sources.a.weight"}
    assert (
        trained(monkeypatch, f"fork={trunk}@4", "data=text", f"data.path={text_file}", f"run_dir={tmp_path / 'alone'}")
        == 0
    )
    assert [*verify.find_problems(tmp_path / "alone")] == []
