"""The sampler in memory: the bits of a run, one compilation, rows with weights, and log likelihoods that are estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from known_posteriors import gaussian, largest_z, linear_job, number, regression, stage

from bdlbench import sampling
from bdlbench.errors import ConfigError
from bdlbench.inference import (
    adjusted_mclmc,
    chees,
    hmc,
    ivon,
    laplace,
    mclmc,
    point,
    sghmc,
    sgld,
    smc,
    svgd,
    svi,
    swag,
)
from bdlbench.model.target import make_target
from bdlbench.runs.arrangement import arrange
from bdlbench.sampling import batches, loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.programs import StagePrograms
from bdlbench.types import Data, Schedule, Target

PROBLEM = gaussian(3, 4.0, copies=8)
ADAM, DESCENT = optax.adam(0.01), optax.sgd(0.01)
TRAINED = {"validate_every": None, "patience": None, "validation_fraction": None}
FLOW = {"initial_step_size": 0.3, "frac_tune1": 0.3, "frac_tune2": 0.3, "diagonal_preconditioning": True}
POPULATION = {"num_particles": 16, "initial_step_size": 0.3, "target_accept_prob": 0.8}


def mode(batch_size=None):
    return stage("map", point.maximum_a_posteriori, Schedule(1, 20, 1, 1, batch_size), optimizer=ADAM)


def of(module, name, schedule, **options):
    return lambda: (stage(name, getattr(module, name), schedule, **options),)


def batched(num_warmup, num_samples, thinning=1):
    return Schedule(1, num_warmup, num_samples, thinning, 7)


FULL, FIT = Schedule(1, 8, 4, 1), Schedule(1, 8, 4, 0)
FIXED = {
    "nuts": of(hmc, "nuts", FULL, target_accept_prob=0.8, max_tree_depth=4, dense_mass=False),
    "hmc": of(hmc, "hmc", FULL, target_accept_prob=0.8, trajectory_length=1.0, max_leapfrog_steps=20),
    "adjusted_mclmc": of(
        adjusted_mclmc, "adjusted_mclmc", FULL, target_accept_prob=0.65, l_factor=1.3, max_num_steps=20, **FLOW
    ),
    "mclmc": of(
        mclmc,
        "mclmc",
        FULL,
        energy_variance_start=5e-4,
        energy_variance_end=5e-4,
        l_factor=0.4,
        trust_in_estimate=1.5,
        num_effective_samples=150.0,
        **FLOW,
    ),
    "chees": of(
        chees, "chees", FULL, init_scale=0.1, learning_rate=0.025, decay_rate=0.5, max_leapfrog_steps=20, **POPULATION
    ),
    "smc": of(smc, "smc", FULL, target_ess=0.5, num_moves=2, num_leapfrog_steps=3, **POPULATION),
    "laplace": lambda: (
        mode(),
        stage("laplace", laplace.laplace, Schedule(1, 0, 4, 0), structure="full", evidence=False),
    ),
    "sgld_cv": lambda: (mode(7), stage("sgld_cv", sgld.sgld_cv, batched(8, 4), step_size=0.01)),
}
FREE = {
    "map": lambda: (mode(),),
    "deep_ensemble": of(
        point, "deep_ensemble", Schedule(1, 20, 1, 1, 7), optimizer=ADAM, objective="likelihood", **TRAINED
    ),
    "sgld": of(sgld, "sgld", batched(8, 4), step_size=0.01, decay=0.0, decay_steps=1.0),
    "psgld": of(sgld, "psgld", batched(8, 4), step_size=0.01, averaging=0.9, damping=0.1),
    "cyclical_sgld": of(sgld, "cyclical_sgld", batched(8, 4), step_size=0.01, num_cycles=2),
    "sghmc": of(sghmc, "sghmc", batched(8, 4), step_size=0.05, friction=1.0),
    "baoa": of(sghmc, "baoa", batched(8, 4), step_size=0.05, friction=1.0),
    "sgnht": of(sghmc, "sgnht", batched(8, 4), step_size=0.05, friction=1.0),
    "cyclical_sghmc": of(sghmc, "cyclical_sghmc", batched(8, 4), step_size=0.05, friction=1.0, num_cycles=2),
    "svi": of(
        svi, "svi", batched(20, 4, 0), optimizer=ADAM, guide="mean_field", init_scale=0.1, num_particles=2, rank=None
    ),
    "ivon": of(ivon, "ivon", batched(20, 4, 0), learning_rate=0.1, hessian_init=1.0, beta1=0.9, beta2=0.9),
    "swag": of(swag, "swag", batched(20, 4, 0), optimizer=DESCENT, rank=3, collect_after=5, collect_every=2),
    "svgd": of(svgd, "svgd", Schedule(1, 20, 1, 0, 7), optimizer=ADAM, num_particles=8, init_scale=1.0),
}
EVERY = FIXED | FREE
ALWAYS = ("nuts", "laplace", "map", "sgld", "svi")
"""One method of each kind; the others are left to the slow tests."""


SOMETIMES = ("hmc", "sghmc", "svgd", "swag")
"""Methods of the slow tests. Their kin are left to the long ones."""


def kinds(methods):
    """The names of methods, those not of ``ALWAYS`` marked as slow or long."""
    return [
        name
        if name in ALWAYS
        else pytest.param(name, marks=pytest.mark.slow if name in SOMETIMES else pytest.mark.long)
        for name in methods
    ]


def linear(numbers, x, y):
    return make_target(regression, x, y, numbers.get("temperature", 1.0))


def noisy(x, y=None):
    """theta ~ N(0, I), y ~ N(theta_0, 1), each row's theta_0 disturbed: the gradient of a row is exact in the mean."""
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    disturbed = theta[0] + x[:, 0] * jax.random.normal(numpyro.prng_key(), (x.shape[0],))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(disturbed, 1.0), obs=y)


def padded(capacity, there=None):
    """The rows of the problem spread over a capacity of rows, the others not there and not even numbers."""
    count = len(PROBLEM.y)
    x = np.full((capacity, PROBLEM.x.shape[1]), np.nan, np.float32)
    y, weights = np.full(capacity, np.nan, np.float32), np.zeros(capacity)
    there = np.sort(np.random.default_rng(0).permutation(capacity)[:count]) if there is None else there
    x[there], y[there], weights[there] = PROBLEM.x, PROBLEM.y, 1.0
    return x, y, weights


@pytest.fixture
def compilations(monkeypatch):
    """The functions that were compiled, by name."""
    done = []
    lowered = StagePrograms._lowered
    monkeypatch.setattr(
        StagePrograms, "_lowered", lambda self, kind, *args: done.append(kind) or lowered(self, kind, *args)
    )
    return done


@pytest.mark.slow
def test_a_call_gives_the_bits_of_a_run(tmp_path):
    """The program, rows and lanes that a run makes of its configuration, and a sampler of the same parts."""
    job, _ = linear_job(
        tmp_path, "sgld", "inference.before=[]", "inference.schedule.num_warmup=30", "inference.schedule.num_samples=10",
        "seed=4", chains=3,
    )  # fmt: skip
    shared, lane, _, _ = arrange([job])
    drawn = loop.joined([b for b in loop.run(job.program, shared, lane, clock=Clock()) if b.draws is not None])
    sampler = sampling.compile(job.program.make_target, job.program.stages, 3, start=job.program.start)
    found = sampler((job.dataset.train.x, job.dataset.train.y), jax.random.key(4), numbers=job.numbers)
    np.testing.assert_array_equal(found.draws, drawn.draws)
    np.testing.assert_array_equal(found.stats["log_density"], drawn.stats["log_density"])
    assert found.ok.all() and found.theta.shape == (3, 5) and (found.num_grads > 0).all()


def test_other_data_keys_numbers_and_starts_compile_nothing(compilations):
    """An online loop: each call starts where the last one ended, on other rows of the same shape."""
    one = stage("sgld", sgld.sgld, batched(4, 3), step_size=number("step_size"), decay=0.0, decay_steps=1.0)
    sampler = sampling.compile(linear, [one], 2)
    data, theta, seen = (PROBLEM.x, PROBLEM.y), np.zeros(3, np.float32), []
    for seed in range(4):
        found = sampler(data, jax.random.key(seed), numbers={"step_size": 0.001 * (seed + 1)}, theta=theta)
        theta, data = found.theta, (PROBLEM.x[::-1], PROBLEM.y + seed)
        seen.append(found.draws)
        if seed == 0:
            first = len(compilations)
    assert len(compilations) == first and len({a.tobytes() for a in seen}) == 4


def test_a_sampler_keeps_the_shapes_used_last():
    """The cache is bounded: with one shape kept, another shape takes its place."""
    sampler = sampling.compile(linear, FREE["map"](), 1, shapes_kept=1)
    for rows in (10, 12, 10):
        sampler((PROBLEM.x[:rows], PROBLEM.y[:rows]), jax.random.key(0))
        assert len(sampler.cache) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds(EVERY))
def test_rows_of_weight_zero_are_not_there(name):
    """Padded rows give the draws of the rows alone, batches included.

    In double precision the two differ by the order of sums over the rows, 1e-15 of each; a few dozen steps of these
    contracting or Metropolised chains on a Gaussian of condition 4 amplify it by less than 1e5. One row more or less, or
    another scale of a batch, moves draws by 1e-2.
    """
    with jax.enable_x64(True):
        sampler = sampling.compile(linear, EVERY[name](), 2)
        alone = sampler((PROBLEM.x, PROBLEM.y), jax.random.key(1))
        wide = sampler(padded(40), jax.random.key(1))
    assert alone.ok.all() and wide.ok.all()
    np.testing.assert_allclose(wide.draws, alone.draws, rtol=0, atol=1e-10)
    np.testing.assert_allclose(wide.num_grads, alone.num_grads, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nuts", "laplace", "smc"])
def test_a_weight_is_a_number_of_equal_rows(name):
    """A row of weight 3 is the same row three times, within the rounding of the test above."""
    weights = np.ones(len(PROBLEM.y))
    weights[2] = 3.0
    times = np.repeat(np.arange(len(weights)), weights.astype(int))
    with jax.enable_x64(True):
        sampler = sampling.compile(linear, EVERY[name](), 2)
        one = sampler((PROBLEM.x, PROBLEM.y, weights), jax.random.key(1))
        other = sampler((PROBLEM.x[times], PROBLEM.y[times]), jax.random.key(1))
    np.testing.assert_allclose(one.draws, other.draws, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_data_of_growing_size_compile_once(compilations):
    """Rows that arrive one after another within a capacity, learned by NUTS and by minibatches."""
    for name in ("nuts", "sgld"):
        sampler = sampling.compile(linear, EVERY[name](), 1)
        compilations.clear()
        for count in (8, 13, 24):
            weights = (np.arange(24) < count).astype(np.float32)
            sampler((PROBLEM.x, PROBLEM.y, weights), jax.random.key(0))
            if count == 8:
                first = len(compilations)
        assert 0 < first == len(compilations)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capacity", "size", "num_rows", "batching"),
    [
        (24, 5, 7, "epoch"),
        (300, 10, 64, "epoch"),
        (300, 10, 65, "epoch"),
        (300, 32, 256, "epoch"),
        (300, 13, 99, "iid"),
    ],
)
def test_batches_among_so_many_rows_are_those_of_so_many_rows(capacity, size, num_rows, batching):
    """A number of rows that is traced gives the indices of the same number that is not, sorted or walked."""
    key, schedule, steps = jax.random.key(3), Schedule(1, 0, 1, 1, size, batching), jnp.arange(150)
    one = jax.jit(jax.vmap(lambda t: batches.rows_of_step(key, t, num_rows, schedule)))(steps)
    among = lambda t, n: batches.rows_of_step_among(key, t, n, capacity, schedule)
    other = jax.jit(jax.vmap(among, (0, None)))(steps, jnp.int32(num_rows))
    np.testing.assert_array_equal(other, one)


def test_methods_that_hold_rows_out_refuse_weights():
    """A share of the rows held out has a fixed size."""
    options = TRAINED | {"validate_every": 5, "validation_fraction": 0.2}
    one = stage("deep_ensemble", point.deep_ensemble, batched(20, 1), optimizer=ADAM, objective="posterior", **options)
    with pytest.raises(ConfigError, match="validation_fraction=0.2 of deep_ensemble"):
        sampling.compile(linear, [one], 1)(padded(40), jax.random.key(0))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(5), "data.weights must be a finite number"),
        (-np.ones(24), "data.weights must be a finite number"),
        (np.arange(24) < 3, "3 rows are there, and sgld needs at least 7"),
        (np.zeros(24), "0 rows are there"),
    ],
)
def test_weights_that_fit_no_data_are_refused(weights, message):
    """Too few or negative weights, fewer rows than a batch has, and no row at all."""
    with pytest.raises(ConfigError, match=message):
        sampling.compile(linear, FREE["sgld"](), 1)((PROBLEM.x, PROBLEM.y, weights), jax.random.key(0))


# ---- what a step is charged


class Counted(Target):
    """A target that counts how often its log density is evaluated, in ``evaluated``."""

    def log_density(self, theta, data):
        jax.debug.callback(lambda _: evaluated.append(1), theta)
        return super().log_density(theta, data)


evaluated: list[int] = []
OTHERWISE = {"laplace": "its finalize takes K passes", "deep_ensemble": "without a prior it has another objective"}
"""What is charged by another count, which the tests of these methods look at."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [one for one in kinds(EVERY) if getattr(one, "values", (one,))[0] not in OTHERWISE])
def test_a_step_is_charged_the_densities_that_it_evaluates(name):
    """Each evaluation of the log density of all rows, in a step of warm-up and of sampling, costs one gradient."""
    target = Counted(*make_target(regression, PROBLEM.x, PROBLEM.y))
    one, data = EVERY[name]()[-1], Data(jnp.asarray(PROBLEM.x), jnp.asarray(PROBLEM.y), len(PROBLEM.y))
    method = one.factory(target, one.schedule, {})
    key = jax.random.key(0)
    state = jax.jit(method.init)(key, jnp.full(3, 0.1), data)
    for phase in (method.warm or method.step, method.step):
        if phase is method.step:
            state, _ = jax.jit(method.finalize)(key, state, data)
        move = jax.jit(phase)
        for t in range(1, 3):
            jax.effects_barrier()
            evaluated.clear()
            state, info = move(jax.random.fold_in(key, t), jnp.int32(t), state, data)
            jax.effects_barrier()
            assert len(evaluated) == float(info["num_grads"]) > 0


# ---- log likelihoods that are random estimates

ROWS = np.full((6, 1), 2.0, np.float32), np.linspace(-1.0, 2.0, 6).astype(np.float32)


def noisy_target(numbers, x, y):
    return make_target(noisy, x, y)


def test_a_target_says_whether_it_needs_a_key():
    """A key that a network asks for to initialise itself enters no density; the noisy model's enters each row."""
    x, y = map(jnp.asarray, ROWS)
    target = make_target(noisy, x, y)
    assert target.needs_key and not make_target(regression, x, y).needs_key
    one, same, other = (target.log_density(jnp.zeros(2), Data(x, y, 6, key=jax.random.key(k))) for k in (0, 0, 1))
    assert one == same != other
    with pytest.raises(ConfigError, match=r"data\.key is None"):
        target.log_density(jnp.zeros(2), Data(x, y, 6))


@pytest.mark.parametrize("name", FIXED)
def test_methods_that_need_one_fixed_target_refuse_an_estimate(name):
    """By name; SGLD with control variates too, whose anchor's gradient is computed once and would stay biased."""
    data = np.tile(ROWS[0], (2, 1)), np.tile(ROWS[1], 2)
    with pytest.raises(ConfigError, match=f"inference={name} needs a log likelihood that is the same number each time"):
        sampling.compile(noisy_target, FIXED[name]()[-1:], 1)(data, jax.random.key(0))


def test_dropout_needs_one_fixed_target():
    """It cannot be made for a model without hidden units, so what it says of itself is looked at."""
    target = make_target(noisy, *map(jnp.asarray, ROWS))._replace(units=lambda: np.zeros(2, int))
    assert point.mc_dropout(
        target, batched(20, 1), optimizer=ADAM, objective="posterior", rate=0.1, **TRAINED
    ).fixed_target


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds(FREE))
def test_methods_that_ask_for_unbiased_gradients_take_an_estimate(name):
    """They run, and another key gives other draws."""
    data = np.tile(ROWS[0], (2, 1)), np.tile(ROWS[1], 2)
    sampler = sampling.compile(noisy_target, FREE[name](), 2)
    one, again, other = (sampler(data, jax.random.key(k)) for k in (0, 0, 1))
    assert one.ok.all()
    np.testing.assert_array_equal(one.draws, again.draws)
    assert not np.array_equal(one.draws, other.draws)


def noisy_sgld(num_chains, num_warmup, num_samples, eps):
    schedule = Schedule(1, num_warmup, num_samples, 1)
    one = stage("sgld", sgld.sgld, schedule, step_size=eps, decay=0.0, decay_steps=1.0)
    return sampling.compile(noisy_target, [one], num_chains)


def test_sgld_on_an_estimate_has_its_exact_law():
    r"""theta' = theta + eps (A (m - theta) + s sum_n xi_n) + sqrt(2 eps) xi with A = 1 + N, m = sum y / A.

    Its stationary law is N(m, (2 eps + eps^2 N s^2) / (1 - (1 - eps A)^2)): with N = 6, s = 2 and eps = 0.05 the
    noise of the estimate makes up more than a third of the variance. A key used twice would move the mean.
    """
    eps, chains = 0.05, 256
    A = 1 + len(ROWS[1])
    mean = float(ROWS[1].astype(np.float64).sum()) / A
    variance = (2 * eps + eps**2 * 6 * 2.0**2) / (1 - (1 - eps * A) ** 2)
    draws = noisy_sgld(chains, 200, 400, eps)(ROWS, jax.random.key(7)).draws[..., 0].astype(np.float64)
    white = (draws - mean) / variance**0.5
    z, most = largest_z(np.stack([white.mean(1), (white**2).mean(1)], 1), np.array([0.0, 1.0]))
    assert z <= most
    # The law without the estimate's noise is told apart.
    exact = (draws - mean) / (2 * eps / (1 - (1 - eps * A) ** 2)) ** 0.5
    z, most = largest_z((exact**2).mean(1)[:, None], np.array([1.0]))
    assert z > most


def test_an_estimate_goes_on_with_the_same_bits():
    """The key of step t is a function of t: a run that goes on from a position sees the same estimates."""
    sampler = noisy_sgld(2, 20, 30, 0.05)
    marks = lambda stage, phase: (13,) if phase == "sample" else ()
    blocks = sampler.blocks(ROWS, jax.random.key(0), marks=marks)
    position = next(b.position() for b in blocks if b.draws is not None and b.first_draw + b.draws.shape[1] == 13)
    rest = loop.joined(list(sampler.blocks(ROWS, jax.random.key(0), resume=position)))
    np.testing.assert_array_equal(rest.draws, sampler(ROWS, jax.random.key(0)).draws[:, 13:])
