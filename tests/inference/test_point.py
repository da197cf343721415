"""MAP, ensembles and dropout: fixed points in closed form, early stopping, units left out."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.infer.hmc_util
import optax
import pytest
import scipy.special
import scipy.stats
from flax import linen, nnx
from jax import random
from known_posteriors import (
    FAMILY_WISE,
    PRIOR_SCALE,
    Verdict,
    assert_refused,
    gaussian,
    lanes_of,
    limit,
    program,
    regression,
    rows,
    sample,
    stage,
)
from laws import ALONE, Law, Mutant, PresetLaws, Run, of_its_own, schedule
from laws import falling as adam_that_falls
from mutation import mutate
from presets import first_of, mostly
from small_networks import network_target

from bdlbench.inference.point import deep_ensemble, maximum_a_posteriori, mc_dropout
from bdlbench.model import bnn, likelihoods, priors
from bdlbench.model.target import make_target
from bdlbench.networks.mlp import MLP
from bdlbench.sampling.programs import Shared
from bdlbench.types import ConfigError, Data, Method, Schedule

OFF = {"validate_every": None, "patience": None, "validation_fraction": None}


def linear(dim=4, seed=0):
    """The regression of known_posteriors with some rows more, and validation rows."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((12, dim)), rng.standard_normal(12)
    held = (jnp.asarray(rng.standard_normal((6, dim))), jnp.asarray(rng.standard_normal(6)))
    target = make_target(regression, jnp.asarray(x), jnp.asarray(y))
    return target, Data(jnp.asarray(x), jnp.asarray(y), 12, held)


def network(module, features=3, outputs=1):
    """The target of any Flax network with fixed noise, and data."""
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.standard_normal((8, features))), jnp.asarray(rng.standard_normal(8))

    def model(x, y=None):
        likelihood = likelihoods.heteroscedastic if outputs == 2 else likelihoods.gaussian_fixed
        options = {"min_scale": 0.1} if outputs == 2 else {"sigma": 0.3}
        likelihood = likelihood("regression", 1, **options)
        bnn.bnn(x, y, network=module, prior=priors.fan_in(weight_scale=1.0, bias_scale=1.0), likelihood=likelihood)

    return make_target(model, x, y), Data(x, y, 8)


def path(method, data, theta, steps, key=0):
    """Every state of a method's steps, stacked, and the gradients charged."""

    @jax.jit
    def run():
        state = method.init(jax.random.key(key), theta, data)

        def one(state, t):
            state, info = method.step(jax.random.fold_in(jax.random.key(key), t), t, state, data)
            return state, (state, info["num_grads"])

        return jax.lax.scan(one, state, jnp.arange(steps))[1]

    return run()


# ---- maximum a posteriori, ensembles


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("objective", ["posterior", "likelihood"])
def test_a_member_reaches_its_closed_form(objective):
    """Ridge or least squares: curvatures of the mean loss from 0.1, so 4,000 steps of 0.3 leave exp(-120)."""
    target, data = linear()
    method = deep_ensemble(target, Schedule(1, 4000, 1, 0), optimizer=optax.sgd(0.3), objective=objective, **OFF)
    states, grads = path(method, data, jnp.zeros(4), 4000)
    prior = np.eye(4) / PRIOR_SCALE**2 if objective == "posterior" else 0.0
    wanted = np.linalg.solve(data.x.T @ data.x + prior, data.x.T @ data.y)
    last = jax.tree.map(lambda a: a[-1], states)
    np.testing.assert_allclose(method.draw(jax.random.key(0), last), wanted, rtol=1e-9)
    assert grads.sum() == 4000


@pytest.mark.usefixtures("x64")
def test_a_batch_of_an_ensemble_stands_for_all_rows():
    """The first step of rate 1 on B of N rows, without a prior: theta' = theta + (1 / B) sum of the rows' gradients."""
    target, data = linear()
    batch = data._replace(x=data.x[:5], y=data.y[:5])
    method = deep_ensemble(target, Schedule(1, 10, 1, 0), optimizer=optax.sgd(1.0), objective="likelihood", **OFF)
    theta = jnp.linspace(-1.0, 1.0, 4)
    moved, _ = method.step(jax.random.key(0), jnp.int32(0), method.init(jax.random.key(0), theta, data), batch)
    np.testing.assert_allclose(moved.theta, theta + batch.x.T @ (batch.y - batch.x @ theta) / 5, rtol=1e-12)


def classes():
    """A linear softmax classifier of three classes, its rows and noisy validation rows."""
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((15, 4)), rng.integers(0, 3, 15)
    held = (jnp.asarray(rng.standard_normal((9, 4))), jnp.asarray(rng.integers(0, 3, 9)))
    model = functools.partial(
        bnn.bnn,
        network=functools.partial(MLP, width=1, depth=0, activation="tanh"),
        prior=priors.fan_in(weight_scale=3.0, bias_scale=3.0),
        likelihood=likelihoods.categorical("classification", 3),
    )
    x, y = jnp.asarray(x), jnp.asarray(y)
    return make_target(model, x, y), Data(x, y, 15, held)


def gaussian_scores(target, thetas, x, y):
    return -0.5 * ((np.asarray(y) - thetas @ np.asarray(x).T) ** 2).mean(1)


def softmax_scores(target, thetas, x, y):
    f = np.stack([np.asarray(target.forward(jnp.asarray(theta), x)) for theta in thetas])
    return np.take_along_axis(scipy.special.log_softmax(f, -1), np.asarray(y)[None, :, None], -1)[..., 0].mean(1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("patience", mostly([None, 3], 3))
@pytest.mark.parametrize(("problem", "scores_of"), [(linear, gaussian_scores), (classes, softmax_scores)])
def test_early_stopping_keeps_the_best_theta(problem, scores_of, patience):
    """Replayed: the path of plain gradient ascent, looked at every 5 steps, ends where 3 looks found nothing better."""
    target, data = problem()
    options = {"optimizer": optax.sgd(0.05), "objective": "posterior", **OFF} | {
        "validate_every": 5,
        "patience": patience,
    }
    method = deep_ensemble(target, Schedule(1, 200, 1, 0), **options)
    plain = maximum_a_posteriori(target, Schedule(1, 200, 1, 0), optimizer=optax.sgd(0.05))
    start = jnp.resize(jnp.array([1.0, -1.0, 0.5, 0.0]), target.dim)
    thetas = np.asarray(path(plain, data, start, 200)[0].theta)
    scores = scores_of(target, thetas[4::5], *data.validation)
    best, misses, looks = -1, 0, 0
    for i, score in enumerate(scores):
        if patience is not None and misses == patience:
            break
        looks = i + 1
        best, misses = (i, 0) if best < 0 or score > scores[best] else (best, misses + 1)
    states, grads = path(method, data, start, 200)
    last = jax.tree.map(lambda a: a[-1], states)
    np.testing.assert_allclose(method.draw(jax.random.key(0), last), thetas[4::5][best], rtol=1e-12)
    assert grads.sum() == 5 * looks
    assert 0 < best < len(scores) - 1  # else this test would not tell stopping from going on
    assert patience is None or looks < len(scores)


def stopped_run(block_seconds, every=4, factory=deep_ensemble):
    """Three members in the loop, on batches of 5 of 24 rows of which each holds 6 out: draws and gradients."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 4)), rng.standard_normal(24)
    options = {"optimizer": optax.sgd(0.05), "objective": "posterior", "validate_every": every, "patience": 2}
    here = stage("ensemble", factory, Schedule(1, 3000, 1, 0, 5), **options, validation_fraction=0.25)
    outcome = sample(program((here,)), Shared(x[None], y[None]), lanes_of(3), block_seconds)
    return outcome.draws, sum(b.num_grads for b in outcome.blocks)


@pytest.mark.slow
def test_a_member_that_has_stopped_is_left():
    """It is charged looks times 4 steps of 5 / 24 gradients, and where blocks end changes no bit."""
    (draws, grads), (again, charged) = stopped_run(1e9), stopped_run(0.002)
    np.testing.assert_array_equal(draws, again)
    np.testing.assert_allclose(grads, charged, rtol=1e-9)  # shares of a gradient, summed by blocks
    looks = grads / (4 * 5 / 24)
    np.testing.assert_allclose(looks, np.round(looks), rtol=1e-6)
    assert (looks >= 3).all()
    assert (looks < 3000 / 4).all()


def rows_seen(batch_size):
    """Row numbers of each step (L, steps, B) and of the validation rows (L, 6), of 24 rows with a quarter held out."""
    numbers = np.arange(24.0)[:, None]

    def probe(target, schedule):
        init = lambda key, theta, data: data.validation[0][:, 0]
        seen = lambda data: {"num_grads": jnp.float32(1), "log_density": jnp.float32(0), "rows": data.x[:, 0]}
        step = lambda key, t, state, data: (state, seen(data))
        return Method(init, step, draw=lambda key, state: state, validation_fraction=0.25)

    here = stage("probe", probe, Schedule(1, 0, 18, 1, batch_size))
    outcome = sample(program((here,)), Shared(numbers[None], numbers[None, :, 0]), lanes_of(4))
    return outcome.stat("rows"), outcome.draws[:, 0], sum(b.num_grads for b in outcome.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, None])
def test_rows_held_out_are_never_trained_on(batch_size):
    """Five epochs of 18 rows, each row five times, or 18 steps of them all; the six others are each lane's own choice."""
    seen, held, charged = rows_seen(batch_size)
    for used, others in zip(seen, held, strict=True):
        counts = np.bincount(used.reshape(-1).astype(int), minlength=24)
        np.testing.assert_array_equal(np.flatnonzero(counts == 0), np.sort(others))
        np.testing.assert_array_equal(counts[counts > 0], 5 if batch_size else 18)
    assert len({tuple(np.sort(others)) for others in held}) > 1
    np.testing.assert_allclose(charged, 18 * (batch_size or 18) / 24, rtol=1e-6)


# ---- hidden units and dropout


class Heads(linen.Module):
    """Two dense layers read the same hidden units, as mean and scale heads do."""

    out_features: int

    @linen.compact
    def __call__(self, x):
        h = linen.relu(linen.Dense(3, name="body")(x))
        return jnp.concatenate(
            [linen.Dense(1, name="mean")(h), linen.Dense(1, name="scale")(linen.Dense(2, name="more")(h))], -1
        )


class Convolution(nnx.Module):
    def __init__(self, in_features, out_features, rngs):
        self.first = nnx.Conv(1, 2, (2,), rngs=rngs)
        self.second = nnx.Conv(2, 2, (2,), rngs=rngs)
        self.out = nnx.Linear(2 * in_features, out_features, rngs=rngs)

    def __call__(self, x):
        h = jax.nn.relu(self.first(x[..., None]))
        return self.out(jax.nn.relu(self.second(h)).reshape(x.shape[0], -1))


def by_site(target, values):
    """A vector over theta as named arrays: sites are real here, so constrain takes them as they are."""
    return {name: np.asarray(v) for name, v in target.constrain(jnp.asarray(values, jnp.float32)).items()}


def test_hidden_units_of_a_perceptron():
    target, _ = network(functools.partial(MLP, width=2, depth=2, activation="silu"))
    units = by_site(target, target.units())
    np.testing.assert_array_equal(units["network.hidden.0.kernel"], -np.ones((3, 2)))
    np.testing.assert_array_equal(units["network.hidden.1.kernel"], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(units["network.output.kernel"], [[2], [3]])
    assert all((units[name] == -1).all() for name in units if name.endswith("bias"))
    last = by_site(target, target.last_layer())
    assert {name for name in last if last[name].all()} == {"network.output.kernel", "network.output.bias"}
    assert {name for name in last if last[name].any()} == {"network.output.kernel", "network.output.bias"}


def test_heads_that_read_the_same_units_share_them():
    target, _ = network(Heads, outputs=2)
    units = by_site(target, target.units())
    np.testing.assert_array_equal(units["network.mean.kernel"], [[0], [1], [2]])
    np.testing.assert_array_equal(units["network.more.kernel"], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(units["network.scale.kernel"], [[3], [4]])
    with pytest.raises(ConfigError, match="no last layer"):
        target.last_layer()


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Convolution, "dropout knows dense layers only"),
        (functools.partial(MLP, width=1, depth=0, activation="tanh"), "no hidden layer"),
    ],
)
def test_networks_without_units_are_refused(module, sentence):
    target, _ = network(module)
    with pytest.raises(ConfigError, match=sentence):
        mc_dropout(target, Schedule(1, 10, 10, 0), optimizer=optax.sgd(0.1), objective="posterior", rate=0.1, **OFF)


def dropout(target, rate=0.3, factory=mc_dropout, objective="posterior"):
    return factory(target, Schedule(1, 10, 10, 0), optimizer=optax.sgd(1.0), objective=objective, rate=rate, **OFF)


def dropped_functions_differ(factory):
    """How far a draw's function is from the network with its hidden units masked, over 50 draws."""
    width = 4
    target, data = network(functools.partial(MLP, width=width, depth=1, activation="tanh"))
    method = dropout(target, factory=factory)
    theta = jax.random.normal(jax.random.key(2), (target.dim,))
    state = method.init(jax.random.key(0), theta, data)
    sites = by_site(target, theta)
    hidden = np.tanh(data.x @ sites["network.hidden.0.kernel"] + sites["network.hidden.0.bias"])
    draws = jax.vmap(lambda key: method.draw(key, state))(jax.random.split(jax.random.key(1), 50))
    worst, kept = 0.0, []
    for draw in draws:
        kernel = by_site(target, draw)["network.output.kernel"][:, 0] / sites["network.output.kernel"][:, 0]
        mask = np.where(kernel > 0.5, 1 / 0.7, 0.0)
        wanted = (hidden * mask) @ sites["network.output.kernel"][:, 0] + sites["network.output.bias"]
        worst = max(worst, np.abs(target.forward(draw, data.x)[:, 0] - wanted).max())
        kept.append(mask > 0)
    return worst, np.concatenate(kept)


@pytest.mark.slow
def test_a_draw_of_dropout_is_the_network_with_units_left_out():
    """Equal to single precision; the number of kept units is binomial, within the two-sided family-wise limit."""
    worst, kept = dropped_functions_differ(mc_dropout)
    assert worst < 1e-4
    assert scipy.stats.binomtest(int(kept.sum()), kept.size, 0.7).pvalue > FAMILY_WISE
    unscaled = mutate("bdlbench.inference.point", "astype(theta.dtype) / (1 - rate)", "astype(theta.dtype)").mc_dropout
    assert dropped_functions_differ(unscaled)[0] > 0.01


def dropout_gradient_z(factory, objective="posterior"):
    """Largest |z| of the mean of 20,000 stochastic gradients against the bound's, and its limit.

    Linear regression whose inputs are the units. With weights scaled by 1 / (1 - p) where kept, the bound is
    -|y - x theta|^2 / 2 - p / (2 (1 - p)) sum_j |x_j|^2 theta_j^2 - |theta|^2 / (2 s^2 (1 - p)). The likelihood as the
    objective leaves its last term out.
    """
    target, data = linear()
    target = target._replace(units=lambda: np.arange(4))
    rate, theta = 0.3, jnp.array([1.0, -1.0, 0.5, 0.2])
    method = dropout(target, rate, factory, objective)
    state = method.init(jax.random.key(0), theta, data)
    keys = jax.random.split(jax.random.key(5), 20_000)
    moved = jax.jit(jax.vmap(lambda key: method.step(key, jnp.int32(0), state, data)[0].theta))(keys)
    grads = (np.asarray(moved, np.float64) - np.asarray(theta)) * data.size
    x, y, t = (np.asarray(a, np.float64) for a in (data.x, data.y, theta))
    wanted = x.T @ (y - x @ t) - rate / (1 - rate) * (x**2).sum(0) * t
    if objective == "posterior":
        wanted -= t / (PRIOR_SCALE**2 * (1 - rate))
    with np.errstate(divide="ignore"):  # a mutant's gradients do not vary
        z = np.abs(grads.mean(0) - wanted) / (grads.std(0, ddof=1) / np.sqrt(len(grads)))
    return z.max(), limit(4, len(grads) - 1)


@pytest.mark.parametrize("objective", ["posterior", "likelihood"])
def test_dropout_climbs_gal_and_ghahramanis_bound(objective):
    z, most = dropout_gradient_z(mc_dropout, objective)
    assert z <= most


@pytest.mark.parametrize(
    ("old", "new"),
    first_of(
        [
            ("jax.random.bernoulli(key, 1 - rate,", "jax.random.bernoulli(key, rate,"),
            ("astype(theta.dtype) / (1 - rate)", "astype(theta.dtype)"),
            ("return objective_of(masked(key, theta), data)", "return objective_of(theta, data)"),
        ]
    ),
)
def test_dropout_mutants_are_noticed(old, new):
    z, most = dropout_gradient_z(mutate("bdlbench.inference.point", old, new).mc_dropout)
    assert z > most


def falling(rate, steps):
    """Adam whose rate falls to nothing: what is left of the optimisation's noise is small against the draws' own."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def test_map_finds_the_mode():
    """|theta - mean| in posterior standard deviations is at rounding: single-precision gradients, 1e-3."""
    problem = gaussian(10, 100)
    schedule = Schedule(1, 3000, 1, 0)
    step = stage("map", maximum_a_posteriori, schedule, optimizer=falling(0.1, 3000))
    drawn = sample(program((step,)), rows(problem), lanes_of(4))
    offset = drawn.draws[:, 0].astype(np.float64) - problem.mean
    distance = np.sqrt(np.einsum("ci,ij,cj->c", offset, problem.precision, offset))
    assert distance.max() <= 1e-3, distance


@pytest.mark.slow
def test_map_on_minibatches_finds_the_mode():
    """The batches' noise averages out as the rate falls: within 0.1 standard deviations of the mode."""
    problem = gaussian(3, 4, copies=8)
    schedule = Schedule(1, 6000, 1, 0, 8)
    step = stage("map", maximum_a_posteriori, schedule, optimizer=falling(0.03, 6000))
    drawn = sample(program((step,)), rows(problem), lanes_of(4))
    offset = drawn.draws[:, 0].astype(np.float64) - problem.mean
    assert np.einsum("ci,ij,cj->c", offset, problem.precision, offset).max() <= 0.01


def scale_model(x, y=None):
    """A positive site: sigma ~ LogNormal, one observation a row."""
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(0.0 * x[:, 0], sigma), obs=y)


def test_the_mode_is_that_of_the_unconstrained_density():
    """MAP of sigma with its Jacobian: the root of the derivative of the density of u = log sigma.

    log p(u) = -u^2 / 2 - u + u - n u - S exp(-2u) / 2 with S the sum of squares (the Jacobian u cancels LogNormal's
    -u), so -u - n + S exp(-2 u) = 0.
    """
    y = np.array([0.5, -1.5, 2.0, 0.3], np.float32)
    u = np.log(np.sqrt((y**2).mean()))
    for _ in range(50):
        value, slope = -u - 4 + (y**2).sum() * np.exp(-2 * u), -1 - 2 * (y**2).sum() * np.exp(-2 * u)
        u -= value / slope
    step = stage("map", maximum_a_posteriori, Schedule(1, 2000, 1, 0), optimizer=falling(0.1, 2000))
    problem = SimpleNamespace(x=np.zeros((4, 1), np.float32), y=y)
    drawn = sample(program((step,), scale_model), rows(problem), lanes_of(2))
    np.testing.assert_allclose(drawn.draws[:, 0, 0], u, atol=1e-4)


SCHEDULE = Schedule(1, 0, 1, 1)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["inference=deep_ensemble", "inference.validate_every=10"], "data.validation_fraction"),
        (["inference=map", "inference.schedule.num_samples=5"], "num_samples=5 does not fit map"),
        (["inference=deep_ensemble", "inference.schedule.num_samples=2"], "num_samples=2 does not fit deep_ensemble"),
        (["inference=deep_ensemble", "inference.patience=3"], "give inference.validate_every"),
        (["inference=deep_ensemble", "inference.validation_fraction=0.1"], "give inference.validate_every"),
        (
            ["inference=mc_dropout", "inference.validate_every=10", "inference.validation_fraction=1.0"],
            "validation_fraction=1.0 must lie strictly between 0 and 1",
        ),
        (
            ["inference=deep_ensemble", "inference.validate_every=10", "inference.validation_fraction=0.999"],
            "leaves none to train on",
        ),
        (
            ["inference=mile", "inference.before.0.schedule.batch_size=320"],
            "batch_size=320 does not fit 301 training rows",
        ),
        (["inference=deep_ensemble", "inference.validate_every=100000"], "make it smaller"),
        (["inference=mc_dropout", "inference.rate=1.0"], "rate=1.0"),
        (
            ["inference=mc_dropout", "model=eight_schools", "data=eight_schools", "inference.schedule.batch_size=null"],
            "no deterministic site 'f'",
        ),
    ],
)
def test_what_is_refused(options, sentence):
    assert_refused(options, sentence)


# ---- the presets of this family


def at_the_mode(run: Run) -> Verdict:
    """Distance in posterior standard deviations, at most the 1e-3 that single-precision gradients leave."""
    away = run.drawn.draws[:, 0].astype(np.float64) - run.problem.mean
    return Verdict(float(np.sqrt(np.einsum("ci,ij,cj->c", away, run.problem.precision, away)).max()), 1e-3, 0.0)


def bound_of_dropout() -> Verdict:
    """The mean stochastic gradient is that of Gal and Ghahramani's bound."""
    z, most = dropout_gradient_z(mc_dropout)
    return Verdict(float(z), most, 0.0)


STEP = (
    "-grad / data.size)\n        updates, opt_state = optimizer.update(loss_grad, state.optimizer, state.theta)\n"
    "        theta = optax.apply_updates(state.theta, updates)\n        return State"
)


class TestLaws(PresetLaws):
    """MAP and the members of an ensemble end at the mode; dropout climbs its bound."""

    laws = {
        "map": Law(
            "mode",
            "test_map_is_the_plain_optimiser",
            4,
            (schedule(3000, 1, 0), adam_that_falls(0.1, 3000), *ALONE),
            at_the_mode,
        ),
        "deep_ensemble": Law(
            "mode",
            "test_a_member_reaches_its_closed_form",
            4,
            (schedule(3000, 1, 0), adam_that_falls(0.1, 3000, "optax.adamw"), *ALONE),
            at_the_mode,
        ),
        "mc_dropout": Law(
            "stochastic gradients of its bound",
            "test_dropout_climbs_gal_and_ghahramanis_bound",
            4,
            ("network=mlp", "network.width=3", schedule(5, 5, 0, 8)),
            of_its_own(bound_of_dropout),
        ),
    }
    mutants = {"map": Mutant(STEP, STEP.replace("-grad /", "-(grad - state.theta) /"), within="maximum_a_posteriori")}
    refuses = {("mc_dropout", task): "no deterministic site 'f'" for task in ("eight schools", "robust regression")}
