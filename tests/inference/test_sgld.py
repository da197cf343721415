"""Law 3: SGLD against the law of its own recursion, not against the target's with a wide tolerance; law 5 on it.

For theta' = theta + eps g + sqrt(2 eps) xi, precision A and gradient noise of variance V, a stationary chain has
Var = (2 eps + eps^2 V) / (2 eps A - eps^2 A^2), that is (1/A) (1 + eps V / 2) / (1 - eps A / 2).
"""

import jax
import jax.numpy as jnp
import linear_recursions as recursions
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.linalg
import scipy.stats
from blackjax.sgmcmc import sgld as blackjax_sgld
from jax import random
from known_posteriors import (
    PRIOR_SCALE,
    Gaussian,
    Verdict,
    gaussian,
    lanes_of,
    largest_z,
    moments,
    number,
    program,
    regression,
    rows,
    sample,
    silence,
    stage,
    target_of,
)
from laws import ALONE, Law, Mutant, PresetLaws, Run, mode, of_its_own, schedule
from linear_recursions import control_variates, law
from mutation import mutate
from presets import mostly
from recursion_laws import CYCLES, constant, cosine, cycle, from_prior, of_recursion
from small_networks import network_target
from trajectories import NUM_STEPS, STEPS_AS_BLACKJAX, assert_same_path, small_problem, trajectory

from bdlbench.inference import sgld as langevin
from bdlbench.inference.sgld import State, sgld
from bdlbench.sampling import programs
from bdlbench.types import ConfigError, Data, Method, Schedule, Stage, Target

LANES = 64


LOCATION_SCALE = 0.3


PLAIN = {"decay": 0.0, "decay_steps": 1.0}


def sgld_stage(schedule, factory=sgld, **options):
    return stage("sgld", factory, schedule, **{"step_size": number("step_size"), **PLAIN, **options})


# ---- the checks, as functions of the factory so that mutants can be put through them


def check_full_batch(factory=sgld, seed=0):
    """Full data, D = 5, condition 20: Sigma = F Sigma F' + 2 eps I with F = I - eps A, diagonal in A's eigenvectors."""
    problem, eps = gaussian(5, 20), 0.02
    values, vectors = np.linalg.eigh(problem.precision)
    law = vectors @ np.diag(1 / (values * (1 - eps * values / 2))) @ vectors.T
    schedule = Schedule(1, 1000, 500, 50)
    drawn = sample(program((sgld_stage(schedule, factory),)), rows(problem), lanes_of(LANES, seed, step_size=eps))
    return moments(drawn.draws, problem.mean, law)


def location(x, y=None):
    """y ~ N(theta, 1): the gradient's noise on a batch is the same at every theta."""
    theta = numpyro.sample("theta", dist.Normal(0.0, LOCATION_SCALE))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(theta + 0.0 * x[:, 0], 1.0), obs=y)


def location_rows(num_rows=24):
    """Rows of :func:`location`: y of variance 4, posterior precision A and mean, variance of y."""
    y = 1.0 + 2.0 * np.random.default_rng(8).standard_normal(num_rows)
    y = y.astype(np.float32)
    exact = y.astype(np.float64)
    precision = num_rows + LOCATION_SCALE**-2
    problem = Gaussian(
        np.ones((num_rows, 1), np.float32), y, np.array([exact.sum() / precision]), np.array([[precision]])
    )
    return problem, exact.var()


def check_location(batching, factory=sgld, seed=0):
    """Gradient noise alone: iid batches at every step, permuted ones at the ends of epochs.

    On B rows drawn with replacement V = N^2 var(y) / B; within an epoch V has the factor
    (N - B) / (N - 1) and two batches of an epoch have the correlation -1 / (n_b - 1).
    """
    problem, spread = location_rows()
    n, b, eps = len(problem.y), 4, 0.015
    a_, v = problem.precision[0, 0], n**2 * spread / b
    if batching == "iid":
        law = (1 / a_) * (1 + eps * v / 2) / (1 - eps * a_ / 2)
        schedule = Schedule(1, 500, 400, 10, b, "iid")
    else:
        v *= (n - b) / (n - 1)
        per_epoch, a = n // b, 1 - eps * a_
        s1, s2 = (a ** np.arange(per_epoch)).sum(), (a ** (2 * np.arange(per_epoch))).sum()
        noise = eps**2 * v * (s2 - (s1**2 - s2) / (per_epoch - 1))
        law = (2 * eps * s2 + noise) / (1 - a ** (2 * per_epoch))
        # Draws fall on the ends of epochs: warm-up and thinning are whole ones.
        schedule = Schedule(1, 100 * per_epoch, 400, 2 * per_epoch, b, "epoch")
    lane = lanes_of(LANES, seed, step_size=eps)
    drawn = sample(program((sgld_stage(schedule, factory),), location), rows(problem), lane)
    return moments(drawn.draws, problem.mean, np.array([[law]]))


def check_regression(factory=sgld, seed=0):
    """y = theta x on iid batches: the batch's slope A_b varies, and eps^2 Var(A_b) leaves the denominator.

    delta' = (1 - eps A_b) delta + eps g_b + sqrt(2 eps) xi with delta = theta - mean and E g_b = 0, so
    Var = (2 eps + eps^2 Var g_b) / (2 eps A - eps^2 A^2 - eps^2 Var A_b); both variances are N^2 / B those of a row.
    """
    rng = np.random.default_rng(9)
    x = rng.standard_normal((20, 1)).astype(np.float32)
    y = (x[:, 0] + rng.standard_normal(20)).astype(np.float32)
    n, b, eps = 20, 2, 0.015
    x64, y64 = x[:, 0].astype(np.float64), y.astype(np.float64)
    precision = x64 @ x64 + PRIOR_SCALE**-2
    mean = x64 @ y64 / precision
    v, slopes = ((n**2 / b) * a.var() for a in (x64 * (y64 - x64 * mean), x64**2))
    law = (2 * eps + eps**2 * v) / (2 * eps * precision - eps**2 * precision**2 - eps**2 * slopes)
    problem = Gaussian(x, y, np.array([mean]), np.array([[precision]]))
    schedule = Schedule(1, 500, 600, 15, b, "iid")
    lane = lanes_of(LANES, seed, step_size=eps)
    drawn = sample(program((sgld_stage(schedule, factory),), regression), rows(problem), lane)
    return moments(drawn.draws, problem.mean, np.array([[law]]))


def check_decay(factory=sgld):
    """Falling steps from the prior: Var_t = (1 - eps_t A)^2 Var_(t-1) + 2 eps_t, never stationary, exact at each t.

    With M draws along the path, sums of theta_t^2 / Var_t over a lane have mean M.
    """
    problem, _ = location_rows()
    precision, prior = problem.precision[0, 0], LOCATION_SCALE**2
    options = {"decay": 0.6, "decay_steps": 20.0}
    schedule = Schedule(1, 0, 400, 1)
    lane = lanes_of(1024, step_size=0.02)
    drawn = sample(program((sgld_stage(schedule, factory, **options),), location), rows(problem), lane).draws[..., 0]
    offset, variance, expected, variances = -problem.mean[0], prior, [], []
    for t in range(400):
        eps = 0.02 * (1 + t / 20.0) ** -0.6
        offset, variance = (1 - eps * precision) * offset, (1 - eps * precision) ** 2 * variance + 2 * eps
        expected.append(problem.mean[0] + offset)
        variances.append(variance)
    white = (drawn - np.array(expected)) / np.sqrt(variances)
    z, most = largest_z(np.stack([white.mean(1), (white**2).mean(1)], 1), np.array([0.0, 1.0]))
    return Verdict(z, most, float(white.mean(1).std() / 32))


def check_tempered(factory=sgld, seed=0):
    """T = 2 halves the precision, mean unchanged: eps A / T in place of eps A."""
    problem, eps, temperature = gaussian(3, 5), 0.1, 2.0
    values, vectors = np.linalg.eigh(problem.precision / temperature)
    law = vectors @ np.diag(1 / (values * (1 - eps * values / 2))) @ vectors.T
    lane = lanes_of(LANES, seed, step_size=eps, temperature=temperature)
    drawn = sample(program((sgld_stage(Schedule(1, 500, 400, 20), factory),)), rows(problem), lane)
    return moments(drawn.draws, problem.mean, law)


CHECKS = {
    "full batch": check_full_batch,
    "iid batches": lambda factory=sgld: check_location("iid", factory),
    "epochs": lambda factory=sgld: check_location("epoch", factory),
    "regression": check_regression,
    "decay": check_decay,
    "tempered": check_tempered,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(CHECKS, "full batch", "epochs", "decay"))
def test_sgld_obeys_its_own_law(name):
    """Each is passed once in 10^6 runs too few; the draws are enough to tell a bias of some hundredths."""
    verdict = CHECKS[name]()
    assert verdict.passes, verdict


def test_the_bias_of_a_large_step_is_seen():
    """The law of the target itself is refused where the discretised one is kept: the test has power."""
    problem, eps = gaussian(5, 20), 0.02
    drawn = sample(program((sgld_stage(Schedule(1, 1000, 400, 25)),)), rows(problem), lanes_of(LANES, step_size=eps))
    assert not moments(drawn.draws, problem.mean, problem.cov).passes


# ---- law 5


MUTANTS = {
    "loses sqrt 2": ("jnp.sqrt(2 * eps)", "jnp.sqrt(eps)", "full batch"),
    "doubles the drift": ("eps * grad +", "2 * eps * grad +", "full batch"),
    "halves the drift (Welling & Teh's eps)": ("eps * grad +", "0.5 * eps * grad +", "full batch"),
    "never decays": ("** -decay", "** (0 * decay)", "decay"),
    "reuses one key": ("_apart(grad, key)", "_apart(grad, jax.random.key(0))", "full batch"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(MUTANTS, "loses sqrt 2", "never decays"))
def test_a_mutant_sampler_is_caught(name):
    """A wrong step fails the check that a right one passes."""
    old, new, check = MUTANTS[name]
    verdict = CHECKS[check](mutate("bdlbench.inference.sgld", old, new, within="sgld").sgld)
    assert not verdict.passes, verdict


TARGET_MUTANTS = {
    "drops N / B": ("data.total(terms.log_lik)", "terms.log_lik.sum()", "iid batches"),
    "scales the prior as well": (
        "(terms.log_prior_with_factor + data.total(terms.log_lik))",
        "(data.size / len(terms.log_lik) * terms.log_prior_with_factor + data.total(terms.log_lik))",
        "iid batches",
    ),
    "tempers twice": ("/ self.temperature +", "/ self.temperature / self.temperature +", "tempered"),
    "forgets the temperature": ("/ self.temperature +", "+", "tempered"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(TARGET_MUTANTS, "drops N / B", "tempers twice"))
def test_a_mutant_target_is_caught(name, monkeypatch):
    """A log density that is scaled or tempered wrongly fails too."""
    old, new, check = TARGET_MUTANTS[name]
    monkeypatch.setattr(Target, "log_density", mutate("bdlbench.types", old, new).Target.log_density)
    verdict = CHECKS[check]()
    assert not verdict.passes, verdict


@pytest.mark.slow
def test_reusing_a_step_key_is_caught(monkeypatch):
    """The loop's keys: one key for all steps makes the noise a constant."""
    mutant = mutate("bdlbench.sampling.programs", "random.fold_in(step_key, t)", "random.fold_in(step_key, 0)")
    monkeypatch.setattr(programs.StagePrograms, "_block", mutant.StagePrograms._block)
    assert not check_full_batch().passes


def test_reusing_one_order_of_rows_is_caught(monkeypatch):
    """Epochs that all come in the same order are not the law of reshuffled ones."""
    mutant = mutate("bdlbench.sampling.batches", "rows = permute(jax.random.fold_in(key, epoch)", "rows = permute(key")
    monkeypatch.setattr(programs.batches, "rows_of_step", mutant.rows_of_step)
    assert not check_location("epoch").passes


STEPS = Schedule(1, 0, 1, 1)


# ---- law 1: what holds exactly


@pytest.fixture
def problem():
    return gaussian(4, 10, copies=3)


@pytest.mark.usefixtures("x64")
def test_psgld_without_noise_is_rmsprop(problem, monkeypatch):
    """V of the mean gradient, optax's scale_by_rms once the first 100 steps are over; frozen while sampling."""
    target, data = target_of(problem)
    method = langevin.psgld(target, Schedule(1, 5, 1, 1), step_size=1e-3, averaging=0.99, damping=1e-5)
    state = langevin.PreconditionedState(jnp.ones(4), jnp.array([0.1, 0.2, 0.3, 0.4]))
    silence(monkeypatch)
    moved, _ = method.warm(jax.random.key(0), jnp.int32(500), state, data)
    rms = optax.scale_by_rms(decay=0.99, eps=1e-5, eps_in_sqrt=False)
    memory = rms.init(state.theta)._replace(nu=state.second_moment)
    mean_grad = target.value_and_grad(state.theta, data)[1] / data.size
    update, memory = rms.update(mean_grad, memory)
    # The weight 1 - a is a single-precision number.
    np.testing.assert_allclose(moved.second_moment, memory.nu, rtol=1e-7)
    np.testing.assert_allclose(moved.theta, state.theta + 1e-3 * data.size * update, rtol=1e-7)
    kept, _ = method.step(jax.random.key(0), jnp.int32(501), moved, data)
    np.testing.assert_array_equal(kept.second_moment, moved.second_moment)
    first, _ = method.warm(jax.random.key(0), jnp.int32(0), state, data)
    np.testing.assert_allclose(first.second_moment, mean_grad**2, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_control_variates_are_exact_at_the_anchor(problem, monkeypatch):
    """At the anchor any batch gives the full gradient; the anchor's price is charged once."""
    target, data = target_of(problem)
    batch = Data(data.x[:3], data.y[:3], data.size)
    method = langevin.sgld_cv(target, STEPS, step_size=1e-3)
    state = method.init(jax.random.key(0), jnp.ones(4), data)
    silence(monkeypatch)
    moved, info = method.step(jax.random.key(0), jnp.int32(0), state, batch)
    np.testing.assert_allclose(moved.theta, 1 + 1e-3 * target.value_and_grad(state.theta, data)[1], rtol=1e-12)
    assert float(info["num_grads"]) == 2 + data.size / 3
    assert float(method.step(jax.random.key(0), jnp.int32(1), moved, batch)[1]["num_grads"]) == 2


# ---- law 3: linear recursions

MINI = Schedule(1, 500, 500, 20, 4, "iid")


def linear_problem():
    return gaussian(2, 4, copies=6)


def fixed(theta):
    """A stage that ends at theta whatever it starts from."""
    there = jnp.asarray(theta, jnp.float32)
    method = Method(
        init=lambda key, theta, data: there,
        step=lambda key, t, state, data: (state, {"num_grads": jnp.float32(0)}),
        draw=lambda key, state: state,
    )
    return Stage("fixed", lambda target, schedule, numbers: method, Schedule(1, 0, 0, 0))


def check_control_variates(factory=langevin.sgld_cv, eps=0.02):
    """Noise that grows with the distance from an anchor two standard deviations off the mean; A is up to 4."""
    problem = linear_problem()
    anchor = (problem.mean + 2 * np.sqrt(np.diag(problem.cov))).astype(np.float32).astype(np.float64)
    loc, cov = law(problem, *control_variates(problem, eps, anchor), MINI.batch_size)
    here = stage("sgld_cv", factory, MINI._replace(thinning=50), step_size=number("eps"))
    drawn = sample(program((fixed(anchor), here)), rows(problem), lanes_of(LANES, eps=eps))
    return moments(drawn.draws, loc, cov)


@pytest.mark.slow
def test_control_variates_have_the_law_of_their_recursion():
    verdict = check_control_variates()
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


def scan(method, state, data, num_steps, seed=0, phase="step"):
    """States after each step of C chains side by side, driven without the loop."""
    step = getattr(method, phase)

    @jax.jit
    def go(state):
        def body(state, t):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), t), LANES)
            return jax.vmap(lambda key, s: step(key, t, s, data)[0])(keys, state), None

        return jax.lax.scan(lambda s, t: (body(s, t)[0],) * 2, state, jnp.arange(num_steps))[1]

    return go(state)


def check_frozen_preconditioner(factory=langevin.psgld, eps=0.05):
    """Given V, Sigma = F Sigma F' + Q with F = I - eps G A and Q = 2 eps G."""
    problem = gaussian(3, 5)
    target, data = target_of(problem)
    second_moment = jnp.array([0.2, 0.7, 2.0])
    scale = np.diag(1 / (0.01 + np.sqrt(np.asarray(second_moment, np.float64))))
    cov = scipy.linalg.solve_discrete_lyapunov(np.eye(3) - eps * scale @ problem.precision, 2 * eps * scale)
    method = factory(target, Schedule(1, 1, 1, 1), step_size=eps, averaging=0.99, damping=0.01)
    begin = type(method.init(jax.random.key(0), jnp.zeros(3), data))(
        jnp.zeros((LANES, 3)), jnp.tile(second_moment, (LANES, 1))
    )
    draws = np.asarray(scan(method, begin, data, 15_000).theta)[500:]
    return moments(np.swapaxes(draws, 0, 1), problem.mean, cov)


def test_psgld_frozen_has_the_law_of_its_recursion():
    verdict = check_frozen_preconditioner()
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


@pytest.mark.slow
def test_mutants_of_langevin_fail():
    """SGLD-CV without the anchor's gradient, and a preconditioner that is not applied to the noise, fail."""
    forgotten = mutate("bdlbench.inference.sgld", "state.anchor_grad + grad -", "grad -")
    assert not check_control_variates(forgotten.sgld_cv).passes
    unscaled = mutate("bdlbench.inference.sgld", "jnp.sqrt(2 * eps * scale)", "jnp.sqrt(2 * eps)")
    assert not check_frozen_preconditioner(unscaled.psgld).passes


SCHEDULE = Schedule(1, 0, 1, 1)


@pytest.mark.usefixtures("x64")
def test_sgld_without_noise_is_gradient_ascent(monkeypatch):
    """theta' = theta + eps g is optax's plain step on -log density, to rounding."""
    target, data = network_target()
    theta = target.sample_prior(random.key(1))
    method = sgld(target, SCHEDULE, step_size=1e-3, decay=0.0, decay_steps=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.zeros(shape, dtype))
        moved, info = method.step(random.key(2), jnp.int32(0), State(theta), data)
    optimizer = optax.sgd(1e-3)
    value, grad = target.value_and_grad(theta, data)
    update, _ = optimizer.update(-grad, optimizer.init(theta))
    np.testing.assert_allclose(moved.theta, optax.apply_updates(theta, update), rtol=1e-12)
    assert float(info["num_grads"]) == 1
    np.testing.assert_allclose(info["log_density"], value, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_sgld_pins_the_factor_two():
    """The noise is sqrt(2 eps) xi where the drift is eps g: Welling & Teh's eps is twice this one."""
    target, data = network_target()
    theta, key, eps = target.sample_prior(random.key(1)), random.key(2), 1e-3
    method = sgld(target, SCHEDULE, step_size=eps, decay=0.0, decay_steps=1.0)
    moved, _ = method.step(key, jnp.int32(0), State(theta), data)
    noise = random.normal(key, theta.shape, theta.dtype)
    drift = eps * target.value_and_grad(theta, data)[1]
    np.testing.assert_allclose(moved.theta - theta - drift, np.sqrt(2 * eps) * noise, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_sgld_decays_as_it_says():
    """eps_t = eps_0 (1 + t / b)^-gamma, the loop's step index included."""
    target, data = network_target()
    method = sgld(target, SCHEDULE, step_size=1e-3, decay=0.55, decay_steps=10.0)
    state = State(target.sample_prior(random.key(1)))
    for t in (0, 1, 90, 10_000):
        info = method.step(random.key(2), jnp.int32(t), state, data)[1]
        np.testing.assert_allclose(info["step_size"], 1e-3 * (1 + t / 10) ** -0.55, rtol=1e-12)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("cyclical_sgld", {"num_cycles": 3}, "num_warmup=10 cannot be shared out over 3 cycles"),
        ("cyclical_sgld", {"num_cycles": 0}, "num_cycles=0 must be at least 1"),
        ("sgld_cv", {"step_size": -0.1}, "step_size=-0.1 must be a positive"),
        ("psgld", {"averaging": 1.5, "damping": 0.1}, "averaging=1.5 must lie strictly between"),
    ],
)
def test_bad_settings_are_refused(problem, factory, options, message):
    target, _ = target_of(problem)
    with pytest.raises(ConfigError, match=message):
        getattr(langevin, factory)(target, Schedule(1, 10, 10, 1), **{"step_size": 0.1, **options})


def beside_blackjaxs_sgld(factory):
    """Our SGLD and BlackJAX's SGLD."""
    target, batch = small_problem()
    method = factory(target, STEPS_AS_BLACKJAX, step_size=0.01, decay=0.0, decay_steps=1.0)
    first, ours = trajectory(method, target, batch)
    kernel = blackjax_sgld.build_kernel()

    def one(theta, t):
        grad = lambda theta, rows: target.value_and_grad(theta, rows)[1]
        theta = kernel(jax.random.fold_in(jax.random.key(3), t), theta, grad, batch(t), 0.01)
        return theta, theta

    return ours, jax.jit(lambda: jax.lax.scan(one, first.theta, jnp.arange(NUM_STEPS))[1])()


@pytest.mark.usefixtures("x64")
def test_the_trajectory_of_sgld_is_blackjaxs():
    """With the same noise and batches, 200 steps agree."""
    assert_same_path(*beside_blackjaxs_sgld(langevin.sgld))


@pytest.mark.usefixtures("x64")
def test_a_mutant_of_sgld_leaves_blackjaxs_trajectory():
    """If a factor is left out, the trajectories differ."""
    mutant = mutate(langevin.__name__, "jnp.sqrt(2 * eps) * noise", "jnp.sqrt(eps) * noise", within="sgld")
    ours, theirs = beside_blackjaxs_sgld(mutant.sgld)
    assert not np.allclose(ours, theirs, rtol=1e-6, atol=1e-6)


# ---- the presets of this family


def cyclical(run: Run, t: int) -> recursions.Recursion:
    """Gradient ascent in the first 30 steps of a cycle, Langevin's step in the others."""
    step = recursions.ascent if t % cycle(run) < 30 else recursions.langevin
    return recursions.recursion(run.problem, *step(5, 1e-3 * cosine(run, t)), run.schedule.batch_size)


class TestLaws(PresetLaws):
    """SGLD and its variants have the law of their own recursion."""

    laws = {
        "sgld": Law(
            "own recursion",
            "test_sgld_without_noise_is_gradient_ascent",
            64,
            (schedule(20, 250, 40, 8), "inference.step_size=5e-4", *ALONE),
            of_recursion(constant(lambda run: recursions.langevin(5, 5e-4)), from_prior),
        ),
        "sgld_cv": Law(
            "own recursion, from the mode",
            "test_control_variates_are_exact_at_the_anchor",
            64,
            (schedule(20, 250, 40, 8), "inference.step_size=5e-4", mode(150)),
            of_recursion(
                constant(lambda run: control_variates(run.problem, 5e-4, run.problem.mean)),
                lambda run: recursions.moments_of(run.problem.mean, np.zeros((5, 5))),
            ),
        ),
        "psgld": Law(
            "own recursion, given the frozen preconditioner",
            "test_psgld_without_noise_is_rmsprop",
            4,
            (schedule(5, 5, 1, 8), *ALONE),
            of_its_own(check_frozen_preconditioner),
        ),
        "cyclical_sgld": Law(
            "own recursion at every step of every cycle",
            "test_schedules.py::test_exploration_has_no_noise",
            1400,
            (
                schedule(30 * CYCLES, 10 * CYCLES, 1, 8),
                "inference.step_size=1e-3",
                f"inference.num_cycles={CYCLES}",
                *ALONE,
            ),
            of_recursion(cyclical, from_prior, CYCLES),
        ),
    }
    mutants = {
        "sgld": Mutant(
            "jnp.sqrt(2 * eps) * noise\n        info =",
            "jnp.sqrt(eps) * noise\n        info =",
            within="sgld",
        )
    }
    everyday = ("sgld",)
    not_zero = {"psgld": ("num_warmup",)}
