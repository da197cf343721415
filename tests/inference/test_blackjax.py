"""Law 8 for stochastic gradients: trajectories of our updates and of BlackJAX's, with the same noise and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.sgmcmc import diffusions
from blackjax.sgmcmc import sgld as blackjax_sgld
from known_posteriors import gaussian, regression
from mutation import mutate

from bdlbench.inference import sghmc, sgld
from bdlbench.model.target import make_target
from bdlbench.types import Data, Schedule

STEPS = 200
SCHEDULE = Schedule(1, 0, STEPS, 1, 4)
EPS, H, ALPHA = 0.01, 0.1, 2.0


def problem():
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

        return first, jax.lax.scan(one, first, jnp.arange(STEPS))[1]

    return run(jax.random.key(3))


def langevin(factory):
    """Ours and BlackJAX's SGLD."""
    target, batch = problem()
    method = factory(target, SCHEDULE, step_size=EPS, decay=0.0, decay_steps=1.0)
    first, ours = trajectory(method, target, batch)
    kernel = blackjax_sgld.build_kernel()

    def one(theta, t):
        grad = lambda theta, rows: target.value_and_grad(theta, rows)[1]
        theta = kernel(jax.random.fold_in(jax.random.key(3), t), theta, grad, batch(t), EPS)
        return theta, theta

    return ours, jax.jit(lambda: jax.lax.scan(one, first.theta, jnp.arange(STEPS))[1])()


def thermostat(factory):
    """Ours and BlackJAX's SGNHT, handed the gradient at the moved theta, as Ding et al. have it."""
    target, batch = problem()
    first, ours = trajectory(factory(target, SCHEDULE, step_size=H, friction=ALPHA), target, batch)
    integrate = diffusions.sgnht(ALPHA, 0.0)

    def one(state, t):
        theta, momentum, xi = state
        grad = target.value_and_grad(theta + H * momentum, batch(t))[1]
        state = integrate(jax.random.fold_in(jax.random.key(3), t), theta, momentum, xi, grad, H)
        return state, state[0]

    return ours, jax.jit(lambda: jax.lax.scan(one, tuple(first), jnp.arange(STEPS))[1])()


CASES = {"sgld": (langevin, sgld, "sgld"), "sgnht": (thermostat, sghmc, "sgnht")}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_trajectories_are_blackjaxs(name):
    """200 steps of a contracting map: 1e-16 a step is not amplified, so 1e-10 leaves room for the order of sums."""
    both, module, factory = CASES[name]
    ours, theirs = both(getattr(module, factory))
    assert np.isfinite(ours).all()
    assert np.ptp(ours, axis=0).min() > 0.1, "the chain moves"
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sgld", "jnp.sqrt(2 * eps) * noise", "jnp.sqrt(eps) * noise"),
        ("sgnht", "jnp.mean(momentum**2) - 1", "jnp.sum(momentum**2) - 1"),
    ],
)
def test_mutants_are_noticed(name, old, new):
    """A lost factor sets the trajectories apart."""
    both, module, factory = CASES[name]
    ours, theirs = both(getattr(mutate(module.__name__, old, new, within=factory), factory))
    assert not np.allclose(ours, theirs, rtol=1e-6, atol=1e-6)
