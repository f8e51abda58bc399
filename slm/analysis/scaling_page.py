"""A fitted scaling law for people: the text that slm.scaling prints, and its warnings."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slm.analysis.comparison import UNITS
from slm.analysis.scaling_law import (
    EXPONENTS,
    FLOPS_PER_SIZE,
    Bootstrap,
    Law,
    Points,
    Valleys,
    misfit,
    residuals_of,
    tokens_of,
)
from slm.tables import columns

FEW_SIZES, NARROW = 5, 10.0  # sizes, and largest by smallest FLOPs, below which a law is not to be trusted
WRONG = 2.5  # times the error of the means over seeds, from which on residuals mean that the law is wrong
FAR = 10.0  # times the FLOPs of the largest run, from which on a prediction comes with a warning
NUMBERS: dict[str, Callable[[Law], float]] = {
    **{name: lambda law, name=name: getattr(law, name) for name in ("E", "A", "B", "a", "b")},
    "x": lambda law: law.size_exponent,
}


@dataclass(frozen=True)
class Prediction:
    """The loss of a further run, `measured` if it has been trained."""

    name: str
    size: float
    tokens: float
    loss: float
    interval: tuple[float, float]
    measured: float | None = None

    @property
    def flops(self) -> float:
        return FLOPS_PER_SIZE * self.size * self.tokens


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """All that the runs say. `floor`, and the fit with E equal to it: of data=storyworld alone."""

    metric: str
    points: Points
    parameters: np.ndarray  # of each run, embeddings and all
    repeated: bool  # some run reads its text more than once
    law: Law
    resampled: Bootstrap
    valleys: Valleys
    floor: float | None
    at_floor: Law | None
    at_floor_resampled: Bootstrap | None
    predictions: Sequence[Prediction] = ()

    def interval(self, number: Callable[[Law], float], at_floor: bool = False) -> tuple[float, float]:
        """Of a number that follows from a law; NaN if the fitted law does not have it."""
        law, bootstrap = (self.at_floor, self.at_floor_resampled) if at_floor else (self.law, self.resampled)
        known = math.isfinite(number(law))
        return Bootstrap.interval([number(each) for each in bootstrap.laws]) if known else (math.nan, math.nan)

    @cached_property
    def valley_exponent(self) -> tuple[float, float]:
        """The interval of the exponent of the parabolas."""
        return Bootstrap.interval([found.size_exponent for found in self.resampled.valleys])

    @cached_property
    def sizes(self) -> np.ndarray:
        return np.unique(self.points.size)

    @property
    def most_flops(self) -> float:
        return float(self.points.flops.max())


def page(found: Fitted) -> str:
    """All of it as text."""
    parts = [heading(found), law_table(found), *floor_lines(found), frontier(found), residual_table(found)]
    parts += [predicted(found)] if found.predictions else []
    return "\n\n".join([*parts, *(f"warning: {line}" for line in warnings(found))])


def heading(found: Fitted) -> str:
    points, sizes = found.points, found.sizes
    flops = f"{points.flops.min():.3g} to {points.flops.max():.3g} FLOPs"
    return (
        f"{len(points.loss)} runs, {len(np.unique(points.point))} points: {len(sizes)} sizes of {sizes[0]:,.0f} to "
        f"{sizes[-1]:,.0f}, {flops}; of each run the last value alone\n"
        f"L = E + A N^-a + B D^-b, {found.metric} in {UNITS.get(found.metric, 'its unit')}; N: FLOPs per token / 6; "
        "D: tokens; C = 6 N D"
    )


def law_table(found: Fitted) -> str:
    """The constants with their intervals, free and with E at the floor."""
    rows = [["", "value", "95 % interval", *(["with E = floor", "95 % interval"] if found.at_floor else [])]]
    names = {**{name: name for name in "EABab"}, "x": "best N ~ C^x, x"}
    for name, label in names.items():
        number = NUMBERS[name]
        row = [label, significant(number(found.law)), bounds(found.interval(number))]
        if found.at_floor:
            row += [significant(number(found.at_floor)), "" if name == "E" else bounds(found.interval(number, True))]
        rows.append(row)
    spread = float(np.std(found.resampled.noise))
    parabolas = f"the parabolas' x: {significant(found.valleys.size_exponent)} {bounds(found.valley_exponent)}"
    return f"{columns(rows)}\n{parabolas}; noise of a run: {spread:.2%}"


def floor_lines(found: Fitted) -> Iterator[str]:
    """The fitted E beside the exact floor."""
    if found.floor is not None:
        low, high = found.interval(NUMBERS["E"])
        place = "within its interval" if low <= found.floor <= high else "outside of its interval"
        yield (
            f"E is {abs(found.law.E / found.floor - 1):.1%} {'above' if found.floor < found.law.E else 'below'} the "
            f"exact floor of this text, {found.floor:.4f}, which is {place}"
        )


def frontier(found: Fitted) -> str:
    """The best size of each budget by its parabola and by the law, and whether they differ."""
    rows = [["FLOPs", "best N by the parabola", "best N by the law", "best D by the law", "D / N", "loss there", ""]]
    for budget, valley in found.valleys.optima.items():
        size, ends = float(found.law.best_size(budget)), found.interval(lambda law, c=budget: float(law.best_size(c)))
        tokens = tokens_of(budget, size)
        best = f"{valley.x:,.0f} {bounds((valley.low, valley.high), ',.0f')}" if valley.low else f"{valley.x:,.0f}"
        apart = valley.low and (valley.low > ends[1] or valley.high < ends[0])
        note = "they differ" if apart else valley.problem or ""
        law = [f"{size:,.0f} {bounds(ends, ',.0f')}", f"{tokens:,.0f}", f"{tokens / size:.3g}"]
        rows.append([f"{budget:.3g}", best, *law, f"{found.law.loss(size, tokens):.4f}", note])
    return columns(rows) if len(rows) > 1 else "no budget has three sizes, so there are no parabolas"


def residual_table(found: Fitted) -> str:
    """Each point: measured, fitted, and the difference in per cent."""
    points, rows = found.points, [["N", "parameters", "D", "FLOPs", "loss", "seeds", "fitted", "residual"]]
    residuals = residuals_of(found.law, points)
    groups = [points.point == point for point in np.unique(points.point)]
    for at in sorted(groups, key=lambda at: (points.budget[at][0], points.size[at][0], points.tokens[at][0])):
        size, tokens = points.size[at].mean(), points.tokens[at].mean()
        parts = f"{size:,.0f}", f"{found.parameters[at][0]:,.0f}", f"{tokens:,.0f}", f"{points.flops[at].mean():.3g}"
        fitted = f"{found.law.loss(size, tokens):.4f}"
        rows.append([*parts, f"{points.loss[at].mean():.4f}", at.sum(), fitted, f"{residuals[at].mean():+.1%}"])
    return columns(rows, right=True)


def predicted(found: Fitted) -> str:
    rows = [["prediction", "N", "D", "loss", "95 % interval of a run", "measured"]]
    for each in found.predictions:
        ends, measured = each.interval, ""
        if each.measured is not None:
            inside = "inside" if ends[0] <= each.measured <= ends[1] else "outside"
            measured = f"{each.measured:.4f}, {inside}"
        sizes = f"{each.size:,.0f}", f"{each.tokens:,.0f}"
        rows.append([each.name, *sizes, f"{each.loss:.4f}", bounds(ends, ".4f"), measured])
    return columns(rows)


def warnings(found: Fitted) -> Iterator[str]:
    """Why the law may not be trusted, a line each."""
    if len(found.sizes) < FEW_SIZES:
        yield f"{len(found.sizes)} sizes; give at least {FEW_SIZES}, or the exponents follow from noise"
    if (span := found.points.flops.max() / found.points.flops.min()) < 0.99 * NARROW:
        yield f"the FLOPs span a factor of {span:.2g}, less than a decade; add smaller or larger budgets"
    for budget in found.valleys.at_the_edge:
        its = found.points.size[found.points.budget == budget]
        side = "smaller" if found.valleys.optima[budget].x <= its.min() else "larger"
        yield f"the best size at {budget:.3g} FLOPs is the {side.replace('er', 'est')} one there; add {side} sizes"
    if not found.law.A * found.law.B:
        yield "a term of the law is zero, so there is no best size; add sizes and budgets further apart"
    for term, exponent in (("A N^-a", found.law.a), ("B D^-b", found.law.b)):
        if exponent < 1.05 * EXPONENTS[0] and found.law.A * found.law.B:
            yield f"{term} is almost a constant and takes the place of E, so E is not known; add sizes further apart"
    missed, noise = misfit(found.law, found.points)
    if missed > WRONG * noise:
        yield (
            f"the law misses half of the points by {missed:.2%} or more, while their means over seeds are known to "
            f"{noise:.2%}: its form is wrong here, and its intervals do not know that"
        )
    if found.repeated:
        yield "some runs read their text more than once, which the law does not know; give more text"
    if any(each.flops > FAR * found.most_flops for each in found.predictions):
        yield "a prediction is more than a decade away from the runs; its interval holds only if the law does"


def bounds(ends: Sequence[float | None], form: str = "") -> str:
    low, high = (math.nan if end is None else float(end) for end in ends)
    if not math.isfinite(low + high):
        return "[unknown]"
    return f"[{low:{form}}, {high:{form}}]" if form else f"[{significant(low)}, {significant(high)}]"


def significant(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "unknown"
