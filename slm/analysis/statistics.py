"""Statistics of few seeds: noise, paired and unpaired differences, what they could have shown, Holm's correction.

Differences are variant minus base, in the unit of the metric. scipy is imported where it is needed: it takes a second.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ALPHA, POWER = 0.05, 0.80  # two-sided false alarm rate; share of real differences of the stated size that are found
EXACT_PAIRS = 20  # up to here all sign patterns are counted, 2^19 after halving by symmetry
PATTERNS = 10**5  # sign patterns drawn for more pairs


@dataclass(frozen=True)
class Difference:
    """A mean difference with its uncertainty. NaN where the data cannot give a value."""

    n: int  # pairs, or runs of the smaller group
    mean: float
    low: float  # 95 % interval, from Student's t
    high: float
    p: float  # two-sided, from Student's t; decides
    p_signs: float  # exact sign-flip p of pairs
    p_signs_best: float  # the smallest one that so many pairs can give
    detectable: float  # the smallest real difference that so many seeds find in 80 % of cases
    paired: bool


def paired_difference(differences: Sequence[float]) -> Difference:
    """The mean of paired differences (n,), from two pairs on."""
    values = np.asarray(differences, dtype=float)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Difference(n, mean, *[math.nan] * 6, paired=True)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    return _by_t(n, mean, error, n - 1, signs=(sign_flip_p(values), best_sign_flip_p(n)))


def unpaired_difference(base: Sequence[float], variant: Sequence[float]) -> Difference:
    """The difference of the means of two groups without a common seed, by Welch's test, from two runs each on."""
    a, b = np.asarray(base, dtype=float), np.asarray(variant, dtype=float)
    n, mean = min(len(a), len(b)), float(b.mean() - a.mean())
    if n < 2:
        return Difference(n, mean, *[math.nan] * 6, paired=False)
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    error = float(np.sqrt(parts.sum()))
    freedom = error**4 / float((parts**2 / [len(a) - 1, len(b) - 1]).sum()) if error else n - 1  # Welch-Satterthwaite
    return _by_t(n, mean, error, freedom)


def _by_t(n: int, mean: float, error: float, freedom: float, signs: tuple[float, float] | None = None) -> Difference:
    """The difference with its standard error, by Student's t; `signs`: both sign-flip p, of pairs."""
    from scipy import stats

    half = error * float(stats.t.isf(ALPHA / 2, freedom))
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    least, paired = error * _detectable_in_errors(freedom), signs is not None
    return Difference(n, mean, mean - half, mean + half, p, *(signs or (math.nan, math.nan)), least, paired)


def sign_flip_p(differences: Sequence[float], patterns: int = PATTERNS) -> float:
    """Share of sign patterns of the differences whose sum is at least as far from zero: exact if all are counted.

    Needs only that each difference is as likely to have either sign if there is no effect. Above 20 pairs the
    patterns are drawn with a fixed seed, and the observed one counts among them.
    """
    values = np.asarray(differences, dtype=float)
    observed = abs(values.sum()) * (1 - 1e-12)  # equal sums differ in their last bits
    if len(values) <= EXACT_PAIRS:
        sums = values[:1]  # the pattern with all signs reversed is as far from zero
        for value in values[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= observed).mean())
    rng, reached = np.random.default_rng(0), 0
    for _ in range(0, patterns, 1000):
        signs = rng.integers(0, 2, (1000, len(values))) * 2 - 1
        reached += int((np.abs(signs @ values) >= observed).sum())
    return (reached + 1) / (patterns + 1)


def best_sign_flip_p(n: int) -> float:
    """The smallest sign-flip p that n pairs can give."""
    return 2.0 ** (1 - n) if n <= EXACT_PAIRS else 1 / (PATTERNS + 1)


def detectable(sd: float, n: int) -> float:
    """The smallest real mean that a t-test of n pairs with this standard deviation finds in 80 % of cases."""
    return sd / math.sqrt(n) * _detectable_in_errors(n - 1)


def _detectable_in_errors(freedom: float) -> float:
    """The same in standard errors: the noncentrality at which Student's t exceeds its 5 % bound in 80 % of cases."""
    from scipy import optimize, stats

    bound = stats.t.isf(ALPHA / 2, freedom)
    miss = lambda shift: stats.nct.sf(bound, freedom, shift) - POWER  # noqa: E731  (the other tail is negligible)
    return float(optimize.brentq(miss, 0.5, 3 * bound + 5))


def pooled_deviation(groups: Iterable[Sequence[float]]) -> float | None:
    """The standard deviation within groups, by the median of their variances; None if no group has two values.

    A group near divergence, whose variance is many times that of the others, changes a median little.
    """
    several = [group for group in groups if len(group) > 1]
    variances = [np.var(group, ddof=1) / _median_variance(len(several), len(group) - 1) for group in several]
    return math.sqrt(np.median(variances)) if several else None


@lru_cache
def _median_variance(groups: int, freedom: int) -> float:
    """What the median of so many sample variances is on average, as a share of the true one.

    By order statistics of chi-squared variables: 1 for a single group, chi2.ppf(0.5, freedom) / freedom for many.
    """
    from scipy.stats import beta, chi2

    ranks = (groups + 1) // 2, groups // 2 + 1  # of the middle variance, or the two middle ones
    shares = (np.arange(2000) + 0.5) / 2000
    density = sum(beta.pdf(shares, rank, groups + 1 - rank) for rank in ranks)
    return float(np.average(chi2.ppf(shares, freedom) / freedom, weights=density))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: below 0.05 the family of tests keeps a false alarm rate of 5 %. NaN stays."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)  # NaN last
    stepped = np.maximum.accumulate(p[order] * (np.count_nonzero(~np.isnan(p)) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()
