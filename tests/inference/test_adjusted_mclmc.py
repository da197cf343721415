"""Adjusted MCLMC reaches posteriors known in closed form, and finds its step size in any warm-up."""

import jax
import jax.numpy as jnp
import pytest
from known_posteriors import (
    gaussian,
    lanes_of,
    moments,
    program,
    regression,
    rows,
    sample,
    stage,
)
from laws import ALONE, Law, Mutant, PresetLaws, posterior, schedule
from mutation import mutate
from presets import first_of, mostly

from bdlbench.inference import adjusted_mclmc as adjusted_module
from bdlbench.model.target import make_target
from bdlbench.types import ConfigError, Data, Schedule

LANES = 64


MAMS = {
    "initial_step_size": 0.3,
    "target_accept_prob": 0.65,
    "frac_tune1": 0.3,
    "frac_tune2": 0.4,
    "l_factor": 1.3,
    "diagonal_preconditioning": True,
    "max_num_steps": 128,
}


def target_of(problem, dtype=jnp.float32):
    x, y = jnp.asarray(problem.x, dtype), jnp.asarray(problem.y, dtype)
    return make_target(regression, x, y, 1.0), Data(x, y, len(problem.y))


def check_adjusted(dim, condition, factory=adjusted_module.adjusted_mclmc, num_samples=1600, seed=0, temperature=1.0):
    problem = gaussian(dim, condition)
    here = stage("adjusted_mclmc", factory, Schedule(1, 600, num_samples, 1), **MAMS)
    drawn = sample(program((here,)), rows(problem), lanes_of(LANES, seed, temperature=temperature))
    return moments(drawn.draws, problem.mean, temperature * problem.cov)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_warmup", "shares"),
    mostly(
        [(1, (0.3, 0.4)), (2, (0.3, 0.4)), (1, (0.2, 0.2)), (3, (0.3, 0.6)), (10, (0.1, 0.88))],
        (1, (0.3, 0.4)),
        (3, (0.3, 0.6)),
    ),
)
def test_a_warm_up_without_a_last_phase_keeps_its_step_size(num_warmup, shares):
    """The step size in sampling is one that the warm-up found, not the initial value 1 of dual averaging.

    The chain moves. In the last two cases the second phase ends at the last step of the warm-up, after which nothing is
    averaged.
    """
    target, data = target_of(gaussian(4, 1))
    options = MAMS | dict(zip(("frac_tune1", "frac_tune2"), shares, strict=True))
    method = adjusted_module.adjusted_mclmc(target, Schedule(1, num_warmup, 20, 1), **options)
    warm, step = jax.jit(method.warm), jax.jit(method.step)
    state = method.init(jax.random.key(0), jnp.zeros(4), data)
    for t in range(num_warmup):
        state, _ = warm(jax.random.key(t), jnp.int32(t), state, data)
    last, (state, _) = state, method.finalize(jax.random.key(0), state, data)
    assert state.step_size != 1
    if num_warmup >= 3:
        assert state.step_size == last.state.step_size
    begun = state.theta
    for t in range(20):
        state, _ = step(jax.random.key(100 + t), jnp.int32(num_warmup + t), state, data)
    assert (jnp.abs(state.theta - begun) > 1e-3).any()


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "condition"), [(2, 1), (10, 100), (50, 100)])
def test_adjusted_mclmc_reaches_gaussians(dim, condition):
    """All first and second moments are right, from overdispersed starts."""
    verdict = check_adjusted(dim, condition)
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


@pytest.mark.slow
def test_it_samples_the_tempered_target():
    """With T = 2 the covariance is exactly doubled, not quadrupled."""
    verdict = check_adjusted(2, 1, temperature=2.0)
    assert verdict.passes, verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    first_of(
        [
            ("dtype=log_ratio.dtype)) < log_ratio", "dtype=log_ratio.dtype)) < 1.0"),
            ("begun.logdensity - kinetic_change", "begun.logdensity"),
        ]
    ),
)
def test_mutants_of_the_metropolis_test_fail(old, new):
    """A sampler that always accepts, and one that ignores the kinetic energy, fail."""
    mutant = mutate("bdlbench.inference.adjusted_mclmc", old, new)
    assert not check_adjusted(10, 100, mutant.adjusted_mclmc, 500).passes


@pytest.mark.parametrize(
    ("dim", "options", "message"),
    [
        (2, {"max_num_steps": 0}, "max_num_steps=0 must be at least 1"),
        (2, {"frac_tune2": 0.7}, "leave nothing of the warm-up"),
        (1, {}, "at least 2 parameters"),  # a sphere of no dimension has nowhere to go
    ],
)
def test_bad_settings_are_refused(dim, options, message):
    target, _ = target_of(gaussian(dim, 1))
    with pytest.raises(ConfigError, match=message):
        adjusted_module.adjusted_mclmc(target, Schedule(1, 100, 10, 1), **MAMS | options)


# ---- the presets of this family


class TestLaws(PresetLaws):
    """Adjusted MCLMC is exact."""

    laws = {
        "adjusted_mclmc": Law(
            "exact",
            "test_mclmc.py::test_mclmc_is_reversible_and_of_second_order",
            64,
            (schedule(300, 400, 1), *ALONE),
            posterior,
        )
    }
    mutants = {"adjusted_mclmc": Mutant("begun.logdensity - kinetic_change", "begun.logdensity")}
    small = {"adjusted_mclmc": ("max_num_steps=8",)}
