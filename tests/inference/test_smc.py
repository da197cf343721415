"""Tempered SMC: posteriors in closed form, the evidence, and a warm-up whose stages run out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from known_posteriors import (
    PRIOR_SCALE,
    assert_refused,
    gaussian,
    lanes_of,
    largest_z,
    moments,
    program,
    rows,
    sample,
    stage,
    target_of,
)
from laws import ALONE, Law, Mutant, PresetLaws, posterior, schedule
from mutation import mutate
from presets import mostly

from bdlbench.inference import smc as smc_module
from bdlbench.model.target import make_target
from bdlbench.runs.group import run
from bdlbench.sampling import loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.programs import NEVER, UNFINISHED
from bdlbench.types import ConfigError, Data, Schedule

LANES = 32


def draws_of(name, factory, options, schedule, dim, condition, seed=0, temperature=1.0):
    problem = gaussian(dim, condition)
    here = stage(name, factory, schedule, **options)
    return problem, sample(program((here,)), rows(problem), lanes_of(LANES, seed, temperature=temperature))


def population_moments(problem, drawn, temperature=1.0):
    """Test the moments of draws pooled over the particles of a lane, since only lanes are independent."""
    pooled = drawn.draws.reshape(len(drawn.draws), -1, drawn.draws.shape[-1])
    return moments(pooled, problem.mean, temperature * problem.cov)


SMC = {
    "num_particles": 64,
    "target_ess": 0.7,
    "num_moves": 3,
    "num_leapfrog_steps": 8,
    "initial_step_size": 0.2,
    "target_accept_prob": 0.8,
}


def check_smc(dim, condition, factory=smc_module.smc, seed=0, temperature=1.0, num_warmup=15):
    schedule = Schedule(1, num_warmup, 20, 3)
    problem, drawn = draws_of("smc", factory, SMC, schedule, dim, condition, seed, temperature)
    return population_moments(problem, drawn, temperature)


@pytest.mark.slow
def test_smc_finds_the_evidence():
    """E[Z hat / Z] = 1, Z in closed form: y ~ N(0, I + PRIOR_SCALE^2 X X'). Lambda ends at 1.

    Adaptation biases Z hat by O(1 / P), here far inside the standard error of 32 lanes.
    """
    problem, drawn = draws_of("smc", smc_module.smc, SMC | {"num_particles": 256}, Schedule(1, 15, 2, 1), 3, 10)
    x, y = problem.x.astype(np.float64), problem.y.astype(np.float64)
    cov = np.eye(len(y)) + PRIOR_SCALE**2 * x @ x.T
    truth = scipy.stats.multivariate_normal(np.zeros(len(y)), cov).logpdf(y)
    found = drawn.stat("log_evidence")[:, -1].astype(np.float64)
    z, most = largest_z(np.exp(found - truth)[:, None], np.ones(1))
    assert z <= most, (found.mean(), found.std(), truth)
    assert found.std() < 0.3
    assert (drawn.stat("inverse_temperature") == 1).all()


@pytest.mark.slow
def test_smc_takes_the_stages_that_the_warm_up_did_not():
    """Without warm-up all tempering happens before the first draw, and its gradients are counted."""
    problem, drawn = draws_of("smc", smc_module.smc, SMC, Schedule(1, 0, 20, 3), 3, 10)
    verdict = population_moments(problem, drawn)
    assert verdict.passes, verdict
    assert (drawn.stat("inverse_temperature") == 1).all()
    finalized = next(b for b in drawn.blocks if b.phase == "warmup")
    assert (finalized.num_grads >= 2 * SMC["num_particles"] * (SMC["num_moves"] + 2)).all()


@pytest.mark.slow
def test_a_mutant_of_smc_fails():
    """SMC without resampling fails, if its moves are too short to correct for it."""
    mutant = mutate(
        "bdlbench.inference.smc",
        "chosen = jnp.where(at < 1, chosen, jnp.arange(num_particles))",
        "chosen = jnp.arange(num_particles)",
    )
    options = SMC | {"num_moves": 1, "num_leapfrog_steps": 1}
    problem, drawn = draws_of("smc", mutant.smc, options, Schedule(1, 15, 2, 1), 3, 10)
    assert not population_moments(problem, drawn).passes


# ---- runs out of stages


@pytest.mark.slow
def test_the_largest_share_of_smc_still_moves():
    """At ``MOST_ESS`` lambda rises in each stage, whatever the particles: on normal ones, and on pairs that differ.

    Nearer to 1 by less than the solver's tolerance it may stand still.
    """
    target, data = target_of(gaussian(3, 10))
    for num_particles in (2, 64, 1024):
        for share, rises in ((smc_module.MOST_ESS, True), (1 - 1e-6, False)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(smc_module, "MOST_ESS", 1.0)
                options = SMC | {"num_particles": num_particles, "target_ess": share, "num_moves": 1}
                method = smc_module.smc(target, Schedule(1, 1, 1, 1), **options)

            def lane(key, method=method):
                state = method.init(key, jnp.zeros(3), data)
                step = lambda state, t: (lambda moved, info: (moved, info["inverse_temperature"]))(
                    *method.warm(jax.random.fold_in(key, t), t, state, data)
                )
                return jax.lax.scan(step, state, jnp.arange(5))[1]

            path = np.asarray(jax.jit(jax.vmap(lane))(jax.random.split(jax.random.key(1), 20)))
            path = np.concatenate([np.zeros((20, 1)), path], 1)
            assert ((np.diff(path) > 0) | (path[:, 1:] == 1)).all() == rises, path


@pytest.mark.slow
def test_smc_that_is_not_done_has_diverged(store_path, monkeypatch):
    """If there are too few stages to reach lambda = 1, there are no draws, and the record has the reason."""
    monkeypatch.setattr(smc_module, "MOST_STAGES", 1)
    monkeypatch.setattr(loop, "_PROGRAMS", loop.ProgramCache(64))
    small = [
        "data=diabetes",
        "network.width=2",
        "progress=off",
        f"store.path={store_path}",
        "inference.num_particles=4",
    ]
    schedule = "inference.schedule={num_chains: 2, num_warmup: 1, num_samples: 4, thinning: 1}"
    record = run(["inference=smc", *small, schedule, "inference.num_moves=1", "inference.num_leapfrog_steps=1"])
    assert record["status"] == "diverged"
    assert "warm-up of smc did not reach the posterior in 2 of 2 chains (first in chain 0)" in record["reason"]
    assert record["num_draws"] == 0
    assert record["num_grads"] == {"warmup": 2 * 4 * 3 * 2.0, "sample": 0.0}, "two stages, P (1 x 1 + 2) gradients each"


@pytest.mark.slow
def test_lanes_that_are_done_go_on(monkeypatch):
    """If some lanes run out of stages, the other lanes keep their draws."""
    problem = gaussian(3, 10)
    here = program((stage("smc", smc_module.smc, Schedule(1, 0, 3, 1), **SMC),))
    for most in range(2, 12):
        monkeypatch.setattr(smc_module, "MOST_STAGES", most)
        last = list(loop.run(here, rows(problem), lanes_of(LANES), clock=Clock()))[-1]
        done = last.bad_step == NEVER
        monkeypatch.setattr(loop, "_PROGRAMS", loop.ProgramCache(64))
        if 0 < done.sum() < LANES:
            break
    assert 0 < done.sum() < LANES
    assert (last.bad_step[~done] == UNFINISHED).all()
    np.testing.assert_array_equal(last.stats["inverse_temperature"][:, -1] == 1, done)


# ---- divergences


@pytest.mark.slow
def test_smc_counts_every_particle_that_diverges():
    """At a step far beyond stability all P diverge at each of the 3 x 2 steps, and the loop says so; else none does."""
    for size, share in ((1e9, 1), (0.2, 0)):
        options = SMC | {"initial_step_size": size}
        _, drawn = draws_of("smc", smc_module.smc, options, Schedule(1, 0, 3, 2), 3, 10)
        counted = np.sum([block.num_diverging for block in drawn.blocks if block.phase == "sample"], 0)
        np.testing.assert_array_equal(counted, share * SMC["num_particles"] * 6)


@pytest.mark.slow
def test_smc_reaches_a_gaussian():
    """All first and second moments are right, from starts in the prior."""
    verdict = check_smc(10, 100)
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


@pytest.mark.slow
def test_smc_samples_the_tempered_target():
    """T = 2 doubles the covariance, once: the bridge begins at the prior as it is."""
    verdict = check_smc(2, 1, temperature=2.0)
    assert verdict.passes, verdict


@pytest.mark.parametrize(
    ("options", "schedule", "message"),
    [
        ({"target_ess": 1.0}, {}, "target_ess=1.0 must lie strictly between"),
        ({"target_ess": 0.9991}, {}, "target_ess=0.9991 must be at most 0.999"),
        ({}, {"batch_size": 2}, "batch_size=2 does not fit smc"),
    ],
)
def test_bad_settings_are_refused(options, schedule, message):
    target, _ = target_of(gaussian(2, 1))
    with pytest.raises(ConfigError, match=message):
        smc_module.smc(target, Schedule(1, 100, 10, 1)._replace(**schedule), **SMC | options)


def test_a_population_too_large_is_refused():
    """The message has the size of the memory that would be allocated."""
    assert_refused(["inference=smc", "inference.num_particles=200000"], r"num_particles=200000 needs .* GiB")


# ---- the presets of this family


class TestLaws(PresetLaws):
    """Tempered SMC is exact as its particles grow in number.

    61,440 draws: independent ones have a standard error of 0.004 sds, far enough below 0.01 for 16 lanes to estimate it.
    """

    laws = {
        "smc": Law(
            "exact",
            "test_integrators.py::test_leapfrog_is_reversible",
            16,
            (
                schedule(15, 60, 1),
                "inference.num_particles=64",
                "inference.num_moves=3",
                "inference.num_leapfrog_steps=8",
                *ALONE,
            ),
            posterior,
        )
    }
    mutants = {"smc": Mutant("at * target.log_density(theta, data)", "0.8 * at * target.log_density(theta, data)")}
    small = {"smc": ("num_particles=8", "num_moves=1", "num_leapfrog_steps=2", "target_ess=0.5")}


# ---- what the particles are drawn from


def two_modes(x, y=None, *, how):
    """Modes at +-3 of weight 0.9 and 0.1, as the prior or as what is not drawn from; y says nothing of them."""
    modes = dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.array([0.9, 0.1])), dist.Normal(jnp.array([3.0, -3.0]), 0.5)
    )
    wide = dist.Normal(0.0, 4.0)
    if how == "prior":
        theta = numpyro.sample("theta", modes)
    elif how == "factor":
        theta = numpyro.sample("theta", wide)
        numpyro.factor("modes", modes.log_prob(theta) - wide.log_prob(theta))
    elif how == "masked":
        with numpyro.handlers.mask(mask=False):
            theta = numpyro.sample("theta", wide)
        numpyro.factor("modes", modes.log_prob(theta))
    else:
        with numpyro.handlers.scale(scale=2.0):
            theta = numpyro.sample("theta", wide)
        numpyro.factor("modes", modes.log_prob(theta) - 2 * wide.log_prob(theta))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(0.0 * theta, 1.0), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("how", mostly(["prior", "factor", "masked", "scaled"], "factor"))
def test_what_is_not_drawn_from_is_tempered(how):
    """The mode at 3 has mass 0.9 = P(theta > 0) up to Phi(-6), and log Z is y's density; 32 lanes are independent.

    z-scores take their errors from the lanes; what one lane's P particles bias is O(1 / P) of a mass, here 1e-3, below
    a third of the standard error of the mean over lanes, sqrt(0.09 / 1024 / 32).
    """
    x, y = jnp.zeros((2, 1)), jnp.zeros(2)
    target = make_target(functools.partial(two_modes, how=how), x, y)
    method = smc_module.smc(target, Schedule(1, 1, 1, 1), **SMC | {"num_particles": 1024})
    data = Data(x, y, 2)

    def lane(key):
        state, _ = method.finalize(key, method.init(key, jnp.zeros(1), data), data)
        return (method.draw(key, state) > 0).mean(), state.log_evidence

    mass, log_evidence = (
        np.asarray(a, np.float64) for a in jax.jit(jax.vmap(lane))(jax.random.split(jax.random.key(5), LANES))
    )
    z, most = largest_z(mass[:, None], np.array([0.9]))
    if how == "prior":  # its draws' only error is that of 32 x 1024 weights
        error = np.sqrt(0.09 / (1024 * LANES))
        assert abs(mass.mean() - 0.9) <= 5 * error
    assert z <= most, (mass.mean(), mass.std())
    z, most = largest_z(np.exp(log_evidence + np.log(2 * np.pi))[:, None], np.ones(1)) if how != "prior" else (0, 0)
    assert z <= most, (log_evidence.mean(), -np.log(2 * np.pi))


def test_the_parts_of_a_log_density_add_up():
    """The parts of a log density add up to it whatever is masked and scaled, and draws are of ``log_prior`` alone."""
    x, y = jnp.zeros((2, 1)), jnp.zeros(2)
    theta = jnp.array([1.3])
    wide = scipy.stats.norm.logpdf(1.3, 0, 4)
    modes = np.logaddexp(
        np.log(0.9) + scipy.stats.norm.logpdf(1.3, 3, 0.5), np.log(0.1) + scipy.stats.norm.logpdf(1.3, -3, 0.5)
    )
    for how, drawn in (("prior", modes), ("factor", wide), ("masked", wide), ("scaled", wide)):
        terms = make_target(functools.partial(two_modes, how=how), x, y).terms(theta, Data(x, y, 2))
        np.testing.assert_allclose(terms.log_prior, drawn, rtol=1e-5)
        np.testing.assert_allclose(terms.log_prior_with_factor, modes, rtol=1e-5)
        assert (terms.log_factor is None) == (how == "prior")
