"""Predictions from draws: the linearised network, the order of two classes, and the noise of particles."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from known_posteriors import lanes_of, program

from bdlbench.model.target import make_target
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.predictions import Predictor, class_probabilities, linearised
from bdlbench.sampling.programs import Shared

X = np.array([[0.3], [-1.2], [2.0]], np.float32)
Y = np.array([0.1, 0.2, -0.3], np.float32)


def curved(x, y=None):
    """f = a tanh(b x), whose derivatives are known, and y ~ N(f, 0.5^2)."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    f = numpyro.deterministic("f", theta[0] * jnp.tanh(theta[1] * x))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(f[:, 0], 0.5), obs=y)


def test_the_linearised_network_is_the_tangent_at_the_anchor():
    """f(x; theta0) + df/da (a - a0) + df/db (b - b0), by hand: rounding of single precision is 1e-6 of numbers near 1."""
    target = make_target(curved, jnp.asarray(X), jnp.asarray(Y))
    (a, b), (da, db) = (0.8, -0.6), (0.7, 1.1)
    anchor = jnp.array([a, b])
    found = linearised(target, anchor, anchor + jnp.array([da, db]), jnp.asarray(X))
    x = X[:, 0].astype(np.float64)
    wanted = a * np.tanh(b * x) + np.tanh(b * x) * da + a * x / np.cosh(b * x) ** 2 * db
    np.testing.assert_allclose(found.mean, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.variance, 0.25, rtol=1e-6)


def test_probabilities_of_two_classes_are_in_the_order_of_the_labels():
    """P(y = 0) comes first."""
    found = class_probabilities(dist.Bernoulli(probs=jnp.array([0.2, 0.9])))
    np.testing.assert_allclose(found, [[0.8, 0.2], [0.1, 0.9]], rtol=1e-6)


@pytest.mark.slow
def test_particles_of_later_draws_have_noise_of_their_own():
    """Two draws of three particles, predicted together or one after the other: the same six draws of y, all different."""
    draws = np.zeros((1, 2, 3, 2), np.float32)
    shared = Shared(X[None], Y[None])
    predictor = Predictor(program((), curved), "regression", shared, lanes_of(1), shared, Clock())
    together = predictor.predict(draws)["sample"]
    apart = [predictor.predict(draws[:, at : at + 1], at)["sample"] for at in range(2)]
    np.testing.assert_array_equal(np.concatenate(apart, 1), together)
    assert len({row.tobytes() for row in together[0]}) == 6
    jax.clear_caches()
