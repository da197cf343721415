"""Distances between a method's draws and a reference posterior's, in function space.

``draws`` (S, n) and ``reference`` (R, n) are function values at n test points, S and R any numbers of draws. Every
distance is read beside :func:`noise_floor`, what exact draws would score.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from bdlbench.metrics.checks import Floats, at_least, probabilities

_CHUNK = 2**21  # float64 entries of one temporary, 16 MiB
_MAX_HEURISTIC = 1000  # draws from which the median distance is taken


def agreement(probs: ArrayLike, reference_probs: ArrayLike) -> float:
    """Share of points with the same most probable class, (1/n) sum_i [argmax p_i = argmax q_i].

    Source: Izmailov et al. (2021); Wilson et al. (2022), the NeurIPS competition.

    Parameters
    ----------
    probs, reference_probs : array (n, K)
        Class probabilities averaged over draws.
    """
    p, q = _same_points(probs, reference_probs)
    return float(np.mean(p.argmax(axis=1) == q.argmax(axis=1)))


def total_variation(probs: ArrayLike, reference_probs: ArrayLike) -> float:
    """Mean total variation distance, (1/n) sum_i (1/2) sum_k |p_ik - q_ik|. Source: as :func:`agreement`.

    Parameters
    ----------
    probs, reference_probs : array (n, K)
    """
    p, q = _same_points(probs, reference_probs)
    return float(0.5 * np.abs(p - q).sum(axis=1).mean())


def w1(draws: ArrayLike, reference: ArrayLike) -> float:
    """Mean over points of W_1 = int_0^1 |F^-1(u) - G^-1(u)| du, divided by the reference's sd at the point.

    Exact for empirical distributions of any two sizes. The NeurIPS 2021 competition's "W2" is this one.

    Parameters
    ----------
    draws : array (S, n)
    reference : array (R, n)
    """
    return _quantile_distance(draws, reference, 1)


def w2(draws: ArrayLike, reference: ArrayLike) -> float:
    """Mean over points of W_2 = (int_0^1 (F^-1(u) - G^-1(u))^2 du)^(1/2), divided by the reference's sd at the point.

    Parameters
    ----------
    draws : array (S, n)
    reference : array (R, n)
    """
    return _quantile_distance(draws, reference, 2)


def mean_difference(draws: ArrayLike, reference: ArrayLike) -> float:
    """Mean over points of |mean(draws) - mean(reference)| / sd(reference).

    Parameters
    ----------
    draws : array (S, n)
    reference : array (R, n)
    """
    f, g, _, sd = _standardised(draws, reference)
    return float(np.mean(np.abs(f.mean(axis=0) - g.mean(axis=0)) / sd))


def sd_difference(draws: ArrayLike, reference: ArrayLike) -> float:
    """Mean over points of |sd(draws) - sd(reference)| / sd(reference), divisors S and R.

    Parameters
    ----------
    draws : array (S, n)
    reference : array (R, n)
    """
    f, _, _, sd = _standardised(draws, reference)
    return float(np.mean(np.abs(f.std(axis=0) - sd) / sd))


def mmd(draws: ArrayLike, reference: ArrayLike) -> float:
    """Maximum mean discrepancy between the joint function values at all points, which sees their dependence.

    sqrt(mean_ss' k(f_s, f_s') + mean_rr' k(g_r, g_r') - 2 mean_sr k(f_s, g_r)), k(a, b) = exp(-|a - b|^2 / (2 h^2)),
    with values in units of the reference's sd at each point and h the median distance between draws of the reference
    (of at most 1,000, evenly spaced), so that all methods are measured by one kernel. The V-statistic: never negative,
    and of order S^(-1/2) for exact draws. Source: Gretton et al. (2012), eq. 5.

    Parameters
    ----------
    draws : array (S, n)
    reference : array (R, n)
    """
    from scipy.spatial.distance import pdist

    f, g, centre, sd = _standardised(draws, reference)
    f, g = (f - centre) / sd, (g - centre) / sd
    some = g[np.unique(np.linspace(0, len(g) - 1, _MAX_HEURISTIC).astype(int))]
    bandwidth = float(np.median(pdist(some)))
    squared = _mean_kernel(f, f, bandwidth) + _mean_kernel(g, g, bandwidth) - 2 * _mean_kernel(f, g, bandwidth)
    return float(np.sqrt(max(squared, 0.0)))  # below zero only by rounding: the form is a squared norm


def covariance_error(draws: ArrayLike, reference: ArrayLike) -> float:
    """Relative error of the covariance of function values between test points, |C_f - C_g|_F / |C_g|_F.

    Values in units of the reference's sd at each point, so that C_g is a correlation matrix and no point outweighs
    another. Distances point by point do not see this error. Divisors S and R.

    Parameters
    ----------
    draws : array (S, n)
    reference : array (R, n)
    """
    f, g, centre, sd = _standardised(draws, reference)
    f, g = (f - f.mean(axis=0)) / sd, (g - centre) / sd
    rows = max(1, _CHUNK // f.shape[1])
    error = size = 0.0
    for start in range(0, f.shape[1], rows):
        exact = g[:, start : start + rows].T @ g / len(g)
        error += float(((f[:, start : start + rows].T @ f / len(f) - exact) ** 2).sum())
        size += float((exact**2).sum())
    return float(np.sqrt(error / size))


def noise_floor(
    metric: Callable[[Floats, Floats], float], reference: ArrayLike, *, num_draws: int, num_repeats: int, seed: int
) -> Floats:
    """Scores that independent exact draws would get: ``num_draws`` of the reference against the rest of it.

    The two parts share no draw, else the score would be too good by the draws they share. The rest is smaller than the
    reference, so for a W_1 between R draws and S the floor is about sqrt((1/S + 1/(R-S)) / (1/S + 1/R)) too high: by
    less than 16 % where S is at most R/2, which is required, and by less than 1 % where it is at most R/8.

    Parameters
    ----------
    metric : callable (draws, reference) -> float
    reference : array (R, ...)
        Draws along the first axis.
    num_draws : int
        S, the method's own number of draws, at most R/2.
    num_repeats : int
    seed : int

    Returns
    -------
    array (num_repeats,)
    """
    reference = np.asarray(reference, np.float64)
    size, num_draws = len(reference), at_least("num_draws", num_draws, 1)
    if 2 * num_draws > size:
        raise ValueError(f"the noise floor of {num_draws} draws needs a reference of {2 * num_draws}, got {size}")
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(size) for _ in range(at_least("num_repeats", num_repeats, 1)))
    return np.array([metric(reference[order[:num_draws]], reference[order[num_draws:]]) for order in orders])


def _same_points(probs: ArrayLike, reference_probs: ArrayLike) -> tuple[Floats, Floats]:
    p, q = probabilities(probs), probabilities(reference_probs, "reference_probs")
    if p.shape != q.shape:
        raise ValueError(f"probs {p.shape} and reference_probs {q.shape} must have the same points and classes")
    return p, q


def _standardised(draws: ArrayLike, reference: ArrayLike) -> tuple[Floats, Floats, Floats, Floats]:
    """Return both as float64, checked, with the reference's mean and sd (divisor R) at each point."""
    f, g = np.asarray(draws, np.float64), np.asarray(reference, np.float64)
    if f.ndim != 2 or g.ndim != 2 or f.shape[1] != g.shape[1] or f.size == 0 or g.size == 0:
        raise ValueError(f"draws and reference must be (S, n) and (R, n), got {f.shape} and {g.shape}")
    if not (np.isfinite(f).all() and np.isfinite(g).all()):
        raise FloatingPointError("draws and reference must be finite")
    constant = np.flatnonzero(np.ptp(g, axis=0) == 0)
    if constant.size:
        raise ValueError(f"the reference does not vary at point {int(constant[0])}, so there is no sd to divide by")
    return f, g, g.mean(axis=0), g.std(axis=0)


def _quantile_distance(draws: ArrayLike, reference: ArrayLike, power: int) -> float:
    f, g, _, sd = _standardised(draws, reference)
    # Both quantile functions are steps; between neighbouring ends k/S or k/R of steps both are constant. Counted in
    # units of 1/(S R), the ends are integers, so none is doubled by rounding.
    unit = len(f) * len(g)
    ends = np.unique(np.concatenate([np.arange(1, len(f) + 1) * len(g), np.arange(1, len(g) + 1) * len(f)]))
    width = np.diff(ends, prepend=0) / unit
    of_f, of_g = (ends - 1) // len(g), (ends - 1) // len(f)
    columns = max(1, _CHUNK // ends.size)
    total = 0.0
    for start in range(0, sd.size, columns):
        part = slice(start, start + columns)
        gap = np.abs(np.sort(f[:, part], axis=0)[of_f] - np.sort(g[:, part], axis=0)[of_g])
        total += float(((width @ gap**power) ** (1 / power) / sd[part]).sum())
    return total / sd.size


def _mean_kernel(a: Floats, b: Floats, bandwidth: float) -> float:
    from scipy.spatial.distance import cdist

    rows = max(1, _CHUNK // len(b))
    total = 0.0
    for start in range(0, len(a), rows):
        distance = cdist(a[start : start + rows], b, "sqeuclidean")
        total += float(np.exp(-0.5 * distance / bandwidth**2).sum())
    return total / (len(a) * len(b))
