"""Compare trajectories of 200 steps with those of BlackJAX, which get the same noise and the same batches.

Each step is a contraction, so that rounding errors of about 1e-16 in a step do not grow. A tolerance of 1e-10 allows
for sums in another order.
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
    """Return a target in double precision, and a function from t to its batch: 4 of 20 rows, in turn."""
    known = gaussian(5, 20, copies=4)
    x, y = jnp.asarray(known.x, float), jnp.asarray(known.y, float)

    def batch(t):
        take = (jnp.arange(4) + 4 * t) % len(y)
        return Data(x[take], y[take], len(y))

    return make_target(regression, x, y, 1.0), batch


def trajectory(method, target, batch):
    """Return the first state of our method, and theta after each of its steps."""

    @jax.jit
    def run(key):
        first = method.init(key, jnp.ones(target.dim), batch(0))

        def one(state, t):
            state, _ = method.step(jax.random.fold_in(key, t), t, state, batch(t))
            return state, method.draw(key, state)

        return first, jax.lax.scan(one, first, jnp.arange(NUM_STEPS))[1]

    return run(jax.random.key(3))


def assert_same_path(ours, theirs):
    """Assert that the chain moves, and that both trajectories are equal up to rounding."""
    assert np.isfinite(ours).all()
    assert np.ptp(ours, axis=0).min() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
