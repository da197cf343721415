"""Noise that one step and two steps of half its size share."""

import jax
import jax.numpy as jnp
from numpy.testing import assert_allclose

from bdlbench.evaluation.ledger import _halves, _whole
from bdlbench.inference.noise import standard_normal
from bdlbench.types import Data


def test_two_half_steps_follow_the_path_of_the_whole_one():
    """Without a drift they end at the same point, sqrt(2 h) (xi_1 + xi_2) / sqrt 2 away, and cost two gradients."""

    def step_of(h):
        def step(key, t, state, data):
            return state + jnp.sqrt(2 * h) * standard_normal(key, state), {"num_grads": jnp.float32(1)}

        return step

    key, state, data = jax.random.key(3), jnp.zeros(5), Data(jnp.zeros((1, 1)), jnp.zeros(1), 1)
    whole, _ = _whole(step_of(0.02))(key, jnp.int32(0), state, data)
    halves, info = _halves(step_of(0.01))(key, jnp.int32(0), state, data)
    assert_allclose(whole, halves, rtol=1e-5)
    first, second = (jax.random.normal(jax.random.fold_in(key, half), (5,)) for half in range(2))
    assert_allclose(whole, 0.2 * (first + second) / 2**0.5, rtol=1e-5)
    assert info["num_grads"] == 2
