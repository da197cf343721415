"""Momentum beyond linear recursions: BAOA's order on a quartic, and what SGNHT's thermostat keeps exactly."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
from known_posteriors import PRIOR_SCALE, Gaussian, Verdict, largest_z, target_of
from linear_recursions import law, sghmc
from mutation import mutate

from bdlbench.inference import sghmc as momentum
from bdlbench.types import Data, Schedule

LANES = 64


def quartic(x, y=None):
    """exp(-theta^4 / 4), the normal that theta is sampled from taken out again."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    numpyro.factor("quartic", (theta**2 / 2 - theta**4 / 4).sum())
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def stationary_second_moment(step_size, friction, patch, nodes=(32, 26), reach=(3.0, 5.5), num_noises=16):
    """E[theta^2] under BAOA's own stationary law, without sampling.

    E[f(z_n) | z_0] tends to it for f = theta^2. The expectation over one step maps functions on a grid of Chebyshev
    nodes to themselves: Gauss-Hermite nodes for the noise, polynomial interpolation at the points that the method's own
    step reaches. What lies outside the grid has a probability of exp(-15) and less.
    """
    axes = [r * np.cos(np.pi * (np.arange(n) + 0.5) / n) for n, r in zip(nodes, reach, strict=True)]
    theta, m = (a.ravel() for a in np.meshgrid(*axes, indexing="ij"))
    xi, weight = np.polynomial.hermite_e.hermegauss(num_noises)
    weight = weight / weight.sum()
    points = theta.size * xi.size
    problem = SimpleNamespace(x=np.zeros((1, points)), y=np.zeros(1))
    target, data = target_of(problem, quartic)
    method = momentum.baoa(target, Schedule(1, 0, 1, 1), step_size=step_size, friction=friction)
    begin = momentum.State(*(jnp.asarray(np.repeat(a, xi.size)) for a in (theta, m)))
    with patch.context() as inside:
        inside.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.tile(jnp.asarray(xi), theta.size))
        moved, _ = method.step(jax.random.key(0), jnp.int32(0), begin, data)
    rows_ = []
    for at, axis, r in zip((moved.theta, moved.momentum), axes, reach, strict=True):
        fit = np.linalg.inv(np.polynomial.chebyshev.chebvander(axis / r, len(axis) - 1))
        rows_.append(np.polynomial.chebyshev.chebvander(np.clip(np.asarray(at) / r, -1, 1), len(axis) - 1) @ fit)
    both = np.einsum("pi,pj->pij", *rows_).reshape(theta.size, xi.size, theta.size)
    expectation = np.einsum("q,pqg->pg", weight, both)
    value = theta**2
    for _ in range(11):  # 2^11 steps, by squaring
        expectation = expectation @ expectation
    value = expectation @ value
    middle = np.argmin(theta**2 + m**2)
    return value[middle]


@pytest.mark.usefixtures("x64")
def test_baoa_is_of_second_order_on_a_quartic(monkeypatch):
    """The bias of E[theta^2] for exp(-theta^4 / 4) falls as h^2: slope 2 +- 0.1, exactly computed."""
    truth = 2 * scipy.special.gamma(0.75) / scipy.special.gamma(0.25)
    biases = [stationary_second_moment(h, 1.0, monkeypatch) - truth for h in (0.1, 0.2)]
    assert abs(np.log2(biases[1] / biases[0]) - 2) <= 0.1, biases


# ---- the thermostat


def orthogonal(dim=8):
    """Rows along the axes: gradients' noise that is alike in all directions, of variance N^2 var / B."""
    x = np.tile(np.eye(dim, dtype=np.float32), (4, 1))
    rng = np.random.default_rng(5)
    y = np.tile(np.sqrt(4.0) * np.sign(rng.standard_normal((4, 1))), (1, dim)).astype(np.float32).ravel()
    precision = (4 + PRIOR_SCALE**-2) * np.eye(dim)
    return Gaussian(x, y, x.T @ y / precision[0, 0], precision)


def check_thermostat(factory=momentum.sgnht, h=0.1, num_steps=8_000, burn_in=500, seed=0):
    """Two averages that are 0 under SGNHT's stationary law for every step, batch size and noise of the gradient.

    chi' = chi + h (m'm / D - 1) is stationary only where E m'm = D: *equipartition*. With u = theta - mean, the average
    of u'm' is stationary too; u'm' = (1 - h chi) (u.m + h m.m) + h u'.g(theta') + noise, so that
    E[u'.A u'] + E[chi u'.m] = E[m.m]: the *virial theorem*, A the precision. It says that theta's spread is the
    posterior's but for E[chi u'.m] / D, which is h E[chi] / 2 in the mean of chi and falls with the step.
    """
    problem = orthogonal()
    target, data = target_of(problem)
    dim, num_rows = problem.x.shape[1], len(problem.y)
    method = factory(target, Schedule(1, 0, 1, 1, 8, "iid"), step_size=h, friction=1.0)
    centre, precision = jnp.asarray(problem.mean, jnp.float32), float(problem.precision[0, 0])

    @jax.jit
    def averages(key):
        def one(t, carry):
            state, total = carry
            row_key, key_ = jax.random.split(jax.random.fold_in(key, t))
            rows = jax.random.randint(row_key, (8,), 0, num_rows)
            new, _ = method.step(key_, t, state, Data(data.x[rows], data.y[rows], num_rows))
            away = new.theta - centre
            squares = state.momentum @ state.momentum / dim
            virial = (precision * away @ away + state.thermostat * away @ state.momentum) / dim - squares
            return new, total + jnp.where(t >= burn_in, jnp.stack([squares - 1, virial]), 0.0)

        state = method.init(key, centre, data)
        return jax.lax.fori_loop(0, num_steps, one, (state, jnp.zeros(2)))[1] / (num_steps - burn_in)

    keys = jax.random.split(jax.random.key(seed), LANES)
    found = np.asarray(jax.lax.map(averages, keys), np.float64)
    z, most = largest_z(found, np.zeros(2))
    return Verdict(z, most, float((found.std(0, ddof=1) / LANES**0.5).max()))


def test_the_thermostat_keeps_equipartition_and_the_virial_theorem():
    """Where the batches would leave SGHMC hot by more than a half: its own law says so."""
    problem = orthogonal()
    hot = np.diag(law(problem, *sghmc(8, 0.1, 0.1), 8)[1]) * problem.precision[0, 0] - 1
    assert hot.min() > 0.5, hot
    verdict = check_thermostat()
    assert verdict.passes, verdict


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("state.thermostat + h * (jnp.mean", "state.thermostat + 0 * (jnp.mean"),  # stuck
        ("(jnp.mean(momentum**2) - 1)", "(jnp.mean(momentum**2) - 1.1)"),
        ("momentum + h * grad", "momentum + 1.1 * h * grad"),
    ],
)
def test_mutants_of_the_thermostat_are_noticed(old, new):
    verdict = check_thermostat(mutate("bdlbench.inference.sghmc", old, new, within="sgnht").sgnht)
    assert not verdict.passes, verdict
