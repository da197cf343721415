"""Laws 1, 3 and 5 for stochastic-gradient MCMC: each method against the law of its own recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from known_posteriors import (
    gaussian,
    lanes_of,
    moments,
    number,
    program,
    rows,
    sample,
    silence,
    stage,
    target_of,
)
from linear_recursions import baoa, control_variates, law, sghmc
from mutation import mutate

from bdlbench.inference import sghmc as momentum
from bdlbench.inference import sgld as langevin
from bdlbench.types import ConfigError, Data, Method, Schedule, Stage

LANES = 64
STEPS = Schedule(1, 0, 1, 1)


# ---- law 1: what holds exactly


@pytest.fixture
def problem():
    return gaussian(4, 10, copies=3)


@pytest.mark.usefixtures("x64")
def test_sghmc_without_noise_is_momentum_descent(problem, monkeypatch):
    """Optax's heavy ball of rate h^2 and momentum 1 - h alpha, a step behind, since theta moves first."""
    target, data = target_of(problem)
    h, friction = 0.1, 2.0
    method = momentum.sghmc(target, STEPS, step_size=h, friction=friction)
    theta = jnp.ones(4)
    state = momentum.State(theta, h * target.value_and_grad(theta, data)[1])
    ball = optax.sgd(h**2, momentum=1 - h * friction)
    memory = ball.init(theta)
    silence(monkeypatch)
    for t in range(5):
        update, memory = ball.update(-target.value_and_grad(theta, data)[1], memory)
        theta = theta + update
        state, info = method.step(jax.random.key(0), jnp.int32(t), state, data)
        np.testing.assert_allclose(state.theta, theta, rtol=1e-12)
        np.testing.assert_allclose(info["log_density"], target.log_density(theta, data), rtol=1e-12)


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


@pytest.mark.usefixtures("x64")
def test_the_noise_is_the_written_one(problem):
    """With and without noise the steps differ by what the equations say, the thermostat by h (m.m / D - 1)."""
    target, data = target_of(problem)
    key, h, c = jax.random.key(3), 0.1, 2.0
    xi = jax.random.normal(key, (4,), jnp.float64)
    start = momentum.State(jnp.ones(4), jnp.array([1.0, -1.0, 2.0, 0.0]))
    grad = lambda theta: target.value_and_grad(theta, data)[1]
    moved, _ = momentum.sghmc(target, STEPS, step_size=h, friction=c).step(key, jnp.int32(0), start, data)
    theta = start.theta + h * start.momentum
    expected = (1 - h * c) * start.momentum + h * grad(theta) + np.sqrt(2 * c * h) * xi
    np.testing.assert_allclose(moved.momentum, expected, rtol=1e-12)
    moved, _ = momentum.baoa(target, STEPS, step_size=h, friction=c).step(key, jnp.int32(0), start, data)
    kicked = start.momentum + h * grad(start.theta)
    turned = np.exp(-h * c) * kicked + np.sqrt(1 - np.exp(-2 * h * c)) * xi
    np.testing.assert_allclose(moved.momentum, turned, rtol=1e-12)
    np.testing.assert_allclose(moved.theta, start.theta + h / 2 * (kicked + turned), rtol=1e-12)
    hot = momentum.ThermostatState(*start, jnp.asarray(3.0))
    moved, _ = momentum.sgnht(target, STEPS, step_size=h, friction=c).step(key, jnp.int32(0), hot, data)
    expected = (1 - h * 3.0) * start.momentum + h * grad(theta) + np.sqrt(2 * c * h) * xi
    np.testing.assert_allclose(moved.momentum, expected, rtol=1e-12)
    np.testing.assert_allclose(moved.thermostat, 3 + h * ((expected**2).mean() - 1), rtol=1e-12)


# ---- law 3: linear recursions

MINI = Schedule(1, 500, 500, 20, 4, "iid")
FULL = Schedule(1, 300, 500, 10)


MADE = {"sghmc": lambda dim, h, friction: sghmc(dim, h, h * friction), "baoa": baoa}


def linear_problem():
    return gaussian(2, 4, copies=6)


def check_momentum(name, schedule, factory=None, h=0.35, friction=1.0, seed=0):
    """``sghmc`` or ``baoa`` where its discretisation and the gradient's noise are large, against its own law."""
    problem = linear_problem()
    factory = factory or getattr(momentum, name)
    here = stage(name, factory, schedule, step_size=number("h"), friction=number("friction"))
    drawn = sample(program((here,)), rows(problem), lanes_of(LANES, seed, h=h, friction=friction))
    loc, cov = law(problem, *MADE[name](2, h, friction), schedule.batch_size)
    return moments(drawn.draws, loc, cov)


@pytest.mark.parametrize(("name", "h"), [("sghmc", 0.35), ("baoa", 0.7)])
def test_momentum_methods_have_the_law_of_their_recursion(name, h):
    """All moments, at steps where the discretisation leaves a law far from the posterior's."""
    verdict = check_momentum(name, FULL, h=h)
    assert verdict.passes, verdict


def test_the_laws_are_the_published_ones():
    """SGHMC: (1/A) / (1 - h^2 A / (2 (1 + mu))); explicit Euler is far off; BAOA: 1/A for every step."""
    problem = gaussian(3, 20)
    values, vectors = np.linalg.eigh(problem.precision)
    h, friction = 0.2, 0.5
    cov = law(problem, *sghmc(3, h, h * friction), None)[1]
    wanted = 1 / values / (1 - h**2 * values / (2 * (2 - h * friction)))
    np.testing.assert_allclose(cov, vectors @ np.diag(wanted) @ vectors.T, rtol=1e-9, atol=1e-12)
    for step in (0.1, 0.4):
        mean, cov = law(problem, *baoa(3, step, friction), None)
        np.testing.assert_allclose(cov, problem.cov, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mean, problem.mean, rtol=1e-9, atol=1e-12)


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


# ---- refusals


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (
            langevin.cyclical_sgld,
            {"step_size": 0.1, "num_cycles": 3},
            "num_warmup=10 cannot be shared out over 3 cycles",
        ),
        (langevin.cyclical_sgld, {"step_size": 0.1, "num_cycles": 0}, "num_cycles=0 must be at least 1"),
        (langevin.sgld_cv, {"step_size": -0.1}, "step_size=-0.1 must be a positive"),
        (
            langevin.psgld,
            {"step_size": 0.1, "averaging": 1.5, "damping": 0.1},
            "averaging=1.5 must lie strictly between",
        ),
        (momentum.sghmc, {"step_size": 0.1, "friction": 20.0}, "friction=20.0 times step_size=0.1 must be below 1"),
        (momentum.baoa, {"step_size": 0.1, "friction": 0.0}, "friction=0.0 must be a positive"),
    ],
)
def test_bad_settings_are_refused(problem, factory, options, message):
    target, _ = target_of(problem)
    with pytest.raises(ConfigError, match=message):
        factory(target, Schedule(1, 10, 10, 1), **options)


# ---- law 5: mutants

EULER = ("_gradient_and_noise(target, key, theta, data)", "_gradient_and_noise(target, key, state.theta, data)")
DRIFT = "momentum + h * grad + jnp.sqrt(2 * friction * h) * noise"
MUTANTS = {
    "gradient at the old theta": ("sghmc", *EULER),
    "sghmc loses the sqrt 2": ("sghmc", DRIFT, DRIFT.replace("2 * ", "")),
    "sghmc doubles the drift": ("sghmc", DRIFT, DRIFT.replace("h * grad", "2 * h * grad")),
    "sghmc keeps all momentum": ("sghmc", "h, 1 - h * friction)", "h, 1)"),
    "baoa kicks half": (
        "baoa",
        "momentum = state.momentum + h * grad",
        "momentum = state.momentum + h / 2 * grad",
    ),
    "baoa's noise": ("baoa", "jnp.sqrt(1 - kept**2)", "jnp.sqrt(1 - kept)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_momentum_fail(name):
    method, old, new = MUTANTS[name]
    mutant = mutate("bdlbench.inference.sghmc", old, new, within=method)
    # The explicit scheme diverges at the larger step.
    h = 0.1 if "old theta" in name else {"sghmc": 0.35, "baoa": 0.7}[method]
    assert not check_momentum(method, FULL._replace(num_samples=200), getattr(mutant, method), h=h).passes


def test_mutants_of_langevin_fail():
    """The anchor's gradient forgotten; the preconditioner not under the noise's root."""
    forgotten = mutate("bdlbench.inference.sgld", "state.anchor_grad + grad -", "grad -")
    assert not check_control_variates(forgotten.sgld_cv).passes
    unscaled = mutate("bdlbench.inference.sgld", "jnp.sqrt(2 * eps * scale)", "jnp.sqrt(2 * eps)")
    assert not check_frozen_preconditioner(unscaled.psgld).passes
