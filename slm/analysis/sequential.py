"""Pairs of seeds one after another, stopped as soon as they answer the question.

After each look at the first n pairs, Student's t becomes the normal score z of equal p, and the noise measured so far
says how many pairs N the question needs. The comparison ends with a difference if |z| >= C sqrt(N / n), the bound of
O'Brien and Fleming (1979); without one at n = N, or before if it has become futile. C is the value with which such a
sequence without a real difference raises a false alarm in 5 % of cases, whatever the noise is: by simulation of this
rule itself, N measured anew at each look included, so it holds for few pairs, too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from slm.analysis.statistics import ALPHA

PILOT = 4  # pairs before the first look; with fewer, N is too uncertain to plan by
PLANNED_POWER = 0.90  # measuring N and stopping early costs 5 to 12 % of it, which leaves about 80 %
FUTILE = 0.10  # probability of finding a difference of the size in question, below which the rest is not run
PATHS, SEED = 40_000, 0  # of the simulation; C has a standard error of about 0.01
NOISES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, math.inf)  # in units of the difference; C is the highest among them


@dataclass(frozen=True)
class Look:
    """What the first n pairs say. `verdict`: difference, none, futile, or None to go on."""

    n: int
    mean: float
    sd: float  # of the differences
    needed: int  # pairs for the question, by this sd
    z: float
    bound: float
    power: float  # of finding a difference of the size in question in the rest, given these pairs
    verdict: str | None


def looks(differences: Sequence[float], detect: float, *, most: int, alpha: float = ALPHA):
    """The looks at paired differences in their order, up to the one that ends the comparison.

    `detect`: the smallest difference that matters; `most`: pairs at most; `alpha`: false alarm rate.
    """
    values, found = np.asarray(differences, dtype=float), []
    critical = critical_value(tuple(range(PILOT, most + 1)), alpha)
    for n in range(PILOT, min(len(values), most) + 1):
        look = look_at(values[:n], detect, critical, most=most, alpha=alpha)
        found.append(look)
        if look.verdict:
            break
    return found


def look_at(values: np.ndarray, detect: float, critical: float, *, most: int, alpha: float) -> Look:
    from scipy.special import ndtr, ndtri, stdtr

    n, mean, sd = len(values), float(values.mean()), float(values.std(ddof=1))
    wanted = max(float(np.ceil(pairs_planned(sd / detect, n, alpha))), PILOT)
    needed = int(max(n, min(wanted, most)))
    t = mean / sd * math.sqrt(n) if sd else math.copysign(math.inf, mean) if mean else 0.0
    z, bound = -float(ndtri(stdtr(n - 1, -abs(t)))), critical * math.sqrt(needed / n)
    share = n / needed
    drift = detect / sd * math.sqrt(needed) if sd else math.inf
    rest = math.sqrt(1 - share)
    power = float(ndtr((z * math.sqrt(share) + drift * rest**2 - critical) / rest)) if rest else float(z >= bound)
    verdict = "difference" if z >= bound else "none" if n >= needed else "futile" if power < FUTILE else None
    return Look(n, mean, sd, int(max(n, min(wanted, 10**6))), math.copysign(z, mean), bound, power, verdict)


def pairs_planned(noise: np.ndarray | float, n: np.ndarray | int, alpha: float):
    """Pairs for a difference of 1, from a standard deviation `noise` that was measured on n pairs (Stein, 1945)."""
    from scipy.special import stdtrit

    freedom = n - 1.0
    return (stdtrit(freedom, 1 - alpha / 2) + stdtrit(freedom, PLANNED_POWER)) ** 2 * noise**2


@lru_cache
def critical_value(pairs: tuple[int, ...], alpha: float = ALPHA, noises: tuple[float, ...] = NOISES) -> float:
    """C for looks after so many pairs: its false alarm rate is `alpha` at the worst of the noises.

    With noises=(inf,) all pairs are planned from the start: the constant of O'Brien and Fleming if they are many.
    """
    z, sd = simulated(pairs)
    n, first, most = np.array(pairs), pairs[0], pairs[-1]
    found = []
    for noise in noises:
        planned = np.full(z.shape, most)
        if math.isfinite(noise):
            planned = np.clip(np.ceil(pairs_planned(noise, n, alpha) * sd**2), first, most)
        end = (n >= planned).argmax(1)  # the look at which a path ends; the last one has all pairs
        heights = np.where(np.arange(len(n)) <= end[:, None], z * np.sqrt(n / np.maximum(planned, n)), 0)
        found.append(np.quantile(heights.max(1), 1 - alpha))
    return float(max(found))


def simulated(pairs: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """|z| and the standard deviation (paths, looks) of differences without effect whose true deviation is 1."""
    from scipy.special import ndtri, stdtr

    rng, n = np.random.default_rng(SEED), np.array(pairs)
    sizes = np.diff(n, prepend=0)  # new pairs of each look: their sum, and their squares around its mean
    sums = rng.standard_normal((PATHS, len(n))) * np.sqrt(sizes)
    inner = rng.chisquare(np.maximum(sizes - 1, 1), (PATHS, len(n))) * (sizes > 1)
    total, squares = sums.cumsum(1), (inner + sums**2 / sizes).cumsum(1)
    sd = np.sqrt((squares - total**2 / n) / (n - 1))
    return -ndtri(stdtr(n - 1, -np.abs(total) / (sd * np.sqrt(n)))), sd
