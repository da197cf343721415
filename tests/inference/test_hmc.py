"""NUTS and HMC reach posteriors known in closed form; NUTS agrees with NumPyro's own driver, BlackJAX's and posteriordb."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.infer.hmc_util
import pytest
from blackjax import nuts as blackjax_nuts
from blackjax import window_adaptation
from known_posteriors import (
    assert_refused,
    gaussian,
    lanes_of,
    limit,
    linear_job,
    moments,
    number,
    nuts_stage,
    program,
    regression,
    rows,
    sample,
    stage,
)
from laws import ALONE, Law, Mutant, PresetLaws, posterior, schedule
from mutation import mutate
from numpyro.infer import MCMC, NUTS
from presets import mostly

from bdlbench.data.schools import eight_schools as schools_data
from bdlbench.inference.hmc import hmc
from bdlbench.model.schools import eight_schools
from bdlbench.model.target import make_target
from bdlbench.runs.arrangement import arrange
from bdlbench.sampling import programs
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.predictions import Predictor
from bdlbench.types import ConfigError, Data, Schedule, Target

LANES = 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "condition"), mostly([(2, 1), (2, 100), (10, 1), (10, 100), (50, 1), (50, 100)], (10, 100))
)
def test_nuts_reaches_gaussians(dim, condition):
    """All moments of a rotated Gaussian are right, from overdispersed starts. There are 1,325 tests at D = 50."""
    problem = gaussian(dim, condition)
    drawn = sample(program((nuts_stage(1600 if dim == 2 else 800),)), rows(problem), lanes_of(LANES))
    verdict = moments(drawn.draws, problem.mean, problem.cov)
    assert verdict.passes, verdict


@pytest.mark.slow
def test_nuts_with_a_full_mass_matrix_reaches_a_gaussian():
    """Adaptation of the whole matrix changes the speed but not the law."""
    problem = gaussian(5, 100)
    drawn = sample(program((nuts_stage(500, dense_mass=True),)), rows(problem), lanes_of(LANES, seed=1))
    verdict = moments(drawn.draws, problem.mean, problem.cov)
    assert verdict.passes, verdict


@pytest.mark.slow
def test_hmc_cut_short_is_exact():
    """If eps cannot reach the trajectory length in 5 steps, only 5 are taken.

    All draws report it, and the law is right.
    """
    problem = gaussian(3, 10)
    options = {"target_accept_prob": 0.9, "trajectory_length": 100.0, "max_leapfrog_steps": 5}
    drawn = sample(program((stage("hmc", hmc, Schedule(1, 300, 1000, 1), **options),)), rows(problem), lanes_of(LANES))
    verdict = moments(drawn.draws, problem.mean, problem.cov)
    assert verdict.passes, verdict
    assert (drawn.stat("n_steps") == 5).all()
    assert drawn.stat("reached_max_leapfrog_steps").all()


@pytest.mark.slow
def test_nuts_says_which_draws_reached_its_depth():
    """Of depth 2 a tree has at most 3 leapfrog steps: the draws with so many say so, and the depth is that of the steps."""
    one = program((nuts_stage(60, num_warmup=20, max_tree_depth=2),))
    drawn = sample(one, rows(gaussian(5, 100)), lanes_of(4))
    steps = drawn.stat("n_steps")
    assert {1, 3} <= set(steps.ravel().tolist()) <= {1, 2, 3}
    np.testing.assert_array_equal(drawn.stat("reached_max_treedepth"), steps == 3)
    np.testing.assert_array_equal(drawn.stat("tree_depth"), np.ceil(np.log2(steps + 1)))


def weights_of(job, drawn):
    """Bias and kernel of the draws, (C, n, 5), with the bias first, from the named sites."""
    shared, lane, _, _ = arrange([job])
    sites = Predictor(job.program, job.dataset.task, shared, lane, None, Clock()).sites(drawn.draws)
    kernel, bias = sites["network.output.kernel"], sites["network.output.bias"]
    return np.concatenate([bias, kernel[..., 0]], -1)


@pytest.mark.slow
def test_nuts_reaches_bayesian_linear_regression(tmp_path):
    """The whole way from a configuration: network of depth 0, priors by site, standardised rows, a MAP beforehand."""
    job, problem = linear_job(
        tmp_path, "nuts", "inference.schedule.num_warmup=300", "inference.schedule.num_samples=800"
    )
    shared, lane, _, _ = arrange([job])
    drawn = sample(job.program, shared, lane)
    verdict = moments(weights_of(job, drawn), problem.mean, problem.cov)
    assert verdict.passes, verdict


# ---- law 8


def schools_summaries(mu, tau, theta):
    """The compared quantities. tau has a heavy tail, so its logarithm is compared too."""
    return np.concatenate([mu[..., None], np.log(tau)[..., None], theta, theta**2 / 100], -1)


@pytest.fixture(scope="module")
def schools():
    """Draws of our NUTS on eight schools, (mu, tau, theta) for each lane."""
    data = schools_data().train
    problem = SimpleNamespace(x=data.x, y=data.y)
    model = lambda x, y=None: eight_schools(x, y, mu_scale=5.0, tau_scale=5.0)
    program_ = program((nuts_stage(1000, num_warmup=500, target_accept_prob=0.95),), model)
    lane = lanes_of(LANES, seed=5)
    drawn = sample(program_, rows(problem), lane)
    return Predictor(program_, "regression", rows(problem), lane, None, Clock()).sites(drawn.draws)


# Means and their MCSE from 10,000 reference draws, posteriordb `eight_schools-eight_schools_noncentered` (Magnusson,
# Burkner & Vehtari 2020, github.com/stan-dev/posteriordb, summary_statistics/mean): theta[1..8], mu, tau.
PUBLISHED = np.array(
    [
        [6.15050229334425, 0.0557375282295219],
        [4.9395811407422, 0.0462293788624847],
        [3.90590609001582, 0.0542313705632124],
        [4.79601675138494, 0.0474935816762281],
        [3.6144363246799, 0.0461450610244603],
        [4.0511475789675, 0.0485195392528031],
        [6.31716975886893, 0.0498766794075794],
        [4.88399694353288, 0.0542511606560972],
        [4.41051833695493, 0.0330374705950917],
        [3.60205952364059, 0.0318615135640706],
    ]
)


@pytest.mark.slow
def test_eight_schools_against_published_means(schools):
    """Ten posterior means against posteriordb's, within both standard errors at the family-wise limit.

    Our standard error has LANES - 1 degrees of freedom and theirs many, so Student's t with ours is the wider limit.
    """
    ours = np.concatenate([schools["theta"], schools["mu"][..., None], schools["tau"][..., None]], -1).mean(1)
    error = np.sqrt(ours.var(0, ddof=1) / LANES + PUBLISHED[:, 1] ** 2)
    z = np.abs(ours.mean(0) - PUBLISHED[:, 0]) / error
    assert z.max() <= limit(10, LANES - 1), z


@pytest.mark.slow
def test_nuts_agrees_with_numpyros_driver(schools):
    """Our NUTS agrees with ``numpyro.infer.MCMC`` on the same model."""
    data, chains = schools_data().train, 32
    kernel = NUTS(eight_schools, target_accept_prob=0.95)
    mcmc = MCMC(
        kernel, num_warmup=500, num_samples=500, num_chains=chains, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(7), jnp.asarray(data.x), jnp.asarray(data.y), mu_scale=5.0, tau_scale=5.0)
    agrees(schools, mcmc.get_samples(group_by_chain=True))


@pytest.mark.slow
def test_nuts_agrees_with_blackjaxs(schools):
    """Our NUTS agrees with BlackJAX's NUTS and window adaptation, which have another kernel, tree and tuner."""
    data, chains = schools_data().train, 32
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    target = make_target(lambda x, y=None: eight_schools(x, y, mu_scale=5.0, tau_scale=5.0), x, y)

    @jax.jit
    @jax.vmap
    def chain(key):
        density = lambda theta: target.log_density(theta, Data(x, y, len(data.y)))
        start_key, warm_key, key = jax.random.split(key, 3)
        warmup = window_adaptation(blackjax_nuts, density, target_acceptance_rate=0.95)
        (state, tuned), _ = warmup.run(warm_key, target.sample_prior(start_key), 500)
        kernel = blackjax_nuts(density, **tuned)
        return jax.lax.scan(lambda s, k: (kernel.step(k, s)[0],) * 2, state, jax.random.split(key, 500))[1].position

    draws = chain(jax.random.split(jax.random.key(8), chains))
    agrees(schools, jax.jit(jax.vmap(jax.vmap(target.constrain)))(draws))


def agrees(ours, theirs):
    """Compare 18 expectations over independent chains by Welch's z."""
    a, b = (
        schools_summaries(*(np.asarray(found[name]) for name in ("mu", "tau", "theta"))).mean(1)
        for found in (ours, theirs)
    )
    error = np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
    z = np.abs(a.mean(0) - b.mean(0)) / error
    # Welch's degrees of freedom are at least those of the smaller group.
    assert z.max() <= limit(a.shape[1], len(b) - 1), z


def target_of(problem, dtype=jnp.float32):
    x, y = jnp.asarray(problem.x, dtype), jnp.asarray(problem.y, dtype)
    return make_target(regression, x, y, 1.0), Data(x, y, len(problem.y))


# ---- law 2: the Metropolised ones on posteriors in closed form


def best_tau(problem):
    """The length for which the slowest direction mixes fastest.

    The correlation in a direction of scale s is cos(tau / s).
    """
    scales = np.sqrt(np.linalg.eigvalsh(problem.cov))
    taus = np.linspace(0.5, 3, 2000)
    return taus[np.abs(np.cos(taus[:, None] / scales)).max(1).argmin()]


def check_hmc(dim, condition, factory=hmc, temperature=1.0, num_samples=3000, seed=0):
    """Test HMC at a length for which the correlation in every direction is below 0.9."""
    problem = gaussian(dim, condition)
    options = {"target_accept_prob": 0.9, "trajectory_length": number("tau"), "max_leapfrog_steps": 1000}
    here = stage("hmc", factory, Schedule(1, 300, num_samples, 1), **options)
    lane = lanes_of(LANES, seed, tau=best_tau(problem) * temperature**0.5, temperature=temperature)
    drawn = sample(program((here,)), rows(problem), lane)
    return moments(drawn.draws, problem.mean, temperature * problem.cov)


# ---- law 5


def check_nuts(temperature=1.0, seed=0):
    """Test NUTS on a Gaussian of 5 dimensions."""
    problem = gaussian(5, 10)
    lane = lanes_of(LANES, seed, temperature=temperature)
    drawn = sample(program((nuts_stage(600),)), rows(problem), lane)
    return moments(drawn.draws, problem.mean, temperature * problem.cov)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", mostly([1.0, 2.0], 2.0))
def test_nuts_passes_what_its_mutants_fail(temperature):
    """With T = 2 the covariance of a Gaussian is doubled."""
    verdict = check_nuts(temperature)
    assert verdict.passes, verdict


@pytest.mark.slow
def test_skipping_the_acceptance_test_is_caught(monkeypatch):
    """A NUTS that always moves to the newest half of its trajectory, whatever its weight, fails."""
    always = lambda current, new: jax.numpy.where(new.turning | new.diverging, 0.0, 1.0)
    monkeypatch.setattr(numpyro.infer.hmc_util, "_biased_transition_kernel", always)
    monkeypatch.setattr(numpyro.infer.hmc_util, "_uniform_transition_kernel", lambda current, new: 1.0)
    verdict = check_nuts()
    assert not verdict.passes, verdict


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "condition"), mostly([(2, 100), (10, 100), (50, 1)], (2, 100)))
def test_hmc_reaches_gaussians(dim, condition):
    """All first and second moments are right, from overdispersed starts."""
    verdict = check_hmc(dim, condition)
    assert verdict.passes, verdict
    assert verdict.mcse <= 0.01, verdict


@pytest.mark.slow
def test_hmc_samples_the_tempered_target():
    """With T = 2 the covariance is exactly doubled, not quadrupled."""
    verdict = check_hmc(2, 1, temperature=2.0)
    assert verdict.passes, verdict


@pytest.mark.slow
def test_a_mutant_of_hmc_fails():
    """A sampler with twice the potential fails."""
    doubled = mutate(
        "bdlbench.inference.hmc", "-target.log_density(theta, data)\n", "-2 * target.log_density(theta, data)\n"
    )
    assert not check_hmc(2, 1, doubled.hmc, num_samples=200).passes


@pytest.mark.slow
@pytest.mark.parametrize("new", mostly(["/ self.temperature / self.temperature +", "+"], "+"))
def test_a_mutant_target_is_caught(new, monkeypatch):
    """A target that is tempered twice or not at all fails."""
    old = "/ self.temperature +"
    monkeypatch.setattr(Target, "log_density", mutate("bdlbench.types", old, new).Target.log_density)
    verdict = check_nuts(temperature=2.0)
    assert not verdict.passes, verdict


@pytest.mark.slow
def test_reusing_a_step_key_is_caught(monkeypatch):
    """A sampler with the same momentum in all transitions fails."""
    mutant = mutate("bdlbench.sampling.programs", "random.fold_in(step_key, t)", "random.fold_in(step_key, 0)")
    monkeypatch.setattr(programs.StagePrograms, "_block", mutant.StagePrograms._block)
    verdict = check_nuts()
    assert not verdict.passes, verdict


@pytest.mark.parametrize(
    ("options", "schedule", "message"),
    [
        ({"trajectory_length": 0.0}, {}, "trajectory_length=0.0 must be a positive"),
        ({"trajectory_length": 1.0}, {"batch_size": 2}, "batch_size=2 does not fit hmc"),
    ],
)
def test_bad_settings_are_refused(options, schedule, message):
    target, _ = target_of(gaussian(2, 1))
    options = {"target_accept_prob": 0.9, "max_leapfrog_steps": 10, **options}
    with pytest.raises(ConfigError, match=message):
        hmc(target, Schedule(1, 100, 10, 1)._replace(**schedule), **options)


def test_a_dense_mass_matrix_too_large_is_refused():
    """The message has the size of the memory that would be allocated."""
    assert_refused(
        ["inference=nuts", "inference.dense_mass=true", "network.width=3000"], r"dense_mass=true needs five .* 24"
    )


# ---- the presets of this family


REVERSIBLE = "test_integrators.py::test_leapfrog_is_reversible"


class TestLaws(PresetLaws):
    """NUTS and HMC are exact."""

    laws = {
        "nuts": Law("exact", REVERSIBLE, 64, (schedule(150, 300, 1), *ALONE), posterior),
        "hmc": Law(
            "exact", REVERSIBLE, 64, (schedule(150, 700, 1), "inference.trajectory_length=0.13", *ALONE), posterior
        ),
    }
    mutants = {
        "nuts": Mutant(
            "lambda theta: -target.log_density(theta, data)", "lambda theta: -0.8 * target.log_density(theta, data)"
        )
    }
    small = {"nuts": ("max_tree_depth=3",), "hmc": ("trajectory_length=0.05",)}
