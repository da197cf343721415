"""The joint log loss against enumeration, against a normal law in closed form, and at its edges."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from bdlbench.errors import ConfigError
from bdlbench.metrics.joint import _pairs, joint_log_loss

ALL = {"num_pairs": 10**6, "seed": 0}


def log_densities(num_draws=7, num_points=5, seed=0):
    return np.random.default_rng(seed).normal(-1.0, 1.0, size=(num_draws, num_points))


def enumerated(log_lik, tau):
    """Every pair of rows and every sequence of choices between the two, each of probability 2^-tau."""
    losses = []
    for a, b in itertools.combinations(range(log_lik.shape[1]), 2):
        for rows in itertools.product([a, b], repeat=tau):
            batch = log_lik[:, list(rows)].sum(1)
            losses.append(-(logsumexp(batch) - np.log(len(batch))) / tau)
    return np.mean(losses)


@pytest.mark.parametrize("tau", [1, 2, 5])
def test_it_is_the_mean_over_all_batches(tau):
    """Sums of 320 terms of order one: rounding is far below 1e-12."""
    log_lik = log_densities()
    assert_allclose(joint_log_loss(log_lik, tau=tau, **ALL), enumerated(log_lik, tau), rtol=1e-12)


def test_one_point_is_the_negative_lppd_and_so_is_one_draw():
    """tau = 1 leaves single points, each in as many pairs; one draw, or equal draws, make points independent."""
    log_lik = log_densities()
    assert_allclose(joint_log_loss(log_lik, tau=1, **ALL), -(logsumexp(log_lik, axis=0) - np.log(7)).mean(), rtol=1e-12)
    assert_allclose(joint_log_loss(log_lik[:1], tau=10, **ALL), -log_lik[0].mean(), rtol=1e-12)
    equal = np.repeat(log_lik[:1], 4, axis=0)
    assert_allclose(joint_log_loss(equal, tau=10, **ALL), -log_lik[0].mean(), rtol=1e-12)


def test_it_is_the_density_of_the_joint_normal_law():
    """f_b = -f_a / 2 ~ N(0, .25), noise .5: draws at 4,000 midpoints of f's distribution function against the closed form.

    The midpoint rule in the probability u errs by the tails that it cuts: half a cell of 1/4000 at each end, and products
    of densities lie below their maximum of 1 there, so relative errors stay below 1e-3 where the batch is not in a tail.
    """
    f = norm.ppf((np.arange(4000) + 0.5) / 4000)
    where, y, sd, tau = np.array([1.0, -0.5]), np.array([0.4, 0.1]), 0.5, 4
    log_lik = norm.logpdf(y, f[:, None] * where, sd)
    expected = 0.0
    for rows in itertools.product([0, 1], repeat=tau):
        at = where[list(rows)]
        law = multivariate_normal(np.zeros(tau), np.outer(at, at) + sd**2 * np.eye(tau))
        expected -= law.logpdf(y[list(rows)]) / tau / 2**tau
    assert_allclose(joint_log_loss(log_lik, tau=tau, **ALL), expected, rtol=1e-3)


def test_it_tells_draws_that_agree_from_draws_that_do_not():
    """Equal predictions of single points, so that LPPD is the same, but points 0 and 1 are right in the same draws or not."""
    right, wrong = np.log(0.9), np.log(0.1)
    together = np.array([[right, right], [wrong, wrong]])
    apart = np.array([[right, wrong], [wrong, right]])
    assert_allclose(*(joint_log_loss(x, tau=1, **ALL) for x in (together, apart)))
    assert joint_log_loss(together, tau=10, **ALL) < joint_log_loss(apart, tau=10, **ALL) - 0.2


def test_density_of_zero():
    """A draw that rules a row out counts nothing in its batches; a row that all draws rule out makes the loss infinite."""
    log_lik = log_densities()
    log_lik[0, 0] = -np.inf
    assert_allclose(joint_log_loss(log_lik, tau=3, **ALL), enumerated(log_lik, 3), rtol=1e-12)
    log_lik[:, 0] = -np.inf
    assert joint_log_loss(log_lik, tau=3, **ALL) == np.inf


@pytest.mark.parametrize("num_rows", [2, 3, 57, 20_000])
def test_pairs_are_distinct_and_of_distinct_rows(num_rows):
    a, b = _pairs(num_rows, 500, 0)
    assert len({*zip(a.tolist(), b.tolist(), strict=True)}) == len(a) == min(500, num_rows * (num_rows - 1) // 2)
    assert (b >= 0).all() and (b < a).all() and (a < num_rows).all()
    again = _pairs(num_rows, 500, 0)
    assert (a == again[0]).all() and (b == again[1]).all()


def test_some_pairs_estimate_all_and_one_row_is_its_own_pair():
    """300 of 4,950 pairs: the loss of a pair has sd .35 over pairs here, so five standard errors are .1."""
    log_lik = log_densities(20, 100)
    some = joint_log_loss(log_lik, tau=5, num_pairs=300, seed=1)
    assert some == pytest.approx(joint_log_loss(log_lik, tau=5, **ALL), abs=0.1)
    one = log_lik[:, :1]
    assert joint_log_loss(one, tau=5, **ALL) == pytest.approx(-(logsumexp(5 * one) - np.log(20)) / 5)


@pytest.mark.parametrize(
    ("log_lik", "options", "error"),
    [
        (np.zeros(3), {}, ValueError),
        (np.zeros((0, 3)), {}, ValueError),
        ([[0.0, np.nan]], {}, FloatingPointError),
        ([[0.0, np.inf]], {}, FloatingPointError),
        (np.zeros((2, 3)), {"tau": 0}, ConfigError),
        (np.zeros((2, 3)), {"num_pairs": 0}, ConfigError),
    ],
)
def test_unfit_inputs_are_refused(log_lik, options, error):
    with pytest.raises(error):
        joint_log_loss(log_lik, **{"tau": 2, **ALL, **options})
