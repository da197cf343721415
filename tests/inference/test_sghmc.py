"""SGHMC, BAOA and SGNHT: the law of their own recursion, BAOA's order on a quartic, what the thermostat keeps."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import linear_recursions as recursions
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.linalg
import scipy.special
from blackjax.sgmcmc import diffusions
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
    rows,
    sample,
    silence,
    stage,
    target_of,
)
from laws import ALONE, Law, Mutant, PresetLaws, Run, of_its_own, schedule
from linear_recursions import baoa, law, sghmc
from mutation import mutate
from presets import first_of, mostly
from recursion_laws import CYCLES, constant, cosine, cycle, from_prior, of_recursion
from trajectories import NUM_STEPS, STEPS_AS_BLACKJAX, assert_same_path, small_problem, trajectory

from bdlbench.inference import sghmc as momentum
from bdlbench.types import ConfigError, Data, Schedule

LANES = 64


STEPS = Schedule(1, 0, 1, 1)


# ---- law 1: what holds exactly


@pytest.fixture
def problem():
    return gaussian(4, 10, copies=3)


def linear_problem():
    return gaussian(2, 4, copies=6)


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


FULL = Schedule(1, 300, 500, 10)


MADE = {"sghmc": lambda dim, h, friction: sghmc(dim, h, h * friction), "baoa": baoa}


def check_momentum(name, schedule, factory=None, h=0.35, friction=1.0, seed=0):
    """``sghmc`` or ``baoa`` where its discretisation and the gradient's noise are large, against its own law."""
    problem = linear_problem()
    factory = factory or getattr(momentum, name)
    here = stage(name, factory, schedule, step_size=number("h"), friction=number("friction"))
    drawn = sample(program((here,)), rows(problem), lanes_of(LANES, seed, h=h, friction=friction))
    loc, cov = law(problem, *MADE[name](2, h, friction), schedule.batch_size)
    return moments(drawn.draws, loc, cov)


@pytest.mark.slow
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


@pytest.mark.parametrize("name", mostly(MUTANTS, "gradient at the old theta", "baoa kicks half"))
def test_mutants_of_momentum_fail(name):
    method, old, new = MUTANTS[name]
    mutant = mutate("bdlbench.inference.sghmc", old, new, within=method)
    # The explicit scheme diverges at the larger step.
    h = 0.1 if "old theta" in name else {"sghmc": 0.35, "baoa": 0.7}[method]
    assert not check_momentum(method, FULL._replace(num_samples=200), getattr(mutant, method), h=h).passes


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
    method = momentum.baoa(target, Schedule(1, 0, 1, 1), step_size=step_size, friction=friction)
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


# ---- the thermostat


def orthogonal(dim=8):
    """Rows along the axes: gradients' noise that is alike in all directions, of variance N^2 var / B."""
    x = np.tile(np.eye(dim, dtype=np.float32), (4, 1))
    rng = np.random.default_rng(5)
    y = np.tile(np.sqrt(4.0) * np.sign(rng.standard_normal((4, 1))), (1, dim)).astype(np.float32).ravel()
    precision = (4 + PRIOR_SCALE**-2) * np.eye(dim)
    return Gaussian(x, y, x.T @ y / precision[0, 0], precision)


def check_thermostat(factory=momentum.sgnht, h=0.1, num_steps=8_000, burn_in=500, seed=0):
    """Two averages that are 0 under SGNHT's stationary law for every step, batch size and noise of the gradient.

    chi' = chi + h (m'm / D - 1) is stationary only where E m'm = D: *equipartition*. With u = theta - mean, the average
    of u'm' is stationary too; u'm' = (1 - h chi) (u.m + h m.m) + h u'.g(theta') + noise, so that
    E[u'.A u'] + E[chi u'.m] = E[m.m]: the *virial theorem*, A the precision. It says that theta's spread is the
    posterior's but for E[chi u'.m] / D, which is h E[chi] / 2 in the mean of chi and falls with the step.
    """
    problem = orthogonal()
    target, data = target_of(problem)
    dim, num_rows = problem.x.shape[1], len(problem.y)
    method = factory(target, Schedule(1, 0, 1, 1, 8, "iid"), step_size=h, friction=1.0)
    centre, precision = jnp.asarray(problem.mean, jnp.float32), float(problem.precision[0, 0])

    @jax.jit
    def averages(key):
        def one(t, carry):
            state, total = carry
            row_key, key_ = jax.random.split(jax.random.fold_in(key, t))
            rows = jax.random.randint(row_key, (8,), 0, num_rows)
            new, _ = method.step(key_, t, state, Data(data.x[rows], data.y[rows], num_rows))
            away = new.theta - centre
            squares = state.momentum @ state.momentum / dim
            virial = (precision * away @ away + state.thermostat * away @ state.momentum) / dim - squares
            return new, total + jnp.where(t >= burn_in, jnp.stack([squares - 1, virial]), 0.0)

        state = method.init(key, centre, data)
        return jax.lax.fori_loop(0, num_steps, one, (state, jnp.zeros(2)))[1] / (num_steps - burn_in)

    keys = jax.random.split(jax.random.key(seed), LANES)
    found = np.asarray(jax.lax.map(averages, keys), np.float64)
    z, most = largest_z(found, np.zeros(2))
    return Verdict(z, most, float((found.std(0, ddof=1) / LANES**0.5).max()))


def test_the_thermostat_keeps_equipartition_and_the_virial_theorem():
    """Where the batches would leave SGHMC hot by more than a half: its own law says so."""
    problem = orthogonal()
    hot = np.diag(law(problem, *sghmc(8, 0.1, 0.1), 8)[1]) * problem.precision[0, 0] - 1
    assert hot.min() > 0.5, hot
    verdict = check_thermostat()
    assert verdict.passes, verdict


@pytest.mark.parametrize(
    ("old", "new"),
    first_of(
        [
            ("state.thermostat + h * (jnp.mean", "state.thermostat + 0 * (jnp.mean"),  # stuck
            ("(jnp.mean(momentum**2) - 1)", "(jnp.mean(momentum**2) - 1.1)"),
            ("momentum + h * grad", "momentum + 1.1 * h * grad"),
        ]
    ),
)
def test_mutants_of_the_thermostat_are_noticed(old, new):
    verdict = check_thermostat(mutate("bdlbench.inference.sghmc", old, new, within="sgnht").sgnht)
    assert not verdict.passes, verdict


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("sghmc", {"friction": 20.0}, "friction=20.0 times step_size=0.1 must be below 1"),
        ("baoa", {"friction": 0.0}, "friction=0.0 must be a positive"),
    ],
)
def test_bad_settings_are_refused(problem, factory, options, message):
    target, _ = target_of(problem)
    with pytest.raises(ConfigError, match=message):
        getattr(momentum, factory)(target, Schedule(1, 10, 10, 1), **{"step_size": 0.1, **options})


def beside_blackjaxs_sgnht(factory):
    """Ours and BlackJAX's SGNHT, handed the gradient at the moved theta, as Ding et al. have it."""
    target, batch = small_problem()
    first, ours = trajectory(factory(target, STEPS_AS_BLACKJAX, step_size=0.1, friction=2.0), target, batch)
    integrate = diffusions.sgnht(2.0, 0.0)

    def one(state, t):
        theta, momentum, xi = state
        grad = target.value_and_grad(theta + 0.1 * momentum, batch(t))[1]
        state = integrate(jax.random.fold_in(jax.random.key(3), t), theta, momentum, xi, grad, 0.1)
        return state, state[0]

    return ours, jax.jit(lambda: jax.lax.scan(one, tuple(first), jnp.arange(NUM_STEPS))[1])()


@pytest.mark.usefixtures("x64")
def test_the_trajectory_of_sgnht_is_blackjaxs():
    """With the same noise and batches, 200 steps agree."""
    assert_same_path(*beside_blackjaxs_sgnht(momentum.sgnht))


@pytest.mark.usefixtures("x64")
def test_a_mutant_of_sgnht_leaves_blackjaxs_trajectory():
    """If a factor is left out, the trajectories differ."""
    mutant = mutate(momentum.__name__, "jnp.mean(momentum**2) - 1", "jnp.sum(momentum**2) - 1", within="sgnht")
    ours, theirs = beside_blackjaxs_sgnht(mutant.sgnht)
    assert not np.allclose(ours, theirs, rtol=1e-6, atol=1e-6)


# ---- the presets of this family


def cyclical(run: Run, t: int) -> recursions.Recursion:
    """h_t^2 follows the cosine, h_t alpha_t = 0.2 stays."""
    made = sghmc(5, 0.03 * cosine(run, t) ** 0.5, 0.2, noisy=t % cycle(run) >= 30)
    return recursions.recursion(run.problem, *made, run.schedule.batch_size)


def at_rest(run: Run) -> recursions.Moments:
    """Theta is drawn from the prior and the momentum from a standard normal."""
    return from_prior(run, momentum=True)


STEP = ("inference.step_size=0.03", "inference.friction=5.0")


class TestLaws(PresetLaws):
    """SGHMC and its variants have the law of their own recursion."""

    laws = {
        "sghmc": Law(
            "own recursion",
            "test_sghmc_without_noise_is_momentum_descent",
            64,
            (schedule(20, 250, 40, 8), *STEP, *ALONE),
            of_recursion(constant(lambda run: sghmc(5, 0.03, 0.15)), at_rest),
        ),
        "baoa": Law(
            "own recursion",
            "test_the_noise_is_the_written_one",
            64,
            (schedule(20, 250, 40, 8), *STEP, *ALONE),
            of_recursion(constant(lambda run: baoa(5, 0.03, 5.0)), at_rest),
        ),
        "sgnht": Law(
            "equipartition and the virial theorem of its own recursion",
            "test_the_noise_is_the_written_one",
            4,
            (schedule(5, 5, 1, 8), *ALONE),
            of_its_own(check_thermostat),
        ),
        "cyclical_sghmc": Law(
            "own recursion at every step of every cycle",
            "test_schedules.py::test_exploration_has_no_noise",
            1400,
            (
                schedule(30 * CYCLES, 10 * CYCLES, 1, 8),
                "inference.step_size=0.03",
                "inference.friction=6.6666666666666667",
                f"inference.num_cycles={CYCLES}",
                *ALONE,
            ),
            of_recursion(cyclical, at_rest, CYCLES),
        ),
    }
    mutants = {"baoa": Mutant("jnp.sqrt(1 - kept**2)", "jnp.sqrt(1 - kept)")}
