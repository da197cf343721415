"""Laws 2 and 8: NUTS reaches posteriors known in closed form, agrees with NumPyro's own driver and with posteriordb."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from blackjax import nuts as blackjax_nuts
from blackjax import window_adaptation
from known_posteriors import (
    FAMILY_WISE,
    gaussian,
    lanes_of,
    largest_z,
    limit,
    linear_job,
    moments,
    nuts_stage,
    program,
    rows,
    sample,
    stage,
)
from numpyro.infer import MCMC, NUTS

from bdlbench.data.schools import eight_schools as schools_data
from bdlbench.inference.hmc import hmc
from bdlbench.model.schools import eight_schools
from bdlbench.model.target import make_target
from bdlbench.runs.arrangement import arrange
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.predictions import Predictor
from bdlbench.types import Data, Schedule

LANES = 64


@pytest.mark.parametrize(("dim", "condition"), [(2, 1), (2, 100), (10, 1), (10, 100), (50, 1), (50, 100)])
def test_nuts_reaches_gaussians(dim, condition):
    """All moments of a turned Gaussian, from overdispersed starts; 1,325 tests at D = 50."""
    problem = gaussian(dim, condition)
    drawn = sample(program((nuts_stage(1600 if dim == 2 else 800),)), rows(problem), lanes_of(LANES))
    verdict = moments(drawn.draws, problem.mean, problem.cov)
    assert verdict.passes, verdict


def test_nuts_with_a_full_mass_matrix_reaches_a_gaussian():
    """Adapting the whole matrix changes the speed, never the law."""
    problem = gaussian(5, 100)
    drawn = sample(program((nuts_stage(500, dense_mass=True),)), rows(problem), lanes_of(LANES, seed=1))
    verdict = moments(drawn.draws, problem.mean, problem.cov)
    assert verdict.passes, verdict


def test_hmc_cut_short_is_exact():
    """A trajectory length that eps cannot reach in 5 steps: never more are taken, all draws say so, the law stays."""
    problem = gaussian(3, 10)
    options = {"target_accept_prob": 0.9, "trajectory_length": 100.0, "max_leapfrog_steps": 5}
    drawn = sample(program((stage("hmc", hmc, Schedule(1, 300, 1000, 1), **options),)), rows(problem), lanes_of(LANES))
    verdict = moments(drawn.draws, problem.mean, problem.cov)
    assert verdict.passes, verdict
    assert (drawn.stat("n_steps") == 5).all()
    assert drawn.stat("reached_max_leapfrog_steps").all()


def weights_of(job, drawn):
    """Kernel and bias of the draws, (C, n, 5), bias first, by the names that a user sees."""
    shared, lane, _, _ = arrange([job])
    sites = Predictor(job.program, job.dataset.task, shared, lane, None, Clock()).sites(drawn.draws)
    kernel, bias = sites["network.output.kernel"], sites["network.output.bias"]
    return np.concatenate([bias, kernel[..., 0]], -1)


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
    """What is compared: tau has a heavy tail, so its logarithm stands beside it."""
    return np.concatenate([mu[..., None], np.log(tau)[..., None], theta, theta**2 / 100], -1)


@pytest.fixture(scope="module")
def schools():
    """Draws of our NUTS on eight schools: mu, tau, theta by lane."""
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


def test_eight_schools_against_published_means(schools):
    """Ten posterior means against posteriordb's, within both standard errors at the family-wise limit.

    Our standard error has LANES - 1 degrees of freedom and theirs many, so Student's t with ours is the wider limit.
    """
    ours = np.concatenate([schools["theta"], schools["mu"][..., None], schools["tau"][..., None]], -1).mean(1)
    error = np.sqrt(ours.var(0, ddof=1) / LANES + PUBLISHED[:, 1] ** 2)
    z = np.abs(ours.mean(0) - PUBLISHED[:, 0]) / error
    assert z.max() <= limit(10, LANES - 1), z


def test_nuts_agrees_with_numpyros_driver(schools):
    """The same model by ``numpyro.infer.MCMC``."""
    data, chains = schools_data().train, 32
    kernel = NUTS(eight_schools, target_accept_prob=0.95)
    mcmc = MCMC(
        kernel, num_warmup=500, num_samples=500, num_chains=chains, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(7), jnp.asarray(data.x), jnp.asarray(data.y), mu_scale=5.0, tau_scale=5.0)
    agrees(schools, mcmc.get_samples(group_by_chain=True))


def test_nuts_agrees_with_blackjaxs(schools):
    """The same log density in the hands of BlackJAX's NUTS and window adaptation: kernel, tree and tuner are not ours."""
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
    """Welch's z of 18 expectations over independent chains of each."""
    a, b = (
        schools_summaries(*(np.asarray(found[name]) for name in ("mu", "tau", "theta"))).mean(1)
        for found in (ours, theirs)
    )
    error = np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
    z = np.abs(a.mean(0) - b.mean(0)) / error
    # Welch's degrees of freedom are at least those of the smaller group.
    assert z.max() <= limit(a.shape[1], len(b) - 1), z


def test_the_limit_is_the_one_of_the_laws():
    """20 tests: 5.5 with known standard errors, some more with 32 chains and with 100."""
    assert round(scipy.stats.norm.isf(FAMILY_WISE / 40), 1) == 5.5
    assert [round(limit(20, chains - 1), 1) for chains in (32, 100)] == [7.1, 5.9]


def test_the_limit_holds_for_draws_from_the_posterior():
    """The check itself, on exact independent draws: it passes them, and a variance wrong by 5 % fails."""
    problem = gaussian(10, 100)
    root = np.linalg.cholesky(problem.cov)
    draws = problem.mean + np.random.default_rng(3).standard_normal((LANES, 1000, 10)) @ root.T
    assert moments(draws, problem.mean, problem.cov).passes
    assert not moments(draws, problem.mean, 1.05 * problem.cov).passes
    z, most = largest_z(draws.mean(1), problem.mean + 0.05 * np.sqrt(np.diag(problem.cov)))
    assert z > most
