"""The limits in the tests of laws, and their power."""

import numpy as np
import scipy.stats
from known_posteriors import (
    FAMILY_WISE,
    gaussian,
    largest_z,
    limit,
    moments,
)

LANES = 64


def test_the_limit_is_the_one_of_the_laws():
    """20 tests: 5.5 with known standard errors, some more with 32 chains and with 100."""
    assert round(scipy.stats.norm.isf(FAMILY_WISE / 40), 1) == 5.5
    assert [round(limit(20, chains - 1), 1) for chains in (32, 100)] == [7.1, 5.9]


def test_the_limit_holds_for_draws_from_the_posterior():
    """The check itself, on exact independent draws: it passes them, and a variance wrong by 5 % fails."""
    problem = gaussian(10, 100)
    root = np.linalg.cholesky(problem.cov)
    draws = problem.mean + np.random.default_rng(3).standard_normal((LANES, 1000, 10)) @ root.T
    assert moments(draws, problem.mean, problem.cov).passes
    assert not moments(draws, problem.mean, 1.05 * problem.cov).passes
    z, most = largest_z(draws.mean(1), problem.mean + 0.05 * np.sqrt(np.diag(problem.cov)))
    assert z > most
