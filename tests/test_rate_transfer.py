"""Does the best learning rate of a small model fit a large one? Sentences, panels and the search mup_transfer."""

import itertools
import json
import math
from pathlib import Path

import hydra
import numpy as np
import pytest
from conftest import CONF, trained
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_compare import run_command
from test_compare import write_run as write_finished_run
from test_report import charts, text_of

from slm import report
from slm.analysis.rate_transfer import table, transfers
from slm.analysis.sweep import Sweep, read
from slm.analysis.sweep_charts import objective_charts
from slm.files import sweep_folder
from slm.files.sweep_folder import SweepJob

RATES, WIDTHS = [2.0**power for power in range(-11, -3)], (32, 64, 256)


def loss(kind: str, width: int, rate: float) -> float:
    """Lowest at 2^-5.8 under muP and at 2^-5.8 * 32 / width otherwise; a wider model is better by 0.1 each time."""
    best = -5.8 - (math.log2(width / 32) if kind == "standard" else 0)
    return 3 - 0.1 * math.log2(width / 32) + 0.2 * (math.log2(rate) - best) ** 2


def jobs(rates=RATES, widths=WIDTHS, kinds=("standard", "mup"), seeds=(1,), noise=0.0) -> list[SweepJob]:
    rng, found = np.random.default_rng(0), []
    for kind, width, rate, seed in itertools.product(kinds, widths, rates, seeds):
        values = {"parametrization": kind, "model.width": width, "optimizer.lr": rate, "seed": seed}
        objective = loss(kind, width, rate) + rng.normal(0, noise)
        folder = "_".join(map(str, values.values()))
        found.append(SweepJob(folder=folder, values=values, status="done", objective=objective))
    return found


def swept(*jobs: SweepJob, objective="val/loss") -> Sweep:
    return Sweep(folder=Path("sweep"), objective=objective, swept=list(jobs[0].values), jobs=list(jobs))


def test_the_optima_their_move_and_the_regret():
    mup, standard = transfers(swept(*jobs()))
    assert (mup.panel, standard.panel) == ("parametrization mup", "parametrization standard")
    assert [value for value, _ in mup.optima] == list(WIDTHS)
    assert [found.x for _, found in mup.optima] == pytest.approx([2**-5.8] * 3)
    assert [found.x for _, found in standard.optima] == pytest.approx([2**-5.8, 2**-6.8, 2**-8.8])
    assert (mup.moves, standard.moves) == (pytest.approx(1), pytest.approx(1 / 8))
    assert (mup.regret, mup.fits, standard.fits) == (0, True, False)
    on_grid = loss("standard", 256, 2.0**-6) - loss("standard", 256, 2.0**-9)
    assert standard.regret == pytest.approx(on_grid)
    assert mup.sentence().endswith("width 256 with the rate of 32 loses 0: the rate transfers")
    assert "from 32 to 256 it moves by 2^-3.0, and width 256 with the rate of 32 loses 1.56" in standard.sentence()
    assert standard.sentence().endswith(": the rate does not transfer")


def test_intervals_come_from_seeds_and_a_regret_within_the_noise_is_none():
    one, several = (transfers(swept(*jobs(seeds=seeds, noise=0.01)))[0] for seeds in ((1,), (1, 2, 3)))
    assert one.optima[0][1].low is None
    assert one.error is None
    low, high = several.optima[0][1].low, several.optima[0][1].high
    assert low < 2**-5.8 < high
    assert f"[{low:.3g}, {high:.3g}] at width 32" in several.sentence()
    assert "256 (the grid is coarse: intervals are too narrow); from" in several.sentence()
    step = jobs(kinds=("mup",), seeds=(1, 2))
    for job in step:  # lowest one step further at width 256, by 3 %, which is more than 2 % and less than the noise
        if (job.values["model.width"], job.values["optimizer.lr"]) == (256, 2.0**-7):
            job.objective = loss("mup", 256, 2.0**-6) * 0.97
        job.objective += 0.2 * (job.values["seed"] - 1.5)
    (found,) = transfers(swept(*step))
    assert found.regret == pytest.approx(0.03 * loss("mup", 256, 2.0**-6))
    assert found.fits
    alone = [job for job in step if job.values["seed"] == 1]
    assert not transfers(swept(*alone))[0].fits


def test_no_verdict_where_an_optimum_may_lie_beyond_the_grid():
    (found,) = transfers(swept(*jobs(rates=RATES[:5], kinds=("mup",))))
    assert found.fits is None
    assert "0.00781 (at the edge of the grid) at width 32" in found.sentence()
    assert found.sentence().endswith("no verdict, widen the grid")
    (found,) = transfers(swept(*jobs(rates=RATES[3:], kinds=("standard",))))  # that of width 256 is at the edge
    assert found.regret == pytest.approx(loss("standard", 256, 2.0**-6) - loss("standard", 256, 2.0**-8))
    assert found.fits is False  # a rate still better would only raise the regret


def test_a_rate_at_which_the_large_one_fails_does_not_transfer():
    found = jobs(kinds=("mup",))
    for job in found:
        if job.values["model.width"] == 256 and job.values["optimizer.lr"] >= 2.0**-6:
            job.status, job.objective = "failed", None
    (transfer,) = transfers(swept(*found))
    assert (transfer.regret, transfer.fits) == (math.inf, False)
    assert "width 256 with the rate of 32 fails: the rate does not transfer" in transfer.sentence()
    assert transfer.facts()["regret"] is None
    missing = [job for job in found if job.status == "done"]  # not run yet: it may lose nothing
    assert transfers(swept(*missing))[0].regret is None
    assert transfers(swept(*missing))[0].fits is None


def test_any_learning_rate_and_second_number_and_nothing_else():
    two = jobs(kinds=("mup",))
    for job in two:
        del job.values["parametrization"]
    (found,) = transfers(swept(*two))
    assert found.panel == ""
    assert found.sentence().startswith("best optimizer.lr 0.0179 at width 32, ")
    for job in two:
        job.values["model.mlp"] = f"mlp{job.values.pop('model.width')}"
    assert transfers(swept(*two)) == []  # words have no smallest and largest
    for job in two:
        job.values["model.width"] = int(job.values.pop("model.mlp")[3:])
        job.values["model.init_std"] = job.values.pop("optimizer.lr")
    assert transfers(swept(*two)) == []
    assert transfers(swept(*jobs(rates=RATES[:2]))) == []
    assert transfers(swept(SweepJob(folder="a", values={"optimizer.lr": 0.1, "model.width": 8}))) == []


def test_the_third_key_becomes_panels_on_one_scale():
    drawn, optima = objective_charts(swept(*jobs()))
    assert [chart.title for chart in drawn] == ["parametrization mup", "parametrization standard"]
    assert drawn[0].limits == drawn[1].limits
    assert drawn[0].limits[0] < min(loss(*point) for point in itertools.product(("mup", "standard"), WIDTHS, RATES))
    names = ["width 32", "width 64", "width 256"]
    for chart in drawn:
        lines = [line for line in chart.series if line.style == "line" and "optimizer.lr" in line.x]
        assert [line.name for line in lines] == names
    assert "parametrization standard, width 64" in {found.line for found in optima}
    single, _ = objective_charts(swept(*jobs(kinds=("mup",))))
    assert [chart.title for chart in single] == ["parametrization mup"]
    many = jobs(kinds=[f"kind{i}" for i in range(7)])
    assert [chart.title for chart in objective_charts(swept(*many))[0]] == [""]  # too many to be seen
    depths = jobs()  # all numbers: the one with the fewest values
    for job in depths:
        job.values["model.depth"] = 2 if job.values.pop("parametrization") == "mup" else 4
    assert [name for name, _ in swept(*depths).panels] == ["depth 2", "depth 4"]
    assert [name for name, _ in swept(*depths[::9]).panels] == [""]  # random values, no grid


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sweep folder with a grid of rates, widths and parametrizations."""
    sweep = sweep_folder.Sweep(command=["-m"], objective="val/loss")
    for made in jobs(rates=RATES[2:7], widths=(32, 64)):
        [job] = sweep.add({key: str(value) for key, value in made.values.items()})
        job.status, job.objective = "done", made.objective
        settings = {"model": {"width": made.values["model.width"], "parametrization": made.values["parametrization"]}}
        settings["optimizer"] = {"lr": made.values["optimizer.lr"]}
        write_finished_run(tmp_path / "sweep" / job.folder, made.objective / 2, **settings)
    with sweep_folder.changed(tmp_path / "sweep") as written:
        vars(written).update(vars(sweep))
    return tmp_path / "sweep"


def test_the_page_and_compare_say_so(folder, monkeypatch, capsys):
    report.create(folder)
    sentences = [found.sentence() for found in transfers(read(folder))]
    assert len(sentences) == 2
    assert all(f"{sentence}." in text_of(folder) for sentence in sentences)
    first, second, *_ = charts(folder)
    assert (first["title"], second["title"]) == ("parametrization mup", "parametrization standard")
    assert first["limits"] == second["limits"]
    assert (folder / "report" / "objective.png").read_bytes().startswith(b"\x89PNG")
    code, printed = run_command(monkeypatch, capsys, folder)
    assert code == 0
    assert printed.out.endswith("\n".join(sentences) + "\n")
    assert "\n".join(table(read(folder))) in printed.out.replace("\n\n", "\n")
    best = loss("standard", 64, 2.0**-7)
    assert f"[{best:.4g}]" in printed.out
    _, printed = run_command(monkeypatch, capsys, folder, "print=json")
    assert [row["transfers"] for row in json.loads(printed.out)["transfers"]] == [True, False]
    _, printed = run_command(monkeypatch, capsys, folder, "--metric", "val/loss")  # as for any other sweep
    assert "differs from" in printed.out


# The search ----------------------------------------------------------------------------------------------------------


def test_the_search_is_a_grid_from_the_base_width_on():
    """Each job has one validation at its end, and nothing beside training."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", ["hparams_search=mup_transfer"], return_hydra_config=True)
    params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    words = OverridesParser.create().parse_overrides(params)
    values = {word.key_or_group: list(word.sweep_string_iterator()) for word in words}
    rates, widths = ([float(text) for text in values[key]] for key in ("optimizer.lr", "model.width"))
    assert all(b == pytest.approx(2 * a) for a, b in itertools.pairwise(rates))
    assert values["parametrization"] == ["standard", "mup"]
    assert config.model.base_width == widths[0] < widths[-1]
    assert config.budget.steps == config.val_every_n_steps
    assert config.callbacks.samples is config.callbacks.stories is None
    assert config.data.corpus.level == "tiny"


@pytest.mark.slow
def test_the_search_runs(tmp_path, monkeypatch, capsys):
    """A corner of it, in few steps: a table, a page for the sweep alone, and a sentence per parametrization."""
    small = ["optimizer.lr=0.004,0.008,0.016", "model.width=64,128", "seed=1", "budget.steps=4", "data.stories=200"]
    small += ["data.validation_windows=2", "callbacks.progress=null", f"sweep_dir={tmp_path / 's'}"]
    small += [f"cache_dir={tmp_path / 'cache'}"]
    assert trained(monkeypatch, "-m", "hparams_search=mup_transfer", *small) == 0
    sweep = read(tmp_path / "s")
    assert [path.parent for path in (tmp_path / "s").rglob("report.html")] == [tmp_path / "s"]
    assert not list((tmp_path / "s").glob("*/loss.png"))
    losses = {(job.values["parametrization"], *list(job.values.values())[1:]): job.objective for job in sweep.jobs}
    assert len(losses) == 12
    for values, objective in losses.items():  # at the base width both are one training
        if values[0] == "mup":
            assert (losses["standard", *values[1:]] == objective) == (64 in values)
    sentences = [found.sentence() for found in transfers(sweep)]
    printed = capsys.readouterr().out
    assert len(sentences) == 2
    assert all(sentence in printed for sentence in sentences)
    titles = [chart["title"] for chart in charts(tmp_path / "s")[:2]]
    assert titles == ["parametrization mup", "parametrization standard"]
