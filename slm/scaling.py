"""Fits a scaling law to the runs of sweeps, and predicts a larger run.

python -m slm.scaling SWEEP ...               E, A, B, a, b of L = E + A N^-a + B D^-b with intervals, the best size and
                                              number of tokens for any FLOPs, beside the parabolas at equal FLOPs
python -m slm.scaling SWEEP predict=1e15,RUN  the loss of the best model of so many FLOPs, and of a run, which is
                                              compared with what it reached

The sweep is that of python train.py -m hparams_search=isoflop, or any of several sizes and lengths. Further words:
metric=val/bits_per_byte (val/loss unless given), resamples=300, out=FILE.png (report/scaling.png in the sweep).
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slm.analysis import figures
from slm.analysis.comparison import check_text, checked_metric
from slm.analysis.groups import FinishedRun, Group, check_complete, read_groups
from slm.analysis.scaling_charts import charts
from slm.analysis.scaling_law import FLOPS_PER_SIZE, RESAMPLES, Points, bootstrap, fit, tokens_of, valleys
from slm.analysis.scaling_page import NUMBERS, Fitted, Prediction, page, warnings
from slm.errors import UserError, printable
from slm.files import atomic, json_line
from slm.files.stdio import make_stdio_robust
from slm.run.words import divided, values_of
from slm.security import is_number

LEAST = 6  # points of a fit of five constants
LARGEST = 1e30  # FLOPs per token, and tokens, of a file that is not damaged


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The words beside the sweeps."""

    predict: str | None = None
    metric: str = "val/loss"
    resamples: int = RESAMPLES
    out: str | None = None

    def __post_init__(self):
        if self.resamples < 20:
            raise UserError(f"resamples={self.resamples} must be at least 20")
        if self.metric not in ("val/loss", "val/bits_per_byte"):
            raise UserError(f"metric={self.metric} must be val/loss or val/bits_per_byte")
        if self.out is not None and not self.out.endswith(".png"):
            raise UserError(f"out={self.out} must name a picture, as in out=scaling.png")


@json_line.command
def main():
    parser = json_line.Parser(
        prog="python -m slm.scaling",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="SWEEP", help="a sweep, a folder that holds runs, a run; key=value")
    folders, words = divided(parser.parse_args().words)
    if not folders:
        raise UserError(f"{words[0]} stands without a sweep; give one, as in python -m slm.scaling sweeps/isoflop")
    (values,) = values_of(words, Settings)
    settings = Settings(**values)
    asked = [read_target(word) for word in (settings.predict or "").split(",") if word]
    groups, left_out = read_groups(folders)
    for reason in left_out:
        print(printable(f"left out: {reason}", 1000))
    folder = atomic.expanded(folders[0])
    path = atomic.expanded(settings.out) if settings.out else folder / "report" / "scaling.png"
    atomic.check_folder(path.parent)  # before the work
    found = fitted(groups, settings, asked)
    print(printable(page(found)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.save(path, charts(found), folder.name)
    print(f"\n{path}")
    json_line.note(**facts(found), files=[str(path)])


def read_target(word: str) -> float | FinishedRun:
    """FLOPs, or a finished run. Raises UserError."""
    try:
        if 0 < (flops := float(word)) < math.inf:
            return flops
    except ValueError:
        if (run := FinishedRun(atomic.expanded(word))).folder.is_dir():
            check_complete(run)
            place_of(run)
            return run
    raise UserError(f"predict={word} must be FLOPs above 0, as in predict=1e15, or the folder of a finished run")


def place_of(run: FinishedRun) -> tuple[float, float]:
    """The size and the tokens of a run. Raises UserError if one is not known."""
    flops_per_token, tokens = run.info.get("flops_per_token"), run.summary["tokens"]
    if not all(is_number(value) and 0 < value < LARGEST for value in (flops_per_token, tokens)):
        raise UserError(f"{run.folder} has no flops_per_token in run.json or no train/tokens in metrics.jsonl")
    return flops_per_token / FLOPS_PER_SIZE, tokens


def check_comparable(groups: Sequence[Group], metric: str, further: Sequence[FinishedRun]):
    """Raises UserError for runs that cannot be compared, and for a further run that is one of the groups'."""
    runs = [run for group in groups for run in group.runs]
    fitted_ids = {run.info["run_id"] for run in runs}
    if known := next((run for run in further if run.info["run_id"] in fitted_ids), None):
        raise UserError(
            f"predict={known.folder} is a run of the fit; give one that is not, or move it out of the sweep"
        )
    check_text([*groups, *(Group(str(run.folder), [run]) for run in further)])
    checked_metric([*runs, *further], metric)


def points_of(groups: Sequence[Group], metric: str) -> Points:
    """The ends of all runs. Raises UserError for too few of them."""
    rows = []
    for number, group in enumerate(groups):
        for run in group.runs:
            budget = run.config.get("budget.flops")
            budget = float(budget) if is_number(budget) and 0 < budget < LARGEST else math.nan
            rows.append((*place_of(run), run.value(metric), budget, run.seed, number))
    points = Points(*np.array(rows, float).T)
    sizes = len(np.unique(points.size))
    if len(groups) < LEAST or sizes < 3 or len(np.unique(points.tokens.round(-3))) < 3:
        raise UserError(
            f"a law of five constants needs at least {LEAST} points with 3 sizes and 3 numbers of tokens; "
            f"there are {len(groups)} points with {sizes} sizes; run python train.py -m hparams_search=isoflop"
        )
    if points.flops.max() < 1.5 * points.flops.min():
        raise UserError(f"all runs have about {points.flops.max():.3g} FLOPs; a law needs runs of several budgets")
    if points.loss.min() <= 0:
        raise UserError(f"{metric} must be above 0 in every run")
    return points


def floor_of(runs: Sequence[FinishedRun], metric: str) -> float | None:
    """The exact floor in the unit of the metric, where every run has logged the same one."""
    name, found = "val/floor_bits_per_byte", []
    for run in runs:
        if not run.series(name):
            return None
        units = run.value(metric) / run.value("val/bits_per_byte")
        found.append(run.value(name) * units)
    return float(np.mean(found)) if np.ptp(found) < 1e-3 * max(found) else None


def fitted(groups: Sequence[Group], settings: Settings, asked: Sequence[float | FinishedRun]) -> Fitted:
    check_comparable(groups, settings.metric, [target for target in asked if isinstance(target, FinishedRun)])
    runs = [run for group in groups for run in group.runs]
    points = points_of(groups, settings.metric)
    floor = floor_of(runs, settings.metric)
    law = fit(points)
    resampled = bootstrap(points, law, resamples=settings.resamples)
    at_floor = fit(points, floor) if floor else None
    predictions = []
    for target in asked:
        if isinstance(target, FinishedRun):
            name, measured = target.folder.name, target.value(settings.metric)
            size, tokens = place_of(target)
        else:
            name, measured, size = f"{target:.3g} FLOPs", None, float(law.best_size(target))
            tokens = tokens_of(target, size)
        loss, ends = float(law.loss(size, tokens)), resampled.of_run(size, tokens)
        predictions.append(Prediction(name, size, tokens, loss, ends, measured))
    return Fitted(
        metric=settings.metric,
        points=points,
        parameters=np.array([run.number("parameters") or math.nan for run in runs], float),
        repeated=any(repeats(run) for run in runs),
        law=law,
        resampled=resampled,
        valleys=valleys(points),
        floor=floor,
        at_floor=at_floor,
        at_floor_resampled=bootstrap(points, at_floor, floor, resamples=settings.resamples) if floor else None,
        predictions=predictions,
    )


def repeats(run: FinishedRun) -> bool:
    """True if a run reads more windows than its corpus has, to 2 %."""
    steps, windows, batch = run.info.get("steps"), run.info.get("windows"), run.config.get("data.batch_windows")
    return all(map(is_number, (steps, windows, batch))) and steps * batch > 1.02 * windows


def facts(found: Fitted) -> dict[str, Any]:
    """The law in numbers, for print=json; None for what is not known."""

    def known(value: Any) -> Any:
        return float(value) if value is not None and math.isfinite(value) else None

    law = {name: [known(v) for v in (number(found.law), *found.interval(number))] for name, number in NUMBERS.items()}
    optima = {f"{budget:g}": [known(v) for v in (o.x, o.low, o.high)] for budget, o in found.valleys.optima.items()}
    return {
        "metric": found.metric,
        "runs": len(found.points.loss),
        "law": law,
        "parabolas": {"x": [known(v) for v in (found.valleys.size_exponent, *found.valley_exponent)], "best": optima},
        "floor": found.floor,
        "law_at_floor": asdict(found.at_floor) if found.at_floor else None,
        "predictions": [
            {"name": each.name, "interval": [*map(known, each.interval)]}
            | {name: known(getattr(each, name)) for name in ("size", "tokens", "loss", "measured")}
            for each in found.predictions
        ],
        "warnings": [*warnings(found)],
    }


if __name__ == "__main__":
    make_stdio_robust()
    main()
