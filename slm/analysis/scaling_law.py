"""The law L = E + A N^-a + B D^-b for the loss of a model of size N after D tokens (arXiv:2203.15556), fitted to runs.

The fit is a variable projection (arXiv:2603.22339): a search over the two exponents, and for each pair of them linear
least squares for E, A, B >= 0. Intervals are those of a bootstrap in which the seeds of a point stay together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from slm.analysis.optimum import AT_THE_EDGE, Optimum, optimum

EXPONENTS = 0.02, 3.0  # between which they are searched
GRID = np.geomspace(0.05, 2.0, 8)  # from whose best pair the search starts
ROUNDS, ROUNDS_NEAR = 4, 2  # of new weights
HUBER = 1.345  # standard deviations from which on a residual counts linearly: 95 % efficient for normal noise
RESAMPLES = 300
PERCENTILES = 2.5, 97.5
FLOPS_PER_SIZE = 6  # and token: what defines the size N


@dataclass(frozen=True)
class Points:
    """The ends of runs, an entry per run: size N, tokens D, loss, the FLOPs that the run was to have (NaN: unknown)."""

    size: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    budget: np.ndarray
    seed: np.ndarray
    point: np.ndarray  # number of the point: runs of one point differ in their seed only

    def taken(self, places: np.ndarray) -> "Points":
        return Points(**{name: values[places] for name, values in vars(self).items()})

    @property
    def flops(self) -> np.ndarray:
        return FLOPS_PER_SIZE * self.size * self.tokens


def tokens_of(flops, size):
    """The tokens that a model of this size is trained on with so many FLOPs."""
    return flops / FLOPS_PER_SIZE / size


@dataclass(frozen=True)
class Law:
    """A fitted law; its loss is in the unit of the losses it was fitted to."""

    E: float
    A: float
    B: float
    a: float
    b: float

    @np.errstate(all="ignore")  # of a resample that has no best size
    def loss(self, size, tokens):
        return self.E + self.A * np.power(size, -self.a) + self.B * np.power(tokens, -self.b)

    @property
    def size_exponent(self) -> float:
        """x of the best size ~ C^x, for C training FLOPs, and 1 - x that of the tokens; NaN if it has no best size."""
        return self.b / (self.a + self.b) if self.A * self.B else np.nan

    @np.errstate(all="ignore")
    def best_size(self, flops):
        """The size with the lowest loss after so many training FLOPs, 6 N D; NaN if one of the two terms is zero."""
        if not self.A * self.B:
            return np.nan * np.asarray(flops)
        ratio = np.log(self.a * self.A / (self.b * self.B)) / (self.a + self.b)
        return np.exp(ratio + self.size_exponent * np.log(np.asarray(flops) / FLOPS_PER_SIZE))


@dataclass(frozen=True)
class Valleys:
    """The parabolas of the budgets, loss against log N, and the power law through their lowest points."""

    optima: dict[float, Optimum]  # by budget

    @property
    def inside(self) -> dict[float, Optimum]:
        """Those whose lowest point is inside of the sizes."""
        return {budget: found for budget, found in self.optima.items() if found.is_vertex}

    @property
    def size_exponent(self) -> float:
        """x of the best size ~ C^x; NaN for fewer than two budgets."""
        if len(self.inside) < 2:
            return np.nan
        return float(np.polyfit(np.log([*self.inside]), np.log([found.x for found in self.inside.values()]), 1)[0])

    @property
    def at_the_edge(self) -> list[float]:
        return [budget for budget, found in self.optima.items() if found.problem == AT_THE_EDGE]


def fit(points: Points, floor: float | None = None, near: Law | None = None) -> Law:
    """The law of these runs; with `floor`, E is that. Huber's loss of log residuals, by reweighting.

    The scale of the noise is the median residual, so that a few runs that went astray change little. The search starts
    at the exponents of `near`, a law of almost the same runs, else at the best of a grid.
    """
    centers = np.exp(np.log(points.size).mean()), np.exp(np.log(points.tokens).mean())
    scaled = replace(points, size=points.size / centers[0], tokens=points.tokens / centers[1])
    freedom = max(len(points.loss) - (5 if floor is None else 4), 1) / len(points.loss)
    law, expected = near, points.loss if near is None else near.loss(points.size, points.tokens)
    for _ in range(ROUNDS if near is None else ROUNDS_NEAR):
        residuals = np.abs(np.log(points.loss / expected))
        spread = max(np.median(residuals) / 0.6745 / np.sqrt(freedom), 1e-9)
        weights = np.minimum(1, HUBER * spread / np.maximum(residuals, 1e-12))
        law = _searched(scaled, weights, expected, floor, law)
        expected = law.loss(scaled.size, scaled.tokens)
    return replace(law, A=float(law.A * centers[0] ** law.a), B=float(law.B * centers[1] ** law.b))


def _searched(points: Points, weights: np.ndarray, expected: np.ndarray, floor: float | None, start: Law | None) -> Law:
    """The law with the least weighted squares of the residuals as shares of the expected loss."""
    from scipy.optimize import minimize, nnls

    sizes, tokens, rows = np.log(points.size), np.log(points.tokens), np.sqrt(weights) / expected
    target = rows * (points.loss - (floor or 0))
    constant = () if floor is not None else (rows,)

    def solved(exponents: np.ndarray) -> tuple[np.ndarray, float]:
        a, b = np.exp(exponents)
        columns = [*constant, rows * np.exp(-a * sizes), rows * np.exp(-b * tokens)]
        return nnls(np.column_stack(columns), target, maxiter=100)

    def rest(exponents: np.ndarray) -> float:
        return solved(exponents)[1]

    first = [np.log([start.a, start.b])] if start else [np.log([a, b]) for a in GRID for b in GRID]
    best = min(first, key=rest)
    limits = [np.log(EXPONENTS)] * 2
    found = minimize(rest, best, method="Nelder-Mead", bounds=limits, options={"xatol": 2e-3, "fatol": 1e-7})
    values = solved(found.x)[0]
    values[values < 1e-9 * values.max()] = 0  # rounding
    return Law(*([floor] if floor is not None else []), *map(float, values), *map(float, np.exp(found.x)))


def residuals_of(law: Law, points: Points) -> np.ndarray:
    """Logarithms of measured to fitted losses."""
    return np.log(points.loss / law.loss(points.size, points.tokens))


def misfit(law: Law, points: Points) -> tuple[float, float]:
    """The median residual of the points, and the median standard error of their means over seeds, NaN without seeds.

    Both as shares of the loss; about equal if the law is right.
    """
    residuals = residuals_of(law, points)
    groups = [residuals[points.point == point] for point in np.unique(points.point)]
    errors = [group.std(ddof=1) / np.sqrt(len(group)) for group in groups if len(group) > 1]
    return float(np.median([abs(group.mean()) for group in groups])), float(np.median(errors)) if errors else np.nan


def valleys(points: Points) -> Valleys:
    """The lowest loss of each budget that at least three sizes have."""
    found = {}
    for budget in np.unique(points.budget[np.isfinite(points.budget)]):
        its = points.taken(points.budget == budget)
        if len(np.unique(its.size)) > 2:
            found[float(budget)] = optimum(its.size, its.loss, its.seed)
    return Valleys(found)


@dataclass(frozen=True)
class Bootstrap:
    """The fits of resampled points, of which any number that follows from a law has an interval."""

    laws: list[Law]
    valleys: list[Valleys]
    noise: np.ndarray  # residuals of the fit, as large as those of a run that it has not seen

    @staticmethod
    def interval(values: Sequence[float]) -> tuple[float, float]:
        """Percentiles; NaN if a tenth of the resamples have no value."""
        known = np.asarray(values, float)
        known = known[np.isfinite(known)]
        return tuple(np.percentile(known, PERCENTILES)) if len(known) > 0.9 * len(values) else (np.nan, np.nan)

    def of_run(self, size: float, tokens: float, seed: int = 0) -> tuple[float, float]:
        """The interval of the loss of one further run: the uncertainty of the law, and the noise of a run."""
        noise = np.random.default_rng(seed).choice(self.noise, len(self.laws))
        return self.interval([law.loss(size, tokens) * np.exp(each) for law, each in zip(self.laws, noise)])


def bootstrap(
    points: Points, law: Law, floor: float | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Bootstrap:
    """Fits of points that are drawn with replacement, all seeds of each together."""
    rng, laws, found = np.random.default_rng(seed), [], []
    places = [np.flatnonzero(points.point == point) for point in np.unique(points.point)]
    for _ in range(resamples):
        sample = points.taken(np.concatenate([places[i] for i in rng.integers(0, len(places), len(places))]))
        laws.append(fit(sample, floor, near=law))
        found.append(valleys(sample))
    freedom = max(len(points.loss) - 5, 1) / len(points.loss)
    return Bootstrap(laws, found, residuals_of(law, points) / np.sqrt(freedom))
