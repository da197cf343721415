"""Law 4: guides reach their fixed point and MAP the mode; law 5 for NUTS, SVI and what they share."""

from types import SimpleNamespace

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.infer.hmc_util
import optax
import pytest
from known_posteriors import (
    gaussian,
    lanes_of,
    moments,
    nuts_stage,
    program,
    rows,
    sample,
    stage,
)
from mutation import mutate

from bdlbench.inference.point import maximum_a_posteriori
from bdlbench.inference.svi import _check_guide, svi
from bdlbench.sampling import programs
from bdlbench.types import ConfigError, Schedule, Target

LANES = 64
GUIDES = 32


def falling(rate, steps):
    """Adam whose rate falls to nothing: what is left of the optimisation's noise is small against the draws' own."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


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


@pytest.mark.parametrize("guide", ["mean_field", "full_rank", "low_rank"])
def test_a_guide_reaches_its_fixed_point(guide):
    """Mean-field underestimates every variance of a correlated target by a known factor; the others are exact."""
    verdict = check_svi(guide)
    assert verdict.passes, verdict


def test_a_guide_on_minibatches_reaches_its_fixed_point():
    """Batches of 8 of 24 rows, weighted by N / B."""
    verdict = check_svi(batch=8, steps=4000)
    assert verdict.passes, verdict


def test_a_tempered_guide_reaches_the_tempered_fixed_point():
    """T = 2: every variance doubles."""
    verdict = check_svi(temperature=2.0)
    assert verdict.passes, verdict


def test_map_finds_the_mode():
    """|theta - mean| in posterior standard deviations is at rounding: single-precision gradients, 1e-3."""
    problem = gaussian(10, 100)
    schedule = Schedule(1, 3000, 1, 0)
    step = stage("map", maximum_a_posteriori, schedule, optimizer=falling(0.1, 3000))
    drawn = sample(program((step,)), rows(problem), lanes_of(4))
    offset = drawn.draws[:, 0].astype(np.float64) - problem.mean
    distance = np.sqrt(np.einsum("ci,ij,cj->c", offset, problem.precision, offset))
    assert distance.max() <= 1e-3, distance


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


def test_guides_that_do_not_fit_are_refused():
    """By name, rank and size, before anything is allocated."""
    for guide, rank, dim, words in (
        ("low_rank", None, 5, "rank"),
        ("low_rank", 6, 5, "rank"),
        ("full_rank", None, 100_000, "GiB"),
        ("iaf", None, 1001, "low_rank"),
        ("normal", None, 5, "mean_field"),
    ):
        with pytest.raises(ConfigError, match=words):
            _check_guide(guide, rank, dim)


# ---- law 5


def check_nuts(temperature=1.0, seed=0):
    """NUTS on a Gaussian of 5 dimensions."""
    problem = gaussian(5, 10)
    lane = lanes_of(LANES, seed, temperature=temperature)
    drawn = sample(program((nuts_stage(600),)), rows(problem), lane)
    return moments(drawn.draws, problem.mean, temperature * problem.cov)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_nuts_passes_what_its_mutants_fail(temperature):
    """T = 2 doubles a Gaussian's covariance."""
    verdict = check_nuts(temperature)
    assert verdict.passes, verdict


def test_skipping_the_acceptance_test_is_caught(monkeypatch):
    """NUTS that always moves to the newest half of its trajectory, whatever its weight."""
    always = lambda current, new: jax.numpy.where(new.turning | new.diverging, 0.0, 1.0)
    monkeypatch.setattr(numpyro.infer.hmc_util, "_biased_transition_kernel", always)
    monkeypatch.setattr(numpyro.infer.hmc_util, "_uniform_transition_kernel", lambda current, new: 1.0)
    verdict = check_nuts()
    assert not verdict.passes, verdict


TWICE = "/ self.temperature / self.temperature +"


@pytest.mark.parametrize(("check", "new"), [(check_nuts, TWICE), (check_nuts, "+"), (check_svi, TWICE)])
def test_a_mutant_target_is_caught(check, new, monkeypatch):
    """Tempered twice, or not at all."""
    old = "/ self.temperature +"
    monkeypatch.setattr(Target, "log_density", mutate("bdlbench.types", old, new).Target.log_density)
    verdict = check(temperature=2.0)
    assert not verdict.passes, verdict


def test_dropping_the_weight_of_a_batch_is_caught(monkeypatch):
    """A guide on minibatches without N / B is too wide."""
    old, new = "scale * terms.log_lik.sum()", "terms.log_lik.sum()"
    monkeypatch.setattr(Target, "log_density", mutate("bdlbench.types", old, new).Target.log_density)
    verdict = check_svi(batch=8, steps=2000)
    assert not verdict.passes, verdict


@pytest.mark.parametrize("check", [check_nuts, check_svi])
def test_reusing_a_step_key_is_caught(check, monkeypatch):
    """One momentum for all transitions; one draw of the guide for all steps."""
    mutant = mutate("bdlbench.sampling.programs", "random.fold_in(step_key, t)", "random.fold_in(step_key, 0)")
    monkeypatch.setattr(programs.StagePrograms, "_block", mutant.StagePrograms._block)
    verdict = check()
    assert not verdict.passes, verdict


def test_reusing_a_draw_key_is_caught(monkeypatch):
    """All draws of a guide the same."""
    old = "return jax.lax.map(lambda key: method.draw(key, state), keys)"
    mutant = mutate("bdlbench.sampling.programs", old, old.replace("draw(key,", "draw(keys[0],"))
    monkeypatch.setattr(programs.StagePrograms, "draws", mutant.StagePrograms.draws)
    verdict = check_svi()
    assert not verdict.passes, verdict
