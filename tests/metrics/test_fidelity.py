"""Distances to a reference against scipy, hand-computed values and what exact draws score."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from scipy.stats import norm, wasserstein_distance

from bdlbench.metrics import fidelity

RNG = np.random.default_rng(11)
DRAWS = 0.5 + RNG.normal(size=(20, 6)) * np.array([1, 2, 3, 4, 5, 6])
REFERENCE = RNG.normal(size=(33, 6)) * np.array([1, 2, 3, 4, 5, 6])


def test_agreement_and_total_variation_by_hand():
    """Half of |.7 - .4| + |.3 - .6| = .3, and 0."""
    p, q = [[0.7, 0.3], [0.2, 0.8]], [[0.4, 0.6], [0.2, 0.8]]
    assert fidelity.agreement(p, q) == 0.5
    assert fidelity.total_variation(p, q) == pytest.approx(0.15)


@pytest.mark.parametrize("chunk", [2**21, 1])
def test_w1_is_scipys_in_units_of_the_reference_sd(chunk, monkeypatch):
    """For 20 against 33 draws, column by column: an identity between two exact algorithms, so rounding only."""
    monkeypatch.setattr(fidelity, "_CHUNK", chunk)
    expected = [wasserstein_distance(DRAWS[:, i], REFERENCE[:, i]) / REFERENCE[:, i].std() for i in range(6)]
    assert fidelity.w1(DRAWS, REFERENCE) == pytest.approx(np.mean(expected), rel=1e-12)


def test_w2_of_equal_sizes_pairs_order_statistics():
    """With S = R the coupling is sorted against sorted."""
    reference = REFERENCE[:20]
    gap = np.sort(DRAWS, axis=0) - np.sort(reference, axis=0)
    expected = np.sqrt((gap**2).mean(axis=0)) / reference.std(axis=0)
    assert fidelity.w2(DRAWS, reference) == pytest.approx(expected.mean(), rel=1e-12)


def test_w2_of_unequal_sizes_is_that_of_repeated_draws():
    """20 draws repeated 33 times and 33 repeated 20 times are the same two distributions with 660 draws each."""
    expected = fidelity.w2(np.repeat(DRAWS, 33, axis=0), np.repeat(REFERENCE, 20, axis=0))
    assert fidelity.w2(DRAWS, REFERENCE) == pytest.approx(expected, rel=1e-12)


def test_a_shift_costs_its_size():
    """f + 2 sd: W1, W2 and the mean are off by 2, the sd and the covariance not at all; twice f: sd off by 1."""
    shifted = REFERENCE + 2 * REFERENCE.std(axis=0)
    for metric in (fidelity.w1, fidelity.w2, fidelity.mean_difference):
        assert metric(shifted, REFERENCE) == pytest.approx(2, rel=1e-12)
    for metric in (fidelity.sd_difference, fidelity.covariance_error):
        assert metric(shifted, REFERENCE) == pytest.approx(0, abs=1e-12)
    assert fidelity.sd_difference(2 * REFERENCE, REFERENCE) == pytest.approx(1, rel=1e-12)
    assert fidelity.covariance_error(2 * REFERENCE, REFERENCE) == pytest.approx(3, rel=1e-12)  # 4 C against C


@pytest.mark.parametrize("chunk", [2**21, 1])
def test_mmd_and_covariance_error_are_their_definitions(chunk, monkeypatch):
    """Written out with full matrices."""
    monkeypatch.setattr(fidelity, "_CHUNK", chunk)
    f = (DRAWS - REFERENCE.mean(axis=0)) / REFERENCE.std(axis=0)
    g = (REFERENCE - REFERENCE.mean(axis=0)) / REFERENCE.std(axis=0)
    between = np.linalg.norm(g[:, None] - g, axis=-1)
    bandwidth = np.median(between[np.triu_indices(33, 1)])

    def kernel(a, b):
        return np.exp(-0.5 * np.linalg.norm(a[:, None] - b, axis=-1) ** 2 / bandwidth**2).mean()

    expected = np.sqrt(kernel(f, f) + kernel(g, g) - 2 * kernel(f, g))
    assert fidelity.mmd(DRAWS, REFERENCE) == pytest.approx(expected, rel=1e-10)
    exact, got = (np.cov(a, rowvar=False, ddof=0) for a in (g, f))
    expected = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    assert fidelity.covariance_error(DRAWS, REFERENCE) == pytest.approx(expected, rel=1e-12)


def test_joint_distances_see_what_marginal_ones_cannot():
    """Each column permuted on its own: the margins are identical, their dependence is gone.

    Then W1 is zero to rounding; the reference's correlation is one between all columns, so the covariance error is
    near sqrt(n(n-1)) / n = .913 for n = 6, times one minus the mean of 15 correlations of sd 1/sqrt(2000) each: an sd
    of .0053, five of which are .027.
    """
    rng = np.random.default_rng(0)
    reference = np.repeat(rng.normal(size=(2000, 1)), 6, axis=1)
    broken = rng.permuted(reference, axis=0)
    assert fidelity.w1(broken, reference) == pytest.approx(0, abs=1e-12)
    assert fidelity.covariance_error(broken, reference) == pytest.approx(np.sqrt(30) / 6, abs=0.027)
    floor = fidelity.noise_floor(fidelity.mmd, reference, num_draws=500, num_repeats=20, seed=0)
    assert fidelity.mmd(broken[:500], reference) > floor.max()


def test_noise_floor_of_w1_is_that_of_exact_draws():
    """E W1 of S against R - S draws of N(0, 1) tends to sqrt(2/pi) sqrt(1/S + 1/(R - S)) int sqrt(Phi (1 - Phi)).

    S = 100, R = 400. The limit is approached from below: 10,000 pairs of independent samples of 100 and 300 average
    .986 of it, with a relative sd of .36 a pair. So 1.4 %, plus five standard errors of 1,000 independent columns
    (.36 / sqrt(1000) = 1.1 %): 7 %. The second repeat only helps.
    """
    reference = np.random.default_rng(0).normal(size=(400, 1000))
    floor = fidelity.noise_floor(fidelity.w1, reference, num_draws=100, num_repeats=2, seed=0)
    spread, _ = quad(lambda x: np.sqrt(norm.cdf(x) * norm.sf(x)), -12, 12)
    assert floor.mean() == pytest.approx(np.sqrt(2 / np.pi) * np.sqrt(1 / 100 + 1 / 300) * spread, rel=0.07)


def test_noise_floor_uses_disjoint_parts_and_repeats():
    """Every draw is in one of the two parts; the same seed gives the same floor."""
    reference = np.arange(10.0)[:, None]
    seen = []

    def spy(draws, rest):
        seen.append(np.sort(np.concatenate([draws, rest])[:, 0]))
        assert (len(draws), len(rest)) == (4, 6)
        return float(draws.mean())

    floor = fidelity.noise_floor(spy, reference, num_draws=4, num_repeats=3, seed=1)
    assert floor.shape == (3,)
    assert all((part == np.arange(10)).all() for part in seen)
    assert_array_equal(floor, fidelity.noise_floor(spy, reference, num_draws=4, num_repeats=3, seed=1))
    with pytest.raises(ValueError, match="needs a reference of 12, got 10"):
        fidelity.noise_floor(spy, reference, num_draws=6, num_repeats=1, seed=0)


def test_unfit_arrays_are_refused():
    """A point where the reference stands still has no unit; shapes and finiteness are checked."""
    still = REFERENCE.copy()
    still[:, 3] = 1.0
    with pytest.raises(ValueError, match="does not vary at point 3"):
        fidelity.w1(DRAWS, still)
    with pytest.raises(ValueError, match="must be"):
        fidelity.w1(DRAWS[:, :2], REFERENCE)
    with pytest.raises(FloatingPointError):
        fidelity.w1(DRAWS * np.nan, REFERENCE)
    assert_allclose(fidelity.w1(REFERENCE, REFERENCE), 0, atol=1e-15)
