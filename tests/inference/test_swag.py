"""SWAG keeps the moments of the optimiser's path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from known_posteriors import (
    FAMILY_WISE,
    PRIOR_SCALE,
    Verdict,
    assert_refused,
    moments,
    regression,
)
from laws import ALONE, Law, Mutant, PresetLaws, Run, schedule
from linear_recursions import heavy_ball, recursion
from mutation import mutate
from presets import first_of

from bdlbench.inference.swag import swag
from bdlbench.model.target import make_target
from bdlbench.types import Data, Schedule


def linear(dim=4, seed=0):
    """The regression of known_posteriors with some rows more, and validation rows."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((12, dim)), rng.standard_normal(12)
    held = (jnp.asarray(rng.standard_normal((6, dim))), jnp.asarray(rng.standard_normal(6)))
    target = make_target(regression, jnp.asarray(x), jnp.asarray(y))
    return target, Data(jnp.asarray(x), jnp.asarray(y), 12, held)


# ---- SWAG


def swag_replayed(factory):
    """SWAG's state, the points it should have collected, their last deviations, and the largest |z| of its draws."""
    target, data = linear()
    schedule = Schedule(1, 70, 10, 0, batch_size=4)
    options = {"optimizer": optax.sgd(0.1, momentum=0.5), "rank": 5, "collect_after": 7, "collect_every": 6}
    method = factory(target, schedule, **options)
    noisy = data._replace(x=data.x[:4], y=data.y[:4])

    def batch(t):
        rows = (t * 4 + jnp.arange(4)) % 12
        return data._replace(x=data.x[rows], y=data.y[rows])

    @jax.jit
    def run():
        state = method.init(jax.random.key(0), jnp.zeros(4), noisy)
        step = lambda s, t: (lambda s: (s, s.theta))(method.step(jax.random.key(0), t, s, batch(t))[0])
        return jax.lax.scan(step, state, jnp.arange(70))

    state, thetas = run()
    theta, momentum = np.zeros(4), np.zeros(4)
    for t in range(70):  # plain SGD with momentum on the mean loss
        rows = batch(t)
        grad = np.asarray(rows.x).T @ (np.asarray(rows.x) @ theta - np.asarray(rows.y)) * 3 + theta / PRIOR_SCALE**2
        momentum = grad / 12 + 0.5 * momentum
        theta = theta - 0.1 * momentum
        np.testing.assert_allclose(thetas[t], theta, rtol=1e-9, atol=1e-12)
    points = np.asarray(thetas)[7 + 5 :: 6]
    assert len(points) == 10
    running = np.cumsum(points, 0) / np.arange(1, 11)[:, None]
    off = (points - running)[-5:]
    cov = np.diag(points.var(0)) / 2 + off.T @ off / (2 * 4)
    draws = jax.vmap(lambda key: method.draw(key, state))(jax.random.split(jax.random.key(0), 20_000))
    white = np.linalg.solve(np.linalg.cholesky(cov), (np.asarray(draws) - points.mean(0)).T).T
    second = white.T @ white / len(white)
    z = np.abs(np.concatenate([white.mean(0), (second - np.eye(4))[np.triu_indices(4)]])) * np.sqrt(len(white))
    return state, points, off, z.max()


SWAG_LIMIT = np.sqrt(2) * scipy.stats.norm.isf(FAMILY_WISE / 28)
"""For 14 whitened moments of 20,000 draws, whose standard errors are at most sqrt(2 / n)."""


@pytest.mark.usefixtures("x64")
def test_swag_keeps_the_moments_of_the_path():
    """Mean, variance and deviations of the points collected at steps 13, 19, ..., as NumPy finds them, and draws."""
    state, points, off, z = swag_replayed(swag)
    np.testing.assert_allclose(state.mean, points.mean(0), rtol=1e-10)
    np.testing.assert_allclose(state.squares / 10, points.var(0), rtol=1e-8)
    np.testing.assert_allclose(np.sort(state.deviations, 0), np.sort(off, 0), rtol=1e-7, atol=1e-12)
    assert z < SWAG_LIMIT


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("old", "new"),
    first_of(
        [
            ("(2 * collected)", "collected"),
            ("(2 * (rank - 1)) ** 0.5", "(rank - 1) ** 0.5"),
            ("+ before / n", "+ before / (n + 1)"),
        ]
    ),
)
def test_swag_mutants_are_noticed(old, new):
    assert swag_replayed(mutate("bdlbench.inference.swag", old, new).swag)[3] > SWAG_LIMIT


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["inference.rank=40", "inference.collect_every=20", "network.width=2000000"], "40 deviations"),
        (["inference.schedule.batch_size=null"], "no gradient noise"),
        (["inference.rank=1000"], "collect more often"),
        (["inference.schedule.thinning=2"], "thinning must be 0"),
    ],
)
def test_what_is_refused(options, sentence):
    assert_refused(["inference=swag", *options], sentence)


# ---- the presets of this family


def path_of_sgd(run: Run) -> Verdict:
    """SWAG's draws over paths: Cov(mean) + E[diag s^2] / 2 + E[D D'] / (2 (K - 1)) from the path's autocovariances.

    Points are ``EVERY`` steps of the heavy ball apart, z_(t + k) depends on z_t by E[T]^k, and mean, variances and
    deviations are linear in the points.
    """
    num, every, rank, dim = 200, 25, 20, run.problem.x.shape[1]
    found = recursion(run.problem, *heavy_ball(run.problem, 0.02, 0.9), run.schedule.batch_size)
    step = np.linalg.matrix_power(found.mean_map[:-1, :-1], every)
    lags = [found.stationary().cov]
    for _ in range(num - 1):
        lags.append(step @ lags[-1])
    lag = np.stack([a[:dim, :dim] for a in lags])
    index = np.arange(num)
    apart = index[:, None] - index
    gamma = np.where((apart >= 0)[..., None, None], lag[abs(apart)], lag[abs(apart)].swapaxes(-1, -2))
    quadratic = lambda w: np.einsum("i,ijab,j->ab", w, gamma, w)
    whole = quadratic(np.full(num, 1 / num))
    spread = lag[0] - whole
    kept = np.zeros((dim, dim))
    for n in range(num - rank + 1, num + 1):
        kept += quadratic(np.where(index == n - 1, 1.0, 0.0) - np.where(index < n, 1 / n, 0.0))
    cov = whole + np.diag(np.diag(spread)) / 2 + kept / (2 * (rank - 1))
    return moments(run.drawn.draws, run.problem.mean, cov)


MOMENTS = Law(
    "moments of the optimiser's path",
    "test_swag_keeps_the_moments_of_the_path",
    240,
    (
        schedule(5500, 200, 0, 8),
        "inference.optimizer.learning_rate=0.02",
        "inference.rank=20",
        "inference.collect_after=500",
        "inference.collect_every=25",
        *ALONE,
    ),
    path_of_sgd,
)


class TestLaws(PresetLaws):
    """SWAG and its ensemble have the moments of the optimiser's path."""

    laws = {"swag": MOMENTS, "multiswag": MOMENTS}
    mutants = {"swag": Mutant("/ (2 * (rank - 1)) ** 0.5", "/ (rank - 1) ** 0.5")}
    small = dict.fromkeys(("swag", "multiswag"), ("collect_after=6", "collect_every=2", "rank=4"))
    not_zero = {"swag": ("num_warmup",)}
