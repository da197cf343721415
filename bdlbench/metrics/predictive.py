"""Predictive scores. Positional parameters are names of ingredients, in the units of ``y``."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import erf

from bdlbench.metrics.checks import Floats, components, labels, per_point, probabilities

_CHUNK = 2**18  # float64 entries of one temporary, 2 MiB: small enough to stay in cache
_LOG_TWO_PI = float(np.log(2 * np.pi))


def lppd(lpd: ArrayLike) -> float:
    """Log pointwise predictive density, (1/n) sum_i log (1/S) sum_s p(y_i | x_i, theta_s), in nats a point.

    Grows with the number of draws S (Jensen), so methods are compared at equal S. In the units of ``lpd``:
    original = standardised - log(sd of y). Source: Gelman, Hwang & Vehtari (2014), eq. 5, divided by n.

    Parameters
    ----------
    lpd : array (n,)
    """
    (lpd,) = per_point(lpd=lpd)
    return float(lpd.mean())


def nll(lpd: ArrayLike) -> float:
    """Negative log likelihood of the mixture, -:func:`lppd`."""
    return -lppd(lpd)


def lppd_gaussian(y: ArrayLike, mean: ArrayLike, variance: ArrayLike) -> float:
    """Mean log density of the moment-matched Gaussian, (1/n) sum_i log N(y_i; m_i, v_i), the constant included.

    m and v are the mixture's mean and total variance. Published tables that collapse the mixture before scoring use
    this one (Hernandez-Lobato & Adams, 2015; Lakshminarayanan et al., 2017); it is not :func:`lppd`.

    Parameters
    ----------
    y, mean, variance : array (n,)
    """
    y, mean, variance = per_point(y=y, mean=mean, variance=variance)
    if (variance <= 0).any():
        raise FloatingPointError("variance must be positive")
    return float(-0.5 * (_LOG_TWO_PI + np.log(variance) + (y - mean) ** 2 / variance).mean())


def rmse(y: ArrayLike, mean: ArrayLike) -> float:
    """Root mean squared error of the predictive mean, sqrt((1/n) sum_i (y_i - m_i)^2).

    Parameters
    ----------
    y, mean : array (n,)
    """
    y, mean = per_point(y=y, mean=mean)
    return float(np.sqrt(np.mean((y - mean) ** 2)))


def crps(y: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> float:
    """Continuous ranked probability score of an equally weighted Gaussian mixture, closed form, averaged over points.

    CRPS = (1/S) sum_i A(y - mu_i, s_i^2) - 1/(2 S^2) sum_ij A(mu_i - mu_j, s_i^2 + s_j^2),
    A(m, s^2) = 2 s phi(m/s) + m (2 Phi(m/s) - 1). This scores the mixture itself, pairs i = j included, and is not the
    "fair" form that corrects a finite sample. Source: Grimit, Gneiting, Berrocal & Johnson (2006).

    Parameters
    ----------
    y : array (n,)
    loc, scale : array (S, n)
        Means and standard deviations of the components.
    """
    loc, scale = components(loc, scale)
    y, _ = per_point(y=y, loc=loc[0])
    num = loc.shape[0]
    points = max(1, _CHUNK // num)
    total = 0.0
    for start in range(0, y.size, points):
        mu, sd = loc[:, start : start + points], scale[:, start : start + points]
        spread = 2 / np.sqrt(np.pi) * sd.sum(axis=0)  # the pairs i = j: A(0, 2 s^2) = 2 s / sqrt(pi)
        variance = sd**2
        for i in range(num - 1):
            pairs = _expected_distance(mu[i] - mu[i + 1 :], np.sqrt(variance[i] + variance[i + 1 :]))
            spread += 2 * pairs.sum(axis=0)
        error = _expected_distance(y[start : start + points] - mu, sd).mean(axis=0)
        total += float((error - spread / (2 * num**2)).sum())
    return total / y.size


def accuracy(y: ArrayLike, probs: ArrayLike) -> float:
    """Share of points whose most probable class is the label; a tie goes to the lowest class.

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
        Class probabilities averaged over draws.
    """
    probs = probabilities(probs)
    return float(np.mean(probs.argmax(axis=1) == labels(y, probs.shape[1], len(probs))))


def brier(y: ArrayLike, probs: ArrayLike) -> float:
    """Brier score (1/n) sum_i sum_k (p_ik - [y_i = k])^2: summed over all K classes, from 0 to 2.

    With two classes it is twice the form that looks at one class alone. Source: Brier (1950), eq. 2.

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
    """
    probs = probabilities(probs)
    label = labels(y, probs.shape[1], len(probs))
    hit = probs[np.arange(len(probs)), label]
    return float(np.mean((probs**2).sum(axis=1) - 2 * hit + 1))


def _expected_distance(m: Floats, s: Floats) -> Floats:
    """Return A(m, s^2) = E|Z| for Z ~ N(m, s^2)."""
    z = m / s * np.sqrt(0.5)
    return m * erf(z) + s * (np.sqrt(2 / np.pi) * np.exp(-(z**2)))
