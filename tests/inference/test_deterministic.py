"""Law 1: what holds exactly, without statistics. Mostly in double precision."""

import functools
import inspect
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats
from jax import random
from known_posteriors import FAMILY_WISE, gaussian, regression
from numpyro.infer.hmc_util import euclidean_kinetic_energy, velocity_verlet

from bdlbench.inference.chees import chees
from bdlbench.inference.libraries import blackjax
from bdlbench.inference.point import maximum_a_posteriori
from bdlbench.inference.sgld import State, sgld
from bdlbench.inference.smc import smc
from bdlbench.model import bnn, likelihoods, priors
from bdlbench.model.target import make_target
from bdlbench.networks.mlp import MLP
from bdlbench.sampling.batches import check, permute, rows_of_step
from bdlbench.types import ConfigError, Data, Schedule


def network_target(num_rows=24, features=3, temperature=1.0, width=4, task="regression"):
    """A tanh network with learned noise on fixed rows: target and data."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((num_rows, features))
    y = np.sin(x.sum(1)) + 0.1 * rng.standard_normal(num_rows)

    def model(x, y=None):
        network = functools.partial(MLP, width=width, depth=1, activation="tanh")
        likelihood = likelihoods.gaussian(task, 1, noise=dist.LogNormal(-1.0, 1.0))
        bnn.bnn(x, y, network=network, prior=priors.fan_in(weight_scale=1.0, bias_scale=1.0), likelihood=likelihood)

    x, y = jnp.asarray(x), jnp.asarray(y)
    return make_target(model, x, y, temperature), Data(x, y, num_rows)


class Leapfrog(NamedTuple):
    """An integrator: a state (theta, momentum), what moves it by n steps of eps, its parts and its total energy."""

    begin: Any
    run: Any
    parts: Any
    energy: Any


def steps_of(update):
    """``update(state, eps)`` so many times."""
    return jax.jit(lambda state, eps, num_steps: jax.lax.fori_loop(0, num_steps, lambda i, s: update(s, eps), state))


def numpyros_leapfrog(target, data):
    """What NUTS and HMC move by."""
    potential = lambda theta: -target.log_density(theta, data)
    init, update = velocity_verlet(potential, euclidean_kinetic_energy)
    metric = jnp.ones(target.dim)
    energy = lambda s: s.potential_energy + euclidean_kinetic_energy(metric, s.r)
    return Leapfrog(init, steps_of(lambda s, eps: update(eps, metric, s)), lambda s: (s.z, s.r), energy)


def blackjaxs_leapfrog(target, data):
    """What ChEES-HMC and the moves of SMC move by: the integrator that BlackJAX's HMC kernel has by itself."""
    integrator = inspect.signature(blackjax("mcmc.hmc").build_kernel).parameters["integrator"].default
    metric = blackjax("mcmc.metrics").default_metric(jnp.ones(target.dim))
    log_density = lambda theta: target.log_density(theta, data)
    update = integrator(log_density, metric.kinetic_energy)
    begin = lambda theta, momentum: blackjax("mcmc.integrators").IntegratorState(
        theta, momentum, *jax.value_and_grad(log_density)(theta)
    )
    energy = lambda s: metric.kinetic_energy(s.momentum, position=s.position) - s.logdensity
    return Leapfrog(begin, steps_of(update), lambda s: (s.position, s.momentum), energy)


@pytest.fixture(params=[numpyros_leapfrog, blackjaxs_leapfrog])
def leapfrog(request):
    """Each integrator that a sampler of the project moves by."""
    return request.param


@pytest.mark.usefixtures("x64")
def test_leapfrog_is_reversible(leapfrog):
    """100 steps, momentum turned, 100 steps: back at the start to 1e-10 (double precision loses some 1e-14 a step)."""
    target, data = network_target()
    begin, run, parts, _ = leapfrog(target, data)
    theta, momentum = random.normal(random.key(0), (2, target.dim))
    there, speed = parts(run(begin(theta, momentum), 0.01, 100))
    assert float(jnp.abs(there - theta).max()) > 0.1
    back, turned = parts(run(begin(there, -speed), 0.01, 100))
    np.testing.assert_allclose(back, theta, atol=1e-10)
    np.testing.assert_allclose(-turned, momentum, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_the_integrators_are_one():
    """NumPyro's and BlackJAX's paths of 100 steps agree to rounding, some 1e-14 a step: a test of either is of both."""
    target, data = network_target()
    starts = random.normal(random.key(0), (2, target.dim))
    ends = []
    for make in (numpyros_leapfrog, blackjaxs_leapfrog):
        begin, run, parts, _ = make(target, data)
        ends.append(jnp.stack(parts(run(begin(*starts), 0.01, 100))))
    np.testing.assert_allclose(*ends, atol=1e-10)


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (chees, {"init_scale": 1.0, "initial_step_size": 0.1, "learning_rate": 0.05, "target_accept_prob": 0.651,
                 "decay_rate": 0.5, "max_leapfrog_steps": 4}),
        (smc, {"target_ess": 0.7, "num_moves": 1, "num_leapfrog_steps": 2, "initial_step_size": 0.2,
               "target_accept_prob": 0.8}),
    ],
)  # fmt: skip
def test_populations_take_the_kernels_own_integrator(factory, options, monkeypatch):
    """:func:`blackjaxs_leapfrog` is theirs: they build BlackJAX's HMC kernel without another."""
    asked = []
    real = blackjax("mcmc.hmc").build_kernel
    monkeypatch.setattr(blackjax("mcmc.hmc"), "build_kernel", lambda *args, **kw: asked.append((args, kw)) or real())
    target, _ = network_target()
    factory(target, Schedule(1, 1, 1, 1), num_particles=2, **options)
    assert asked == [((), {})]


@pytest.mark.usefixtures("x64")
def test_energy_error_is_of_second_order(leapfrog):
    """|H' - H| over a fixed time falls as eps^2: slope 2 +- 0.1 over a factor of 16 in eps."""
    target, data = network_target()
    begin, run, _, energy = leapfrog(target, data)
    starts = random.normal(random.key(1), (2, 20, target.dim)) * 0.5
    steps = np.array([32, 64, 128, 256, 512])

    def error(theta, momentum, num_steps):
        first = begin(theta, momentum)
        return jnp.abs(energy(run(first, 0.32 / num_steps, num_steps)) - energy(first))

    errors = [float(jnp.sqrt((jax.vmap(error, (0, 0, None))(*starts, n) ** 2).mean())) for n in steps]
    slope = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert abs(slope - 2) <= 0.1, errors


@pytest.mark.parametrize(("num_rows", "batch"), [(24, 8), (24, 24), (24, 7), (25, 10), (23, 1)])
@pytest.mark.usefixtures("x64")
def test_minibatch_gradients_average_to_the_full_gradient(num_rows, batch):
    """Over a cycle of whole epochs, tempered or not, the mean is exact but for rounding: 1e-5 asked, 1e-12 given."""
    schedule = Schedule(1, 0, 1, 1, batch, "epoch")
    steps = num_rows // np.gcd(num_rows, batch)
    target, data = network_target(num_rows, temperature=0.5)
    theta = target.sample_prior(random.key(4))
    index = jax.vmap(lambda t: rows_of_step(random.key(5), t, num_rows, schedule))(jnp.arange(steps))
    grads = jax.vmap(lambda i: target.value_and_grad(theta, Data(data.x[i], data.y[i], num_rows))[1])(index)
    full = target.value_and_grad(theta, data)[1]
    np.testing.assert_allclose(grads.mean(0), full, rtol=1e-5, atol=1e-5 * float(jnp.abs(full).max()))


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


@pytest.mark.usefixtures("x64")
def test_map_is_the_plain_optimiser():
    """With gradient descent as its optimiser, a step is theta + (rate / N) g."""
    target, data = network_target()
    method = maximum_a_posteriori(target, SCHEDULE, optimizer=optax.sgd(0.1))
    theta = target.sample_prior(random.key(1))
    state = method.init(random.key(0), theta, data)
    moved, _ = method.step(random.key(0), jnp.int32(0), state, data)
    expected = theta + 0.1 / data.size * target.value_and_grad(theta, data)[1]
    np.testing.assert_allclose(moved.theta, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_target_is_the_written_out_log_density():
    """Against the normal densities written out: sum over rows, prior, temperature, no Jacobian for real sites."""
    problem = gaussian(4, 10, copies=3)
    x, y = jnp.asarray(problem.x, jnp.float64), jnp.asarray(problem.y, jnp.float64)
    theta = random.normal(random.key(0), (4,))
    target = make_target(regression, x, y, 2.0)
    prior = scipy.stats.norm.logpdf(theta, 0, 3).sum()
    likelihood = scipy.stats.norm.logpdf(y, x @ theta, 1)
    np.testing.assert_allclose(target.log_density(theta, Data(x, y, 12)), (prior + likelihood.sum()) / 2, rtol=1e-12)
    part = target.log_density(theta, Data(x[:3], y[:3], 12))
    np.testing.assert_allclose(part, (prior + 4 * likelihood[:3].sum()) / 2, rtol=1e-12)


# ---- minibatches


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 7, 16, 17, 100, 101, 320, 353, 1021, 4097, 45_730])
def test_permute_is_a_bijection(num_rows):
    """Every row once, for several keys, and the keys give different orders."""
    orders = [np.asarray(permute(random.key(seed), jnp.arange(num_rows), num_rows)) for seed in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(num_rows))
    if num_rows > 16:
        assert not (orders[0] == orders[1]).all()


@pytest.mark.parametrize("num_rows", [2, 3, 5, 8, 13, 30, 64, 65, 72, 90])
def test_permute_is_uniform(num_rows):
    """Over 200,000 keys each position's image is uniform, and so is the pair of images of two positions.

    Chi-square limits at the family-wise level; N images, N (N - 1) pairs.
    """
    num_keys, pairs = 200_000, list(itertools.pairwise(range(num_rows)))[:30]
    keys = jax.vmap(lambda i: random.fold_in(random.key(9), i))(jnp.arange(num_keys))
    images = np.asarray(jax.jit(jax.vmap(lambda k: permute(k, jnp.arange(num_rows), num_rows)))(keys))
    num_tests = num_rows + len(pairs)
    for position in range(num_rows):
        counts = np.bincount(images[:, position], minlength=num_rows)
        most = scipy.stats.chi2.isf(FAMILY_WISE / num_tests, num_rows - 1)
        assert scipy.stats.chisquare(counts).statistic <= most, position
    if num_rows > 2:
        for first, second in pairs:
            counts = np.bincount(images[:, first] * num_rows + images[:, second], minlength=num_rows**2)
            counts = counts.reshape(num_rows, num_rows)[~np.eye(num_rows, dtype=bool)]
            most = scipy.stats.chi2.isf(FAMILY_WISE / num_tests, num_rows * (num_rows - 1) - 1)
            assert scipy.stats.chisquare(counts).statistic <= most, (first, second)


@pytest.mark.parametrize(("num_rows", "size"), [(12, 4), (12, 5), (12, 12), (13, 1), (10, 7), (353, 32), (7, 6)])
def test_each_epoch_sees_each_row_once(num_rows, size):
    """Batches laid end to end are permutations of the rows, one an epoch, also where B does not divide N."""
    schedule = Schedule(1, 0, 1, 1, size, "epoch")
    epochs = 2 * size
    steps = num_rows * epochs // size
    seen = jax.jit(jax.vmap(lambda t: rows_of_step(random.key(1), t, num_rows, schedule)))(jnp.arange(steps))
    assert seen.shape == (steps, size)
    laid = np.asarray(seen).reshape(epochs, num_rows)
    np.testing.assert_array_equal(np.sort(laid, 1), np.tile(np.arange(num_rows), (epochs, 1)))
    if num_rows > 9:
        assert len({tuple(order) for order in laid}) == epochs


def test_iid_batches_are_uniform():
    """Rows with replacement: counts over all positions and steps are multinomial."""
    schedule = Schedule(1, 0, 1, 1, 5, "iid")
    seen = jax.jit(jax.vmap(lambda t: rows_of_step(random.key(1), t, 13, schedule)))(jnp.arange(40_000))
    counts = np.bincount(np.asarray(seen).ravel(), minlength=13)
    assert scipy.stats.chisquare(counts).statistic <= scipy.stats.chi2.isf(FAMILY_WISE, 12)


@pytest.mark.parametrize("size", [0, 101])
def test_a_batch_larger_than_the_data_is_refused(size):
    """So is an empty one."""
    with pytest.raises(ConfigError, match=f"batch_size={size} does not fit 100"):
        check(Schedule(1, 0, 1, 1, size), 100)


def test_a_batch_whose_counter_would_overflow_is_refused():
    """B N / gcd(B, N) positions must fit 32 bits."""
    check(Schedule(1, 0, 1, 1, 4096), 2**20)
    with pytest.raises(ConfigError, match="overflows"):
        check(Schedule(1, 0, 1, 1, 4099), 2**20 + 1)
