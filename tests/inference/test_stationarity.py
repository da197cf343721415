"""The configurational temperature: against the bias of recursions whose law is known, and at the right theta.

On a Gaussian of precision A and mean m, E[-theta . g] / D = tr(A Sigma) / D for every chain whose stationary law has the
mean m and the covariance Sigma, whatever the noise of the gradient, as long as its mean given theta is A (m - theta).
"""

import jax
import linear_recursions as recursions
import numpy as np
import pytest
from known_posteriors import gaussian, lanes_of, largest_z, program, rows, sample, stage, target_of

from bdlbench.inference.mclmc import mclmc
from bdlbench.inference.sghmc import baoa, cyclical_sghmc, sghmc, sgnht
from bdlbench.inference.sgld import cyclical_sgld, psgld, sgld, sgld_cv
from bdlbench.types import Schedule

NAME = "configurational_temperature"
PLAIN = {"decay": 0.0, "decay_steps": 1.0}


def averages(drawn):
    """The statistic of all draws, (C, S)."""
    return np.concatenate([block.stats[NAME] for block in drawn.blocks if block.draws is not None], 1)


@pytest.mark.parametrize("method", ["sgld", pytest.param("sghmc", marks=pytest.mark.slow)])
def test_it_is_the_temperature_of_the_recursions_own_law(method):
    """Batches with replacement: tr(A Sigma) / D with Sigma of the affine recursion, 1.3 and more, not the posterior's 1."""
    problem, dim, size = gaussian(3, 5, copies=8), 3, 4
    plan = Schedule(1, 500, 300, 10, size, "iid")
    if method == "sgld":
        eps = 0.05
        step, noise = recursions.langevin(dim, eps)
        one = stage(method, sgld, plan, step_size=eps, **PLAIN)
    else:
        h, friction = 0.2, 1.0
        step, noise = recursions.sghmc(dim, h, h * friction)
        one = stage(method, sghmc, plan, step_size=h, friction=friction)
    _, cov = recursions.law(problem, step, noise, size)
    wanted = np.trace(problem.precision @ cov) / dim
    assert wanted > 1.3, "the bias is large enough to be told from none"
    drawn = sample(program((one,)), rows(problem), lanes_of(64))
    z, limit = largest_z(averages(drawn).mean(1)[:, None], np.array([wanted]))
    assert z < limit
    z, limit = largest_z(averages(drawn).mean(1)[:, None], np.array([1.0]))
    assert z > limit, "the posterior's own temperature is excluded"


@pytest.mark.slow
def test_a_draw_has_the_mean_over_its_steps():
    """Of 5 steps a draw, the statistic is the mean of those of the 5 steps, to rounding: 5 additions of single precision."""
    problem = gaussian(3, 5)
    each, mean = (
        averages(
            sample(
                program((stage("sgld", sgld, Schedule(1, 10, 100 // n, n), step_size=0.02, **PLAIN),)),
                rows(problem),
                lanes_of(2),
            )
        )
        for n in (1, 5)
    )
    wanted = each.reshape(len(each), -1, 5)
    room = 16 * np.finfo(np.float32).eps * np.abs(wanted).max(-1)
    assert (np.abs(mean - wanted.mean(-1)) <= room).all()


SMALL = {"step_size": 0.01}
MOMENTUM = {**SMALL, "friction": 1.0}
TUNER = {
    "initial_step_size": 0.1, "energy_variance_start": 1e-3, "energy_variance_end": 1e-3, "frac_tune1": 0.3,
    "frac_tune2": 0.3, "l_factor": 0.4, "trust_in_estimate": 1.5, "num_effective_samples": 150.0,
    "diagonal_preconditioning": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("factory", "options", "after"),
    [
        (sgld, {**SMALL, **PLAIN}, False),
        (psgld, {**SMALL, "averaging": 0.9, "damping": 1e-5}, False),
        (sgld_cv, SMALL, False),
        (cyclical_sgld, {**SMALL, "num_cycles": 2}, False),
        (sghmc, MOMENTUM, True),
        (baoa, MOMENTUM, False),
        (sgnht, MOMENTUM, True),
        (cyclical_sghmc, {**MOMENTUM, "num_cycles": 2}, True),
        (mclmc, TUNER, True),
    ],
)
def test_theta_is_where_the_gradient_was_taken(factory, options, after):
    """-theta . g / D of a step on all rows, theta the step's start or, where the gradient comes after a drift, its end.

    Two sums of three products in single precision, whose largest terms bound the rounding.
    """
    problem = gaussian(3, 5)
    target, data = target_of(problem)
    method = factory(target, Schedule(1, 10, 10, 1), **options)
    key = jax.random.key(3)
    state = method.init(key, jax.numpy.array([0.5, -1.0, 2.0]), data)
    if method.warm is not None and factory is mclmc:
        state, _ = method.finalize(key, state, data)
    moved, info = method.step(key, jax.numpy.int32(3), state, data)
    theta = np.asarray(method.draw(key, moved if after else state), np.float64)
    terms = theta * (problem.precision @ (theta - problem.mean)) / 3
    size = np.abs(theta).max() * np.abs(problem.precision).sum(1).max() * (np.abs(theta) + np.abs(problem.mean)).max()
    assert abs(float(info[NAME]) - terms.sum()) <= 64 * np.finfo(np.float32).eps * size
