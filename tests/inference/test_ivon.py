"""Laws 4 and 7 for the variational methods: fixed points, log q, and the population that collapses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from known_posteriors import gaussian, lanes_of, moments, program, regression, rows, sample, stage
from mutation import mutate

from bdlbench.inference.ivon import ivon
from bdlbench.inference.svgd import State, svgd
from bdlbench.inference.svi import _Cholesky, svi
from bdlbench.metrics.diagnostics import psis_khat
from bdlbench.model.target import make_target
from bdlbench.runs import configuration
from bdlbench.runs.group import run_config
from bdlbench.runs.job import check_job, make_job
from bdlbench.store import Store
from bdlbench.types import ConfigError, Data, Schedule

LANES = 64


def decay(rate, steps):
    return optax.cosine_decay_schedule(rate, steps)


def fitted(factory, problem, steps, num_lanes=LANES, **options):
    """Draws (C, 1000, D) of a variational method fitted in every lane."""
    one = stage("fit", factory, Schedule(num_lanes, steps, 1000, 0), **options)
    return sample(program((one,)), rows(problem), lanes_of(num_lanes))


def ivon_options(steps):
    return {"learning_rate": decay(0.1, steps), "hessian_init": 1.0, "beta1": 0.9, "beta2": 0.999}


def test_ivon_reaches_the_mean_field_fixed_point():
    """Means of the posterior, variances 1 / diag(precision).

    What is left of h_0 is exp(-12); h is inflated by (1 - beta2)/2 Var(f)/h^2, at most 0.0005 x 11, but its own
    spread of the same size raises E[1/h] as much, so the variances' bias is of second order, far below their standard
    error of 0.56 %. The rate falls to nothing, and with it the spread of m.
    """
    problem = gaussian(10, 100)
    drawn = fitted(ivon, problem, 12_000, **ivon_options(12_000))
    verdict = moments(drawn.draws, problem.mean, np.diag(1 / np.diag(problem.precision)))
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("f = g * away * h * size", "f = g * away * h * size * 1.1"),  # a curvature 10 % too high
        ("state.mean + noise(key, state) * scale(state)", "state.mean + 1.05 * noise(key, state) * scale(state)"),
        ("-grad / size", "-grad / size * jnp.where(jnp.arange(target.dim) == 0, 1.1, 1.0)"),
    ],
)
def test_ivon_mutants_are_noticed(old, new):
    problem = gaussian(10, 100)
    mutant = mutate("bdlbench.inference.ivon", old, new).ivon
    drawn = fitted(mutant, problem, 6_000, **ivon_options(6_000))
    assert not moments(drawn.draws, problem.mean, np.diag(1 / np.diag(problem.precision))).passes


def test_a_low_rank_guide_of_enough_factors_is_exact():
    """Diagonal plus D - 1 factors holds any covariance: the posterior's."""
    problem = gaussian(3, 5)
    options = {"optimizer": optax.adam(decay(0.03, 4000)), "guide": "low_rank", "rank": 2}
    drawn = fitted(svi, problem, 4000, **options, init_scale=0.1, num_particles=4)
    verdict = moments(drawn.draws, problem.mean, problem.cov)
    assert verdict.passes, verdict


def state_of(factory, key, dim=4, **options):
    """A method on a Gaussian of ``dim`` dimensions after some steps, and its state."""
    problem = gaussian(dim, 10)
    target = make_target(regression, jnp.asarray(problem.x), jnp.asarray(problem.y))
    data = Data(jnp.asarray(problem.x), jnp.asarray(problem.y), dim)
    method = factory(target, Schedule(1, 30, 10, 0), **options)

    @jax.jit
    def run():
        state = method.init(key, jnp.zeros(dim), data)
        return jax.lax.fori_loop(0, 30, lambda t, s: method.step(jax.random.fold_in(key, t), t, s, data)[0], state)

    return method, run(), target, data


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("guide", ["mean_field", "low_rank", "full_rank", "iaf"])
def test_log_q_is_the_density_of_the_draw(guide):
    """Against the guide's own density, whose evaluation inverts the flow: equal to rounding."""
    options = {"guide": guide, "rank": 2 if guide == "low_rank" else None, "init_scale": 0.1, "num_particles": 1}
    with jax.enable_x64(True):
        method, state, _, _ = state_of(svi, jax.random.key(3), optimizer=optax.adam(0.01), **options)
        log_q = method.log_q

        def both(key):
            return method.draw(key, state), log_q(key, state)

        keys = jax.random.split(jax.random.key(0), 20_000)
        theta, values = jax.jit(lambda: jax.vmap(both)(keys))()
    # log q integrates to one over q: a normal fitted to the draws by moments is q itself but for the flow.
    if guide == "iaf":
        # A bounded statement for any density: E_q[N(theta; m, S) / q] = 1 for a narrower normal N.
        cov = np.cov(theta.T) / 2
        ratio = np.exp(scipy.stats.multivariate_normal(theta.mean(0), cov).logpdf(theta) - values)
        error = ratio.std(ddof=1) / np.sqrt(len(ratio))
        assert abs(ratio.mean() - 1) < scipy.stats.norm.isf(5e-7) * error
        assert error < 0.25  # without the scale's Jacobian q would be off by a factor of 10^4
    else:
        # log q + |white|^2 / 2 is one number, -log det(2 pi S)/2: S from the regression of log q on quadratics.
        upper = np.triu_indices(4)
        design = np.column_stack([np.ones(len(theta)), theta, (theta[:, :, None] * theta[:, None])[:, *upper]])
        coefficients, *_ = np.linalg.lstsq(design, np.asarray(values), rcond=None)
        np.testing.assert_allclose(design @ coefficients, values, atol=1e-6)
        square = np.zeros((4, 4))
        square[upper] = coefficients[5:]
        precision = -(square + square.T)
        mean = np.linalg.solve(precision, coefficients[1:5])
        np.testing.assert_allclose(
            scipy.stats.multivariate_normal(mean, np.linalg.inv(precision)).logpdf(theta), values, atol=1e-6
        )
        white = (theta - mean) @ np.linalg.cholesky(precision)
        assert moments(white.reshape(40, 500, 4), np.zeros(4), np.eye(4)).passes


def test_log_q_of_an_ill_conditioned_factor_keeps_its_digits():
    """L = 1e-3 I + the ones below the diagonal: its inverse has entries near 1e3^40, past all digits of a float32.

    The density needs none of it: a sum of 40 squares and 40 logarithms, each right to half an ulp of a sum of at most
    1,000, so 80 x 1,000 x 6e-8 = 5e-3 bounds the error; solving for the noise misses by more than 1.
    """
    factor = 1e-3 * np.eye(40) + np.tril(np.ones((40, 40)), -1)
    q = _Cholesky(jnp.zeros(40), scale_tril=jnp.asarray(factor, jnp.float32))
    theta, (noise,) = q.sample_with_intermediates(jax.random.key(0))
    exact = scipy.stats.norm.logpdf(np.asarray(noise, np.float64)).sum() - 40 * np.log(np.float64(np.float32(1e-3)))
    assert abs(q.log_prob(theta, [noise]) - exact) <= 5e-3
    assert not abs(q.log_prob(theta) - exact) <= 1
    np.testing.assert_array_equal(theta, q.sample(jax.random.key(0)))


@pytest.mark.usefixtures("x64")
def test_ivon_log_q_is_the_density_of_the_draw():
    method, state, _, _ = state_of(ivon, jax.random.key(3), **ivon_options(30))
    sd = 1 / np.sqrt(state.size * state.hessian)
    for seed in range(3):
        key = jax.random.key(seed)
        wanted = scipy.stats.norm(state.mean, sd).logpdf(method.draw(key, state)).sum()
        np.testing.assert_allclose(method.log_q(key, state), wanted, rtol=1e-12)


def test_the_record_has_khat_and_warns(tmp_path):
    """Of the ratios that the store keeps; log p to a constant is the closed form's, log q the density of the draws."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((40, 8)) @ np.diag(np.full(8, 0.1)) + rng.standard_normal((40, 1))
    np.savez(tmp_path / "rows.npz", x=x, y=x @ np.ones(8) + 0.1 * rng.standard_normal(40))
    options = [
        "data=npz",
        f"data.path={tmp_path}/rows.npz",
        "network=linear",
        "prior=normal",
        "likelihood=gaussian_fixed",
        "inference=svi",
        "inference.schedule.num_warmup=3000",
        f"store.path={tmp_path}/store",
        "progress=off",
    ]
    record = run_config(*configuration.compose(options))
    stats = Store(tmp_path / "store").posterior(record["id"])["sample_stats"]
    ratios = (stats["lp"].values.astype(np.float64) - stats["log_q"].values)[0]
    assert record["metrics"]["psis_khat"] == pytest.approx(psis_khat(ratios))
    # Mean-field on features that are nearly one: variances too small by a factor of hundreds in some directions.
    assert record["metrics"]["psis_khat"] > 0.7
    assert any("k-hat" in warning for warning in record["warnings"])


# ---- SVGD


def svgd_on_normal(dim, num, steps, factory=svgd, seed=0, scale=0.5):
    """Particles after ``steps`` of plain gradient ascent along phi on N(0, I)."""
    zeros = jnp.zeros((1, dim))

    def model(x, y=None):
        import numpyro
        import numpyro.distributions as dist

        numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
        with numpyro.plate("rows", x.shape[0]):
            numpyro.sample("y", dist.Normal(x[:, 0], 1.0), obs=y)

    target = make_target(model, zeros, jnp.zeros(1))
    data = Data(zeros, jnp.zeros(1), 1)
    method = factory(target, Schedule(1, steps, 1, 0), optimizer=optax.sgd(0.5), num_particles=num, init_scale=scale)

    @jax.jit
    def run(key):
        state = method.init(key, jnp.full(dim, 0.3), data)
        return jax.lax.fori_loop(0, steps, lambda t, s: method.step(key, t, s, data)[0], state)

    return np.asarray(method.draw(jax.random.key(0), run(jax.random.key(seed)))), method, data


@pytest.mark.usefixtures("x64")
def test_svgd_moves_along_the_stein_direction():
    """One step of rate 1 against the double sum of the paper, N = 1, in double precision."""
    rng = np.random.default_rng(0)
    particles = rng.standard_normal((5, 3))
    squared = ((particles[:, None] - particles[None]) ** 2).sum(-1)
    h = np.median(squared[np.triu_indices(5, 1)]) / np.log(6)
    wanted = np.zeros((5, 3))
    for i in range(5):
        for j in range(5):
            k = np.exp(-squared[i, j] / h)
            wanted[i] += (k * -particles[j] - 2 / h * (particles[j] - particles[i]) * k) / 5
    _, method, data = svgd_on_normal(3, 5, 1)
    state, info = method.step(
        jax.random.key(0), jnp.int32(0), State(jnp.asarray(particles), optax.sgd(0.5).init(particles)), data
    )
    np.testing.assert_allclose(state.particles, particles + 0.5 * wanted, rtol=1e-10)
    assert float(info["num_grads"]) == 5


def test_svgd_fits_one_dimension_and_collapses_in_fifty():
    """Deterministic once the particles have come to rest: near the variance 1 at D = 1, far below it at D = 50.

    The mean is the target's in both, by symmetry.
    """
    one, _, _ = svgd_on_normal(1, 20, 4000)
    fifty, _, _ = svgd_on_normal(50, 20, 4000)
    assert 0.7 < one.var() < 1.2
    assert fifty.var(0).mean() < 0.3
    assert abs(one.mean()) < 0.05
    assert np.abs(fifty.mean(0)).max() < 0.05
    no_repulsion = mutate("bdlbench.inference.svgd", "kernel @ grads + repulsion", "kernel @ grads").svgd
    assert not svgd_on_normal(1, 20, 4000, no_repulsion)[0].var() > 0.7  # they meet in a point, and the kernel is 0 / 0


# ---- refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["inference=svi_fullrank", "network.width=3000"], r"36002 x 36002 matrix with .* of 19\.31 GiB a chain"),
        (["inference=svi_lowrank", "network.width=3000", "inference.rank=5000"], r"36002 x 5000 matrix .* 2\.68 GiB"),
        (["inference=svi_fullrank", "inference.num_particles=1000000"], r"num_particles=1000000 needs .* 4\.49 GiB"),
        (["inference=nuts", "inference.dense_mass=true", "network.width=3000"], r"dense_mass=true needs five .* 24"),
        (["inference=svgd", "inference.num_particles=20000"], r"20000 x 20000 kernel of 4\.\d\d GiB"),
        (["inference=smc", "inference.num_particles=200000"], r"num_particles=200000 needs .* GiB"),
        (["inference=chees", "inference.num_particles=200000"], r"num_particles=200000 needs .* GiB"),
        (
            ["inference=swag", "inference.rank=40", "inference.collect_every=20", "network.width=2000000"],
            "40 deviations",
        ),
        (["inference=svi", "inference.schedule.num_warmup=0"], "schedule.num_warmup=0 must be at least 1"),
        (["inference=ivon", "inference.schedule.num_warmup=0"], "decay_steps=0 must be at least 1"),  # refers to it
        (["inference=svgd", "inference.schedule.num_warmup=0"], "schedule.num_warmup=0 must be at least 1"),
        (["inference=svi_flow", "network.width=100"], "at most 1,000 weights"),
        (["inference=svi_lowrank", "inference.rank=100000"], "give 1 to"),
        (["inference=svi", "inference.rank=3"], "set it to null"),
        (["inference=svi", "inference.schedule.thinning=1"], "thinning must be 0"),
        (["inference=ivon", "inference.schedule.thinning=1"], "thinning must be 0"),
        (["inference=ivon", "inference.beta2=1.0"], "beta2=1.0"),
        (["inference=ivon", "inference.hessian_init=0"], "hessian_init"),
        (["inference=svgd", "inference.num_particles=1"], "num_particles=1"),
        (["inference=svgd", "inference.schedule.num_samples=10"], "repeat the same particles"),
    ],
)
def test_what_variational_methods_refuse(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_job(make_job(*configuration.compose(["data=diabetes", *options])))
