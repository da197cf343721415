"""Trajectories of 200 steps, with the same noise and batches as BlackJAX's: a contracting map.

1e-16 a step is not amplified, so 1e-10 leaves room for the order of sums.
"""

import jax
import jax.numpy as jnp
import numpy as np
from known_posteriors import gaussian, regression

from bdlbench.model.target import make_target
from bdlbench.types import Data, Schedule

NUM_STEPS = 200
STEPS_AS_BLACKJAX = Schedule(1, 0, NUM_STEPS, 1, 4)


def small_problem():
    """A target in double precision and the batch of step t: 4 of 20 rows in turn."""
    known = gaussian(5, 20, copies=4)
    x, y = jnp.asarray(known.x, float), jnp.asarray(known.y, float)

    def batch(t):
        take = (jnp.arange(4) + 4 * t) % len(y)
        return Data(x[take], y[take], len(y))

    return make_target(regression, x, y, 1.0), batch


def trajectory(method, target, batch):
    """Theta after each step of ours, and the first state."""

    @jax.jit
    def run(key):
        first = method.init(key, jnp.ones(target.dim), batch(0))

        def one(state, t):
            state, _ = method.step(jax.random.fold_in(key, t), t, state, batch(t))
            return state, method.draw(key, state)

        return first, jax.lax.scan(one, first, jnp.arange(NUM_STEPS))[1]

    return run(jax.random.key(3))


def assert_same_path(ours, theirs):
    """The chain moves, and both go the same way."""
    assert np.isfinite(ours).all()
    assert np.ptp(ours, axis=0).min() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
