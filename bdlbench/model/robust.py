"""Linear regression with Student-t noise: an example of a NumPyro model that is not a network."""

import jax
import numpyro
import numpyro.distributions as dist


def robust_regression(
    x: jax.Array, y: jax.Array | None = None, *, slope_scale: float, noise_scale: float, df_shape: float, df_rate: float
) -> None:
    """Robust linear regression (Juarez & Steel 2010; Gelman et al., Bayesian Data Analysis, 2013, section 17.2).

    alpha ~ N(0, slope_scale^2), beta_j ~ N(0, slope_scale^2), sigma ~ HalfNormal(noise_scale),
    nu ~ Gamma(df_shape, df_rate), y_i ~ StudentT(nu, alpha + x_i' beta, sigma).

    Parameters
    ----------
    x : array (N, d)
    y : array (N,) or None
    slope_scale, noise_scale : float
        Scales of the priors, in standardised units.
    df_shape, df_rate : float
        Shape and rate of the prior of the degrees of freedom nu; 2 and 0.1 in Juarez & Steel.
    """
    alpha = numpyro.sample("alpha", dist.Normal(0.0, slope_scale))
    beta = numpyro.sample("beta", dist.Normal(0.0, slope_scale).expand([x.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(noise_scale))
    nu = numpyro.sample("nu", dist.Gamma(df_shape, df_rate))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.StudentT(nu, alpha + x @ beta, sigma), obs=y)
