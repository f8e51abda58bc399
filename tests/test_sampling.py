"""Filters against NumPy in float64, the sampling against a chi-square test, and equivalent settings."""

import math

import numpy as np
import pytest
import torch

from slm.errors import UserError
from slm.generation.sampling import Sampler, choose, min_p, repetition_penalty, temperature, top_k, top_p

ROWS, VOCABULARY = 40, 97


@pytest.fixture
def logits():
    return 3 * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1))


def kept(filtered):
    return filtered.isfinite().numpy()


def ranked(row):
    """Ids from the most to the least likely; of equal logits the lower id first."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def softmax(row):
    exponentials = np.exp(row - row.max())
    return exponentials / exponentials.sum()


def mask(ids):
    return np.isin(np.arange(VOCABULARY), ids)


def sample(sampler, logits, uniform=0.5):
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    return sampler(logits, seen, torch.full((len(logits),), float(uniform))).tolist()


@pytest.mark.parametrize("k", [1, 2, 50, VOCABULARY - 1, VOCABULARY, VOCABULARY + 1, 10**9])
def test_top_k_keeps_the_k_most_likely(logits, k):
    """Exactly k, also of equal logits."""
    for each in (logits, logits.round()):
        filtered = top_k(each, k)
        assert (kept(filtered) == [mask(ranked(row)[:k]) for row in each.double().numpy()]).all()
        assert torch.equal(filtered[filtered.isfinite()], each[filtered.isfinite()])


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    for row, result in zip(logits.double().numpy(), kept(top_p(logits, p))):
        order, probabilities = ranked(row), softmax(row)
        count = next(n for n in range(1, VOCABULARY + 1) if probabilities[order[:n]].sum() >= p)
        assert (result == mask(order[:count])).all()
    wide = torch.tensor([[0.0, -40.0, -80.0]])  # with ids below rounding
    assert torch.equal(top_p(wide, 1.0), wide)


@pytest.mark.parametrize("p", [0.0, 0.001, 0.3, 1.0])
def test_min_p_is_relative_to_the_most_likely(logits, p):
    for row, result in zip(logits.double().numpy(), kept(min_p(logits, p))):
        assert (result == (softmax(row) >= p * softmax(row).max())).all()


@pytest.mark.parametrize("value", [1e-6, 0.7, 1, 3.5, 1e6])
def test_temperature_divides_the_logits(logits, value):
    for row, result in zip(logits.double().numpy(), temperature(logits, value).softmax(-1).numpy()):
        np.testing.assert_allclose(result, softmax(row / value), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_repetition_penalty_lowers_seen_ids_of_either_sign(logits, penalty):
    seen = torch.rand(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(2)) < 0.3
    expected = logits.double().numpy()
    for row, id_ in seen.nonzero().tolist():
        expected[row, id_] *= 1 / penalty if expected[row, id_] > 0 else penalty
    np.testing.assert_allclose(repetition_penalty(logits, seen, penalty).numpy(), expected, rtol=1e-6)


def test_filters_do_not_change_their_input(logits):
    before = logits.clone()
    sampler = Sampler(temperature=0.5, top_k=9, top_p=0.9, min_p=0.1, repetition_penalty=2.0)
    sampler(logits, torch.ones_like(logits, dtype=torch.bool), torch.full((ROWS,), 0.5))
    assert torch.equal(logits, before)


def test_choose_inverts_the_cumulative_distribution(logits):
    uniform = torch.rand(ROWS, generator=torch.Generator().manual_seed(3))
    cumulative = [np.cumsum(softmax(row)) for row in logits.double().numpy()]
    assert min(abs(row - u).min() for row, u in zip(cumulative, uniform.numpy())) > 1e-6  # rounding changes no id
    expected = [np.searchsorted(row, u, side="right") for row, u in zip(cumulative, uniform.numpy())]
    assert choose(logits, uniform).tolist() == expected
    exact = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).log().expand(7, -1)
    assert choose(exact, torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.9999])).tolist() == [0, 0, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("uniform", [0.0, 1e-45, 0.5, 1 - 2**-24, 1.0])
@pytest.mark.parametrize("possible", [[0], [96], [3, 4], [0, 50], [50, 95], list(range(1, 96))])
def test_choose_never_returns_an_id_of_probability_zero(logits, possible, uniform):
    logits = logits.masked_fill(~torch.from_numpy(mask(possible)), -math.inf)
    assert set(choose(logits, torch.full((ROWS,), uniform)).tolist()) <= set(possible)


@pytest.mark.parametrize(
    "narrowest",
    [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-6}, {"top_k": 1, "temperature": 1e6}],
)
def test_the_narrowest_filter_is_greedy(logits, narrowest):
    for uniform in (0.0, 0.999, 1.0):
        assert sample(Sampler(**narrowest), logits, uniform) == sample(Sampler(greedy=True), logits)


@pytest.mark.parametrize("narrowest", [{"top_k": 1}, {"top_p": 1e-9}])
def test_greedy_returns_the_first_of_equal_logits(narrowest):
    logits = torch.zeros(5, 1000)
    logits[:, :400] = -1
    assert sample(Sampler(**narrowest), logits, 0.9) == sample(Sampler(greedy=True), logits) == [400] * 5


def test_temperature_keeps_the_order_of_adjacent_floats():
    logits = torch.tensor([[15.0, 15.0]])
    logits[0, 1] = torch.nextafter(logits[0, 1], torch.tensor(16.0))
    assert (logits / 1.8).unique().numel() == 1
    assert sample(Sampler(temperature=1.8, top_k=1), logits) == sample(Sampler(greedy=True), logits) == [1]


def test_neutral_settings_change_nothing(logits):
    for uniform in (0.0, 0.3, 0.99):
        plain = choose(logits, torch.full((ROWS,), uniform)).tolist()
        assert sample(Sampler(), logits, uniform) == plain
        assert sample(Sampler(top_k=VOCABULARY, top_p=1.0, min_p=0.0), logits, uniform) == plain


def test_filters_apply_in_the_order_of_hugging_face():
    probabilities = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    # after top_k: 4/7 and 3/7, of which top_p = 0.5 keeps only the first; top_p before top_k would keep both
    assert sample(Sampler(top_k=2, top_p=0.5), probabilities.log(), 0.9) == [0]
    assert sample(Sampler(top_p=0.5), probabilities.log(), 0.9) == [1]
    # temperature 2 raises 0.1 / 0.4 to 0.5, above min_p = 0.4
    assert sample(Sampler(temperature=2, min_p=0.4), probabilities.log(), 0.99) == [3]


def test_only_the_repetition_penalty_changes_greedy():
    logits, seen = torch.tensor([[3.0, 2.9, -1.0]]), torch.tensor([[True, False, False]])
    sampler = Sampler(greedy=True, repetition_penalty=1.2, temperature=5)
    assert sampler(logits, seen, torch.zeros(1)).tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_precision_are_sampled_in_float32(logits, dtype):
    logits = logits.to(dtype)
    sampler = Sampler(temperature=0.7, top_k=30, top_p=0.95, min_p=0.01)
    for uniform in torch.linspace(0, 1, 20):
        assert sample(sampler, logits, uniform) == sample(sampler, logits.float(), uniform)


WRONG = {  # setting -> rule, wrong values
    "temperature": ("a number from 1e-6 to 1e6$", [-1.0, math.nan, math.inf, "0.8", True, None]),
    "top_k": ("a whole number from 1, or null$", [0, 5.0, True]),
    "top_p": ("above 0, at most 1, or null$", [0.0, 1.01, math.nan]),
    "min_p": ("from 0 to 1, or null$", [-0.1, 1.1, math.nan]),
    "repetition_penalty": ("a number from 1e-6 to 1e6; 1 is off$", [0, math.nan]),
    "greedy": ("true or false$", [1]),
}


def test_a_wrong_setting_is_reported_with_its_value_and_rule():
    for name, (rule, values) in WRONG.items():
        for value in values:
            with pytest.raises(UserError, match=f"^{name}={value!r} must be {rule}"):
                Sampler(**{name: value})
    for zero in (0, 0.0):
        with pytest.raises(UserError, match=f"^temperature={zero} must .*; for the most likely token use greedy=true"):
            Sampler(temperature=zero)
