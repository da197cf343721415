"""Laws 1, 3 and 5 for stochastic-gradient MCMC: each method against the law of its own recursion."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.linalg
import scipy.special
from known_posteriors import (
    FAMILY_WISE,
    PRIOR_SCALE,
    gaussian,
    lanes_of,
    limit,
    moments,
    number,
    program,
    regression,
    rows,
    sample,
    stage,
)
from mutation import mutate

from bdlbench.inference import sghmc as momentum
from bdlbench.inference import sgld as langevin
from bdlbench.model.target import make_target
from bdlbench.types import ConfigError, Data, Method, Schedule, Stage

LANES = 64
STEPS = Schedule(1, 0, 1, 1)


def target_of(problem, model=regression):
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    return make_target(model, x, y, 1.0), Data(x, y, len(problem.y))


def silence(patch):
    patch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.zeros(shape, dtype))


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


def affine(step, size):
    """The matrix of an affine map on (z, 1)."""
    zero = step(np.zeros(size))
    columns = [step(e) - zero for e in np.eye(size)]
    return np.block([[np.stack(columns, 1), zero[:, None]], [np.zeros((1, size)), np.ones((1, 1))]])


def law(problem, step, noise, batch_size):
    """Stationary mean and covariance of theta for z' = step(z; batch) + noise, batches drawn with replacement.

    S = E[T S T'] + Q on (z, 1), with E[T x T] = Tm x Tm + (mean_i T_i x T_i - Tm x Tm) / B, since a batch's map is the
    mean of its rows'. Without batches it is the Lyapunov equation Sigma = F Sigma F' + Q.
    """
    x, y = problem.x.astype(np.float64), problem.y.astype(np.float64)
    n, dim = x.shape
    size = len(noise)
    prior = np.eye(dim) / PRIOR_SCALE**2
    maps = np.stack(
        [
            affine(functools.partial(step, lambda theta, i=i: n * x[i] * (y[i] - x[i] @ theta) - prior @ theta), size)
            for i in range(n)
        ]
    )
    mean = maps.mean(0)
    if batch_size is None:
        loc = np.linalg.solve(np.eye(size) - mean[:-1, :-1], mean[:-1, -1])
        cov = scipy.linalg.solve_discrete_lyapunov(mean[:-1, :-1], noise)
        return loc[:dim], cov[:dim, :dim]
    both = np.kron(mean, mean)
    both = both + (np.mean([np.kron(m, m) for m in maps], 0) - both) / batch_size
    q = np.zeros((size + 1, size + 1))
    q[:-1, :-1] = noise
    free = np.arange((size + 1) ** 2 - 1)
    second = np.linalg.solve(np.eye(len(free)) - both[np.ix_(free, free)], both[free, -1] + q.ravel()[free])
    second = np.append(second, 1.0).reshape(size + 1, size + 1)
    loc = second[:-1, -1]
    return loc[:dim], (second[:-1, :-1] - np.outer(loc, loc))[:dim, :dim]


def sghmc_law(problem, h, friction, batch_size):
    dim, mu = problem.x.shape[1], 1 - h * friction

    def step(grad, z):
        theta = z[:dim] + h * z[dim:]
        return np.concatenate([theta, mu * z[dim:] + h * grad(theta)])

    noise = scipy.linalg.block_diag(np.zeros((dim, dim)), 2 * friction * h * np.eye(dim))
    return law(problem, step, noise, batch_size)


def baoa_law(problem, h, friction, batch_size):
    dim, kept = problem.x.shape[1], np.exp(-h * friction)

    def step(grad, z):
        m = z[dim:] + h * grad(z[:dim])
        return np.concatenate([z[:dim] + h / 2 * (1 + kept) * m, kept * m])

    noise = (1 - kept**2) * np.kron([[h**2 / 4, h / 2], [h / 2, 1]], np.eye(dim))
    return law(problem, step, noise, batch_size)


MINI = Schedule(1, 500, 500, 20, 4, "iid")
FULL = Schedule(1, 300, 500, 10)


def linear_problem():
    return gaussian(2, 4, copies=6)


def check_momentum(name, schedule, factory=None, h=0.35, friction=1.0, seed=0):
    """``sghmc`` or ``baoa`` where its discretisation and the gradient's noise are large, against its own law."""
    problem = linear_problem()
    factory = factory or getattr(momentum, name)
    here = stage(name, factory, schedule, step_size=number("h"), friction=number("friction"))
    drawn = sample(program((here,)), rows(problem), lanes_of(LANES, seed, h=h, friction=friction))
    loc, cov = {"sghmc": sghmc_law, "baoa": baoa_law}[name](problem, h, friction, schedule.batch_size)
    return moments(drawn.draws, loc, cov)


@pytest.mark.parametrize(
    ("name", "h", "schedule"),
    [
        ("sghmc", 0.35, FULL),
        ("baoa", 0.7, FULL),
        ("sghmc", 0.1, MINI),
        ("baoa", 0.1, MINI),
    ],
)
def test_momentum_methods_have_the_law_of_their_recursion(name, h, schedule):
    """All moments, at steps where the discretisation or the batches leave a law far from the posterior's."""
    verdict = check_momentum(name, schedule, h=h)
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


def test_the_laws_are_the_published_ones():
    """SGHMC: (1/A) / (1 - h^2 A / (2 (1 + mu))); explicit Euler is far off; BAOA: 1/A for every step."""
    problem = gaussian(3, 20)
    values, vectors = np.linalg.eigh(problem.precision)
    h, friction = 0.2, 0.5
    cov = sghmc_law(problem, h, friction, None)[1]
    wanted = 1 / values / (1 - h**2 * values / (2 * (2 - h * friction)))
    np.testing.assert_allclose(cov, vectors @ np.diag(wanted) @ vectors.T, rtol=1e-9, atol=1e-12)
    for step in (0.1, 0.4):
        mean, cov = baoa_law(problem, step, friction, None)
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
    x, y = problem.x.astype(np.float64), problem.y.astype(np.float64)
    at_anchor = x.T @ (y - x @ anchor) - anchor / PRIOR_SCALE**2
    step = lambda grad, theta: theta + eps * (at_anchor + grad(theta) - grad(anchor))
    loc, cov = law(problem, step, 2 * eps * np.eye(2), MINI.batch_size)
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


# ---- beyond linear recursions


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
    method = momentum.baoa(target, STEPS, step_size=step_size, friction=friction)
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


def check_thermostat(factory=momentum.sgnht, h=0.1):
    """Batches heat SGHMC; the thermostat takes the heat out again. Noise alike in all directions.

    Returns the mean over directions of whitened second moments, less 1, for both.
    """
    dim = 8
    x = np.tile(np.eye(dim, dtype=np.float32), (4, 1))
    rng = np.random.default_rng(5)
    y = np.tile(np.sqrt(4.0) * np.sign(rng.standard_normal((4, 1))), (1, dim)).astype(np.float32).ravel()
    problem = SimpleNamespace(x=x, y=y)
    schedule = Schedule(1, 1000, 500, 10, 8, "iid")
    options = {"step_size": number("h"), "friction": number("friction")}
    out = []
    for name, made in (("sghmc", momentum.sghmc), ("sgnht", factory)):
        lane = lanes_of(LANES, h=h, friction=1.0)
        drawn = sample(program((stage(name, made, schedule, **options),)), rows(problem), lane)
        precision = 4 + PRIOR_SCALE**-2
        mean = x.T @ y / precision
        out.append(float(((drawn.draws - mean) ** 2).mean() * precision - 1))
    return out, drawn.stat("thermostat").mean()


def test_the_thermostat_takes_out_the_heat_of_the_batches():
    """V = N^2 var / B heats SGHMC by h V / (2 alpha), more than a half here; SGNHT is left with under a tenth of it.

    What is left: the step's own O(h^2 A) and the thermostat's fluctuation, O(h / D).
    """
    (hot, cured), thermostat = check_thermostat()
    assert hot > 0.5, hot
    assert abs(cured) < hot / 5, (hot, cured)
    assert thermostat > 1.3, thermostat


# ---- cycles


@pytest.mark.parametrize(
    ("factory", "options", "power"),
    [
        (langevin.cyclical_sgld, {"step_size": 0.01}, 1.0),
        (momentum.cyclical_sghmc, {"step_size": 0.05, "friction": 2.0}, 0.5),
    ],
)
def test_draws_come_from_every_cycle(factory, options, power):
    """Four cycles of 30 + 5 x 4 steps: each draw's step size is the cosine's at the step before it."""
    problem = linear_problem()
    schedule = Schedule(1, 120, 20, 4, 8, "epoch")
    drawn = sample(program((stage("cycles", factory, schedule, num_cycles=4, **options),)), rows(problem), lanes_of(2))
    assert drawn.draws.shape == (2, 20, 2)
    t = np.concatenate([c * 50 + 30 + np.arange(3, 20, 4) for c in range(4)])
    wanted = options["step_size"] * ((np.cos(np.pi * (t % 50) / 50) + 1) / 2) ** power
    np.testing.assert_allclose(drawn.stat("step_size")[0], wanted, rtol=1e-5)
    sampling = [b for b in drawn.blocks if b.phase == "sample"]
    assert [b.first_draw for b in sampling] == list(np.cumsum([0] + [b.draws.shape[1] for b in sampling[:-1]]))
    assert drawn.blocks[-1].steps_done == 200
    assert sum(float(b.num_grads[0]) for b in drawn.blocks) == pytest.approx(200 * 8 / len(problem.y), rel=1e-5)
    assert {b.phase for b in drawn.blocks[:2]} <= {"warmup"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["cyclical_sgld", "cyclical_sghmc"])
def test_exploration_has_no_noise(problem, name):
    """Two keys move alike in warm-up, apart in sampling."""
    target, data = target_of(problem)
    made = {
        "cyclical_sgld": (langevin.cyclical_sgld, {}),
        "cyclical_sghmc": (momentum.cyclical_sghmc, {"friction": 1.0}),
    }
    factory, options = made[name]
    method = factory(target, Schedule(1, 8, 4, 2), step_size=0.01, num_cycles=2, **options)
    state = method.init(jax.random.key(0), jnp.ones(4), data)
    for phase, same in ((method.warm, True), (method.step, False)):
        a, b = (phase(jax.random.key(k), jnp.int32(1), state, data)[0] for k in (1, 2))
        assert all(bool((u == v).all()) for u, v in zip(a, b, strict=True)) is same
    assert not method.markov


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

KEPT = "        momentum = (1 - step_size * friction) * state.momentum"
NOISE = "momentum + jnp.sqrt(2 * friction * step_size) * noise\n        return State("
MUTANTS = {
    "gradient at the old theta": (
        "sghmc",
        "_gradient_and_noise(target, key, theta, data)\n" + KEPT,
        "_gradient_and_noise(target, key, state.theta, data)\n" + KEPT,
    ),
    "sghmc loses the sqrt 2": ("sghmc", NOISE, NOISE.replace("2 * ", "")),
    "sghmc doubles the drift": (
        "sghmc",
        f"{KEPT} + step_size * grad\n        momentum = {NOISE}",
        f"{KEPT} + 2 * step_size * grad\n        momentum = {NOISE}",
    ),
    "baoa kicks half": (
        "baoa",
        "momentum = state.momentum + step_size * grad",
        "momentum = state.momentum + step_size / 2 * grad",
    ),
    "baoa's noise": ("baoa", "jnp.sqrt(1 - kept**2)", "jnp.sqrt(1 - kept)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_momentum_fail(name):
    method, old, new = MUTANTS[name]
    mutant = mutate("bdlbench.inference.sghmc", old, new)
    # The explicit scheme diverges at the larger step.
    h = 0.1 if "old theta" in name else {"sghmc": 0.35, "baoa": 0.7}[method]
    assert not check_momentum(method, FULL._replace(num_samples=200), getattr(mutant, method), h=h).passes


def test_mutants_of_langevin_fail():
    """The anchor's gradient forgotten; the preconditioner not under the noise's root."""
    forgotten = mutate("bdlbench.inference.sgld", "state.anchor_grad + grad -", "grad -")
    assert not check_control_variates(forgotten.sgld_cv).passes
    unscaled = mutate("bdlbench.inference.sgld", "jnp.sqrt(2 * step_size * scale)", "jnp.sqrt(2 * step_size)")
    assert not check_frozen_preconditioner(unscaled.psgld).passes


def test_a_mutant_thermostat_stays_hot():
    moves = "state.thermostat + step_size * (jnp.mean"
    stuck = mutate("bdlbench.inference.sghmc", moves, moves.replace("step_size", "0"))
    (hot, cured), _ = check_thermostat(stuck.sgnht)
    assert cured > hot / 2


def test_the_limit_is_family_wise():
    assert limit(5, LANES - 1) > 5 and FAMILY_WISE == 1e-6
