"""The exact test of uniformity: its level, its power and what it says of the draws, against simulation and closed forms."""

import numpy as np
import pytest
from scipy.stats import binom

from bdlbench.metrics import uniformity
from bdlbench.types import ConfigError


def ranked(rng, num_sets, inflation=1.0, shift=0.0, num_draws=99):
    """Randomised ranks of truths of a conjugate normal model, among draws of its posterior that are changed.

    mu ~ N(0, 1) and y ~ N(mu, 1) give N(y / 2, 1 / 2).
    """
    mu = rng.standard_normal(num_sets)
    y = mu + rng.standard_normal(num_sets)
    noise = rng.standard_normal((num_sets, num_draws))
    draws = y[:, None] / 2 + np.sqrt(0.5) * (shift + inflation * noise)
    return uniformity.randomised_ranks(mu, draws, rng.uniform(size=num_sets))


def test_one_point_is_a_binomial_test_and_all_points_are_simultaneous():
    """With a single number the envelope can be worked out by hand; p is the chance of a smaller statistic."""
    # Of one number u the smallest tail probability is 2 min(z, 1 - z) at a point beside u: .02 j for u in the j-th cell from
    # an end, of 50 on each side, but 1 for the middle ones. P(statistic <= .02 j) = 2 j / 100.
    for u, p in ((0.005, 0.02), (0.995, 0.02), (0.015, 0.04), (0.255, 0.52)):
        np.testing.assert_allclose(uniformity.p_value([u]), p, atol=1e-9)
    z, low, high = uniformity.envelope(256, 0.05)
    at_half = binom.cdf(np.round(256 * low[49]) - 1, 256, z[49])
    assert at_half < 0.025, "a simultaneous envelope is wider than one of a single point"
    assert (low < z).all()
    assert (z < high).all()


def test_p_values_of_exact_draws_keep_their_level():
    """P(p <= a) <= a: the number of 400 below a is below the quantile of a binomial that is exceeded once in a million.

    The bound on the other side holds up to the steps of a discrete statistic, which at 64 numbers are below .01 (it was
    computed: two neighbouring values of the statistic differ by less in probability at these levels).
    """
    rng = np.random.default_rng()
    p = np.array([uniformity.p_value(ranked(rng, 64, num_draws=int(rng.integers(1, 120)))) for _ in range(400)])
    for level in (0.05, 0.3):
        assert (p <= level).sum() <= binom.isf(5e-7, 400, level)
        assert (p <= level).sum() >= binom.ppf(5e-7, 400, level - 0.04)


def test_draws_that_are_a_fifth_too_wide_are_found_at_the_stated_power():
    """The share of 200 repetitions that is found, against the power: a binomial's two-sided quantile of 10^-6."""
    rng = np.random.default_rng()
    stated = uniformity.power(256, 0.05, uniformity.rank_probabilities(99, inflation=1.2))
    z, low, high = uniformity.envelope(256, 0.05)
    found = 0
    for _ in range(200):
        counts = np.searchsorted(np.sort(ranked(rng, 256, inflation=1.2)), z, side="right") / 256
        found += bool(((counts < low) | (counts > high)).any())
    assert 0.6 < stated < 0.72
    assert binom.ppf(5e-7, 200, stated) <= found <= binom.isf(5e-7, 200, stated)
    assert uniformity.power(1000, 0.05, uniformity.rank_probabilities(99, inflation=1.2)) > 0.99
    assert uniformity.power(256, 0.05, uniformity.rank_probabilities(99, inflation=1.0)) <= 0.05


@pytest.mark.parametrize(("inflation", "shift"), [(1.0, 0.0), (1.2, 0.0), (0.8, 0.2), (1.0, -0.3)])
def test_inflation_and_shift_are_estimated_with_their_errors(inflation, shift):
    """z within 5.5 of normal draws, whose place is not finer than 1 / 100: with 4,000 draws that adds at most .01."""
    rng = np.random.default_rng()
    found = uniformity.deviation(ranked(rng, 1000, inflation, shift, num_draws=4000))
    assert abs(found.shift - shift) < 5.5 * found.shift_se + 0.01
    assert abs(found.log_inflation - np.log(inflation)) < 5.5 * found.log_inflation_se + 0.01
    np.testing.assert_allclose(found.log_inflation_se, 1 / np.sqrt(2000), rtol=0.4)


def test_ties_and_failed_draws_have_their_place():
    """Equal draws leave the place to chance; what is not finite counts as larger than any number."""
    rank = lambda truth, draws, v: uniformity.randomised_ranks([truth], [draws], [v])[0]
    np.testing.assert_allclose([rank(1.0, [1.0, 1.0, 1.0], v) for v in (0.1, 0.9)], [0.1, 0.9])
    np.testing.assert_allclose(rank(1.0, [0.0, 1.0, 2.0], 0.5), (1 + 0.5 * 2) / 4)
    np.testing.assert_allclose(rank(1.0, [np.nan, np.inf, -np.inf], 0.5), 0.5 / 4)
    with pytest.raises(ValueError, match="all equal"):
        uniformity.deviation(np.full(9, 0.5))
    with pytest.raises(ConfigError, match="level is 2"):
        uniformity.envelope(9, 2.0)
