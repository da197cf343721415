"""IVON reaches the mean-field fixed point."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from known_posteriors import assert_refused, gaussian, lanes_of, moments, program, regression, rows, sample, stage
from laws import ALONE, Law, Mutant, PresetLaws, mean_field, schedule
from mutation import mutate
from presets import first_of

from bdlbench.inference.ivon import ivon
from bdlbench.model.target import make_target
from bdlbench.types import Data, Schedule

LANES = 64


def decay(rate, steps):
    return optax.cosine_decay_schedule(rate, steps)


def fitted(factory, problem, steps, num_lanes=LANES, **options):
    """Draws (C, 1000, D) of a variational method fitted in every lane."""
    one = stage("fit", factory, Schedule(num_lanes, steps, 1000, 0), **options)
    return sample(program((one,)), rows(problem), lanes_of(num_lanes))


def ivon_options(steps):
    return {"learning_rate": decay(0.1, steps), "hessian_init": 1.0, "beta1": 0.9, "beta2": 0.999}


@pytest.mark.slow
def test_ivon_reaches_the_mean_field_fixed_point():
    """Means of the posterior, variances 1 / diag(precision).

    What is left of h_0 is exp(-12); h is inflated by (1 - beta2)/2 Var(f)/h^2, at most 0.0005 x 11, but its own
    spread of the same size raises E[1/h] as much, so the variances' bias is of second order, far below their standard
    error of 0.56 %. The rate falls to nothing, and with it the spread of m.
    """
    problem = gaussian(10, 100)
    drawn = fitted(ivon, problem, 12_000, **ivon_options(12_000))
    verdict = moments(drawn.draws, problem.mean, np.diag(1 / np.diag(problem.precision)))
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    first_of(
        [
            ("f = g * away * h * size", "f = g * away * h * size * 1.1"),  # a curvature 10 % too high
            ("state.mean + noise(key, state) * scale(state)", "state.mean + 1.05 * noise(key, state) * scale(state)"),
            ("-grad / size", "-grad / size * jnp.where(jnp.arange(target.dim) == 0, 1.1, 1.0)"),
        ]
    ),
)
def test_ivon_mutants_are_noticed(old, new):
    problem = gaussian(10, 100)
    mutant = mutate("bdlbench.inference.ivon", old, new).ivon
    drawn = fitted(mutant, problem, 6_000, **ivon_options(6_000))
    assert not moments(drawn.draws, problem.mean, np.diag(1 / np.diag(problem.precision))).passes


def state_of(factory, key, dim=4, **options):
    """A method on a Gaussian of ``dim`` dimensions after some steps, and its state."""
    problem = gaussian(dim, 10)
    target = make_target(regression, jnp.asarray(problem.x), jnp.asarray(problem.y))
    data = Data(jnp.asarray(problem.x), jnp.asarray(problem.y), dim)
    method = factory(target, Schedule(1, 30, 10, 0), **options)

    @jax.jit
    def run():
        state = method.init(key, jnp.zeros(dim), data)
        return jax.lax.fori_loop(0, 30, lambda t, s: method.step(jax.random.fold_in(key, t), t, s, data)[0], state)

    return method, run(), target, data


@pytest.mark.usefixtures("x64")
def test_ivon_log_q_is_the_density_of_the_draw():
    method, state, _, _ = state_of(ivon, jax.random.key(3), **ivon_options(30))
    sd = 1 / np.sqrt(state.size * state.hessian)
    for seed in range(3):
        key = jax.random.key(seed)
        wanted = scipy.stats.norm(state.mean, sd).logpdf(method.draw(key, state)).sum()
        np.testing.assert_allclose(method.log_q(key, state), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("schedule.num_warmup=0", "decay_steps=0 must be at least 1"),  # refers to it
        ("schedule.thinning=1", "thinning must be 0"),
        ("beta2=1.0", "beta2=1.0"),
        ("hessian_init=0", "hessian_init"),
    ],
)
def test_what_is_refused(option, sentence):
    assert_refused(["inference=ivon", f"inference.{option}"], sentence)


# ---- the presets of this family


class TestLaws(PresetLaws):
    """IVON reaches the variational optimum among independent normals."""

    laws = {
        "ivon": Law(
            "variational optimum",
            "test_ivon_log_q_is_the_density_of_the_draw",
            64,
            (
                schedule(6000, 500, 0),
                "inference.beta2=0.999",
                "inference.hessian_init=10.0",
                "inference.learning_rate.init_value=0.1",
                *ALONE,
            ),
            mean_field,
        )
    }
    mutants = {"ivon": Mutant("f = g * away * h * size", "f = g * away * h * size * 1.2")}
    not_zero = {"ivon": ("num_warmup",)}
