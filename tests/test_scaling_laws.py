"""hparams_search=isoflop and python -m slm.scaling: runs of equal FLOPs, and the law that is fitted to them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import pytest
from conftest import CONF, exit_code, small_run, trained
from test_compare import write_run
from test_report import text_of

from slm import report, scaling
from slm.analysis.scaling_law import Law, Points, bootstrap, fit, valleys
from slm.results import Run

LAW = Law(E=0.3, A=40.0, B=900.0, a=0.45, b=0.5)
SIZES, BUDGETS = np.geomspace(1e4, 6e5, 7), (3e11, 1e12, 3e12)
NOISE = 0.01


def points(seed, noise=NOISE, seeds=2, law=LAW, sizes=SIZES, budgets=BUDGETS):
    """The ends of runs that follow a law."""
    rows = [
        (n, c / 6 / n, c, s, 10 * i + j)
        for i, c in enumerate(budgets)
        for j, n in enumerate(sizes)
        for s in range(seeds)
    ]
    size, tokens, budget, seed_of, point = np.array(rows).T
    loss = law.loss(size, tokens) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(size)))
    return Points(size, tokens, loss, budget, seed_of, point)


def write_sweep(folder, its, floor=None):
    """Run folders with these ends; val/loss is twice val/bits_per_byte."""
    for number, (size, tokens, loss, budget, seed, _) in enumerate(zip(*vars(its).values())):
        facts = {"flops_per_token": 6 * size, "parameters": round(size), "run_id": f"{folder.name}-{number}"}
        budget = {"flops": None if math.isnan(budget) else budget}
        place = write_run(
            folder / f"run{number}", loss / 2, seed=int(seed), facts=facts, budget=budget, model={"width": size}
        )
        with open(place / "metrics.jsonl", "a") as file:
            print(json.dumps({"step": 40, "train/tokens": tokens}), file=file)
            print(json.dumps({"step": 40, **({"val/floor_bits_per_byte": floor / 2} if floor else {})}), file=file)
    return folder


def command(monkeypatch, capsys, *arguments):
    code = exit_code(monkeypatch, scaling.main, *map(str, arguments))
    return code, capsys.readouterr()


# -- the fit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [None, LAW.E])
def test_without_noise_the_constants_are_found(floor):
    found = fit(points(0, noise=0, seeds=1), floor)
    assert [*vars(found).values()] == pytest.approx([*vars(LAW).values()], rel=1e-3)
    assert found.size_exponent == pytest.approx(LAW.b / (LAW.a + LAW.b), rel=1e-4)


def test_the_best_size_is_the_one_of_the_lowest_loss():
    sizes = np.geomspace(1e3, 1e7, 200_001)
    for flops in (1e10, 1e12, 1e15):
        lowest = sizes[LAW.loss(sizes, flops / 6 / sizes).argmin()]
        assert LAW.best_size(flops) == pytest.approx(lowest, rel=1e-3)
    for law in (Law(1.0, 0.0, 2.0, 0.3, 0.3), Law(1.0, 2.0, 0.0, 0.3, 0.3)):
        assert math.isnan(law.best_size(1e12))
        assert math.isnan(law.size_exponent)


def test_intervals_hold_the_true_constants_as_often_as_they_say():
    """Of 40 sweeps, for 95 % intervals: one count is below 34 with a chance of 1 in 295, the least of seven of 1 in 42
    at most."""
    numbers = {
        "E": lambda law: law.E, "a": lambda law: law.a, "b": lambda law: law.b, "x": lambda law: law.size_exponent,
        "best": lambda law: float(law.best_size(1e13)), "loss": lambda law: float(law.loss(1e6, 1e7)),
    }  # fmt: skip
    held, runs = dict.fromkeys(numbers, 0), 0
    for seed in range(40):
        its = points(seed)
        resampled = bootstrap(its, fit(its), resamples=30, seed=seed)
        for name, number in numbers.items():
            low, high = resampled.interval([number(law) for law in resampled.laws])
            held[name] += int(low <= number(LAW) <= high)
        further = LAW.loss(1e6, 1e7) * np.exp(NOISE * np.random.default_rng(1000 + seed).standard_normal())
        low, high = resampled.of_run(1e6, 1e7)
        runs += int(low <= further <= high)
    print(held, runs)
    assert min(*held.values(), runs) >= 34


def test_a_diverged_run_among_many_changes_little():
    its = points(0, noise=0.002)
    its.loss[5] *= 1.5
    assert fit(its).size_exponent == pytest.approx(LAW.size_exponent, abs=0.01)


def test_parabolas_find_the_best_sizes():
    """Of a law with a = b a parabola in log N is nearly exact."""
    even = Law(0.3, 40.0, 60.0, 0.4, 0.4)
    sizes = np.geomspace(3e3, 3e6, 13)
    found = valleys(points(0, noise=1e-4, law=even, sizes=sizes))
    assert [found.optima[c].x for c in BUDGETS] == pytest.approx([even.best_size(c) for c in BUDGETS], rel=0.05)
    assert found.size_exponent == pytest.approx(0.5, abs=0.02)
    assert valleys(points(0, sizes=np.geomspace(1e6, 1e7, 5))).at_the_edge == [*BUDGETS]


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_the_law_and_draws_it(tmp_path, monkeypatch, capsys):
    sweep = write_sweep(tmp_path / "sweep", points(0), floor=0.3)
    larger = write_sweep(tmp_path / "larger", points(1, seeds=1, budgets=(1e14,), sizes=[2e6]), floor=0.3)
    words = sweep, f"predict=1e13,{larger / 'run0'}", "resamples=20", "print=json"
    code, printed = command(monkeypatch, capsys, *words)
    assert code == 0
    found, text = json.loads(printed.out), printed.err
    assert found["law"]["a"][1] < LAW.a < found["law"]["a"][2]
    assert (found["floor"], found["runs"]) == (pytest.approx(0.3), 42)
    assert found["law_at_floor"]["E"] == pytest.approx(0.3)
    assert "of this text, 0.3000, which is within its interval" in text
    by_flops, by_run = found["predictions"]
    assert by_flops["loss"] == pytest.approx(LAW.loss(LAW.best_size(1e13), 1e13 / 6 / LAW.best_size(1e13)), rel=0.02)
    assert by_run["interval"][0] < by_run["measured"] < by_run["interval"][1]
    assert "1e+13 FLOPs" in text
    assert "inside" in text
    assert "warning: a prediction is more than a decade away" in text
    picture = sweep / "report" / "scaling.png"
    assert found["files"] == [str(picture)]
    assert picture.stat().st_size > 20_000
    report.create(sweep)
    assert "Scaling law" in text_of(sweep)


def test_few_sizes_and_a_narrow_span_are_warned_of(tmp_path, monkeypatch, capsys):
    sweep = write_sweep(tmp_path / "sweep", points(0, sizes=[2e4, 3e4, 4e4], budgets=(1e13, 2e13)))
    code, printed = command(monkeypatch, capsys, sweep, "resamples=20", f"out={tmp_path}/a.png")
    assert code == 0
    assert "warning: 3 sizes; give at least 5" in printed.out
    assert "warning: the FLOPs span a factor of 2, less than a decade" in printed.out
    assert "warning: the best size at 1e+13 FLOPs is the largest one there; add larger sizes" in printed.out
    assert "floor" not in printed.out
    assert (tmp_path / "a.png").exists()


def test_the_edge_of_a_budget_is_that_of_its_own_sizes(tmp_path, monkeypatch, capsys):
    """The best size at 1e13 FLOPs is the smallest one there, and larger than all sizes at 1e12."""
    small = write_sweep(tmp_path / "small", points(0, sizes=np.geomspace(2e4, 4e5, 5), budgets=(1e12,)))
    large = write_sweep(tmp_path / "large", points(0, sizes=np.geomspace(8e5, 6e6, 5), budgets=(1e13,)))
    code, printed = command(monkeypatch, capsys, small, large, "resamples=20")
    assert code == 0
    assert "warning: the best size at 1e+13 FLOPs is the smallest one there; add smaller sizes" in printed.out


def test_parabolas_of_few_sizes_far_apart_differ_from_the_law(tmp_path, monkeypatch, capsys):
    """A parabola through sizes a factor of eight apart is biased if a and b are not equal."""
    uneven = Law(0.3, 1e4, 400.0, 0.8, 0.35)
    sizes = uneven.best_size(1e12) * 8.0 ** np.array([-2.3, -1.3, -0.3, 0.7, 1.7])
    its = points(0, noise=1e-3, seeds=3, law=uneven, sizes=sizes)
    assert fit(its).best_size(1e12) == pytest.approx(uneven.best_size(1e12), rel=0.01)
    sweep = write_sweep(tmp_path / "sweep", its)
    assert command(monkeypatch, capsys, sweep, "resamples=20")[1].out.count("they differ") == 3


def test_a_law_without_a_best_size_says_so(tmp_path, monkeypatch, capsys):
    """Of losses that do not depend on the size."""
    sweep = write_sweep(tmp_path / "sweep", points(0, law=Law(0.3, 0.0, 900.0, 0.45, 0.5), noise=0))
    code, printed = command(monkeypatch, capsys, sweep, "resamples=20", "predict=1e13", "print=json")
    assert code == 0
    assert "warning: a term of the law is zero, so there is no best size" in printed.err
    found = json.loads(printed.out)
    assert found["predictions"][0]["loss"] is None
    assert found["law"]["x"] == [None, None, None]
    assert "best N ~ C^x, x  unknown" in printed.err


def test_a_law_of_the_wrong_form_says_so(tmp_path, monkeypatch, capsys):
    """Losses that fall in a step of the tokens are no law; those of a law with the same noise are one."""
    its = points(0, noise=2e-3, seeds=2)
    step = replace(its, loss=its.loss + 0.1 / (1 + (its.tokens / 3e6) ** 6))
    for name, each, expected in (("law", its, False), ("step", step, True)):
        printed = command(monkeypatch, capsys, write_sweep(tmp_path / name, each), "resamples=20")[1].out
        assert ("its form is wrong here" in printed) == expected


def test_a_size_that_hardly_matters_leaves_e_unknown(tmp_path, monkeypatch, capsys):
    its = points(0, noise=0)
    slow = replace(its, loss=0.3 - 0.003 * np.log(its.size / 1e5) + 900 * its.tokens**-0.5)
    printed = command(monkeypatch, capsys, write_sweep(tmp_path / "sweep", slow), "resamples=20")[1].out
    assert "warning: A N^-a is almost a constant and takes the place of E, so E is not known" in printed


MISTAKES = {
    "predict=much must be FLOPs above 0, as in predict=1e15, or the folder of a finished run": ["predict=much"],
    "predict=-3 must be FLOPs above 0": ["predict=-3"],
    "metric=val/los must be val/loss or val/bits_per_byte": ["metric=val/los"],
    "resamples=3 must be at least 20": ["resamples=3"],
    "out=a.pdf must name a picture, as in out=scaling.png": ["out=a.pdf"],
    "predct is not a setting; did you mean predict?": ["predct=1e13"],
    f"{Path(__file__).resolve()}/a cannot be made: ": [f"out={Path(__file__).resolve()}/a/b.png"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_one_line(message, tmp_path, monkeypatch, capsys):
    sweep = write_sweep(tmp_path / "sweep", points(0, seeds=1))
    code, printed = command(monkeypatch, capsys, sweep, *MISTAKES[message])
    assert code == 2
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1


def test_runs_without_a_law_are_one_line(tmp_path, monkeypatch, capsys):
    few = write_sweep(tmp_path / "few", points(0, budgets=(1e12,), sizes=SIZES[:5]))
    assert command(monkeypatch, capsys, few)[1].err.startswith("error: a law of five constants needs at least 6 points")
    assert command(monkeypatch, capsys, "predict=3")[1].err.startswith("error: predict=3 stands without a sweep")
    assert "is not a folder" in command(monkeypatch, capsys, tmp_path / "none")[1].err
    info = json.loads((few / "run1" / "run.json").read_text())
    (few / "run1" / "run.json").write_text(json.dumps({**info, "flops_per_token": None}))
    assert "has no flops_per_token in run.json" in command(monkeypatch, capsys, few)[1].err
    damaged = {"budget": {"flops": -1}, "parameters": "x", "windows": 8, "steps": 40}
    (few / "run1" / "run.json").write_text(json.dumps({**info, **damaged, "config": {**info["config"], **damaged}}))
    assert command(monkeypatch, capsys, few)[1].err.startswith("error: all runs have about 1e+12 FLOPs; a law needs")
    (few / "run1" / "run.json").write_text(json.dumps({**info, "corpus": "other"}))
    assert "were validated on different text" in command(monkeypatch, capsys, few)[1].err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "/run0 is a run of the fit; give one that is not, or move it out of the sweep"),
        ({"run_id": "x", "corpus": "y"}, "were validated on different text: their corpora differ"),
        ({"run_id": "x", "tokenizer": "y"}, "val/loss depends on the tokenizer, and the runs have different ones"),
    ],
)
def test_a_prediction_is_compared_with_a_further_run_of_the_same_text(change, message, tmp_path, monkeypatch, capsys):
    sweep, further = (write_sweep(tmp_path / name, points(0, seeds=1)) / "run0" for name in ("sweep", "further"))
    file, info = further / "run.json", json.loads((sweep / "run.json").read_text())
    file.write_text(json.dumps(info | change))
    code, printed = command(monkeypatch, capsys, sweep.parent, f"predict={further}")
    assert code == 2
    assert message in printed.err


def test_damaged_numbers_of_a_run_are_unknown(tmp_path, monkeypatch, capsys):
    sweep = write_sweep(tmp_path / "sweep", points(0, seeds=1))
    file = sweep / "run0" / "run.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"flops_per_token": "1e6", "parameters": "x", "seconds": [1]}))
    summary = Run(sweep / "run0").summary
    assert [summary[name] for name in ("flops", "parameters", "seconds")] == [None] * 3
    assert "has no flops_per_token in run.json" in command(monkeypatch, capsys, sweep)[1].err
    file.write_text(json.dumps(info | {"config": info["config"] | {"seed": "abc"}}))
    code, printed = command(monkeypatch, capsys, sweep, "resamples=20")
    assert code == 0
    assert f"left out: {sweep / 'run0'}: run.json is damaged: its seed is not a whole number" in printed.out
    assert "20 runs, 20 points" in printed.out


@pytest.mark.parametrize(
    ("words", "dataset", "stories"),
    [
        ([], "storyworld", 350000),
        (["data=text", "data.path=a.txt"], "text", None),
        (["experiment=shakespeare"], "shakespeare", None),
    ],
)
def test_the_search_has_the_quickstart_unless_other_data_or_experiments_are_given(words, dataset, stories):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", ["hparams_search=isoflop", *words], return_hydra_config=True)
    assert config.data.get("stories") == stories
    assert config.data.batch_windows == 16
    assert config.budget.steps is None
    assert config.hydra.runtime.choices.data == dataset


def test_a_search_of_ones_own_keeps_what_it_sets_for_the_data_of_the_command(tmp_path):
    (tmp_path / "hparams_search").mkdir()
    (tmp_path / "hparams_search" / "mine.yaml").write_text("# @package _global_\ndata: {path: mine.txt}\n")
    words = ["hparams_search=mine", "data=text", f"hydra.searchpath=[file://{tmp_path}]"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert hydra.compose("train", words).data.path == "mine.txt"


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_of_equal_flops(text_file, tmp_path, monkeypatch, capsys):
    """Each run has the FLOPs it was to have, to a step; the same command again does nothing."""
    small = [word for word in small_run(text_file, tmp_path) if "samples" not in word]
    small += ["model.depth=1", "model.head_dim=8", "data.batch_windows=4", "data.validation_windows=8", "report=false"]
    words = ["-m", "hparams_search=isoflop", *small, "budget.flops=1e8,2e8", "model.width=8,16,24", "seed=1"]
    assert trained(monkeypatch, *words, f"sweep_dir={tmp_path}/s") == 0
    runs = [Run(path.parent) for path in sorted((tmp_path / "s").glob("*/run.json"))]
    assert len(runs) == 6
    for run in runs:
        tokens, cost = run.summary["tokens"], run.info["flops_per_token"]
        assert abs(tokens * cost - run.config["budget.flops"]) <= tokens / run.info["steps"] * cost
    capsys.readouterr()
    assert trained(monkeypatch, *words, f"sweep_dir={tmp_path}/s") == 0
    assert "6 of 6 jobs are finished" in capsys.readouterr().out
    code, printed = command(monkeypatch, capsys, tmp_path / "s", "resamples=20")
    assert code == 0
    assert "6 runs, 6 points: 3 sizes" in printed.out
    assert trained(monkeypatch, *words, "budget.flops=1", f"sweep_dir={tmp_path}/t") == 2
    assert "budget.flops=1 is less than a step, which takes" in capsys.readouterr().err
