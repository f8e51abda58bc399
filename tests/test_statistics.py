"""Statistics of few seeds against scipy.stats, hand computations and published constants."""

import math

import numpy as np
import pytest
from scipy import stats

from slm.analysis.sequential import critical_value, looks
from slm.analysis.statistics import (
    detectable,
    holm,
    paired_difference,
    pooled_deviation,
    sign_flip_p,
    unpaired_difference,
)

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("n", [2, 3, 5, 9, 12])
def test_pairs_against_scipy(n):
    base, variant = RNG.normal(0, 1, n), RNG.normal(0.4, 1, n)
    found = paired_difference(variant - base)
    expected = stats.ttest_rel(variant, base)
    interval = expected.confidence_interval(0.95)
    assert (found.mean, found.p) == pytest.approx((np.mean(variant - base), expected.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    if n < 12:
        statistic = lambda x, y, axis: np.mean(x - y, axis=axis)  # noqa: E731
        exact = stats.permutation_test(
            (variant, base), statistic, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert found.p_signs == pytest.approx(exact.pvalue)


def test_sign_flips_of_many_pairs_are_drawn():
    values = RNG.normal(0.3, 1, 30)
    t_test = stats.ttest_1samp(values, 0).pvalue
    assert sign_flip_p(values) == pytest.approx(t_test, abs=0.02)
    assert sign_flip_p(np.ones(30), patterns=1000) == 1 / 1001  # the observed pattern counts among them
    assert sign_flip_p(values[:20]) == pytest.approx(sign_flip_p([*values[:20], 0.0]), abs=0.01)  # exact and drawn


def test_equal_and_single_differences():
    assert sign_flip_p([1, 1, 1, 1, 1]) == 2 / 32  # the smallest p of five pairs
    assert paired_difference([0.0, 0.0, 0.0]).p == 1
    assert paired_difference([0.1, 0.1]).p == 0
    assert math.isnan(paired_difference([0.1]).p)


@pytest.mark.parametrize(("groups", "seeds"), [(1, 2), (2, 3), (5, 2), (6, 3), (12, 2)])
def test_the_pooled_deviation_is_about_unbiased_and_robust(groups, seeds):
    """In simulated sweeps with a deviation of 1; then one of the groups explodes."""
    values = np.random.default_rng(groups).normal(0, 1, (1000, groups, seeds))
    found = [pooled_deviation(sweep) for sweep in values]
    assert np.mean(np.square(found)) == pytest.approx(1, abs=0.13)
    values[:, 0] *= 30
    if groups > 3:
        assert np.median([pooled_deviation(sweep) for sweep in values]) < 1.5


def test_groups_of_several_sizes_are_pooled():
    values = np.random.default_rng(3).normal(0, 2, (500, 6, 5))
    found = [pooled_deviation([sweep[0][:2], sweep[1][:1], *sweep[2:4], sweep[4][:3], sweep[5]]) for sweep in values]
    assert np.mean(np.square(found)) == pytest.approx(4, rel=0.12)
    assert pooled_deviation([[1.0], []]) is None


def test_unpaired_against_scipy():
    base, variant = RNG.normal(0, 1, 4), RNG.normal(0.4, 3, 7)
    found = unpaired_difference(base, variant)
    expected = stats.ttest_ind(variant, base, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))


def test_holm_by_hand():
    """Smallest p times 4, the next times 3, and so on, never below the one before."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.01]) == [0.01]
    assert holm([]) == []


@pytest.mark.parametrize("n", [3, 5, 20])
def test_a_difference_of_the_detectable_size_is_found_in_80_percent(n):
    differences = np.random.default_rng(n).normal(detectable(1.0, n), 1.0, (20000, n))
    found = stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.80, abs=0.01)  # 3.5 standard deviations


# O'Brien and Fleming's constants for K equal groups: Jennison and Turnbull (2000), table 2.3
@pytest.mark.parametrize(("groups", "published"), [(1, 1.960), (2, 1.977), (3, 2.004), (5, 2.040), (10, 2.087)])
def test_bounds_in_the_limit_of_many_pairs(groups, published):
    pairs = tuple(1000 * k for k in range(1, groups + 1))
    assert critical_value(pairs, noises=(math.inf,)) == pytest.approx(published, abs=0.02)


def ended(noise: float, effect: float, paths: int, most: int = 20) -> list:
    """The last look of each of many comparisons, with a difference to detect of 1."""
    rng = np.random.default_rng(round(1000 * noise))
    return [looks(rng.normal(effect, noise, most), 1.0, most=most)[-1] for _ in range(paths)]


@pytest.mark.parametrize("noise", [1.2, 1.7, 10.0])  # between the values that fix the bound
def test_false_alarms_of_the_sequence(noise):
    alarms = np.mean([look.verdict == "difference" for look in ended(noise, 0.0, 1500)])
    assert alarms < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_a_difference_of_the_size_in_question_is_found_by_the_sequence(noise):
    ends = ended(noise, -1.0, 1000)
    assert 0.76 < np.mean([look.verdict == "difference" for look in ends]) < 0.92
    assert np.mean([look.n for look in ends]) < 10.5
    assert all(look.mean < 0 for look in ends if look.verdict == "difference" and abs(look.z) > 4)


def test_the_sequence_stops_early_in_both_directions():
    assert [look.verdict for look in looks([3.0, 3.1, 2.9, 3.05], 1.0, most=20)] == ["difference"]
    assert looks([0.1, -0.1, 0.1, -0.1, 0.0], 1.0, most=20)[-1].verdict == "none"  # 4 pairs are enough for 1.0
    assert looks([1.2, -1.1, 1.0, -1.3, 0.9, -1.2] * 3, 1.0, most=18)[-1].verdict == "futile"
    assert looks([1.0, 1.1, 0.9], 1.0, most=20) == []  # before the first look
