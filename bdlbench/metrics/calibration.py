"""Metrics of calibration: whether events with predicted probability p happen with frequency p.

Positional parameters are names of ingredients.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from bdlbench.metrics.checks import Floats, Ints, at_least, components, fraction, labels, per_point, probabilities
from bdlbench.metrics.predictive import num_batches, standard_error

_SQRT_TWO_PI = float(np.sqrt(2 * np.pi))
_CHUNK = 2**20  # float64 entries of one temporary, 8 MiB


class Reliability(NamedTuple):
    """A reliability diagram with one entry for each bin that is not empty, in order of confidence.

    Attributes
    ----------
    confidence : array (b,)
        Mean probability of the predicted class.
    accuracy : array (b,)
        Share of right predictions.
    num_points : integer array (b,)
        Number of points in the bin.
    """

    confidence: Floats
    accuracy: Floats
    num_points: Ints


def coverage(pit: ArrayLike, *, level: float) -> float:
    """Prediction interval coverage probability (PICP) of the central interval, ends included.

    (1/n) sum_i [(1 - level)/2 <= u_i <= (1 + level)/2], where u_i is the probability integral transform of y_i. y_i is
    between two quantiles of the mixture exactly if u_i is between their levels, so that no quantile is computed.

    Parameters
    ----------
    pit : array (n,)
        The u_i.
    level : float
        Nominal coverage, 0.9 for 90 %.
    """
    return float(_inside(pit, level).mean())


def coverage_interval(pit: ArrayLike, *, level: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of :func:`coverage`, from n independent points (Wilson, 1927; scipy).

    Parameters
    ----------
    pit : array (n,)
    level : float
        Nominal coverage.
    confidence : float
        Confidence level of the interval.

    Returns
    -------
    tuple (low, high)
    """
    from scipy.stats import binomtest

    inside = _inside(pit, level)
    result = binomtest(int(inside.sum()), inside.size)
    low, high = result.proportion_ci(fraction("confidence", confidence), method="wilson")
    return float(low), float(high)


def mixture_quantile(loc: ArrayLike, scale: ArrayLike, prob: float) -> Floats:
    """Quantile q of an equally weighted Gaussian mixture at each point: (1/S) sum_s Phi((q - mu_s) / sd_s) = prob.

    q is found by Newton's method inside a bracket, whose first ends are the smallest and the largest quantile of the
    components. If a step leaves the bracket or is longer than half the step before, the bracket is halved instead
    (Press et al. 2007, section 9.4). The search ends when a step is below 1e-10 times the smallest component's sd, or
    does not change q in float64.

    Parameters
    ----------
    loc, scale : array (S, n)
        Means and standard deviations of the components.
    prob : float
        The level of the quantile, between 0 and 1.

    Returns
    -------
    array (n,)
    """
    loc, scale = components(loc, scale)
    own = loc + ndtri(fraction("prob", prob)) * scale
    low, high = own.min(axis=0), own.max(axis=0)
    out = np.empty_like(low)
    points = max(1, _CHUNK // loc.shape[0])
    for start in range(0, low.size, points):
        part = slice(start, start + points)
        mu, sd = loc[:, part], scale[:, part]
        lower, upper = low[part], high[part]
        tolerance = np.maximum(1e-10 * sd.min(axis=0), 4 * np.spacing(np.maximum(np.abs(lower), np.abs(upper))))
        at, last = 0.5 * (lower + upper), upper - lower
        while (np.abs(last) > tolerance).any():
            z = (at - mu) / sd
            excess = ndtr(z).mean(axis=0) - prob
            density = (np.exp(-0.5 * z**2) / sd).mean(axis=0) / _SQRT_TWO_PI
            lower, upper = np.where(excess < 0, at, lower), np.where(excess < 0, upper, at)
            # If the density is 0 there is no Newton step, and the bracket is halved.
            step = -excess / np.where(density > 0, density, np.inf)
            good = (density > 0) & (lower <= at + step) & (at + step <= upper) & (2 * np.abs(step) <= np.abs(last))
            step = np.where(good, step, 0.5 * (lower + upper) - at)
            last = np.where(np.abs(last) > tolerance, step, 0.0)  # a point that is there stays
            at = at + last
        out[part] = at
    return out


def interval_width(loc: ArrayLike, scale: ArrayLike, *, level: float) -> float:
    """Mean width of the mixture's central prediction interval, (1/n) sum_i (q_i((1+level)/2) - q_i((1-level)/2)).

    Parameters
    ----------
    loc, scale : array (S, n)
    level : float
        Nominal coverage.
    """
    lower, upper = _central_interval(loc, scale, level)
    return float((upper - lower).mean())


def interval_width_mcse(loc: ArrayLike, scale: ArrayLike, *, level: float) -> float:
    """Monte Carlo standard error of :func:`interval_width` from S dependent draws in their original order.

    The influence of draw s on the quantile q of level p is (p - Phi((q - mu_s) / sd_s)) / f(q), where f is the density
    of the mixture. The means of this influence over batches of consecutive draws are assumed to be independent, as in
    :func:`~bdlbench.metrics.predictive.crps_mcse`.

    Parameters
    ----------
    loc, scale : array (S, n)
        S of at least 4.
    level : float
        Nominal coverage.
    """
    loc, scale = components(loc, scale)
    moved = np.zeros(len(loc))
    ends = zip((-1, 1), _central_interval(loc, scale, level), strict=True)
    for sign, quantile in ends:
        prob = (1 + sign * level) / 2
        points = max(1, _CHUNK // len(loc))
        for start in range(0, quantile.size, points):
            part = slice(start, start + points)
            z = (quantile[part] - loc[:, part]) / scale[:, part]
            density = (np.exp(-0.5 * z**2) / scale[:, part]).mean(axis=0) / _SQRT_TWO_PI
            moved += sign * ((prob - ndtr(z)) / density).sum(axis=1)
    batches = np.array_split(moved / loc.shape[1], num_batches(len(loc)))
    return standard_error(np.array([batch.mean() for batch in batches]))


def interval_score(y: ArrayLike, loc: ArrayLike, scale: ArrayLike, *, level: float) -> float:
    """Winkler's interval score of the central interval [l, u], a = 1 - level, averaged over points; smaller is better.

    (u - l) + (2/a) (l - y) [y < l] + (2/a) (y - u) [y > u]. Source: Winkler (1972); Gneiting & Raftery (2007), eq. 43.

    Parameters
    ----------
    y : array (n,)
    loc, scale : array (S, n)
    level : float
        Nominal coverage.
    """
    lower, upper = _central_interval(loc, scale, level)
    y, lower, upper = per_point(y=y, lower=lower, upper=upper)
    return winkler_score(y, lower, upper, level)


def winkler_score(y: Floats, lower: Floats, upper: Floats, level: float) -> float:
    """The score of :func:`interval_score` from the ends of the intervals (n,), which may be infinite."""
    missed = np.maximum(lower - y, 0) + np.maximum(y - upper, 0)
    return float(np.mean(upper - lower + 2 / (1 - level) * missed))


def pit_histogram(pit: ArrayLike, *, num_bins: int) -> tuple[Floats, Floats]:
    """Histogram of the probability integral transform. It is 1 if calibrated, and U-shaped if overconfident.

    Parameters
    ----------
    pit : array (n,)
    num_bins : int
        Equal-width bins on [0, 1], the last one closed on both sides.

    Returns
    -------
    tuple (density (num_bins,), edges (num_bins + 1,))
    """
    density, edges = np.histogram(_in_unit(pit), bins=at_least("num_bins", num_bins, 1), range=(0, 1), density=True)
    return density, edges


def reliability(y: ArrayLike, probs: ArrayLike, *, num_bins: int) -> Reliability:
    """Accuracy against confidence of the predicted class, in bins of equal mass.

    The points are sorted by confidence and divided into ``num_bins`` equal parts. The inner edges of the bins are the
    largest confidences of these parts, and every bin contains its upper edge. So each point is in exactly one bin,
    points of equal confidence are in the same bin, and the order of the rows does not matter. Bins that are empty
    because of ties are left out. Source: Nguyen & O'Connor (2015).

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
    num_bins : int
        Largest number of bins. If n is smaller, there are at most n.
    """
    probs = probabilities(probs)
    correct = (probs.argmax(axis=1) == labels(y, probs.shape[1], len(probs))).astype(np.float64)
    confidence = probs.max(axis=1)
    num_bins = min(at_least("num_bins", num_bins, 1), confidence.size)
    edges = np.array([part[-1] for part in np.array_split(np.sort(confidence), num_bins)])
    bins = np.searchsorted(edges[:-1], confidence, side="left")
    count = np.bincount(bins, minlength=num_bins)
    full = count > 0
    sums = (np.bincount(bins, weights=value, minlength=num_bins)[full] for value in (confidence, correct))
    mean_confidence, accuracy = (value / count[full] for value in sums)
    return Reliability(mean_confidence, accuracy, count[full])


def ece(y: ArrayLike, probs: ArrayLike, *, num_bins: int) -> float:
    """ECE, the expected calibration error sum_b (n_b/n) |acc_b - conf_b| over the bins of :func:`reliability`.

    It is biased upwards, by an amount that depends on the distribution of the confidences. With 15 bins, a perfectly
    calibrated classifier whose confidence is always .9615 has an expected ECE of .066 on 57 points and .019 on 1,000
    points. With fewer than 1,000 points, pool the splits or do not use it. Source: Naeini, Cooper & Hauskrecht (2015).

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
    num_bins : int
    """
    confidence, accuracy, num_points = reliability(y, probs, num_bins=num_bins)
    return float(np.sum(num_points / num_points.sum() * np.abs(accuracy - confidence)))


def ece_debiased_squared(y: ArrayLike, probs: ArrayLike, *, num_bins: int) -> float:
    """Debiased squared calibration error sum_b (n_b/n) [(acc_b - conf_b)^2 - acc_b (1 - acc_b) / (n_b - 1)].

    For a perfectly calibrated classifier its expectation given the bins is zero, so it can be negative. Source: Kumar,
    Liang & Ma (2019).

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
    num_bins : int

    Raises
    ------
    ValueError
        If a bin has only one point, so that its variance cannot be estimated.
    """
    confidence, accuracy, num_points = reliability(y, probs, num_bins=num_bins)
    if (num_points < 2).any():
        raise ValueError("a bin holds a single point: take fewer bins")
    terms = (accuracy - confidence) ** 2 - accuracy * (1 - accuracy) / (num_points - 1)
    return float(np.sum(num_points / num_points.sum() * terms))


def _in_unit(pit: ArrayLike) -> Floats:
    (pit,) = per_point(pit=pit)
    if (pit < 0).any() or (pit > 1).any():
        raise ValueError("pit must lie in [0, 1]")
    return pit


def _inside(pit: ArrayLike, level: float) -> np.ndarray:
    # Written around 1/2, since (1 - .95)/2 rounds to more than .025 and would shut out a point on the edge.
    return np.abs(_in_unit(pit) - 0.5) <= fraction("level", level) / 2


def _central_interval(loc: ArrayLike, scale: ArrayLike, level: float) -> tuple[Floats, Floats]:
    level = fraction("level", level)
    return mixture_quantile(loc, scale, (1 - level) / 2), mixture_quantile(loc, scale, (1 + level) / 2)
