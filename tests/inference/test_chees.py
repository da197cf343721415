"""ChEES-HMC: posteriors in closed form, BlackJAX's driver, and how a run keeps the draws of a population."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from blackjax import chees_adaptation
from known_posteriors import (
    PRIOR_SCALE,
    assert_refused,
    gaussian,
    lanes_of,
    limit,
    moments,
    program,
    rows,
    sample,
    stage,
    target_of,
)
from laws import ALONE, Law, Mutant, PresetLaws, posterior, schedule
from mutation import mutate

from bdlbench.inference import chees as chees_module
from bdlbench.runs.group import run
from bdlbench.runs.look import as_chains
from bdlbench.store import Store
from bdlbench.types import ConfigError, Schedule

LANES = 32


CHEES = {
    "num_particles": 16,
    "init_scale": 1.0,
    "initial_step_size": 0.1,
    "learning_rate": 0.05,
    "target_accept_prob": 0.651,
    "decay_rate": 0.5,
    "max_leapfrog_steps": 200,
}


def population_moments(problem, drawn, temperature=1.0):
    """Test the moments of draws pooled over the particles of a lane, since only lanes are independent."""
    pooled = drawn.draws.reshape(len(drawn.draws), -1, drawn.draws.shape[-1])
    return moments(pooled, problem.mean, temperature * problem.cov)


def draws_of(name, factory, options, schedule, dim, condition, seed=0, temperature=1.0):
    problem = gaussian(dim, condition)
    here = stage(name, factory, schedule, **options)
    return problem, sample(program((here,)), rows(problem), lanes_of(LANES, seed, temperature=temperature))


def check_chees(dim, condition, factory=chees_module.chees, seed=0, temperature=1.0):
    schedule = Schedule(1, 300, 150, 2)
    problem, drawn = draws_of("chees", factory, CHEES, schedule, dim, condition, seed, temperature)
    return population_moments(problem, drawn, temperature)


@pytest.mark.slow
def test_a_mutant_of_chees_fails():
    """A sampler of twice the log density fails."""
    mutant = mutate(
        "bdlbench.inference.chees",
        "lambda theta: target.log_density(theta, data)  # noqa",
        "lambda theta: 2 * target.log_density(theta, data)  # noqa",
    )
    assert not check_chees(2, 1, mutant.chees).passes


@pytest.mark.slow
def test_chees_agrees_with_blackjaxs_driver():
    """The same Gaussian by ``blackjax.chees_adaptation``, from the same law of starts.

    The logarithms of the lengths found have one mean: Welch's z over independent runs of each, whose degrees of freedom
    are at least those of the smaller group.
    """
    theirs_runs = 16
    problem, drawn = draws_of("chees", chees_module.chees, CHEES, Schedule(1, 300, 2, 1), 10, 20)
    ours = np.log(drawn.stat("trajectory_length")[:, -1].astype(np.float64))
    target, data = target_of(problem)

    def theirs(key):
        start_key, spread_key, run_key = jax.random.split(key, 3)
        density = lambda theta: target.log_density(theta, data)
        warmup = chees_adaptation(density, 16, target_acceptance_rate=0.651, max_leapfrog_steps=200)
        start = PRIOR_SCALE * jax.random.normal(start_key, (10,)) + jax.random.normal(spread_key, (16, 10))
        _, info = warmup.run(run_key, start, 0.1, optax.adam(0.05), 300)
        return info.adaptation_state.log_trajectory_length_moving_average[-1]

    logs = np.asarray(jax.jit(lambda keys: jax.lax.map(theirs, keys))(jax.random.split(jax.random.key(0), theirs_runs)))
    error = np.sqrt(ours.var(ddof=1) / len(ours) + logs.astype(np.float64).var(ddof=1) / theirs_runs)
    z = abs(ours.mean() - logs.mean()) / error
    assert z <= limit(1, theirs_runs - 1), (ours.mean(), logs.mean(), error)
    assert error < 0.1, "lengths are known to a tenth"


@pytest.mark.slow
def test_chees_counts_every_particle_that_diverges():
    """All P particles diverge at a step size far beyond stability, and none at a small one."""
    target, data = target_of(gaussian(3, 10))
    method = chees_module.chees(target, Schedule(1, 1, 1, 1), **CHEES)
    chains = method.init(jax.random.key(0), jnp.zeros(3), data).chains
    for size, count in ((1e9, CHEES["num_particles"]), (0.01, 0)):
        state = chees_module.State(chains, jnp.float32(size), jnp.float32(size))
        _, info = method.step(jax.random.key(1), jnp.int32(0), state, data)
        assert info["num_diverging"] == count
        assert bool(info["diverging"]) == (count > 0)


# ---- a run of a population


@pytest.mark.slow
def test_each_particle_is_a_chain_of_the_store(store_path):
    """C lanes of P particles give C P chains of draws, predictions and statistics. Each chain follows one particle."""
    options = [
        "inference=chees",
        "data=diabetes",
        "network.width=3",
        "progress=off",
        "inference.before=[]",
        f"store.path={store_path}",
    ]
    sizes = [
        "inference.num_particles=4",
        "inference.max_leapfrog_steps=8",
        "inference.schedule.num_warmup=20",
        "inference.schedule.num_samples=30",
    ]
    record = run([*options, *sizes, "inference.schedule.num_chains=2"])
    assert record["status"] == "complete", record["reason"]
    assert record["num_draws"] == 2 * 4 * 30
    store = Store(store_path)
    tree = store.posterior(record["id"])
    for group in ("posterior", "sample_stats", "log_likelihood_test", "predictions"):
        assert dict(tree[group].sizes)["chain"] == 8
        assert dict(tree[group].sizes)["draw"] == 30
    assert record["metrics"]["rhat_max"] is not None


def test_particles_begin_around_theta():
    """They are theta + s N(0, I): mean and variance of 64 times D standard normals, each within five standard errors."""
    target, data = target_of(gaussian(3, 10))
    theta = jnp.full(target.dim, 3.0)
    method = chees_module.chees(target, Schedule(1, 10, 10, 1), **(CHEES | {"num_particles": 64, "init_scale": 0.5}))
    begun = method.init(jax.random.key(0), theta, data).chains.position
    z = np.asarray((begun - theta) / 0.5, np.float64).reshape(-1)
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)


def test_particles_are_followed():
    """Draws (C, n P) are reordered to (C P, n)."""
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # chain, draw, particle
    followed = as_chains(values.reshape(2, 12), 4)
    np.testing.assert_array_equal(followed[5], values[1, :, 1])
    np.testing.assert_array_equal(as_chains(values, 1), values)


@pytest.mark.slow
def test_chees_reaches_a_gaussian():
    """All first and second moments are right, from overdispersed starts."""
    verdict = check_chees(10, 100)
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


@pytest.mark.slow
def test_chees_samples_the_tempered_target():
    """With T = 2 the covariance is exactly doubled, not quadrupled."""
    verdict = check_chees(2, 1, temperature=2.0)
    assert verdict.passes, verdict


@pytest.mark.parametrize(
    ("options", "schedule", "message"),
    [
        ({"num_particles": 1}, {}, "num_particles=1 must be at least 2"),
        ({}, {"num_warmup": 0}, "schedule.num_warmup=0 must be at least 1"),
        ({}, {"batch_size": 2}, "batch_size=2 does not fit chees"),
    ],
)
def test_bad_settings_are_refused(options, schedule, message):
    target, _ = target_of(gaussian(2, 1))
    with pytest.raises(ConfigError, match=message):
        chees_module.chees(target, Schedule(1, 100, 10, 1)._replace(**schedule), **CHEES | options)


def test_a_population_too_large_is_refused():
    """The message has the size of the memory that would be allocated."""
    assert_refused(["inference=chees", "inference.num_particles=200000"], r"num_particles=200000 needs .* GiB")


# ---- the presets of this family


class TestLaws(PresetLaws):
    """ChEES-HMC is exact.

    With 100 draws a lane the largest standard error of a mean was 0.0106 sds; with 400 it is half of that, and 16 lanes
    estimate it above 0.01 where chi2(15) is above 15 (0.01 / 0.0053)^2 = 53, with a probability of 4e-6 a direction.
    """

    laws = {
        "chees": Law(
            "exact", "test_integrators.py::test_leapfrog_is_reversible", 16, (schedule(150, 400, 1), *ALONE), posterior
        )
    }
    mutants = {
        "chees": Mutant(
            "lambda theta: target.log_density(theta, data)  # noqa",
            "lambda theta: 0.8 * target.log_density(theta, data)  # noqa",
        )
    }
    small = {"chees": ("num_particles=4", "max_leapfrog_steps=8")}
    not_zero = {"chees": ("num_warmup",)}
