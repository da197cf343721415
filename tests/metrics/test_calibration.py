"""Coverage, intervals and calibration error against hand-computed values, scipy and exact expectations."""

import numpy as np
import pytest
import scoringrules
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from scipy.stats import binom, norm, uniform

from bdlbench.metrics import calibration
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.types import ConfigError

RNG = np.random.default_rng(5)
LOC = RNG.normal(size=(9, 30))
SCALE = np.exp(0.5 * RNG.normal(size=(9, 30)))


@pytest.mark.parametrize(
    ("level", "low", "high"), [(0.5, 0.25, 0.75), (0.8, 0.1, 0.9), (0.9, 0.05, 0.95), (0.95, 0.025, 0.975)]
)
def test_coverage_includes_both_ends(level, low, high):
    """A point exactly on an end is inside, its neighbour in float64 (two units to spare for rounding) is not."""
    assert calibration.coverage([low, high], level=level) == 1.0
    outside = [low - 4 * np.spacing(0.5), high + 4 * np.spacing(0.5)]
    assert calibration.coverage(outside, level=level) == 0.0
    assert calibration.coverage([*outside, 0.5, low], level=level) == 0.5


def test_coverage_by_pit_is_coverage_by_quantiles():
    """y lies in [q(.05), q(.95)] exactly when its transform lies in [.05, .95]."""
    y = RNG.normal(size=30) * 1.5
    pit = norm.cdf(y, LOC, SCALE).mean(axis=0)
    low, high = (calibration.mixture_quantile(LOC, SCALE, prob) for prob in (0.05, 0.95))
    assert calibration.coverage(pit, level=0.9) == np.mean((low <= y) & (y <= high))


def test_coverage_interval_is_wilsons():
    """9 of 10 inside: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), written out."""
    pit = np.array([0.5] * 9 + [0.999])
    n, p, z = 10, 0.9, norm.ppf(0.975)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = (p + z**2 / (2 * n) + np.array([-half, half])) / (1 + z**2 / n)
    assert_allclose(calibration.coverage_interval(pit, level=0.9), expected, rtol=1e-12)


@pytest.mark.parametrize("chunk", [2**20, 20])
@pytest.mark.parametrize("prob", [1e-6, 0.05, 0.5, 0.975])
def test_mixture_quantile_inverts_the_cdf(prob, chunk, monkeypatch):
    """The bracket ends below 1e-10 smallest sd, where the density is at most phi(0) / sd: an error in prob of 4e-11."""
    monkeypatch.setattr(calibration, "_CHUNK", chunk)
    quantile = calibration.mixture_quantile(LOC, SCALE, prob)
    assert_allclose(norm.cdf(quantile, LOC, SCALE).mean(axis=0), prob, atol=4e-11)


@pytest.mark.parametrize("seed", range(5))
def test_mixture_quantile_of_components_far_apart_and_of_any_width(seed):
    """Modes without density between them, widths over six orders: Newton's steps go astray and must be caught.

    Off by 1e-10 of the smallest sd, F is off by that times the density, at most 0.4 / sd, and by rounding; in a gap
    any point between the modes has the wanted F.
    """
    rng = np.random.default_rng(seed)
    loc = rng.normal(size=(6, 40)) * 10.0 ** rng.integers(-3, 4, size=(6, 40))
    scale = 10.0 ** rng.uniform(-3, 3, size=(6, 40))
    for prob in (0.01, 0.5, 2 / 3, 0.975):
        quantile = calibration.mixture_quantile(loc, scale, prob)
        np.testing.assert_allclose(norm.cdf((quantile - loc) / scale).mean(axis=0), prob, atol=1e-9)
    assert -1000 <= calibration.mixture_quantile([[-1000.0], [1000.0]], [[1e-3], [1e-3]], 0.5)[0] <= 1000


def test_mixture_quantile_far_from_zero_ends():
    """At 1e8 neighbouring floats are 1.5e-8 apart: more than 1e-10 sd, so the search ends at a few of these."""
    quantile = calibration.mixture_quantile([[1e8], [1e8 + 1]], [[1.0], [1.0]], 0.5)
    assert quantile[0] == pytest.approx(1e8 + 0.5, abs=4 * np.spacing(1e8))


def test_interval_of_one_gaussian():
    """Width 2 z sd, and Winkler's score by hand: below, inside, above, with 2 / .1 = 20."""
    loc, scale, z = np.zeros((1, 3)), np.full((1, 3), 2.0), 2 * norm.ppf(0.95)
    assert calibration.interval_width(loc, scale, level=0.9) == pytest.approx(2 * z, abs=1e-9)
    expected = np.mean([2 * z + 20 * 1, 2 * z, 2 * z + 20 * 3])
    assert calibration.interval_score([-z - 1, 0.0, z + 3], loc, scale, level=0.9) == pytest.approx(expected, abs=1e-8)


def test_interval_score_is_that_of_scoringrules():
    """Same ends to 1e-10 sd, weighted by 10: far below 1e-8. Some points lie below, inside and above."""
    y = np.linspace(-6, 6, 30)
    low, high = (calibration.mixture_quantile(LOC, SCALE, prob) for prob in (0.1, 0.9))
    expected = scoringrules.interval_score(y, low, high, 0.2, backend="numpy").mean()
    assert (y < low).any() and (y > high).any() and ((low < y) & (y < high)).any()
    assert calibration.interval_score(y, LOC, SCALE, level=0.8) == pytest.approx(expected, rel=1e-8)


def test_pit_histogram_keeps_both_ends():
    """0, an inner edge and 1 each fall in one bin; density integrates to one."""
    density, edges = calibration.pit_histogram([0.0, 0.5, 1.0, 0.1], num_bins=2)
    assert_allclose(density, [1.0, 1.0])
    assert_allclose(edges, [0, 0.5, 1])


def test_pit_of_exact_draws_is_uniform():
    """y from the mixture itself: 20,000 transforms, each bin's count within 5 binomial sd."""
    rng, num = np.random.default_rng(2), 20_000
    loc, scale = np.array([[-1.0], [2.0]]), np.array([[0.5], [1.5]])
    pick = rng.integers(0, 2, size=num)
    y = loc[pick, 0] + scale[pick, 0] * rng.normal(size=num)
    mixture = PredictiveMixture()
    mixture.update({"log_lik": norm.logpdf(y, loc, scale), "cdf": norm.cdf(y, loc, scale)})
    pit = mixture.ingredients()["pit"]
    density, _ = calibration.pit_histogram(pit, num_bins=10)
    assert_allclose(density, 1, atol=5 * np.sqrt(0.1 * 0.9 / num) * 10)
    assert calibration.coverage(pit, level=0.9) == pytest.approx(0.9, abs=5 * np.sqrt(0.09 / num))


def test_reliability_by_hand():
    """Four points in two bins: confidences .6 .7 | .8 .9, of which right: no, yes | yes, yes."""
    probs = np.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.7, 0.3]])
    result = calibration.reliability([0, 0, 1, 0], probs, num_bins=2)
    assert_allclose(result.confidence, [0.65, 0.85])
    assert_allclose(result.accuracy, [0.5, 1.0])
    assert_array_equal(result.num_points, [2, 2])
    assert calibration.ece([0, 0, 1, 0], probs, num_bins=2) == pytest.approx((0.15 + 0.15) / 2)
    # Debiased: (.15^2 - .5 .5 / 1 + .15^2) / 2.
    debiased = calibration.ece_debiased_squared([0, 0, 1, 0], probs, num_bins=2)
    assert debiased == pytest.approx((2 * 0.15**2 - 0.25) / 2)


def test_no_point_is_dropped_on_an_edge_and_order_does_not_matter():
    """Confidences with many ties, .5 and 1 among them: all are counted, ties share a bin, rows may be permuted."""
    rng = np.random.default_rng(0)
    top = rng.choice([0.5, 0.6, 0.75, 1.0], size=200, p=[0.1, 0.2, 0.2, 0.5])
    probs = np.stack([top, 1 - top], axis=1)
    y = (rng.random(200) > top).astype(int)
    result = calibration.reliability(y, probs, num_bins=15)
    assert result.num_points.sum() == 200
    assert_allclose(result.confidence, [0.5, 0.6, 0.75, 1.0])
    assert_array_equal(result.num_points, [(top == value).sum() for value in (0.5, 0.6, 0.75, 1.0)])
    order = rng.permutation(200)
    assert calibration.ece(y, probs, num_bins=15) == pytest.approx(calibration.ece(y[order], probs[order], num_bins=15))


@pytest.mark.parametrize("num_points", [57, 1000])
def test_bins_have_equal_mass(num_points):
    """Without ties the sizes differ by one at most."""
    probs = softmax(np.random.default_rng(0).normal(size=(num_points, 4)), axis=1)
    sizes = calibration.reliability(np.zeros(num_points, int), probs, num_bins=15).num_points
    assert len(sizes) == 15
    assert np.ptp(sizes) <= 1
    assert sizes.sum() == num_points


@pytest.mark.parametrize(("num_points", "floor"), [(57, 0.066), (1000, 0.019)])
def test_perfect_classifier_has_an_ece_floor(num_points, floor):
    """Labels drawn from the very probabilities, all within 1e-6 of .9615 and distinct.

    Then the number right in a bin is binomial and E ECE = sum_b (n_b / n) E|k_b / n_b - c|, summed here exactly. The
    simulated mean agrees within 5 standard errors, the debiased form within 5 of zero, and the floor is the one the
    docstring names, to half of its last digit. Another spread of confidences has another floor.
    """
    rng, confidence, repeats = np.random.default_rng(0), 0.9615, 400
    top = confidence + 1e-6 * np.linspace(-1, 1, num_points)
    probs = np.stack([top, 1 - top], axis=1)
    exact = 0.0
    for size in (len(part) for part in np.array_split(top, 15)):
        k = np.arange(size + 1)
        exact += size / num_points * np.sum(binom.pmf(k, size, confidence) * np.abs(k / size - confidence))
    labels = (rng.random((repeats, num_points)) > top).astype(int)
    scores = np.array([calibration.ece(y, probs, num_bins=15) for y in labels])
    squared = np.array([calibration.ece_debiased_squared(y, probs, num_bins=15) for y in labels])
    assert scores.mean() == pytest.approx(exact, abs=5 * scores.std() / np.sqrt(repeats) + 1e-6)
    assert squared.mean() == pytest.approx(0, abs=5 * squared.std() / np.sqrt(repeats) + 1e-6)
    assert exact == pytest.approx(floor, abs=0.0005)


def test_a_bin_of_one_has_no_debiased_error():
    """Its variance cannot be estimated."""
    probs = softmax(RNG.normal(size=(5, 2)), axis=1)
    with pytest.raises(ValueError, match="single point"):
        calibration.ece_debiased_squared(np.zeros(5, int), probs, num_bins=5)


def test_bad_options_name_the_field_and_the_remedy():
    """A level in per cent, bins of none, a transform outside [0, 1]."""
    with pytest.raises(ConfigError, match="level is 90.*write 90 % as 0.9"):
        calibration.coverage(uniform.rvs(size=3, random_state=0), level=90)
    with pytest.raises(ConfigError, match="num_bins is 0"):
        calibration.pit_histogram([0.5], num_bins=0)
    with pytest.raises(ValueError, match="pit must lie"):
        calibration.coverage([1.5], level=0.9)
