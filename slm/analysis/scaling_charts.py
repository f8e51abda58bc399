"""The charts of a fitted scaling law: parabolas at equal FLOPs, the frontier, the loss on it, and the residuals."""

from collections.abc import Callable, Iterator

import numpy as np

from slm.analysis.charts import Axis, Chart, Series, colors
from slm.analysis.comparison import UNITS
from slm.analysis.scaling_law import Bootstrap, Law, residuals_of, tokens_of
from slm.analysis.scaling_page import Fitted

SIZE, FLOPS = "size N (FLOPs per token / 6)", "training FLOPs C"


def charts(found: Fitted) -> list[Chart]:
    """Without the frontier if the law has no best size."""
    flops = found.points.flops
    if not np.isfinite(found.law.best_size(flops)).all():
        return [isoflop(found), residuals(found)]
    most = max([flops.max(), *(each.flops for each in found.predictions)])
    places = np.geomspace(flops.min(), most, 60)
    return [isoflop(found), frontier(found, places), along_frontier(found, places), residuals(found)]


def isoflop(found: Fitted) -> Chart:
    """The loss against the size, a line per budget: measured, and thin the law's; with the parabolas' lowest points."""
    series, sizes = [], np.geomspace(found.sizes[0], found.sizes[-1], 60)
    for (name, budget, at), color in by_budget(found):
        series.append(measured(found, name, at, found.points.loss, color))
        if np.isfinite(budget):
            law = found.law.loss(sizes, tokens_of(budget, sizes))
            series.append(Series(name, {"x": sizes}, law, color, "thin"))
        if (valley := found.valleys.inside.get(budget)) is not None:
            ends = [valley.x, *((valley.low, valley.high) if valley.low else (np.nan, np.nan))]
            series.append(Series(name, {"x": np.array(ends)}, np.array([valley.y]), color, "optimum"))
    title = "Equal FLOPs; thin: the law; diamond: the parabola's best"
    return Chart(title, unit(found), {"x": Axis(SIZE, log=True)}, series, log=True)


def by_budget(found: Fitted) -> Iterator[tuple[tuple[str, float, np.ndarray], str]]:
    """Name, budget and runs of each budget, and its color; runs without a budget come last."""
    budget = found.points.budget
    known = np.unique(budget[np.isfinite(budget)])
    groups = [(f"{each:.3g} FLOPs", float(each), budget == each) for each in known]
    if np.isnan(budget).any():
        groups.append(("other runs", np.nan, np.isnan(budget)))
    yield from zip(groups, colors(len(groups), ordered=True))


def measured(found: Fitted, name: str, at: np.ndarray, values: np.ndarray, color: str) -> Series:
    """Means over the seeds of the points `at`, from the smallest size on, with the band of their seeds."""
    points = found.points
    its = sorted(np.unique(points.point[at]), key=lambda point: points.size[points.point == point].mean())
    groups = [points.point == point for point in its]
    x = np.array([points.size[group].mean() for group in groups])
    mean, low, high = (np.array([end(values[group]) for group in groups]) for end in (np.mean, np.min, np.max))
    return Series(name, {"x": x}, mean, color, low=low, high=high)


def frontier(found: Fitted, places: np.ndarray) -> Chart:
    """The best size against the FLOPs, by the law with its interval, and by the parabolas."""
    series = [banded(found, "the law", places, lambda law: law.best_size(places))]
    if inside := found.valleys.inside:
        ends = [[np.nan if end is None else end for end in (each.low, each.high)] for each in inside.values()]
        low, high = np.array(ends, float).T
        best = np.array([each.x for each in inside.values()])
        series.append(Series("parabolas", {"x": np.array([*inside])}, best, "c1", low=low, high=high))
    return Chart("Best size", SIZE, {"x": Axis(FLOPS, log=True)}, series, log=True)


def along_frontier(found: Fitted, places: np.ndarray) -> Chart:
    """The loss of the best size against the FLOPs, the predictions, and the floor."""

    def lowest(law: Law) -> np.ndarray:
        size = law.best_size(places)
        return law.loss(size, tokens_of(places, size))

    series = [banded(found, "the law", places, lowest)]
    for each in found.predictions:
        shown = each.loss if each.measured is None else each.measured
        name = "predicted" if each.measured is None else "measured"
        x, ends = np.array([each.flops]), np.array(each.interval)
        color = "c1" if each.measured is None else "c2"
        series.append(Series(name, {"x": x}, np.array([shown]), color, low=ends[:1], high=ends[1:]))
    label = "exact floor" if found.floor else ""
    return Chart(
        "Loss of the best size", unit(found), {"x": Axis(FLOPS, log=True)}, series, floor=found.floor, floor_label=label
    )


def residuals(found: Fitted) -> Chart:
    values = 100 * residuals_of(found.law, found.points)
    series = [measured(found, name, at, values, color) for (name, _, at), color in by_budget(found)]
    return Chart("Residuals", "measured against the law, per cent", {"x": Axis(SIZE, log=True)}, series)


def banded(found: Fitted, name: str, x: np.ndarray, curve: Callable[[Law], np.ndarray]) -> Series:
    """A curve of the law with the 95 % interval of the resampled ones."""
    curves = np.array([curve(law) for law in found.resampled.laws])
    ends = np.array([Bootstrap.interval(values) for values in curves.T])
    return Series(name, {"x": x}, curve(found.law), "c0", "thin", *ends.T)


def unit(found: Fitted) -> str:
    return f"{found.metric} ({UNITS.get(found.metric, 'its unit')})"
