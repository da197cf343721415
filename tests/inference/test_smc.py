"""Laws 2 and 5 for populations that live in one lane: ChEES-HMC and tempered SMC; and how a run keeps their draws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from blackjax import chees_adaptation
from known_posteriors import (
    PRIOR_SCALE,
    gaussian,
    lanes_of,
    largest_z,
    limit,
    moments,
    program,
    regression,
    rows,
    sample,
    stage,
    target_of,
)
from mutation import mutate

from bdlbench.inference import chees as chees_module
from bdlbench.inference import smc as smc_module
from bdlbench.model.target import make_target
from bdlbench.runs.group import run
from bdlbench.runs.recorder import as_chains
from bdlbench.sampling import loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.programs import NEVER, UNFINISHED
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
SMC = {
    "num_particles": 64,
    "target_ess": 0.7,
    "num_moves": 3,
    "num_leapfrog_steps": 8,
    "initial_step_size": 0.2,
    "target_accept_prob": 0.8,
}


def draws_of(name, factory, options, schedule, dim, condition, seed=0, temperature=1.0):
    problem = gaussian(dim, condition)
    here = stage(name, factory, schedule, **options)
    return problem, sample(program((here,)), rows(problem), lanes_of(LANES, seed, temperature=temperature))


def population_moments(problem, drawn, temperature=1.0):
    """Lanes are independent, particles of one lane are not: their draws are pooled before the test."""
    pooled = drawn.draws.reshape(len(drawn.draws), -1, drawn.draws.shape[-1])
    return moments(pooled, problem.mean, temperature * problem.cov)


def check_chees(dim, condition, factory=chees_module.chees, seed=0, temperature=1.0):
    schedule = Schedule(1, 300, 150, 2)
    problem, drawn = draws_of("chees", factory, CHEES, schedule, dim, condition, seed, temperature)
    return population_moments(problem, drawn, temperature)


def check_smc(dim, condition, factory=smc_module.smc, seed=0, temperature=1.0, num_warmup=15):
    schedule = Schedule(1, num_warmup, 20, 3)
    problem, drawn = draws_of("smc", factory, SMC, schedule, dim, condition, seed, temperature)
    return population_moments(problem, drawn, temperature)


@pytest.mark.parametrize("check", [check_chees, check_smc])
def test_populations_reach_a_gaussian(check):
    """All moments; ChEES from overdispersed starts, SMC from the prior."""
    verdict = check(10, 100)
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


@pytest.mark.parametrize("check", [check_chees, check_smc])
def test_they_sample_the_tempered_target(check):
    """T = 2 doubles the covariance, once: SMC's bridge begins at the prior as it is."""
    verdict = check(2, 1, temperature=2.0)
    assert verdict.passes, verdict


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


def test_smc_takes_the_stages_that_the_warm_up_did_not():
    """Without warm-up all tempering happens before the first draw, and is charged."""
    problem, drawn = draws_of("smc", smc_module.smc, SMC, Schedule(1, 0, 20, 3), 3, 10)
    verdict = population_moments(problem, drawn)
    assert verdict.passes, verdict
    assert (drawn.stat("inverse_temperature") == 1).all()
    finalized = next(b for b in drawn.blocks if b.phase == "warmup")
    assert (finalized.num_grads >= 2 * SMC["num_particles"] * (SMC["num_moves"] + 2)).all()


def test_a_mutant_of_smc_fails():
    """Nobody resampled, and moves too short to make up for it."""
    mutant = mutate(
        "bdlbench.inference.smc",
        "chosen = jnp.where(at < 1, chosen, jnp.arange(num_particles))",
        "chosen = jnp.arange(num_particles)",
    )
    options = SMC | {"num_moves": 1, "num_leapfrog_steps": 1}
    problem, drawn = draws_of("smc", mutant.smc, options, Schedule(1, 15, 2, 1), 3, 10)
    assert not population_moments(problem, drawn).passes


def test_a_mutant_of_chees_fails():
    """Twice the log density."""
    mutant = mutate(
        "bdlbench.inference.chees",
        "lambda theta: target.log_density(theta, data)  # noqa",
        "lambda theta: 2 * target.log_density(theta, data)  # noqa",
    )
    assert not check_chees(2, 1, mutant.chees).passes


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


def test_smc_that_is_not_done_has_diverged(store_path, monkeypatch):
    """With too few stages to reach lambda = 1 no draw is taken for one of the posterior, and the record says why."""
    monkeypatch.setattr(smc_module, "MOST_STAGES", 1)
    monkeypatch.setattr(loop, "_PROGRAMS", {})
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
    """Beside lanes that ran out of stages the others keep their draws: some number of stages is enough for some alone."""
    problem = gaussian(3, 10)
    here = program((stage("smc", smc_module.smc, Schedule(1, 0, 3, 1), **SMC),))
    for most in range(2, 12):
        monkeypatch.setattr(smc_module, "MOST_STAGES", most)
        last = list(loop.run(here, rows(problem), lanes_of(LANES), clock=Clock()))[-1]
        done = last.bad_step == NEVER
        monkeypatch.setattr(loop, "_PROGRAMS", {})
        if 0 < done.sum() < LANES:
            break
    assert 0 < done.sum() < LANES
    assert (last.bad_step[~done] == UNFINISHED).all()
    np.testing.assert_array_equal(last.stats["inverse_temperature"][:, -1] == 1, done)


# ---- divergences


def test_smc_counts_every_particle_that_diverges():
    """At a step far beyond stability all P diverge at each of the 3 x 2 steps, and the loop says so; else none does."""
    for size, share in ((1e9, 1), (0.2, 0)):
        options = SMC | {"initial_step_size": size}
        _, drawn = draws_of("smc", smc_module.smc, options, Schedule(1, 0, 3, 2), 3, 10)
        counted = np.sum([block.num_diverging for block in drawn.blocks if block.phase == "sample"], 0)
        np.testing.assert_array_equal(counted, share * SMC["num_particles"] * 6)


def test_chees_counts_every_particle_that_diverges():
    """All P at a step far beyond stability, none at a small one."""
    target, data = target_of(gaussian(3, 10))
    method = chees_module.chees(target, Schedule(1, 1, 1, 1), **CHEES)
    chains = method.init(jax.random.key(0), jnp.zeros(3), data).chains
    for size, count in ((1e9, CHEES["num_particles"]), (0.01, 0)):
        state = chees_module.State(chains, jnp.float32(size), jnp.float32(size))
        _, info = method.step(jax.random.key(1), jnp.int32(0), state, data)
        assert info["num_diverging"] == count
        assert bool(info["diverging"]) == (count > 0)


# ---- a run of a population


def test_each_particle_is_a_chain_of_the_store(store_path):
    """Draws, predictions and statistics of C lanes of P particles are C P chains, followed through the draws."""
    options = [
        "inference=chees",
        "data=diabetes",
        "network.width=3",
        "progress=off",
        "inference.before=[]",
        f"store.path={store_path}",
    ]
    sizes = ["inference.num_particles=4", "inference.schedule.num_warmup=20", "inference.schedule.num_samples=30"]
    record = run([*options, *sizes, "inference.schedule.num_chains=2"])
    assert record["status"] == "complete", record["reason"]
    assert record["num_draws"] == 2 * 4 * 30
    store = Store(store_path)
    tree = store.posterior(record["id"])
    for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive"):
        assert dict(tree[group].sizes)["chain"] == 8
        assert dict(tree[group].sizes)["draw"] == 30
    assert record["metrics"]["rhat_max"] is not None


def test_particles_are_followed():
    """(C, n P) to (C P, n)."""
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # chain, draw, particle
    followed = as_chains(values.reshape(2, 12), 4)
    np.testing.assert_array_equal(followed[5], values[1, :, 1])
    np.testing.assert_array_equal(as_chains(values, 1), values)


@pytest.mark.parametrize(
    ("factory", "options", "schedule", "message"),
    [
        (chees_module.chees, CHEES | {"num_particles": 1}, {}, "num_particles=1 must be at least 2"),
        (chees_module.chees, CHEES, {"num_warmup": 0}, "schedule.num_warmup=0 must be at least 1"),
        (chees_module.chees, CHEES, {"batch_size": 2}, "batch_size=2 does not fit chees"),
        (smc_module.smc, SMC | {"target_ess": 1.0}, {}, "target_ess=1.0 must lie strictly between"),
        (smc_module.smc, SMC | {"target_ess": 0.9991}, {}, "target_ess=0.9991 must be at most 0.999"),
        (smc_module.smc, SMC, {"batch_size": 2}, "batch_size=2 does not fit smc"),
    ],
)
def test_bad_settings_are_refused(factory, options, schedule, message):
    problem = gaussian(2, 1)
    target = make_target(regression, jnp.asarray(problem.x), jnp.asarray(problem.y), 1.0)
    with pytest.raises(ConfigError, match=message):
        factory(target, Schedule(1, 100, 10, 1)._replace(**schedule), **options)
