"""The measures of python -m slm.evaluate against plain loops and other libraries, and the command itself."""

import json
import math
import shutil
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import exit_code
from scipy.stats import binomtest
from torch import nn

from slm import evaluate
from slm.analysis import evaluation_page
from slm.analysis.evaluation_tables import BLOCKS
from slm.analysis.html import Page
from slm.corpora.storyworld.checker import estimate, wilson
from slm.evaluation import ablation, loss, memorisation, probes, texts
from slm.evaluation.held_out import HeldOut
from slm.evaluation.intervals import Bootstrap
from slm.evaluation.scores import score
from slm.files import jsonl
from slm.generation.language_model import load
from slm.tokenizers.bytes import ByteTokenizer

EOS = 20


class Store:
    """Documents of a few different ids, each followed by EOS, in two shards."""

    has_ends = True

    def __init__(self, documents):
        self.stream = np.concatenate([np.append(ids, EOS) for ids in documents])
        self.parts = np.split(self.stream, [len(self.stream) // 3])

    def shards(self, split):
        return self.parts

    def bounds(self, split, eos):
        return np.append(0, np.flatnonzero(self.stream == eos) + 1)

    def tokens(self, split):
        return len(self.stream)


def held_out(documents, layout="packed", **settings) -> HeldOut:
    known = {"name": "text", "split": "validation", "whole": True, "has_ends": True, "lossless": True}
    return HeldOut(documents=[np.array(ids) for ids in documents], layout=layout, **known, **settings)


def test_memorised_ngrams_equal_those_of_a_set(monkeypatch):
    """Of random ids, and of pieces of train; in pieces that are shorter than the texts."""
    monkeypatch.setattr(memorisation, "PIECE", 40)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 4, rng.integers(5, 60)) for _ in range(20)]
    store, stream = Store(documents), np.concatenate([np.append(ids, EOS) for ids in documents]).tolist()
    rows = {
        "random": [rng.integers(0, 4, 50) for _ in range(10)],
        "mixed": [np.concatenate([rng.integers(0, 4, 9), documents[k][:45], [9]]) for k in range(8)],
        "train": documents[3:6],
    }
    found, copies = memorisation.measure(rows, store, EOS, seed=0)
    for name, row in rows.items():
        for n in (4, 8, 16, 32):
            known = {tuple(stream[i : i + n]) for i in range(len(stream) - n + 1)}
            own = [tuple(ids[i : i + n].tolist()) for ids in row for i in range(len(ids) - n + 1)]
            share = sum(ngram in known for ngram in own) / max(1, len(own))
            assert found["rows"][name]["ngrams"].get(str(n), {"mean": 0})["mean"] == pytest.approx(share)
        spans = (tuple(ids[i:j]) for ids in row for i in range(len(ids)) for j in range(i + 4, len(ids) + 1))
        text = f",{','.join(map(str, stream))},"
        longest = max((len(s) for s in spans if f",{','.join(map(str, s))}," in text), default=0)
        assert found["rows"][name]["longest_copy"] == len(copies[name]) == longest
    assert found["rows"]["train"]["duplicates"]["mean"] == 1
    assert found["rows"]["mixed"]["duplicates"] == wilson(0, 8)


class Table(nn.Module):
    """Logits by the last id alone, times a factor."""

    def __init__(self, vocab_size: int, factor: float):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size, context=64)
        self.table = nn.Parameter(torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(0)) * 2)
        self.factor = factor

    def forward(self, tokens):
        return self.table[tokens] * self.factor


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_calibration_finds_the_temperature_of_a_model_that_is_too_sure(factor):
    """On text that the model has drawn at factor 1."""
    model, tokenizer, rng = Table(257, factor), ByteTokenizer(), np.random.default_rng(0)
    probabilities = torch.softmax(model.table, 1).detach().numpy().astype(float)
    cumulative, documents = probabilities.cumsum(1), []
    for _ in range(60):
        ids = [0]
        for _ in range(200):
            ids.append(min(int(np.searchsorted(cumulative[ids[-1]], rng.random())), 255))
        documents.append(ids)
    text = held_out(documents)
    windows, units = text.windows(64, tokenizer.eos)
    scores = score(model, windows)
    targets = loss.Targets(windows, units, scores, tokenizer, True)
    bootstrap = Bootstrap(targets.count, 0)
    found = loss.calibration(targets, scores, units, bootstrap)
    assert found["best_temperature"]["mean"] == pytest.approx(factor, rel=0.06)
    assert (found["ece"]["mean"] > 0.05) == (factor > 1)
    whole = loss.overall(targets, bootstrap)
    assert whole["tokens"] == len(np.concatenate(documents)) + len(documents) - 1
    assert whole["nats"]["low"] < whole["nats"]["mean"] < whole["nats"]["high"]
    assert whole["ends"] == 60
    parts = loss.by_position(targets, bootstrap, 64)["groups"]
    assert sum(part["tokens"] for part in parts) == whole["tokens"]
    mean = sum(part["tokens"] * part["nats"]["mean"] for part in parts) / whole["tokens"]
    assert mean == pytest.approx(whole["nats"]["mean"])


def test_windows_cover_each_target_once_and_know_its_document():
    documents = [[100 + k] * (11 + k) for k in range(30)]
    for layout, cut, context in (("packed", False, 16), ("documents", True, 16), ("documents", False, 16)):
        windows, units = held_out(documents, layout, cut=cut).windows(context, EOS)
        targets = windows[:, 1:]
        kept = targets >= 0
        counts = Counter(zip(units[kept.numpy()].tolist(), targets[kept].tolist()))
        for number, ids in enumerate(documents):
            length = min(len(ids), context) if cut else len(ids) - (layout == "packed" and number == 0)
            assert counts[number, ids[0]] + counts[number, EOS] == length + (not cut or len(ids) < context)
        assert sum(counts.values()) == kept.sum()
    few, units = held_out(documents[:3]).windows(8, EOS)
    assert units[:, 0].tolist() == list(range(len(few)))


def test_wilson_is_scipys_and_replaces_an_interval_without_width():
    for successes, n in ((0, 20), (20, 20), (7, 30)):
        low, high = binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson(successes, n) == pytest.approx({"mean": successes / n, "low": low, "high": high})
    assert estimate([0] * 20) == Bootstrap(20, 0).mean([0] * 20) == wilson(0, 20)
    assert estimate([5.0] * 3) == {"mean": 5, "low": 5, "high": 5}


def test_texts_that_repeat_themselves_have_higher_shares():
    loop, other = "then he sat down . " * 6, "one two three four five six seven eight nine ten eleven twelve ."
    found = texts.measure({"loop": [loop] * 20, "other": [other] * 20}, seed=0)
    rows = found["rows"]
    assert (rows["loop"]["loops"]["mean"], rows["other"]["loops"]) == (0, wilson(0, 20))  # cut to 13 words
    assert texts.loops(texts.WORD.findall(loop))
    assert rows["loop"]["repeated_4_grams"]["mean"] == pytest.approx(0.5)
    assert rows["loop"]["distinct_1"]["mean"] == pytest.approx(5 / 130)
    assert rows["other"]["self_bleu"]["mean"] == pytest.approx(1)


def test_self_bleu_is_sacrebleus():
    bleu = pytest.importorskip("sacrebleu").metrics.BLEU(smooth_method="floor", smooth_value=0.5, tokenize="none")
    words, rng = ["the", "a", "fox", "dog", "ran", "sat", "and", "then", "home", "red", "big"], np.random.default_rng(0)
    group = [rng.choice(words, size).tolist() for size in (12, 15, 9, 20)]
    for number, own in enumerate(texts.self_bleu(group)):
        others = [" ".join(text) for place, text in enumerate(group) if place != number]
        assert 100 * own == pytest.approx(bleu.sentence_score(" ".join(group[number]), others).score)


def test_probes_change_what_their_rule_says():
    text = "Once there was a girl named Mia. She liked Tom. One day, Mia saw Tom and Mia ran home. She was glad. Bye."
    rng = probes.Random(0)
    item = probes.names(text, rng)
    assert (item.true, item.changed) == (
        text[: text.index(" She was")],
        text[: text.index(" She was")].replace("and Mia", "and Tom"),
    )
    item = probes.pronouns(text, rng)
    assert item.changed == item.true[: -len("She was glad.")] + "He was glad."
    assert probes.pronouns(text + " He left.", rng) is None
    item = probes.word_order("Hi. The cat was very happy then.", rng)
    assert Counter(item.true.split()) == Counter(item.changed.split())
    assert item.true != item.changed


def test_the_cost_of_a_passage_is_that_of_its_ids(finished):
    """Also where its beginning, which both have, does not fit into the context of 64."""
    model = load(finished)
    short = probes.Item("the cat saw a dog.", "the dog saw a dog.")
    long = probes.Item("the red bird " * 10 + "the cat sat.", "the red bird " * 10 + "the cat lost.")
    true, changed = probes.costs(model, [short, long])
    for text, bits in ((short.true, true[0]), (short.changed, changed[0])):
        assert bits == pytest.approx(model.loss(text).nats * len(text) / math.log(2), rel=1e-5)
    ids = [model.encode(text)[-64 - extra :] for text, extra in ((long.true, 0), (long.changed, 1))]
    assert ids[0][:40] == ids[1][:40]
    difference = 0.0
    for row, sign in zip(ids, (-1, 1)):
        with torch.inference_mode():
            log = model.model(torch.tensor(row)[None, :-1]).log_softmax(-1)[0]
        difference -= sign * log.gather(1, torch.tensor(row[1:])[:, None])[40:].sum().item() / math.log(2)
    assert changed[1] - true[1] == pytest.approx(difference, abs=1e-3)


def test_the_bits_of_bytes_add_up_and_are_grouped_by_word(finished):
    model, words = load(finished), ["the cat saw the cat. ü", "a dog"]
    for text, bits in zip(words, ablation.byte_bits(model, words)):
        assert len(bits) == len(text.encode()) + 1 == len(ablation.kinds(text))
        own = model.loss(text)
        assert bits[:-1].sum() == pytest.approx(own.nats * own.tokens / math.log(2), rel=1e-5)
    names = [ablation.KINDS[k] for k in ablation.kinds("the cat, the dog")]
    assert names == ["new words"] * 7 + ["punctuation and white space"] + ["repeated words"] * 4 + ["new words"] * 4 + [
        "ends of documents"
    ]


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_a_run_on_any_text_is_evaluated_as_it_was_validated(folder, monkeypatch, capsys):
    last = list(jsonl.lines(folder / "metrics.jsonl"))[-1]
    words = "samples=12", "temperature=1", "print=json"
    assert exit_code(monkeypatch, evaluate.main, str(folder), *words) == 0
    found = json.loads(capsys.readouterr().out)
    for name, own in (("loss", "nats"), ("bits_per_byte",) * 2, ("text_bits_per_byte",) * 2):
        assert found["loss"][own]["mean"] == pytest.approx(last[f"val/{name}"], rel=5e-3)
    assert found["loss"]["whole"]
    assert found["loss"]["ends"] == found["data"]["documents"]
    assert found["memorisation"]["rows"]["held-out"]["n"] == found["data"]["documents"] == 10
    assert list(found["texts"]["rows"]) == ["T=1", "held-out"]
    assert found["probes"]["word order"]["n"] > 2
    groups = found["frequency"]["groups"]
    assert sum(group["tokens"] for group in groups) == found["loss"]["tokens"]
    assert found["left_out"] == []
    assert "Evaluation" in (folder / "report.html").read_text()


def test_another_text_and_another_model(folder, text_file, monkeypatch, capsys):
    early = str(folder / "checkpoints" / "step-000005.ckpt")
    more = f"data.path={text_file}", "data.separator=<|endoftext|>", "measures=loss"
    assert exit_code(monkeypatch, evaluate.main, early, *more) == 0
    assert exit_code(monkeypatch, evaluate.main, early, str(folder), "seed=1", "print=json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["saved"]["low"] > 0
    assert sum(row["share"]["mean"] for row in found["where"]) == pytest.approx(1)
    assert "saves" in found["sentence"]
    written = json.loads((folder / "evaluation.json").read_text())
    assert [len(written[kind]) for kind in ("evaluations", "ablations")] == [1, 1]
    assert "measures" not in written["evaluations"][0]["data"]["name"]
    third = str(shutil.copy(early, folder / "checkpoints" / "copy.ckpt"))
    assert exit_code(monkeypatch, evaluate.main, early, str(folder), third, "measures=probes", "print=json") == 0
    captured = capsys.readouterr()
    several = json.loads(captured.out.splitlines()[-1])["evaluations"]
    assert [one["step"] for one in several] == [5, 10, 5]
    last = captured.err.rpartition("95 % intervals")[2]
    assert all(word in last for word in ("step 5", "step 10", "right on word order"))


def test_of_conversations_only_the_answers_count(chatting, tmp_path, monkeypatch, capsys):
    """As in training, also where the same text is named."""
    folder, rows = shutil.copytree(chatting, tmp_path / "run"), chatting.parent / "rows.jsonl"
    model, nats = load(folder), []
    for row in map(json.loads, rows.read_text().splitlines()[-22:]):
        prompt, answer = f"User: {row['prompt']}\nAssistant:", f" {row['completion']}"
        ids = torch.tensor([256, *f"{prompt}{answer}".encode(), 256])
        with torch.inference_mode():
            logs = model.model(ids[None, :-1]).log_softmax(-1)[0].gather(1, ids[1:, None])
        nats += (-logs[len(prompt) :, 0]).tolist()
    for words in ((), ("data=instructions", f"data.path={rows}")):
        assert exit_code(monkeypatch, evaluate.main, str(folder), *words, "measures=loss", "print=json") == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["data"]["documents"], found["loss"]["tokens"]) == (22, len(nats))
        assert found["loss"]["nats"]["mean"] == pytest.approx(sum(nats) / len(nats), rel=1e-4)


ODD = [None, 3, "x", [], [3], {}, {"rows": 3}, {"mean": "x", "low": 1, "high": 2}, [{"from": 1, "nats": {"mean": 1}}]]


def test_a_report_takes_any_evaluation(tmp_path):
    """Of somebody else: escaped, and left out where it is not one."""
    folder = tmp_path
    keys = "data", "where", "models", *BLOCKS
    results = [dict.fromkeys(keys, odd) for odd in ODD]
    results += [{"positions": {"groups": odd}, "calibration": {"bins": odd}, "probes": {"a": odd}} for odd in ODD]
    names = "rows", "seen", "held_out", "samples", "examples", "groups", "early", "best_temperature"
    results += [{name: dict.fromkeys(names, odd) for name in BLOCKS} for odd in [*ODD, {"a": 3, "parts": {"b": 3}}]]
    evil = {"step": "<script>", "data": {"name": "<script>"}, "loss": {"nats": {"mean": 1, "low": 1, "high": 1}}}
    for one, other in pairwise([*results, evil]):
        content = {"evaluations": [other, one], "ablations": [one]}
        (folder / "evaluation.json").write_text(json.dumps(content))
        shown = evaluation_page.content(folder, Page("run"))
        assert "<script>" not in shown
    assert "step &lt;script&gt;" in shown
    for text in ("[]", "{", '{"evaluations": 3}', json.dumps({"evaluations": ODD})):
        (folder / "evaluation.json").write_text(text)
        evaluation_page.content(folder, Page("run"))
