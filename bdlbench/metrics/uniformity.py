"""Are numbers uniform on (0, 1)? An exact simultaneous test of their empirical distribution, its power, and what is wrong.

The numbers are those of simulation-based calibration: u = (rank + V) / (L + 1) of a true value among L draws, with V uniform
on (0, 1). For exact draws they are independent and exactly uniform, whatever L is.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri
from scipy.stats import binom, poisson

from bdlbench.metrics.checks import Floats, at_least, fraction

NUM_POINTS = 99
"""At how many points, i / 100, the empirical distribution is compared with the uniform one: the steps of 99 draws."""


class Deviation(NamedTuple):
    """How the draws differ from the posterior, if both are normal; see :func:`deviation`.

    Attributes
    ----------
    shift, shift_se : float
        The mean of the draws less that of the posterior, in posterior sd.
    log_inflation, log_inflation_se : float
        Log of the ratio of the draws' sd to the posterior sd.
    """

    shift: float
    shift_se: float
    log_inflation: float
    log_inflation_se: float


def randomised_ranks(truth: ArrayLike, draws: ArrayLike, v: ArrayLike) -> Floats:
    """u = (number of draws below the truth, a random share of the equal ones added, and V) / (L + 1).

    Source: Talts, Betancourt, Simpson, Vehtari & Gelman (2018, arXiv 1804.06788); ties as in Modrak et al. (2023).

    Parameters
    ----------
    truth : array (U,)
        The value that the data set was drawn with.
    draws : array (U, L)
        Draws that are not finite count as larger than any number.
    v : array (U,)
        Independent and uniform on (0, 1). One number decides both the place among ties and V, because the rank among t ties
        plus V is uniform on (0, t + 1).
    """
    truth, draws, v = (np.asarray(a, np.float64) for a in (truth, draws, v))
    if draws.ndim != 2 or truth.shape != draws.shape[:1] or v.shape != truth.shape:
        raise ValueError(f"truth and v must be (U,) and draws (U, L), got {truth.shape}, {v.shape} and {draws.shape}")
    draws = np.where(np.isfinite(draws), draws, np.inf)
    below, equal = (draws < truth[:, None]).sum(1), (draws == truth[:, None]).sum(1)
    return np.asarray((below + v * (equal + 1)) / (draws.shape[1] + 1))


def p_value(u: ArrayLike) -> float:
    """The exact p-value of the hypothesis that ``u`` (U,) are independent and uniform on (0, 1).

    At each point z_i = i / 100 the number of u up to z_i is binomial. The statistic is the smallest of their two-sided tail
    probabilities. Its distribution is computed exactly, so that the test is simultaneous over the points: it rejects at
    level a exactly if the empirical distribution leaves the envelope of :func:`envelope` at this level. Source:
    Säilynoja, Bürkner & Vehtari (2022), "Graphical test for discrete uniformity", section 2.2.
    """
    u = np.asarray(u, np.float64)
    if u.ndim != 1 or not len(u) or not ((u >= 0) & (u <= 1)).all():
        raise ValueError(f"u must be a vector of numbers in [0, 1], got the shape {u.shape}")
    counts = np.searchsorted(np.sort(u), _points(), side="right")
    tails = _tails(len(u))
    # Equal tails on both sides differ in their last digits: without the factor half of the equal cases would not count.
    seen = tails[np.arange(NUM_POINTS), counts].min() * (1.0 + 1e-9)
    return float(max(0.0, 1.0 - _probability_inside(len(u), tails > seen, _uniform_cells())))


@functools.lru_cache(maxsize=64)
def envelope(num: int, level: float) -> tuple[Floats, Floats, Floats]:
    """The points z (K,) and the lowest and highest share of ``num`` numbers up to z that a uniform sample may have.

    A uniform sample leaves it anywhere with a probability of ``level`` at most. Source: as :func:`p_value`.
    """
    inside = _inside(num, level)
    low, high = inside.argmax(1), num - inside[:, ::-1].argmax(1)
    return _points(), low / num, high / num


def power(num: int, level: float, probabilities: ArrayLike) -> float:
    """The exact probability that ``num`` independent u fail the test at ``level``.

    Parameters
    ----------
    num, level
        As for :func:`envelope`.
    probabilities : array (L + 1,)
        Of the ranks 0 to L, as :func:`rank_probabilities` gives them.
    """
    probabilities = np.asarray(probabilities, np.float64)
    below = np.concatenate([[0.0], np.cumsum(probabilities)])
    steps = np.linspace(0.0, 1.0, len(below))
    cells = np.diff(np.interp(np.linspace(0.0, 1.0, NUM_POINTS + 2), steps, below))
    return float(max(0.0, 1.0 - _probability_inside(num, _inside(num, level), cells)))


def rank_probabilities(num_draws: int, *, inflation: float, shift: float = 0.0) -> Floats:
    """The probabilities (L + 1,) of the ranks of the truth t ~ N(0, 1) among L draws of N(shift, inflation²).

    P(rank = r) = E[Bin(r; L, Phi((t - shift) / inflation))], as the mean over 1,000 equally likely t.
    """
    at_least("num_draws", num_draws, 1)
    t = ndtri((np.arange(1000) + 0.5) / 1000)
    return np.asarray(binom.pmf(np.arange(num_draws + 1), num_draws, ndtr((t - shift) / inflation)[:, None]).mean(0))


def deviation(u: ArrayLike) -> Deviation:
    """Shift and inflation of the draws from the normal scores q = Phi^-1(u), with standard errors.

    If posterior and draws are normal, the truth has the place (t - shift) / inflation among the draws, so that q has the sd
    1 / inflation and the mean -shift / inflation. For exact draws q is exactly N(0, 1), whatever the posterior is. L draws
    show no place beyond about Phi^-1(1 / (L + 1)): an inflation far below 1 is underestimated, towards 1. The standard
    errors are those of the delta method, with the fourth moment of q itself.

    Parameters
    ----------
    u : array (U,)
        In (0, 1), U of at least 4, not all equal.
    """
    u = np.asarray(u, np.float64)
    at_least("the number of u", len(u), 4)
    edge = np.finfo(np.float64).eps
    q = ndtri(np.clip(u, edge, 1.0 - edge))
    sd = q.std(ddof=1)
    if not sd > 0:
        raise ValueError("u are all equal and show no spread")
    centred = (q - q.mean()) / sd
    error = np.sqrt(max(float((centred**4).mean()) - 1.0, 0.0) / (4 * len(q)))
    # -mean / sd has the influence -(c + m / sd (1 - c²) / 2) of a value with the normal score c.
    ratio = q.mean() / sd
    influence = centred - ratio * (centred**2 - 1.0) / 2.0
    return Deviation(float(-ratio), float(influence.std(ddof=1) / np.sqrt(len(q))), float(-np.log(sd)), float(error))


def _points() -> Floats:
    return np.arange(1, NUM_POINTS + 1) / (NUM_POINTS + 1)


def _uniform_cells() -> Floats:
    return np.full(NUM_POINTS + 1, 1.0 / (NUM_POINTS + 1))


@functools.lru_cache(maxsize=8)
def _tails(num: int) -> Floats:
    """Two-sided tail probability of each count 0 to num (columns) at each point (rows)."""
    counts, z = np.arange(num + 1), _points()[:, None]
    return np.asarray(np.minimum(1.0, 2.0 * np.minimum(binom.cdf(counts, num, z), binom.sf(counts - 1, num, z))))


@functools.lru_cache(maxsize=64)
def _inside(num: int, level: float) -> np.ndarray:
    """The counts (K, num + 1) of the widest envelope that a uniform sample leaves with probability ``level`` at most.

    The tail probabilities are searched for the largest bound whose envelope is left so rarely.
    """
    at_least("num", num, 1)
    fraction("level", level)
    tails = _tails(num)
    # The envelope at a pointwise bound of level / K is left with probability level at most, by Bonferroni. After 20 halvings
    # on the logarithmic scale the bound is known to 1e-5 of itself.
    low, high = level / NUM_POINTS, 1.0
    for _ in range(20):
        middle = np.sqrt(low * high)
        if 1.0 - _probability_inside(num, tails > middle, _uniform_cells()) <= level:
            low = middle
        else:
            high = middle
    return np.asarray(tails > low)


def _probability_inside(num: int, inside: np.ndarray, cells: Floats) -> float:
    """The probability that the counts of a multinomial sample, added up cell by cell, are ``inside`` (K, num + 1) everywhere.

    Independent Poisson counts with the means num p, given that they add up to num, are multinomial.
    """
    path, counts = np.zeros(num + 1), np.arange(num + 1)
    path[0] = 1.0
    different, which = np.unique(cells, return_inverse=True)
    added = poisson.pmf(counts, num * different[:, None])
    for here, cell in zip(inside, which[:-1], strict=True):
        path = np.where(here, np.convolve(path, added[cell])[: num + 1], 0.0)
    last = poisson.pmf(num - counts, num * cells[-1])
    return float(min(1.0, (path * last).sum() / poisson.pmf(num, num)))
