"""95 % intervals: the bootstrap over documents (Efron 1979), and Wilson's (1927) for counts of successes.

Shapes: R resamples, U units (documents, or windows of a text with few documents), K columns.
"""

from collections.abc import Callable, Sequence

import numpy as np

from slm.corpora.storyworld.checker import wilson

RESAMPLES = 1000
Estimate = dict[str, float]  # mean, low, high


class Bootstrap:
    """Resamples of the same units for all statistics, so that their differences have intervals, too."""

    def __init__(self, units: int, seed: int):
        random, self.weights = np.random.default_rng(seed), np.empty((RESAMPLES, units), np.float32)
        for row in self.weights:
            row[:] = np.bincount(random.integers(units, size=units), minlength=units)

    def estimate(self, parts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate | None:
        """The statistic (R, K) -> (R,) of the sums over units of `parts` (U, K); None where it is not defined."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = statistic(parts.sum(0)[None].astype(float))[0]
            drawn = statistic(self.weights @ parts)
        if not np.isfinite(mean):
            return None
        low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
        return {"mean": float(mean), "low": float(low), "high": float(high)}

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Estimate | None:
        """Sum over sum, of a value and a weight per unit (U,) each."""
        return self.estimate(np.stack([above, below], 1), lambda sums: sums[:, 0] / sums[:, 1])

    def mean(self, values: Sequence[float] | np.ndarray) -> Estimate:
        """The mean of a value per unit (U,). All 0 or all 1 has the interval of Wilson: nothing can be resampled."""
        values = np.asarray(values, float)
        if values.min() == values.max() and values[0] in (0, 1):
            return share(int(values.sum()), len(values))
        return self.ratio(values, np.ones(len(values)))


def share(successes: int, n: int) -> Estimate | None:
    """A share of n trials with its Wilson interval; None without trials."""
    return wilson(successes, n) if n else None


def scaled(estimate: Estimate | None, function: Callable[[float], float]) -> Estimate | None:
    """An increasing function of an estimate."""
    return estimate and {name: float(function(value)) for name, value in estimate.items()}


def by_unit(units: np.ndarray, values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Sums of the values of targets for each unit and each of `count` groups (U, count); all three arrays are flat."""
    total = int(units.max()) + 1
    return np.bincount(units * count + groups, values, total * count).reshape(total, count)
