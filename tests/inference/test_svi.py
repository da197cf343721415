"""Guides reach their fixed point, log q is the density of the draw, and k-hat is in the record."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from known_posteriors import (
    NOISE,
    PRIOR_SCALE,
    Verdict,
    assert_refused,
    gaussian,
    lanes_of,
    largest_z,
    moments,
    program,
    regression,
    rows,
    sample,
    stage,
)
from laws import ALONE, Law, Mutant, PresetLaws, Run, mean_field, posterior, schedule
from laws import falling as adam_that_falls
from mutation import mutate
from presets import mostly

from bdlbench.inference.svi import _check_guide, _Cholesky, svi
from bdlbench.metrics.diagnostics import psis_khat
from bdlbench.model.target import make_target
from bdlbench.runs import configuration
from bdlbench.runs.group import run_config
from bdlbench.sampling import programs
from bdlbench.store import Store
from bdlbench.types import ConfigError, Data, Schedule, Target


def falling(rate, steps):
    """Adam whose rate falls to nothing: what is left of the optimisation's noise is small against the draws' own."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


GUIDES = 32


def check_svi(guide="mean_field", factory=svi, *, batch=None, temperature=1.0, steps=2000, seed=0):
    """Draws from the guide: exact means; variance 1 / diag(precision) (mean-field) or the exact covariance.

    For q = N(m, diag(s^2)) on a Gaussian target the ELBO is -sum_i (A_ii s_i^2 / 2 - log s_i) + quadratic(m) + const,
    largest at m = mean and s_i^2 = 1 / A_ii (Bishop 2006, section 10.1.2). Tempering divides the precision by T.
    """
    problem = gaussian(3, 4, copies=8)
    precision = problem.precision / temperature
    options = {"guide": guide, "init_scale": 0.1, "num_particles": 8, "rank": 3 if guide == "low_rank" else None}
    schedule = Schedule(1, steps, 1000, 0, batch, "epoch")
    step = stage("svi", factory, schedule, optimizer=falling(0.03, steps), **options)
    drawn = sample(program((step,)), rows(problem), lanes_of(GUIDES, seed, temperature=temperature))
    law = np.diag(1 / np.diag(precision)) if guide == "mean_field" else np.linalg.inv(precision)
    return moments(drawn.draws, problem.mean, law)


@pytest.mark.slow
@pytest.mark.parametrize("guide", mostly(["mean_field", "full_rank", "low_rank"], "full_rank"))
def test_a_guide_reaches_its_fixed_point(guide):
    """Mean-field underestimates every variance of a correlated target by a known factor; the others are exact."""
    verdict = check_svi(guide)
    assert verdict.passes, verdict


@pytest.mark.slow
def test_a_guide_on_minibatches_reaches_its_fixed_point():
    """Batches of 8 of 24 rows, weighted by N / B."""
    verdict = check_svi(batch=8, steps=4000)
    assert verdict.passes, verdict


@pytest.mark.slow
def test_a_tempered_guide_reaches_the_tempered_fixed_point():
    """With T = 2 every variance is doubled."""
    verdict = check_svi(temperature=2.0)
    assert verdict.passes, verdict


def test_guides_that_do_not_fit_are_refused():
    """Guides are refused by name, rank and size before anything is allocated."""
    for guide, rank, dim, words in (
        ("low_rank", None, 5, "rank"),
        ("low_rank", 6, 5, "rank"),
        ("full_rank", None, 100_000, "GiB"),
        ("iaf", None, 1001, "low_rank"),
        ("normal", None, 5, "mean_field"),
    ):
        with pytest.raises(ConfigError, match=words):
            _check_guide(guide, rank, dim)


@pytest.mark.slow
def test_dropping_the_weight_of_a_batch_is_caught(monkeypatch):
    """A guide that is fitted on minibatches without the factor N / B is too wide, and fails."""
    old, new = "data.total(terms.log_lik)", "terms.log_lik.sum()"
    monkeypatch.setattr(Target, "log_density", mutate("bdlbench.types", old, new).Target.log_density)
    verdict = check_svi(batch=8, steps=2000)
    assert not verdict.passes, verdict


def test_reusing_a_draw_key_is_caught(monkeypatch):
    """A guide whose draws are all the same fails."""
    old = "return jax.lax.map(lambda key: method.draw(key, state), keys)"
    mutant = mutate("bdlbench.sampling.programs", old, old.replace("draw(key,", "draw(keys[0],"))
    monkeypatch.setattr(programs.StagePrograms, "draws", mutant.StagePrograms.draws)
    verdict = check_svi()
    assert not verdict.passes, verdict


LANES = 64


def decay(rate, steps):
    return optax.cosine_decay_schedule(rate, steps)


def fitted(factory, problem, steps, num_lanes=LANES, **options):
    """Draws (C, 1000, D) of a variational method fitted in every lane."""
    one = stage("fit", factory, Schedule(num_lanes, steps, 1000, 0), **options)
    return sample(program((one,)), rows(problem), lanes_of(num_lanes))


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


@pytest.mark.slow
def test_a_low_rank_guide_of_enough_factors_is_exact():
    """Diagonal plus D - 1 factors holds any covariance: the posterior's."""
    problem = gaussian(3, 5)
    options = {"optimizer": optax.adam(decay(0.03, 4000)), "guide": "low_rank", "rank": 2}
    drawn = fitted(svi, problem, 4000, **options, init_scale=0.1, num_particles=4)
    verdict = moments(drawn.draws, problem.mean, problem.cov)
    assert verdict.passes, verdict


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("guide", mostly(["mean_field", "low_rank", "full_rank", "iaf"], "full_rank", "iaf"))
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_mutant_target_is_caught(monkeypatch):
    """A target that is tempered twice fails."""
    old, new = "/ self.temperature +", "/ self.temperature / self.temperature +"
    monkeypatch.setattr(Target, "log_density", mutate("bdlbench.types", old, new).Target.log_density)
    verdict = check_svi(temperature=2.0)
    assert not verdict.passes, verdict


@pytest.mark.slow
def test_reusing_a_step_key_is_caught(monkeypatch):
    """A fit with the same draw of the guide in all steps fails."""
    mutant = mutate("bdlbench.sampling.programs", "random.fold_in(step_key, t)", "random.fold_in(step_key, 0)")
    monkeypatch.setattr(programs.StagePrograms, "_block", mutant.StagePrograms._block)
    verdict = check_svi()
    assert not verdict.passes, verdict


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["inference=svi_fullrank", "network.width=3000"], r"36002 x 36002 matrix with .* of 19\.31 GiB a chain"),
        (["inference=svi_lowrank", "network.width=3000", "inference.rank=5000"], r"36002 x 5000 matrix .* 2\.68 GiB"),
        (["inference=svi_fullrank", "inference.num_particles=1000000"], r"num_particles=1000000 needs .* 4\.49 GiB"),
        (["inference=svi", "inference.schedule.num_warmup=0"], "schedule.num_warmup=0 must be at least 1"),
        (["inference=svi_flow", "network.width=100"], "at most 1,000 weights"),
        (["inference=svi_lowrank", "inference.rank=100000"], "give 1 to"),
        (["inference=svi", "inference.rank=3"], "set it to null"),
        (["inference=svi", "inference.schedule.thinning=1"], "thinning must be 0"),
    ],
)
def test_what_is_refused(options, sentence):
    assert_refused(options, sentence)


# ---- the presets of this family


def evidence(run: Run) -> Verdict:
    """E_q[p(y, theta) / q(theta)] = p(y), whatever q is; a small standard error says that q is close to the posterior.

    With S ratios over all lanes it is the root of chi^2(p, q) / S.
    """
    x, y = run.problem.x.astype(np.float64), run.problem.y.astype(np.float64)
    # The rows were divided by the noise's scale: so is their density.
    log_p = scipy.stats.multivariate_normal(cov=np.eye(len(y)) + PRIOR_SCALE**2 * x @ x.T).logpdf(y)
    log_p -= len(y) * np.log(NOISE)
    stats = {name: run.drawn.stat(name).astype(np.float64) for name in ("log_density", "log_q")}
    ratio = np.exp(stats["log_density"] - stats["log_q"] - log_p)
    z, most = largest_z(ratio.mean(1, keepdims=True), np.ones(1))
    return Verdict(z, most, float(ratio.mean(1).std(ddof=1) / len(ratio) ** 0.5))


DENSITY = "test_log_q_is_the_density_of_the_draw"
FITTED = (schedule(2500, 1000, 0), adam_that_falls(0.03, 2500), "inference.num_particles=4", *ALONE)
LONGER = (schedule(4000, 1000, 0), adam_that_falls(0.03, 4000), "inference.num_particles=4", "inference.rank=4", *ALONE)


class TestLaws(PresetLaws):
    """Guides reach their variational optimum, which for those with a whole covariance is the posterior."""

    laws = {
        "svi": Law("variational optimum", DENSITY, 32, FITTED, mean_field),
        "svi_lowrank": Law("variational optimum, which is the posterior", DENSITY, 32, LONGER, posterior),
        "svi_fullrank": Law("variational optimum, which is the posterior", DENSITY, 32, FITTED, posterior),
        "svi_flow": Law("a density close to the posterior", DENSITY, 32, FITTED, evidence),
    }
    mutants = {
        "svi_fullrank": Mutant(
            "log_q.sum() - target.log_density(theta, data)", "0.8 * log_q.sum() - target.log_density(theta, data)"
        )
    }
    small = {"svi_lowrank": ("rank=2",)}
    not_zero = {"svi": ("num_warmup", "init_scale")}
