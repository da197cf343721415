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
    moments,
    nuts_stage,
    program,
    rows,
    sample,
)
from numpyro.infer import MCMC, NUTS

from bdlbench import config
from bdlbench.data.schools import eight_schools as schools_data
from bdlbench.model.schools import eight_schools
from bdlbench.model.target import make_target
from bdlbench.predict import Predictor
from bdlbench.run import arrange
from bdlbench.sampling.clock import Clock
from bdlbench.types import Data

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


SIGMA, WEIGHT_SCALE, BIAS_SCALE = 0.5, 1.5, 2.0


def linear_job(tmp_path, inference, *options, chains=LANES):
    """A job of a network without hidden layer on 40 rows of 4 correlated features, and its closed-form posterior."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((40, 4)) + 0.8 * rng.standard_normal((40, 1))
    y = x @ rng.standard_normal(4) + rng.standard_normal(40)
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    job = config.make_job(
        *config.compose(
            [
                "data=npz",
                f"data.path={tmp_path}/rows.npz",
                "data.test_fraction=0",
                "network=linear",
                "prior=normal",
                f"prior.weight_scale={WEIGHT_SCALE}",
                f"prior.bias_scale={BIAS_SCALE}",
                "likelihood=gaussian_fixed",
                f"likelihood.sigma={SIGMA}",
                f"inference={inference}",
                f"inference.schedule.num_chains={chains}",
                *options,
            ]
        )
    )
    rows_ = job.dataset.train
    design = np.column_stack([rows_.x, np.ones(len(rows_.y))]).astype(np.float64)
    precision = design.T @ design / SIGMA**2 + np.diag([*[WEIGHT_SCALE**-2] * 4, BIAS_SCALE**-2])
    mean = np.linalg.solve(precision, design.T @ rows_.y.astype(np.float64) / SIGMA**2)
    return job, mean, precision


def weights_of(job, drawn):
    """Kernel and bias of the draws, (C, n, 5), by the names that a user sees."""
    shared, lane, _, _ = arrange([job])
    sites = Predictor(job.program, job.dataset.task, shared, lane, None, Clock()).sites(drawn.draws)
    kernel, bias = sites["network.output.kernel"], sites["network.output.bias"]
    return np.concatenate([kernel[..., 0], bias], -1)


def test_nuts_reaches_bayesian_linear_regression(tmp_path):
    """The whole way from a configuration: network of depth 0, priors by site, standardised rows, a MAP beforehand."""
    job, mean, precision = linear_job(
        tmp_path, "nuts", "inference.schedule.num_warmup=300", "inference.schedule.num_samples=800"
    )
    shared, lane, _, _ = arrange([job])
    drawn = sample(job.program, shared, lane)
    verdict = moments(weights_of(job, drawn), mean, np.linalg.inv(precision))
    assert verdict.passes, verdict


@pytest.mark.parametrize("guide", ["mean_field", "full_rank"])
def test_svi_reaches_its_fixed_point_on_linear_regression(tmp_path, guide):
    """Law 4 from a configuration: the exact means, and variances 1 / diag(precision) or the exact covariance.

    The step size falls to nothing, so that what optimisation noise is left in a lane's guide (which the spread over
    lanes contains) biases second moments by much less than their standard error.
    """
    job, mean, precision = linear_job(
        tmp_path,
        "svi",
        f"inference.guide={guide}",
        "inference.num_particles=4",
        "inference.schedule.num_warmup=2500",
        "inference.optimizer.learning_rate={_target_: optax.cosine_decay_schedule, init_value: .03, decay_steps: 2500}",
        chains=32,
    )
    shared, lane, _, _ = arrange([job])
    drawn = sample(job.program, shared, lane)
    cov = np.diag(1 / np.diag(precision)) if guide == "mean_field" else np.linalg.inv(precision)
    verdict = moments(weights_of(job, drawn), mean, cov)
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
        (state, tuned), _ = warmup.run(warm_key, target.start(start_key), 500)
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
