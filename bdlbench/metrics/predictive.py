"""Predictive scores. Positional parameters are names of ingredients, in the units of ``y``."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import erf, ndtr

from bdlbench.metrics.checks import Floats, components, labels, per_point, probabilities

_CHUNK = 2**18  # float64 entries of one temporary, 2 MiB: small enough to stay in cache
_REACH = 5.5  # standard deviations of a component beyond which 2e-8 of it is left
_SPACING = 1.2  # of a grid's nodes, in standard deviations of the narrowest component
MIN_DRAWS = 4  # of a Monte Carlo error
_LOG_TWO_PI = float(np.log(2 * np.pi))


def lppd(lpd: ArrayLike) -> float:
    """Log pointwise predictive density, (1/n) sum_i log (1/S) sum_s p(y_i | x_i, theta_s), in nats per point.

    Its expectation grows with the number of draws S (Jensen), so methods must be compared at equal S. It depends on the
    units of y: original = standardised - log(sd of y). Source: Gelman, Hwang & Vehtari (2014), eq. 5, divided by n.

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
    """Mean log density of a Gaussian with the mixture's moments, (1/n) sum_i log N(y_i; m_i, v_i), in nats per point.

    m and v are the mixture's mean and total variance. The constant of the density is included. Some published tables
    replace the mixture by one Gaussian and use this score (Hernandez-Lobato & Adams, 2015; Lakshminarayanan et al.,
    2017). It differs from :func:`lppd`.

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
    A(m, s^2) = 2 s phi(m/s) + m (2 Phi(m/s) - 1). It is in the units of y. It scores the mixture itself, with the pairs
    i = j, and is not the "fair" form that corrects for a finite sample. Source: Grimit, Gneiting, Berrocal & Johnson
    (2006).

    If the components overlap, the double sum is computed in O(S) as an integral over a grid, with a relative error of
    1e-6.

    Parameters
    ----------
    y : array (n,)
    loc, scale : array (S, n)
        Means and standard deviations of the components.
    """
    error, distance = _crps_parts(y, loc, scale, 1)
    return float((error - distance / 2).mean())


def crps_mcse(y: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> float:
    """Monte Carlo standard error of :func:`crps` from S dependent draws in their original order.

    The influence of draw s on the score is A(y - mu_s, s_s^2) minus its mean distance to all draws. The means of this
    influence over batches of consecutive draws are assumed to be independent. Source: Geyer (1992), section 3.2, for
    batch means.

    Parameters
    ----------
    y : array (n,)
    loc, scale : array (S, n)
        S of at least 4. They are cut into at most 20 batches.
    """
    error, distance = _crps_parts(y, loc, scale, num_batches(len(np.asarray(loc))))
    return standard_error((error - distance).mean(axis=1))


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
    """Brier score (1/n) sum_i sum_k (p_ik - [y_i = k])^2, summed over all K classes. It is between 0 and 2.

    With two classes it is twice the score of one class alone. Source: Brier (1950), eq. 2.

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
    """
    probs = probabilities(probs)
    label = labels(y, probs.shape[1], len(probs))
    hit = probs[np.arange(len(probs)), label]
    return float(np.mean((probs**2).sum(axis=1) - 2 * hit + 1))


def num_batches(num_draws: int) -> int:
    """Number of batches of consecutive draws from which a Monte Carlo error is estimated: 20, or S if S is smaller.

    Raises
    ------
    ValueError
        If there are fewer than 4 draws, from which the error cannot be estimated well.
    """
    if num_draws < MIN_DRAWS:
        raise ValueError(f"a Monte Carlo error needs at least {MIN_DRAWS} draws, got {num_draws}")
    return min(20, num_draws)


def standard_error(batches: Floats) -> float:
    """Standard error of the mean of independent values (K,)."""
    return float(batches.std(ddof=1) / np.sqrt(len(batches)))


def _crps_parts(y: ArrayLike, loc: ArrayLike, scale: ArrayLike, num_groups: int) -> tuple[Floats, Floats]:
    """Means over groups of consecutive draws s, (K, n), of E|X_s - y| and of E|X_s - X|, where X has the mixture's law."""
    loc, scale = components(loc, scale)
    y, _ = per_point(y=y, loc=loc[0])
    num = loc.shape[0]
    starts = np.arange(num_groups) * num // num_groups
    counts = np.diff([*starts, num])[:, None]
    error, distance = np.empty((num_groups, y.size)), np.empty((num_groups, y.size))
    # Points that need grids of similar size are computed together.
    grid = _grid(loc, scale)
    order = np.argsort(grid.size, kind="stable")
    points = max(1, _CHUNK // num)
    for start in range(0, y.size, points):
        at = order[start : start + points]
        mu, sd, here = loc[:, at], scale[:, at], _Grid(*(values[at] for values in grid))
        size = int(here.size.max())
        error[:, at] = np.add.reduceat(_expected_distance(y[at] - mu, sd), starts) / counts
        few = size <= num / 2
        one = _distance_on_grid(mu, sd, here, size, starts) if few else _distance_of_pairs(mu, sd, starts)
        distance[:, at] = one / counts
    return error, distance


class _Grid(NamedTuple):
    """Nodes z = centre + stretch sinh(u) of each point (n,), u evenly spaced from -end to end, ``size`` of them."""

    centre: Floats
    stretch: Floats
    end: Floats
    size: Floats


def _grid(mu: Floats, sd: Floats) -> _Grid:
    """Nodes that are dense near the centres of components, and less dense where only tails of wide components are."""
    centre, half, narrow = (mu.max(axis=0) + mu.min(axis=0)) / 2, np.ptp(mu, axis=0) / 2, sd.min(axis=0)
    stretch = half + 4 * narrow
    end = np.arcsinh((np.abs(mu - centre) + _REACH * sd).max(axis=0) / stretch)
    # At the outermost component nodes are stretch * sqrt(2) apart at most, in units of those of u.
    return _Grid(centre, stretch, end, np.ceil(2 * end * np.sqrt(2) * stretch / (_SPACING * narrow)) + 1)


def _distance_on_grid(mu: Floats, sd: Floats, grid: _Grid, size: int, starts: np.ndarray) -> Floats:
    """Sums over groups of E|X_s - X| = int F_s (1 - 2 F) + F dz, by the trapezoidal rule in u.

    On a line the integrand's Fourier transform falls as exp(-s^2 w^2 / 4), s the smallest standard deviation, so that the
    rule of spacing d s errs by exp(-(pi / d)^2) of it (Trefethen & Weideman 2014, theorem 5.1), and a change of variable
    keeps such rules exponential (section 14). d is 1.2 at the outermost component and 0.85 in the middle, where most of
    the integral is: 1e-3 and 1e-6. Beyond 5.5 standard deviations 2e-8 is left.
    """
    spacing = 2 * grid.end / (size - 1)
    out = np.zeros((len(starts), mu.shape[1]))
    counts = np.diff([*starts, len(mu)])[:, None]
    for node in range(size):
        u = node * spacing - grid.end
        cdf = np.add.reduceat(ndtr((grid.centre + grid.stretch * np.sinh(u) - mu) / sd), starts)
        whole = cdf.sum(axis=0) / len(mu)
        out += (cdf * (1 - 2 * whole) + counts * whole) * np.cosh(u)
    return out * (spacing * grid.stretch)


def _distance_of_pairs(mu: Floats, sd: Floats, starts: np.ndarray) -> Floats:
    """The same sums from all pairs, those i = j included: A(0, 2 s^2) = 2 s / sqrt(pi)."""
    out, variance = 2 / np.sqrt(np.pi) * sd, sd**2
    for i in range(len(mu) - 1):
        pairs = _expected_distance(mu[i] - mu[i + 1 :], np.sqrt(variance[i] + variance[i + 1 :]))
        out[i] += pairs.sum(axis=0)
        out[i + 1 :] += pairs
    return np.add.reduceat(out, starts) / len(mu)


def _expected_distance(m: Floats, s: Floats) -> Floats:
    """Return A(m, s^2) = E|Z| for Z ~ N(m, s^2)."""
    z = m / s * np.sqrt(0.5)
    return m * erf(z) + s * (np.sqrt(2 / np.pi) * np.exp(-(z**2)))
