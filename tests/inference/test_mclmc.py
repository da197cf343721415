"""MCLMC: its step written out, its refreshment and its tuner; unadjusted, its bias falls with the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.diagnostics import effective_sample_size
from blackjax.mcmc import mclmc as blackjax_mclmc
from blackjax.mcmc.integrators import IntegratorState
from known_posteriors import (
    Verdict,
    gaussian,
    lanes_of,
    largest_z,
    limit,
    program,
    regression,
    rows,
    sample,
    stage,
)
from laws import ALONE, Law, Mutant, PresetLaws, Run, schedule
from mutation import mutate
from presets import first_of

from bdlbench.inference import mclmc as mclmc_module
from bdlbench.model.target import make_target
from bdlbench.types import ConfigError, Data, Schedule

LANES = 64


TUNER = {
    "initial_step_size": 0.1,
    "energy_variance_start": 5e-4,
    "energy_variance_end": 5e-4,
    "frac_tune1": 0.3,
    "frac_tune2": 0.4,
    "l_factor": 0.4,
    "trust_in_estimate": 1.5,
    "num_effective_samples": 150.0,
    "diagonal_preconditioning": False,
}


def target_of(problem, dtype=jnp.float32):
    x, y = jnp.asarray(problem.x, dtype), jnp.asarray(problem.y, dtype)
    return make_target(regression, x, y, 1.0), Data(x, y, len(problem.y))


# ---- MCLMC


def written_out(theta, u, grad_of, eps, dim):
    """McLachlan's splitting of METHODS' equations: b, 1/2, 1 - 2 b, 1/2, b; and the change of kinetic energy."""
    b, kinetic = 0.1931833275037836, 0.0
    for kick, drift in ((b, 0.5), (1 - 2 * b, 0.5), (b, 0.0)):
        g = grad_of(theta)
        size = np.linalg.norm(g)
        e, z = g / size, np.exp(-eps * kick * size / (dim - 1))
        kinetic += (dim - 1) * (-np.log(z) + np.log((1 + e @ u + (1 - e @ u) * z**2) / 2))
        u = e * (1 - z) * (1 + z + (e @ u) * (1 - z)) + 2 * z * u
        u = u / np.linalg.norm(u)
        theta = theta + eps * drift * u
    return theta, u, kinetic


def state_of(target, data, theta, u, eps, L=jnp.inf):
    chain = IntegratorState(theta, u, *target.value_and_grad(theta, data))
    return mclmc_module.State(chain, jnp.asarray(eps), jnp.asarray(L), jnp.ones_like(theta))


def step_errors(factory=mclmc_module.mclmc):
    """Largest deviations of a step without refreshment (L infinite) from the equations, and of its energy error.

    That is (D - 1) sum over kicks of delta + log((1 + e.u + (1 - e.u) z^2) / 2), z = exp(-delta), less the change of the
    log density.
    """
    problem = gaussian(5, 20)
    target, data = target_of(problem, jnp.float64)
    method = factory(target, Schedule(1, 100, 1, 1), **TUNER)
    u = jax.random.normal(jax.random.key(1), (5,))
    state = state_of(target, data, jnp.ones(5), u / jnp.linalg.norm(u), 0.3)
    moved, info = jax.jit(method.step)(jax.random.key(0), jnp.int32(0), state, data)
    gradient = jax.jit(lambda theta: target.value_and_grad(theta, data)[1])
    grad = lambda theta: np.asarray(gradient(jnp.asarray(theta)))
    theta, u, kinetic = written_out(np.ones(5), np.asarray(state.chain.momentum), grad, 0.3, 5)
    energy = kinetic - float(target.log_density(jnp.asarray(theta), data)) + float(state.chain.logdensity)
    return (
        max(np.abs(moved.chain.position - theta).max(), np.abs(moved.chain.momentum - u).max()),
        abs(float(info["energy_change"]) - energy),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_step_is_the_written_one_and_blackjaxs():
    """The equations written out, in double precision, and ``blackjax.mclmc``'s kernel."""
    path, energy = step_errors()
    assert path < 1e-10, path
    assert energy < 1e-9, energy
    problem = gaussian(5, 20)
    target, data = target_of(problem, jnp.float64)
    method = mclmc_module.mclmc(target, Schedule(1, 100, 1, 1), **TUNER)
    u = jax.random.normal(jax.random.key(1), (5,))
    state = state_of(target, data, jnp.ones(5), u / jnp.linalg.norm(u), 0.3)
    moved, info = jax.jit(method.step)(jax.random.key(0), jnp.int32(0), state, data)
    kernel = blackjax_mclmc.build_kernel()
    density = lambda theta: target.log_density(theta, data)
    their_step = jax.jit(lambda chain: kernel(jax.random.key(0), chain, density, jnp.ones(5), jnp.inf, 0.3))
    theirs, their_info = their_step(state.chain)
    np.testing.assert_allclose(moved.chain.position, theirs.position, rtol=1e-12)
    np.testing.assert_allclose(info["energy_change"], their_info.energy_change, rtol=1e-9)
    assert float(info["num_grads"]) == 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("old", "new", "which"),
    first_of(
        [
            ('").isokinetic_mclachlan', '").isokinetic_velocity_verlet', 0),  # other coefficients of the splitting
            ("kinetic_change - moved.logdensity", "0 * kinetic_change - moved.logdensity", 1),
            ("- moved.logdensity + chain.logdensity", "- moved.logdensity", 1),
        ]
    ),
)
def test_mutants_of_a_step_are_noticed(old, new, which):
    assert step_errors(mutate("bdlbench.inference.mclmc", old, new).mclmc)[which] > 1e-4


def refreshment_z(factory=mclmc_module.mclmc):
    """z of the mean of u.u'' over 20,000 refreshments against nu = sqrt((exp(2 eps / L) - 1) / D), where no force acts.

    Given xi, whose part along u is x ~ N(0, 1) and whose other parts have squared length s ~ chi2(D - 1), the cosine is
    (1 + nu x) / sqrt((1 + nu x)^2 + nu^2 s), whose mean 2 million draws of NumPy's give.
    """
    dim, eps, L = 5, 0.5, 1.0
    target, data = target_of(gaussian(dim, 1))
    flat = target._replace(terms=lambda theta, data: jax.tree.map(lambda a: 0 * a, target.terms(theta, data)))
    method = factory(flat, Schedule(1, 100, 1, 1), **TUNER)
    u = jnp.zeros(dim).at[0].set(1.0)
    state = state_of(flat, data, jnp.ones(dim), u, jnp.float32(eps), jnp.float32(L))
    cosine = lambda key: method.step(key, jnp.int32(0), state, data)[0].chain.momentum[0]
    found = np.asarray(jax.jit(jax.vmap(cosine))(jax.random.split(jax.random.key(4), 20_000)), np.float64)
    rng = np.random.default_rng(0)
    nu = np.sqrt(np.expm1(2 * eps / L) / dim)
    along, across = 1 + nu * rng.standard_normal(2_000_000), nu**2 * rng.chisquare(dim - 1, 2_000_000)
    wanted = along / np.sqrt(along**2 + across)
    error = np.hypot(found.std(ddof=1) / np.sqrt(found.size), wanted.std(ddof=1) / np.sqrt(wanted.size))
    return abs(found.mean() - wanted.mean()) / error, limit(1, found.size - 1)


def test_refreshment_forgets_the_momentum_at_the_rate_asked_for():
    """The momentum's direction after one refreshment, within the two-sided family-wise limit."""
    z, most = refreshment_z()
    assert z <= most


@pytest.mark.parametrize(
    ("old", "new"),
    first_of(
        [
            ("jnp.expm1(2 * state.step_size", "jnp.expm1(state.step_size"),
            ("/ state.decoherence) / noise.size)", "/ state.decoherence))"),
            ("moved.momentum + nu * noise", "moved.momentum"),
        ]
    ),
)
def test_mutants_of_the_refreshment_are_noticed(old, new):
    z, most = refreshment_z(mutate("bdlbench.inference.mclmc", old, new).mclmc)
    assert z > most


def decoherence_error(factory=mclmc_module.mclmc):
    """Relative error of L after warm-up against 0.4 eps times the mean autocorrelation time in steps.

    1,000 kept positions, autoregressive, six steps apart; the times are from BlackJAX's ESS of one parameter at a time.
    """
    dim = 4
    target, data = target_of(gaussian(dim, 1))
    method = factory(target, Schedule(1, 60_000, 1, 1), **TUNER | {"frac_tune1": 0.5, "frac_tune2": 0.4})
    tuning = method.init(jax.random.key(0), jnp.ones(dim), data)
    rng, rows = np.random.default_rng(0), len(tuning.kept) - 1
    assert rows == 1000
    kept = np.zeros((rows + 1, dim))
    for t in range(1, rows):
        kept[t] = np.array([0.3, 0.5, 0.7, 0.9]) * kept[t - 1] + rng.standard_normal(dim)
    kept[rows] = 1e6  # nobody's row
    finalized, _ = jax.jit(method.finalize)(
        jax.random.key(0), tuning._replace(kept=jnp.asarray(kept, jnp.float32)), data
    )
    ess = np.array([float(effective_sample_size(jnp.asarray(kept[None, :rows, i, None]))) for i in range(dim)])
    wanted = 0.4 * TUNER["initial_step_size"] * np.mean(60_000 * 0.1 / ess)
    return abs(float(finalized.decoherence) / wanted - 1)


@pytest.mark.slow
def test_decoherence_length_is_the_autocorrelation_time():
    """To single precision of sums over 1,000 positions."""
    assert decoherence_error() < 1e-3


@pytest.mark.parametrize(
    ("old", "new"),
    first_of(
        [
            ("L = l_factor * state.step_size *", "L = state.step_size *"),
            ("phases.num_kept * phases.stride / ess", "phases.num_kept / ess"),
            ("tuning.kept[None, : phases.num_kept]", "tuning.kept[None]"),
        ]
    ),
)
def test_mutants_of_the_decoherence_length_are_noticed(old, new):
    assert decoherence_error(mutate("bdlbench.inference.mclmc", old, new).mclmc) > 0.01


def energy_slope():
    """Slope in eps of the energy error over a fixed time."""
    run, theta, u = shots()
    counts = np.array([16, 32, 64, 128])
    errors = [np.sqrt((run(theta, u, 1.6 / n, n)[1] ** 2).mean()) for n in counts]
    return np.polyfit(np.log(1 / counts), np.log(errors), 1)[0]


def shots():
    """``num_steps`` of 20 chains at a step size, without refreshment, and where they start."""
    target, data = target_of(gaussian(6, 10), jnp.float64)
    method = mclmc_module.mclmc(target, Schedule(1, 100, 1, 1), **TUNER)

    def run(theta, u, eps, num_steps):
        state = state_of(target, data, theta, u / jnp.linalg.norm(u), eps)

        def body(i, carry):
            state, total = carry
            state, info = method.step(jax.random.key(0), i, state, data)
            return state, total + info["energy_change"]

        return jax.lax.fori_loop(0, num_steps, body, (state, 0.0))

    return jax.jit(jax.vmap(run, (0, 0, None, None))), *jax.random.normal(jax.random.key(3), (2, 20, 6))


@pytest.mark.usefixtures("x64")
def test_mclmc_is_reversible_and_of_second_order():
    """100 steps and back to 1e-10; the energy error over a fixed time has slope 2 +- 0.1 in eps."""
    run, theta, u = shots()
    there = run(theta, u, 0.05, 100)[0].chain
    assert float(jnp.abs(there.position - theta).max()) > 0.1
    back = run(there.position, -there.momentum, 0.05, 100)[0].chain
    np.testing.assert_allclose(back.position, theta, atol=1e-10)
    slope = energy_slope()
    assert abs(slope - 2) <= 0.1, slope


@pytest.mark.slow
@pytest.mark.parametrize("preconditioned", [False, True])
def test_mclmc_extrapolates_to_a_gaussian_and_is_tuned_as_asked(preconditioned):
    """Unadjusted, so not exact: second moments at two steps, eps and about eps / 2, extrapolated to none.

    The bias goes as eps^2, and the energy error's variance as eps^6: wanting 1/64 of it halves the step, up to the
    tuner's noise, so that each lane extrapolates with the steps that it found, (S_2 eps_1^2 - S_1 eps_2^2) / (eps_1^2 -
    eps_2^2). What is left is of fourth order, the square of a bias of a few per cent, below the standard error of 64
    lanes; z-scores of the 55 moments over the lanes are held to the family-wise limit. The energy error's variance is
    as asked within a factor of 2, which is 12 % in the step size.
    """
    problem = gaussian(10, 20)
    whiten = np.linalg.inv(np.linalg.cholesky(problem.cov))
    seconds, steps = [], []
    for wanted in (5e-4, 5e-4 / 64):
        options = TUNER | {"diagonal_preconditioning": preconditioned}
        options |= {"energy_variance_start": wanted, "energy_variance_end": wanted}
        here = stage("mclmc", mclmc_module.mclmc, Schedule(1, 2000, 200, 20), **options)
        drawn = sample(program((here,)), rows(problem), lanes_of(LANES))
        white = (drawn.draws - problem.mean) @ whiten.T
        seconds.append(np.einsum("lni,lnj->lij", white, white)[:, *np.triu_indices(10)] / white.shape[1])
        steps.append(drawn.stat("step_size")[:, -1:].astype(np.float64) ** 2)
        achieved = (drawn.stat("energy_change").astype(np.float64) ** 2).mean() / 10
        assert wanted / 2 < achieved < wanted * 2, achieved
        assert not any(b.num_diverging.any() for b in drawn.blocks)
    (large, small), (s_large, s_small) = seconds, steps
    extrapolated = (small * s_large - large * s_small) / (s_large - s_small)
    z, most = largest_z(extrapolated, np.eye(10)[np.triu_indices(10)])
    assert z <= most, z


def stationary_bias(eps, num_steps, factory=mclmc_module.mclmc):
    """Relative bias of |theta|^2 on N(0, I), D = 10, and its standard error, at a fixed step and L = sqrt(D)."""
    dim = 10
    x = jnp.eye(dim) * np.sqrt(1 - 1 / 9)
    data = Data(x, jnp.zeros(dim), dim)
    target = make_target(regression, data.x, data.y, 1.0)
    method = factory(target, Schedule(1, 100, 1, 1), **TUNER)

    def chain(key):
        theta, u = jax.random.normal(key, (2, dim))
        state = state_of(target, data, theta, u / jnp.linalg.norm(u), jnp.float32(eps), np.sqrt(dim))

        def body(i, carry):
            state, total = carry
            state, _ = method.step(jax.random.fold_in(key, i), i, state, data)
            return state, total + (state.chain.position**2).mean()

        return jax.lax.fori_loop(0, num_steps, body, (state, jnp.float32(0)))[1] / num_steps

    means = np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 256)), np.float64) - 1
    return means.mean(), means.std(ddof=1) / np.sqrt(256)


@pytest.mark.slow
def test_mclmcs_bias_shrinks_with_the_step():
    """Law 3: at least of second order. Halving a large step leaves under a third of the bias; a fine one has none."""
    (coarse, error), (half, half_error) = stationary_bias(3.0, 2000), stationary_bias(1.5, 2000)
    assert abs(coarse) > 20 * error, (coarse, error)
    assert abs(half) < abs(coarse) / 3 + 5 * half_error, (coarse, half)
    fine, fine_error = stationary_bias(0.75, 2000)
    assert abs(fine) < abs(coarse) / 9 + 5 * fine_error, (coarse, fine)


# ---- law 7: a non-finite step


def test_a_non_finite_step_goes_back_and_shortens():
    """The chain stays where it was, turns, counts a divergence, and takes at most 0.8 of the step from then on."""
    target, data = target_of(gaussian(4, 10))
    method = mclmc_module.mclmc(target, Schedule(1, 100, 1, 1), **TUNER)
    tuning = method.init(jax.random.key(0), jnp.ones(4), data)
    broken = tuning._replace(state=tuning.state._replace(step_size=jnp.float32(jnp.inf)))
    moved, info = jax.jit(method.warm)(jax.random.key(1), jnp.int32(0), broken, data)
    assert bool(info["diverging"])
    np.testing.assert_array_equal(moved.state.chain.position, jnp.ones(4))
    np.testing.assert_allclose(jnp.linalg.norm(moved.state.chain.momentum), 1, rtol=1e-6)
    lost = lambda theta, terms: jax.tree.map(lambda a: jnp.where(theta[0] > 1.0, jnp.nan, a), terms)
    wild = target._replace(terms=lambda theta, data: lost(theta, target.terms(theta, data)))
    method = mclmc_module.mclmc(wild, Schedule(1, 100, 1, 1), **TUNER)
    tuning = method.init(jax.random.key(0), jnp.zeros(4).at[0].set(1.0), data)
    chain = tuning.state.chain._replace(momentum=jnp.array([1.0, 0.0, 0.0, 0.0]))
    beside = tuning._replace(state=tuning.state._replace(chain=chain))
    moved, info = jax.jit(method.warm)(jax.random.key(1), jnp.int32(0), beside, data)
    assert bool(info["diverging"]) and np.isfinite(info["log_density"])
    assert float(moved.state.step_size) <= 0.8 * 0.1 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("dim", "options", "schedule", "message"),
    [
        (2, {"frac_tune1": 0.7}, {}, "are more than the whole warm-up"),
        (2, {}, {"batch_size": 2}, "batch_size=2 does not fit mclmc"),
        (1, {}, {}, "at least 2 parameters"),  # a sphere of no dimension has nowhere to go
    ],
)
def test_bad_settings_are_refused(dim, options, schedule, message):
    target, _ = target_of(gaussian(dim, 1))
    with pytest.raises(ConfigError, match=message):
        mclmc_module.mclmc(target, Schedule(1, 100, 10, 1)._replace(**schedule), **TUNER | options)


# ---- the presets of this family


def centred(run: Run) -> Verdict:
    """First moments alone: on a Gaussian the dynamics do not change under theta -> 2 mean - theta, at any step."""
    draws = run.drawn.draws.astype(np.float64) - run.problem.mean
    white = draws @ np.linalg.cholesky(run.problem.precision)
    z, most = largest_z(white.mean(1), np.zeros(white.shape[-1]))
    return Verdict(z, most, float((white.mean(1).std(0, ddof=1) / len(white) ** 0.5).max()))


SYMMETRIC = Law(
    "symmetric about the mean at any step; its bias in spread falls with the step, which has a test of its own",
    "test_mclmc_is_reversible_and_of_second_order",
    64,
    (schedule(1500, 400, 10), *ALONE),
    centred,
)


class TestLaws(PresetLaws):
    """MCLMC, alone and after an ensemble, has the posterior's mean at any step."""

    laws = {"mclmc": SYMMETRIC, "mile": SYMMETRIC}
    mutants = {"mclmc": Mutant("moved.momentum + nu * noise", "moved.momentum + nu * (noise + 0.3)")}
    small = {"mile": ("before.0.validate_every=2",)}
