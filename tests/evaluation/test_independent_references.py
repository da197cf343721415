"""References against programs that share no code with the library: plain NumPyro, SciPy's data, and a closed form.

Each comparison is of means and log standard deviations at all quantities of a reference. Their standard errors come from
the effective sample sizes of both sides. The limit is that of the largest of so many |z|, at the family-wise level of all laws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from arviz_stats.base import array_stats
from known_posteriors import limit
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_diabetes

from bdlbench.data.generated import linear_regression
from bdlbench.data.splits import random_split
from bdlbench.evaluation.linear_regression import exact_posterior
from bdlbench.references import artefacts


def effects_of_schools(seed):
    """Rubin's eight schools with their effects drawn directly, as the posterior mean of each given mu and tau allows."""
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sd = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model():
        """The effects are integrated out: y_j ~ N(mu, tau^2 + sd_j^2)."""
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        numpyro.sample("y", dist.Normal(mu, jnp.sqrt(tau**2 + sd**2)), obs=y)

    mcmc = MCMC(NUTS(model, target_accept_prob=0.95), num_warmup=1000, num_samples=4000, num_chains=4,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(seed))
    found = {name: np.asarray(value, np.float64) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    mu, tau = found["mu"][..., None], found["tau"][..., None]
    precision = 1 / tau**2 + 1 / np.asarray(sd) ** 2
    mean = (mu / tau**2 + np.asarray(y / sd**2)) / precision
    theta = mean + np.random.default_rng(seed).standard_normal(mean.shape) / np.sqrt(precision)
    return np.concatenate([theta, mu, tau], -1)


def robust_regression(seed):
    """Student-t noise as a scale mixture of normals, in the units of rows that are standardised here."""
    table = load_diabetes(scaled=False)
    rows = random_split(len(table.target), split=0, test_fraction=0.2, validation_fraction=0.0, n_train=None).train
    x, y = table.data[rows], table.target[rows]
    reference = artefacts.load("robust_regression")
    x_mean, x_sd, y_mean, y_sd = x.mean(0), x.std(0), y.mean(), y.std()
    seen, target = (x - x_mean) / x_sd, (y - y_mean) / y_sd

    def model():
        """y_i ~ StudentT(nu, alpha + x_i' beta, sigma), from its density written out."""
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 1.0))
        beta = numpyro.sample("beta", dist.Normal(jnp.zeros(seen.shape[1]), 1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
        residual = (target - alpha - seen @ beta) / sigma
        gammas = jax.scipy.special.gammaln((nu + 1) / 2) - jax.scipy.special.gammaln(nu / 2)
        each = gammas - 0.5 * jnp.log(nu * jnp.pi) - jnp.log(sigma) - (nu + 1) / 2 * jnp.log1p(residual**2 / nu)
        numpyro.factor("y", each.sum())

    mcmc = MCMC(NUTS(model), num_warmup=1000, num_samples=2000, num_chains=4, chain_method="vectorized",
                progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(seed))
    found = {name: np.asarray(value, np.float64) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    points = (reference.points - x_mean) / x_sd
    mean = y_mean + y_sd * (found["alpha"][..., None] + found["beta"] @ points.T)
    return np.concatenate([mean, *(found[name][..., None] for name in ("sigma", "nu", "alpha"))], -1)


def moments(draws):
    """Means, log standard deviations, and the standard errors of both, of draws (chains, draws, M)."""
    mean, sd = draws.mean((0, 1)), draws.std((0, 1))
    errors = []
    for column in np.moveaxis(draws, -1, 0):
        of_sd = array_stats.mcse(column, chain_axis=0, draw_axis=1, method="sd")
        errors.append((array_stats.mcse(column, chain_axis=0, draw_axis=1, method="mean"), of_sd / column.std()))
    of_mean, of_log_sd = np.array(errors, np.float64).T
    return mean, np.log(sd), of_mean, of_log_sd


def largest_z(reference, draws):
    """Largest |z| of all means and log standard deviations, and its limit."""
    one, other = moments(reference.draws.astype(np.float64)), moments(draws)
    z = [(one[k] - other[k]) / np.hypot(one[k + 2], other[k + 2]) for k in (0, 1)]
    return np.abs(z).max(), limit(2 * draws.shape[-1], 400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "program"), [("eight_schools", effects_of_schools), ("robust_regression", robust_regression)]
)
def test_an_independent_program_has_the_same_moments(name, program):
    """400 effective draws are the least on either side, and the limit has their degrees of freedom."""
    reference = artefacts.load(name)
    draws = program(7)
    worst, most = largest_z(reference, draws)
    assert worst <= most
    # A program whose functions are spread 20 % too widely is told apart.
    centre = draws.mean((0, 1))
    assert largest_z(reference, centre + 1.2 * (draws - centre))[0] > most


@pytest.mark.parametrize(("name", "center"), [("linear_regression", 0.0), ("linear_regression_shifted", 5.0)])
def test_references_of_the_line_have_the_closed_form(name, center):
    """The function at each point is w x + b, whose mean and variance follow from those of w and b."""
    reference = artefacts.load(name)
    train = linear_regression(n=100, center=center, half_width=5.0, seed=0).train
    exact = exact_posterior(np.ravel(train.x), np.ravel(train.y), weight_scale=1.0, bias_scale=10.0, low=0.0, high=10.0)
    rows = np.column_stack([reference.points[:, 0], np.ones(len(reference.points))])
    mean = np.append(rows @ exact.mean[:2], exact.mean[2])
    variance = np.append(((rows @ exact.covariance[:2, :2]) * rows).sum(1), exact.covariance[2, 2])
    found = moments(reference.draws.astype(np.float64))
    z = np.abs([(found[0] - mean) / found[2], (found[1] - 0.5 * np.log(variance)) / found[3]])
    assert z.max() <= limit(z.size, 1000)
