"""Predictive scores against hand-computed values, scipy, scikit-learn and scoringrules."""

import numpy as np
import pytest
import scoringrules
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import accuracy_score, brier_score_loss, root_mean_squared_error

from bdlbench.metrics import calibration, predictive
from bdlbench.metrics.mixture import PredictiveMixture

RNG = np.random.default_rng(3)
Y = RNG.normal(size=40)
LOC = RNG.normal(size=(13, 40))
SCALE = np.exp(0.5 * RNG.normal(size=(13, 40)))
PROBS = softmax(RNG.normal(size=(40, 3)), axis=1)
LABELS = RNG.integers(0, 3, size=40)


def test_lppd_and_nll_by_hand():
    """log of mean densities 1/2 and 1/8: (ln(1/2) + ln(1/8)) / 2 = -2 ln 2."""
    lpd = np.log([0.5, 0.125])
    assert predictive.lppd(lpd) == pytest.approx(-2 * np.log(2), rel=1e-15)
    assert predictive.nll(lpd) == pytest.approx(2 * np.log(2), rel=1e-15)


def test_lppd_approaches_the_exact_predictive_of_gaussian_draws():
    """theta ~ N(0, 1), y | theta ~ N(theta, 1), so p(y) = N(y; 0, 2).

    By the delta method the log of the mean of S likelihoods L has sd sqrt(Var L / S) / E L and a bias of half its
    square; Var L is known in closed form. Five sd.
    """
    num_draws, y = 20_000, np.array([-1.0, 0.0, 2.0])
    theta = np.random.default_rng(0).normal(size=(num_draws, 1))
    log_lik = norm.logpdf(y, theta, 1.0)
    mixture = PredictiveMixture()
    mixture.update({"log_lik": log_lik})
    exact = norm.logpdf(y, 0, np.sqrt(2))
    # E L^2: N(y; t, 1)^2 = N(y; t, 1/2) / (2 sqrt(pi)), and the convolution with N(0, 1) is N(y; 0, 3/2).
    second = norm.pdf(y, 0, np.sqrt(1.5)) / (2 * np.sqrt(np.pi))
    sd = np.sqrt((second / np.exp(2 * exact) - 1) / num_draws)
    assert (np.abs(mixture.ingredients()["lpd"] - exact) < 5 * sd + sd**2).all()


def test_lppd_gaussian_is_scipys_log_density():
    """The constant is included and the second argument is a variance."""
    variance = SCALE[0] ** 2
    expected = norm.logpdf(Y, LOC[0], SCALE[0]).mean()
    assert predictive.lppd_gaussian(Y, LOC[0], variance) == pytest.approx(expected, rel=1e-13)


def test_rmse_is_sklearns():
    """Same formula, rounding only."""
    assert predictive.rmse(Y, LOC[0]) == pytest.approx(root_mean_squared_error(Y, LOC[0]), rel=1e-14)


@pytest.mark.parametrize("chunk", [2**18, 1, 100])
def test_crps_is_the_closed_form_of_scoringrules(chunk, monkeypatch):
    """However the points are cut into chunks; sums of 169 terms of order one, rounding below 1e-12."""
    monkeypatch.setattr(predictive, "_CHUNK", chunk)
    expected = scoringrules.crps_mixnorm(Y, LOC, SCALE, m_axis=0, backend="numpy").mean()
    assert predictive.crps(Y, LOC, SCALE) == pytest.approx(expected, rel=1e-12)


def test_crps_of_one_component_is_the_gaussian_one():
    """(s / sqrt(pi)) (sqrt(2) - 1) at the mean of N(m, s^2) (Gneiting & Raftery, 2007, eq. 21)."""
    assert predictive.crps([3.0], [[3.0]], [[2.0]]) == pytest.approx(2 * (np.sqrt(2) - 1) / np.sqrt(np.pi), rel=1e-14)


def test_crps_is_the_kernel_form_by_monte_carlo():
    """E|X - y| - E|X - X'|/2 from 200,000 independent pairs; five standard errors of that very average."""
    rng, num = np.random.default_rng(1), 200_000
    loc, scale, y = np.array([-1.0, 0.5, 4.0]), np.array([0.3, 1.0, 2.0]), 1.2
    x, other = (loc[k] + scale[k] * rng.normal(size=num) for k in rng.integers(0, 3, size=(2, num)))
    terms = np.abs(x - y) - 0.5 * np.abs(x - other)
    error = 5 * terms.std() / np.sqrt(num)
    assert predictive.crps([y], loc[:, None], scale[:, None]) == pytest.approx(terms.mean(), abs=error)


def test_accuracy_is_sklearns_and_ties_go_to_the_lowest_class():
    """Argmax of the mean probabilities."""
    assert predictive.accuracy(LABELS, PROBS) == accuracy_score(LABELS, PROBS.argmax(axis=1))
    assert predictive.accuracy([0, 1], [[0.5, 0.5], [0.5, 0.5]]) == 0.5


def test_brier_sums_over_classes():
    """Binary by hand: (.7 - 1)^2 + (.3 - 0)^2 = .18, twice the one-class form; and as scikit-learn, unscaled."""
    assert predictive.brier([0], [[0.7, 0.3]]) == pytest.approx(0.18, rel=1e-14)
    assert predictive.brier([0], [[0.0, 1.0]]) == 2.0
    expected = brier_score_loss(LABELS, PROBS, labels=[0, 1, 2], scale_by_half=False)
    assert predictive.brier(LABELS, PROBS) == pytest.approx(expected, rel=1e-14)


def test_a_column_of_targets_does_not_broadcast():
    """(n, 1) - (n,) is (n, n), and its mean square is a number."""
    with pytest.raises(ValueError, match="one value a point"):
        predictive.rmse(Y[:, None], LOC[0])
    with pytest.raises(ValueError, match="one value a point"):
        predictive.crps(Y[:-1], LOC, SCALE)


@pytest.mark.parametrize("y", [LABELS.astype(float), LABELS[:-1], LABELS + 1, LABELS - 1])
def test_labels_must_be_integers_in_range(y):
    """A label of -1 would index the last class."""
    with pytest.raises(ValueError, match="labels"):
        predictive.brier(y, PROBS)


def test_nan_is_an_error():
    """Never skipped."""
    with pytest.raises(FloatingPointError, match="lpd is not finite at point 1"):
        predictive.lppd([0.0, np.nan])


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_crps_of_many_draws_is_the_double_sum(spread):
    """The integral over a grid against all pairs: to 1e-6 of the mean distance, the bound of the trapezoidal rule."""
    rng = np.random.default_rng(4)
    loc = rng.normal(size=8) * 3 + 0.4 * rng.standard_normal((1000, 8))
    scale = 0.5 * np.exp(spread * rng.standard_normal((1000, 8)))
    starts = np.array([0, 300, 650])
    size = int(predictive._grid(loc, scale).size.max())
    assert size <= 500, "the grid is what crps takes here"
    grid = predictive._distance_on_grid(loc, scale, predictive._grid(loc, scale), size, starts)
    pairs = predictive._distance_of_pairs(loc, scale, starts)
    np.testing.assert_allclose(grid, pairs, rtol=1e-6)


def test_the_monte_carlo_errors_are_the_spread_over_replicates():
    """Sets of 200 independent draws, 300 of them: the sd of a score is the root mean square of its errors.

    An sd of 300 values is off by 1 / sqrt(600) of itself, the mean square of as many with 19 degrees of freedom by less:
    5 standard errors are a fifth, and the second order of a score in 1 / S adds a few hundredths to it.
    """
    rng, y = np.random.default_rng(5), np.array([0.3, -1.0, 2.0])
    found = []
    for _ in range(300):
        loc, scale = rng.normal(size=(200, 3)), np.exp(0.3 * rng.standard_normal((200, 1))) * np.ones((200, 3))
        found.append(
            (
                predictive.crps(y, loc, scale), predictive.crps_mcse(y, loc, scale),
                calibration.interval_width(loc, scale, level=0.9),
                calibration.interval_width_mcse(loc, scale, level=0.9),
            )
        )  # fmt: skip
    score, error, width, width_error = np.array(found).T
    assert np.sqrt((error**2).mean()) == pytest.approx(score.std(), rel=0.25)
    assert np.sqrt((width_error**2).mean()) == pytest.approx(width.std(), rel=0.25)
    with pytest.raises(ValueError, match="at least 4 draws, got 3"):
        predictive.crps_mcse(y, np.zeros((3, 3)), np.ones((3, 3)))


def test_a_standard_error_is_that_of_a_mean():
    """By hand: the values 1, 3, 5, 7 have the variance 20 / 3, and their mean a fourth of it."""
    assert predictive.standard_error(np.array([1.0, 3.0, 5.0, 7.0])) == pytest.approx(np.sqrt(20 / 12))
