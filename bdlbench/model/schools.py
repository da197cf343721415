"""The eight schools model (Rubin 1981), a small hierarchical model and an example of a NumPyro model of your own.

A model is a function ``model(x, y=None, *, hyperparameters)`` that observes one ``y`` for each row of ``x``. It does
not import bdlbench.
"""

import jax
import numpyro
import numpyro.distributions as dist


def eight_schools(x: jax.Array, y: jax.Array | None = None, *, mu_scale: float, tau_scale: float) -> None:
    """The non-centred eight schools model (Gelman et al., Bayesian Data Analysis, 2013, section 5.5).

    mu ~ N(0, mu_scale^2), tau ~ HalfCauchy(tau_scale), theta_j = mu + tau z_j, z_j ~ N(0, 1), y_j ~ N(theta_j, x_j^2).

    Parameters
    ----------
    x : array (J, 1)
        Standard error of each school's estimate.
    y : array (J,) or None
        Estimated effects.
    mu_scale, tau_scale : float
        Scales of the priors. Both are 5 in ``eight_schools-eight_schools_noncentered`` of posteriordb.
    """
    mu = numpyro.sample("mu", dist.Normal(0.0, mu_scale))
    tau = numpyro.sample("tau", dist.HalfCauchy(tau_scale))
    with numpyro.plate("schools", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, x[:, 0]), obs=y)
