"""Scores of several points predicted jointly, which scores of single points cannot replace."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from bdlbench.metrics.checks import Floats, Ints, at_least

_CHUNK = 2**16  # float64 entries of one temporary, 512 KiB: small enough to stay in cache


def joint_log_loss(log_lik: ArrayLike, *, tau: int, num_pairs: int, seed: int) -> float:
    r"""Joint predictive log loss under dyadic sampling, in nats a point; smaller is better.

    A batch has tau points, each of which is one of two rows a and b with probability 1/2, with the targets observed
    there. The loss is the mean over pairs (a, b) and over the number K of copies of a, which is binomial, of

    .. math:: -\frac1\tau \log \frac1S \sum_s p(y_a | x_a, \theta_s)^K \, p(y_b | x_b, \theta_s)^{\tau - K} .

    The mean over K is exact. With tau = 1, and with one draw, this is the negative log likelihood of single points. With
    more, a predictive is rewarded if its draws agree on points of which one tells about the other: it is the log loss
    of predictions that are updated after each point of the batch. It grows less with tau the more of the uncertainty is
    about the function, and not noise.

    A copy of a row has the target observed there, since real data have no other. The true law of y does then not minimise
    the loss: less noise and more uncertainty about the function can score better. Few draws make it larger, as they make
    LPPD smaller, and more so, since the average is over products: methods are compared at equal numbers of draws.
    Source: Osband, Wen, Asghari, Dwaracherla, Lu & Van Roy (2022), "Evaluating high-order predictive
    distributions in deep learning", arXiv 2202.13509.

    Parameters
    ----------
    log_lik : array (S, n)
        log p(y_i | x_i, theta_s). The density may be 0 (-inf).
    tau : int
        Points of a batch, 1 or more.
    num_pairs : int
        Pairs of distinct rows, drawn without replacement, or all n (n - 1) / 2 if they are fewer. A single row is
        paired with itself.
    seed : int
        Seed of the pairs. They depend on it and on n alone, so that methods are scored on the same pairs.

    Returns
    -------
    float
        The loss. It is infinite if no draw gives a batch a density above 0.

    Raises
    ------
    ValueError
        If the shape is not (S, n).
    FloatingPointError
        If a value is nan or plus infinity.
    """
    log_lik = np.asarray(log_lik, np.float64)
    if log_lik.ndim != 2 or log_lik.size == 0:
        raise ValueError(f"log_lik must be (S, n), got {log_lik.shape}")
    if np.isnan(log_lik).any() or (log_lik == np.inf).any():
        raise FloatingPointError("log_lik must be finite or minus infinity")
    tau = at_least("tau", tau, 1)
    first, second = _pairs(log_lik.shape[1], at_least("num_pairs", num_pairs, 1), seed)
    weights = binom.pmf(np.arange(tau + 1), tau, 0.5)
    size = max(1, _CHUNK // len(log_lik))
    total = 0.0
    for start in range(0, len(first), size):
        a, b = (log_lik[:, rows[start : start + size]] for rows in (first, second))
        for copies, weight in enumerate(weights):
            total -= weight * float(_log_mean_of_products(a, b, copies, tau - copies).sum())
    return total / (tau * len(first))


def _pairs(num_rows: int, num_pairs: int, seed: int) -> tuple[Ints, Ints]:
    """Rows a > b of each pair; the pair number p is a (a - 1) / 2 + b."""
    every = num_rows * (num_rows - 1) // 2
    if every == 0:
        return np.zeros(1, np.intp), np.zeros(1, np.intp)
    if num_pairs < every:
        number = np.sort(np.random.default_rng(seed).choice(every, num_pairs, replace=False))
    else:
        number = np.arange(every)
    a = ((1 + np.sqrt(8 * number + 1)) / 2).astype(np.intp)
    a -= a * (a - 1) // 2 > number  # the root may be rounded up to the next row
    return a, (number - a * (a - 1) // 2).astype(np.intp)


def _log_mean_of_products(a: Floats, b: Floats, copies: int, rest: int) -> Floats:
    """log (1/S) sum_s p_a^copies p_b^rest for each pair. No copies of a density of 0 are 1."""
    values = copies * a if copies else np.zeros_like(a)
    if rest:
        values += rest * b
    peak = values.max(axis=0)
    peak[peak == -np.inf] = 0.0  # then all are 0, and their mean is
    values -= peak
    np.exp(values, out=values)
    with np.errstate(divide="ignore"):
        return peak + np.log(values.mean(axis=0))
