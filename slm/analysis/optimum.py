"""The lowest point of a measured curve, by a parabola through the points around it, with a confidence interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95  # of the interval
AT_THE_EDGE = "at the edge of the grid"
NO_INTERVAL = "no interval: "  # and the reason: of a vertex that is known


@dataclass(frozen=True)
class Optimum:
    """Where a curve is lowest. `low` and `high` bound x at 95 %; both are None if `problem` says why not.

    rise: how far the higher neighbour on the grid is above the lowest mean, as a share of it. A parabola describes a
    curve near its minimum only, so an interval from a grid with a large rise is too narrow.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    problem: str | None = None
    rise: float = 0.0

    @property
    def is_vertex(self) -> bool:
        """True for the lowest point of a parabola, with an interval or without; else x is a value of the grid."""
        return self.problem is None or self.problem.startswith(NO_INTERVAL)


def optimum(x: Sequence[float], y: Sequence[float], seeds: Sequence | None = None, *, log: bool = True) -> Optimum:
    """The lowest point of y(x) from measurements (x, y), several per x where there are several seeds; log: of log x.

    The parabola is fitted to all measurements at the x with the lowest mean and at its two neighbours. Measurements of
    one seed share an offset, since they share initialisation and order of data. The interval is Fieller's: exact for
    independent normal residuals if the curve is a parabola between the neighbours. Values that are not finite are left
    out. Raises ValueError if none is left, or for x <= 0 with log.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    seeds = np.zeros(len(x), int) if seeds is None else np.unique(list(map(str, seeds)), return_inverse=True)[1]
    finite = np.isfinite(y)
    if not finite.any() or (log and (x <= 0).any()):
        raise ValueError("an optimum needs finite values, and x above 0 on a logarithmic axis")
    x, y, seeds = x[finite], y[finite], seeds[finite]
    grid = np.unique(x)
    means = np.array([y[x == place].mean() for place in grid])
    best = int(means.argmin())
    if best in (0, len(grid) - 1):
        return Optimum(float(grid[best]), float(means[best]), problem=AT_THE_EDGE)
    near = (x >= grid[best - 1]) & (x <= grid[best + 1])
    scale = np.log if log else np.asarray
    center = scale(grid[best])
    found = _vertex(scale(x[near]) - center, y[near], seeds[near])
    rise = float(means[best - 1 : best + 2].max() / means[best] - 1) if means[best] > 0 else 0.0
    if found is None:
        return Optimum(float(grid[best]), float(means[best]), problem="no parabola fits", rise=rise)
    place, value, interval, problem = found
    back = np.exp if log else np.asarray
    if interval and not scale(grid[0]) <= center + interval[0] <= center + interval[1] <= scale(grid[-1]):
        interval, problem = None, NO_INTERVAL + "it would be wider than the grid"
    low, high = (float(back(center + end)) for end in interval) if interval else (None, None)
    return Optimum(float(back(center + place)), value, low, high, problem, rise)


def _vertex(x: np.ndarray, y: np.ndarray, seeds: np.ndarray):
    """Place, value, interval and problem of the vertex of a + b x + c x^2 with an `a` per seed; None without one."""
    offsets = (seeds[:, None] == np.unique(seeds)).astype(float)  # (measurements, seeds)
    design = np.column_stack([offsets, x, x**2])
    fit, _, rank, _ = np.linalg.lstsq(design, y)
    b, c = fit[-2:]
    if rank < design.shape[1] or c <= 0 or not x.min() <= (place := -b / (2 * c)) <= x.max():
        return None
    value = float(fit[:-2] @ offsets.mean(0) + b * place + c * place**2)
    freedom = len(y) - rank
    if freedom < 1:
        return place, value, None, NO_INTERVAL + "one seed"
    variance = ((y - design @ fit) ** 2).sum() / freedom * np.linalg.inv(design.T @ design)[-2:, -2:]
    # all v for which a slope of zero, b + 2 c v, is within the noise: a quadratic inequality in v
    t2 = stdtrit(freedom, (1 + LEVEL) / 2) ** 2
    square, linear = c**2 - t2 * variance[1, 1], b * c - t2 * variance[0, 1]
    discriminant = linear**2 - square * (b**2 - t2 * variance[0, 0])
    if square <= 0:
        return place, value, None, NO_INTERVAL + "the curvature is within the noise"
    root = np.sqrt(max(discriminant, 0.0))
    return place, value, ((-linear - root) / (2 * square), (-linear + root) / (2 * square)), None
