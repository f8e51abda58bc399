"""hparams_search=ablation: paired variants through Hydra, and the sequence of looks that ends them."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import refused, small_run, trained
from scipy import stats
from test_compare import write_run
from test_report import text_of

from slm import report
from slm.analysis.ablation import conclusion
from slm.analysis.comparison import compare
from slm.analysis.comparison_page import answers
from slm.analysis.groups import read_groups
from slm.analysis.sequential import looks
from slm.analysis.statistics import detectable, paired_difference
from slm.files import sweep_folder
from slm.run.ablation import AblationSweeper, words_of

# Measured with python train.py -m experiment=quickstart model.mlp=gelu,swiglu seed=1,2,3,4,5 model.width=48
# model.head_dim=16 model.bias=false budget.steps=100 data.stories=8000 data.validation_windows=128: bits per byte
GELU = [0.22430, 0.21939, 0.22424, 0.22334, 0.22540]
SWIGLU = [0.22083, 0.21793, 0.22110, 0.22363, 0.21891]
NOISE = float(np.std(np.subtract(SWIGLU, GELU), ddof=1))  # of a pair, 0.0025


class Folder:
    """A launcher that writes a finished run for each job whose run folder is not there; `values`: of each variant."""

    def __init__(self, folder, values):
        self.folder, self.values, self.written = folder, values, 0

    def launch(self, jobs, initial_job_idx):
        with sweep_folder.changed(self.folder) as sweep:
            for overrides in jobs:
                [job] = sweep.add(dict(word.split("=") for word in overrides[-2:]))
                place, name, seed = self.folder / job.folder, job.values["variant"], int(job.values["seed"])
                if not place.exists():
                    write_run(place, self.values[name][seed - 1], seed=seed, variant=name, model={"mlp": name})
                    self.written += 1
                job.status = "done"


def ablation(folder, values, *, detect, seeds):
    """The text of an ablation with these values, and the number of runs that it has added."""
    folder.mkdir(exist_ok=True)
    variants = {name: f"model.mlp={name}" for name in values if name != "base"}
    sweeper = AblationSweeper(variants, seeds, detect, None)
    sweeper.read_variants()
    sweeper.arguments, sweeper.launched = [], 0
    sweeper.config = SimpleNamespace()
    sweeper.folder, sweeper.launcher = folder, Folder(folder, values)
    found = sweeper.run_in_sequence()
    return conclusion(folder, ["base", *variants], None, detect, found), sweeper.launcher.written


@pytest.fixture
def values():
    """Losses of a base, a variant that is better by 0.1, and one that is equal; noise 0.02."""
    rng = np.random.default_rng(5)
    base = 2 + 0.1 * rng.standard_normal(20)
    arms = {"base": 0.0, "good": -0.1, "same": 0.0}
    return {name: base + effect + 0.02 * rng.standard_normal(20) * (name != "base") for name, effect in arms.items()}


def test_variants_end_when_their_pairs_answer(values, tmp_path, capsys):
    text, written = ablation(tmp_path / "sweep", values, detect=0.04, seeds=20)
    answers = text.splitlines()[-2:]
    assert answers[0].startswith("good is better than base by about 0.1")
    assert "5 % false alarms over 2 variant(s)" in text
    assert answers[1].startswith("same: no difference from base seen with")
    sweep = sweep_folder.require(tmp_path / "sweep")
    counts = {name: sum(job.values["variant"] == name for job in sweep.jobs) for name in values}
    assert 4 <= min(counts["good"], counts["same"]) < max(counts["good"], counts["same"]) == counts["base"] < 20
    assert written == sum(counts.values())
    assert "detect=0.04 needs about" in capsys.readouterr().out
    assert {job.folder for job in sweep.jobs} >= {"variant-good_seed-1", "variant-base_seed-4"}


def test_the_page_has_the_answers(values, tmp_path):
    """Those of the rule for stopping early, which are kept; of a killed one, those of compare."""
    folder = tmp_path / "sweep"
    text, _ = ablation(folder, values, detect=0.04, seeds=20)
    report.create(folder)
    page, kept = text_of(folder), sweep_folder.require(folder).answers
    assert len(kept) == 3
    assert text.endswith("\n".join(kept))
    assert all(" ".join(line.split()) in page for line in kept)
    with sweep_folder.changed(folder) as sweep:
        sweep.answers, words = [], ["++hydra.sweeper.variants.x='a=1 b=2'", "hydra.sweeper.seeds=20"]
        sweep.command = [*words, "name=a b", "budget.tokens=null"]
    report.create(folder)
    page, found = text_of(folder), compare(read_groups([str(folder)])[0])
    assert found.groups[0].name == "base"
    assert all(line in page for line in answers(found))
    for each in found.versus:
        low, high = (f"{value:.3f}" for value in (each.difference.low, each.difference.high))
        cells = rf"{each.name} -?[\d.]+ \[{low}\d?, {high}\d?\] {each.difference.n} "
        assert float(re.search(cells + r"\S+ (\S+)", page)[1]) == pytest.approx(each.p_holm, rel=0.06)
    assert page.endswith("python train.py -m variants.x='a=1 b=2' seeds=20 'name=a b'")


def test_the_page_of_many_variants_has_them_all(tmp_path):
    rng, names = np.random.default_rng(3), [f"v{i}" for i in range(12)]
    values = {name: 2 + 0.02 * rng.standard_normal(5) for name in ("base", *names)}
    text, _ = ablation(tmp_path / "sweep", values, detect=0.04, seeds=5)
    report.create(tmp_path / "sweep")
    page, kept = text_of(tmp_path / "sweep"), text.splitlines()[-12:]
    for name, line in zip(names, kept, strict=True):
        assert line.startswith(f"{name}: ")
        assert " ".join(line.split()) in page
        assert f"{name} model.mlp={name}" in page


def test_an_interrupted_ablation_decides_the_same(values, tmp_path):
    """Wherever it was interrupted, and also if it had run on."""
    whole, written = ablation(tmp_path / "sweep", values, detect=0.04, seeds=20)
    assert ablation(tmp_path / "sweep", values, detect=0.04, seeds=20) == (whole, 0)
    other = Folder(tmp_path / "other", values)
    (tmp_path / "other").mkdir()
    other.launch([[f"variant={name}", f"seed={seed}"] for seed in (1, 2, 3) for name in values], 0)
    text, added = ablation(tmp_path / "other", values, detect=0.04, seeds=20)
    assert (text, added) == (whole, written - 9)


def test_too_few_seeds_name_what_they_can_show(values, tmp_path):
    text, _ = ablation(tmp_path / "sweep", values, detect=0.001, seeds=6)
    assert "same: no difference from base seen with 4 seeds" in text
    assert "0.001, which needs about" in text


def test_false_alarms_and_power_with_the_measured_noise():
    """200 comparisons of equal variants, and 200 with a difference of the size that the seeds can show."""
    rng, few = np.random.default_rng(1), stats.binom.ppf(0.99, 200, 0.05)
    equal = rng.normal(0, NOISE, (200, 20))
    assert sum(paired_difference(pairs[:5]).p <= 0.05 for pairs in equal) <= few
    assert sum(looks(pairs, 0.003, most=20)[-1].verdict == "difference" for pairs in equal) <= few
    planted = equal[:, :5] + detectable(NOISE, 5)
    assert 0.72 < np.mean([paired_difference(pairs).p <= 0.05 for pairs in planted]) < 0.88
    found = [looks(pairs + 0.003, 0.003, most=20)[-1].verdict == "difference" for pairs in equal]
    assert 0.72 < np.mean(found) < 0.88


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", "lr", "variants.x=lr must be overrides, as in variants.x=model.mlp=swiglu"),
        ("base", "model.width=8", "a variant's name has letters, digits, _ and -, and is not base"),
        ("a.b", "model.width=8", "a variant's name"),
        ("x", "model.mlp=a,b", "variants.x: model.mlp=a,b gives several values; give a variant for each"),
        ("x", ["seed=1"], "variants.x: seed is set by the ablation"),
        ("x", 3, "variants.x=3 must be overrides"),
    ],
)
def test_wrong_variants(name, value, message):
    refused(lambda: words_of(name, value), message)


def test_only_some_variants():
    variants = {"a": "model.depth=1", "b": "model.depth=2", "c": "model.depth=3"}
    for only, names in [(None, ["a", "b", "c"]), (["c", "a", "c"], ["c", "a"]), ("b", ["b"])]:
        sweeper = AblationSweeper(variants, 5, None, None, only)
        sweeper.read_variants()
        assert list(sweeper.variants) == names


def test_words_of_a_variant():
    assert words_of("x", "optimizer=muon optimizer.lr=0.02") == ["optimizer=muon", "optimizer.lr=0.02"]
    assert {"budget.steps=3", "budget.tokens=null"} <= {*words_of("x", ["trainer.max_steps=3"])}


MISTAKES = {
    "an ablation needs variants: give variants.NAME=": [],
    "variants.x=model.depth=1 gives the configuration of base": ["model.depth=1", "variants.x=model.depth=1"],
    "there is no key model.mlpp; did you mean model.mlp?": ["variants.x=model.mlpp=3"],
    "model.depth=1,2 gives several values; in an ablation each is a variant": [
        "variants.x=tags=[a]",
        "model.depth=1,2",
    ],
    "detect=-1 must be a number above 0": ["variants.x=model.mlp=swiglu", "detect=-1"],
    "only=[swigl] is no variant; did you mean swiglu?": ["variants.swiglu=model.mlp=swiglu", "only=[swigl]"],
    "only=[{'swiglu': 1}] is no variant": ["variants.swiglu=model.mlp=swiglu", "only=[{swiglu:1}]"],
    "only=[] names no variant; leave only= out for all of them": ["variants.swiglu=model.mlp=swiglu", "only=[]"],
    "seeds=many must be a whole number from 2 to 1000": ["variants.x=model.mlp=swiglu", "seeds=many"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_one_line_before_any_run(message, text_file, tmp_path, monkeypatch, capsys):
    words = ["-m", "hparams_search=ablation", *small_run(text_file, tmp_path), f"sweep_dir={tmp_path}/s"]
    assert trained(monkeypatch, *words, *MISTAKES[message]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("words", [["-m", "seeds=3"], ["-m", "only=[x]"], ["variants.x=model.mlp=swiglu"]])
def test_keys_of_ablations_need_one(words, monkeypatch, capsys):
    assert trained(monkeypatch, *words) == 2
    assert "is for an ablation; add -m hparams_search=ablation" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command(text_file, tmp_path, monkeypatch, capsys):
    """An ablation file of the user's own, two seeds, and the same command again."""
    (tmp_path / "conf" / "hparams_search").mkdir(parents=True)
    (tmp_path / "conf" / "hparams_search" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [ablation]\nhydra: {sweeper: {variants: {slow: optimizer.lr=1e-5}, seeds: 2}}\n"
    )
    words = ["-m", "--config-dir", str(tmp_path / "conf"), "hparams_search=mine", f"sweep_dir={tmp_path}/sweep"]
    words += [*small_run(text_file, tmp_path), "callbacks.samples=null", "budget.steps=4"]
    assert trained(monkeypatch, *words) == 0
    first = capsys.readouterr().out
    assert "slow - base" in first
    assert "2 pairs (seed 1, 2)" in first
    report.create(tmp_path / "sweep")
    assert "Answers slow" in text_of(tmp_path / "sweep")
    folders = [tmp_path / "sweep" / f"variant-{name}_seed-{seed}" for name in ("base", "slow") for seed in (1, 2)]
    losses = [json.loads((folder / "run.json").read_text())["objective"] for folder in folders]
    assert len(set(losses)) == 4
    assert trained(monkeypatch, *words) == 0
    assert "4 of 4 jobs are finished" in capsys.readouterr().out
    assert trained(monkeypatch, *words, "variants.slow=optimizer.lr=1e-4") == 2
    assert "variant slow was started with optimizer.lr=1e-5" in capsys.readouterr().err


@pytest.mark.slow
def test_what_an_ablation_cannot_compare_is_one_line_after_the_table(text_file, tmp_path, monkeypatch, capsys):
    """A metric that no run has costs one run; a base that diverges leaves its table."""
    words = ["-m", "hparams_search=ablation", *small_run(text_file, tmp_path), "callbacks.samples=null"]
    words += ["budget.steps=4", "variants.x=model.mlp=swiglu", "seeds=5"]
    assert trained(monkeypatch, *words, "hydra.sweeper.metric=val/los", f"sweep_dir={tmp_path}/a") == 2
    printed = capsys.readouterr()
    assert "variant-base_seed-1 has no val/los; these runs have" in printed.err.splitlines()[-1]
    assert printed.out.count("[1/1] variant=base seed=1") == 1
    assert trained(monkeypatch, *words, "optimizer.lr=1e9", "detect=0.1", f"sweep_dir={tmp_path}/b") == 2
    printed = capsys.readouterr()
    assert "no run of the base in" in printed.err.splitlines()[-1]
    assert printed.out.split("val/loss  seconds")[1].count("failed") == 8
    assert trained(monkeypatch, *words, "optimizer.lr=1e9", f"sweep_dir={tmp_path}/b") == 3
    assert "base: no run is finished\nx: no run is finished\nnothing to compare" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_runs_that_differ_in_their_seed_only(tmp_path, monkeypatch):
    """20 comparisons of two groups of five runs of quickstart's model and data, out of a pool of ten short runs.

    The comparisons share their runs, so they are not independent, and the pairs are of different seeds, which is more
    noise than real pairs have: this shows that the losses of real runs are near enough to a normal distribution.
    """
    words = ["experiment=quickstart", "seed=1,2,3,4,5,6,7,8,9,10", "budget.steps=8", "val_every_n_steps=8"]
    words += ["data.batch_windows=8", "trainer.microbatch=8", "data.validation_windows=32", "trainer=cpu"]
    words += ["callbacks.samples=null", "callbacks.stories.count=0"]
    assert trained(monkeypatch, "-m", *words, f"sweep_dir={tmp_path}/sweep") == 0
    (group,), _ = read_groups([str(tmp_path / "sweep")])
    values = np.array([run.series("val/bits_per_byte")[8] for run in group.runs])
    assert len(set(values)) == 10
    rng = np.random.default_rng(0)
    orders = [rng.permutation(10) for _ in range(20)]
    alarms = [paired_difference(values[order[:5]] - values[order[5:]]).p <= 0.05 for order in orders]
    print(f"{sum(alarms)} of 20, standard deviation between seeds {values.std(ddof=1):.4f} bits per byte")
    assert sum(alarms) <= stats.binom.ppf(0.99, 20, 0.05)
    assert not math.isclose(values.std(), 0)
