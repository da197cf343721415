r"""Quality as a function of cost: curves of several methods and seeds, fits of their limits, and their crossings.

Three numbers are read from the curve of a run, each better if it is smaller:

- ``bias`` in sd at the test points of a reference;
- ``1/worth``, the squared distance of the draws so far in units of one exact draw;
- ``nll``, minus the LPPD.

After warm-up, with S draws, :math:`1/worth = b + a/S` and :math:`NLL = p + v/S`, because a mixture of S draws converges as
1/S. The looks along one run are nested and not independent, so there is one fit for each seed, and intervals are over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.metrics.checks import Floats

METRICS = ("bias", "1/worth", "nll")
PRICES = ("num_grads", "seconds")
NUM_PRICES = 60
"""Number of costs at which curves are compared, evenly spaced on a logarithmic scale."""
NUM_BOOTSTRAPS = 2_000
SHARE = 0.95
"""Share of bootstraps in which a method must be nearer at all later prices."""


class Curve(NamedTuple):
    """The curve of one run.

    Attributes
    ----------
    price : array (L,)
        Increasing.
    num_draws : array (L,)
        Of all chains.
    value : array (L,)
    after_warmup : bool array (L,)
    """

    price: Floats
    num_draws: Floats
    value: Floats
    after_warmup: np.ndarray


class Limit(NamedTuple):
    """Limit and slope of value = limit + slope / S: means over seeds with 95 % intervals, infinite for one seed."""

    limit: tuple[float, float, float]
    slope: tuple[float, float, float]
    num_seeds: int


class Crossing(NamedTuple):
    """The cost from which method A is nearer to the reference than method B.

    Attributes
    ----------
    price : float or None
        The smallest price after which A is nearer at every later price in 95 % of bootstraps.
    first, last : float
        The prices between which both methods have values for all seeds.
    num_seeds : int
        Paired seeds.
    """

    price: float | None
    first: float
    last: float
    num_seeds: int


def fit(curves: Sequence[Curve], *, least: float = -math.inf) -> Limit | None:
    """Fit value = limit + slope / S to the looks after warm-up of each seed, and average over seeds.

    Looks are weighted so that a residual counts in proportion to S: the value's own error falls about as 1/S. Limit and
    slope are at least ``least`` and 0.

    Parameters
    ----------
    curves : sequence of Curve
        One for each seed.
    least : float
        0 for 1/worth; minus infinity for NLL.

    Returns
    -------
    Limit or None
        None if no run has three looks after warm-up.
    """
    from scipy.optimize import lsq_linear

    found = []
    for curve in curves:
        chosen = curve.after_warmup & np.isfinite(curve.value) & (curve.num_draws > 0)
        if np.unique(curve.num_draws[chosen]).size < 3:
            continue
        s, value = curve.num_draws[chosen], curve.value[chosen]
        rows = np.stack([s, np.ones_like(s)], 1)  # times S: the columns are those of limit and slope
        size = np.linalg.norm(rows, axis=0)
        bounds = np.array([least, 0.0]) * size, np.full(2, np.inf)
        found.append(lsq_linear(rows / size, value * s, bounds).x / size)
    if not found:
        return None
    limits, slopes = np.array(found).T
    return Limit(interval(limits), interval(slopes), len(found))


def interval(values: Floats) -> tuple[float, float, float]:
    """Mean over seeds and the ends of its 95 % interval by Student's t."""
    mean = float(values.mean())
    if values.size < 2:
        return mean, -math.inf, math.inf
    from scipy.special import stdtrit

    half = float(stdtrit(values.size - 1, 0.975) * values.std(ddof=1) / math.sqrt(values.size))
    return mean, mean - half, mean + half


def at_prices(curve: Curve, prices: Floats) -> Floats:
    """The value at each price: linear in the logarithm between looks, NaN before the first and after the last."""
    known = np.isfinite(curve.value)
    if not known.any():
        return np.full(prices.shape, np.nan)
    x, value = np.log(curve.price[known]), curve.value[known]
    return np.interp(np.log(prices), x, value, left=np.nan, right=np.nan)


def grid(curves: Sequence[Curve], num: int = NUM_PRICES) -> Floats:
    """Prices from where the last of the curves begins to where the first of them ends; empty where they do not meet."""
    first = max(curve.price[np.isfinite(curve.value)].min(initial=math.inf) for curve in curves)
    last = min(curve.price[np.isfinite(curve.value)].max(initial=-math.inf) for curve in curves)
    if not math.isfinite(first) or not first < last:
        return np.empty(0)
    inside = np.geomspace(first, last, num)
    inside[0], inside[-1] = first, last  # rounding would put the ends outside of the curves
    return inside


def crossing(
    a: Mapping[object, Curve], b: Mapping[object, Curve], *, finest: float = -math.inf, seed: int = 0
) -> Crossing:
    """From which price on method A is nearer than method B, by a bootstrap over the seeds that both have.

    Parameters
    ----------
    a, b : mapping of seed to Curve
    finest : float
        The resolution of the reference. If the values of both methods are below it, neither is nearer.
    seed : int
        Seed of the bootstrap.

    Raises
    ------
    ConfigError
        If fewer than two seeds are in both, or their curves have no price in common.
    """
    paired = [key for key in a if key in b]
    if len(paired) < 2:
        raise ConfigError(f"a crossing needs at least two seeds that both methods have, and there are {len(paired)}.")
    own = [a[key] for key in paired], [b[key] for key in paired]
    prices = grid([*own[0], *own[1]])
    if not prices.size:
        raise ConfigError("a crossing needs a price that all runs of both methods reach, and there is none.")
    values = np.array([[at_prices(curve, prices) for curve in curves] for curves in own])  # (2, seeds, prices)
    chosen = np.random.default_rng(seed).integers(len(paired), size=(NUM_BOOTSTRAPS, len(paired)))
    mean_a, mean_b = (one[chosen].mean(1) for one in values)
    nearer = (mean_a < mean_b) & (mean_b > finest)
    later = np.logical_and.accumulate(nearer[:, ::-1], axis=1)[:, ::-1]
    enough = np.flatnonzero(later.mean(0) >= SHARE)
    price = float(prices[enough[0]]) if enough.size else None
    return Crossing(price, float(prices[0]), float(prices[-1]), len(paired))


def band(curves: Sequence[Curve], num: int = NUM_PRICES) -> tuple[Floats, Floats]:
    """Prices (G,) that all seeds reach, and mean and ends of the 95 % interval over seeds there, (3, G)."""
    prices = grid(curves, num)
    values = np.array([at_prices(curve, prices) for curve in curves])
    return prices, np.array([interval(values[:, place]) for place in range(prices.size)]).reshape(-1, 3).T
