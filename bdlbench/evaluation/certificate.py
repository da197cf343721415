r"""The criteria of a certified reference posterior, as functions of draws.

Two exact samplers of different kinds are compared in function space: Markov chains, and independent runs of a second
sampler, such as tempered sequential Monte Carlo. The comparison cannot find an error that both samplers share. Two
local samplers that both miss a mode agree with each other, so the second sampler must start from the prior. A sampler
that is exact only in the limit of small steps cannot certify a reference, even if its draws pass all criteria here.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bdlbench.errors import ConfigError
from bdlbench.metrics import diagnostics, energy
from bdlbench.metrics.checks import Floats

ENUMERATED = 50_000
"""If there are at most this many arrangements, all are evaluated; otherwise this number is drawn at random."""
_SIMULATED = 4_000  # number of simulated draws of the noise for the bounds; the level of 5 % then has an error of .34 %
_MOST_SD = 100.0  # larger bounds are reported as this value
_RESOLUTION = 1e-14  # smaller variances of standardised draws are rounding errors


class Thresholds(NamedTuple):
    """The thresholds of a certificate, which are fixed before anything is sampled.

    Attributes
    ----------
    rhat : float
        Largest rank-normalised split R-hat at any point.
    ess : float
        Smallest bulk and tail effective sample size at any point. With an ESS of 2,000, R-hat fails at one of 1,000
        points even if the chains are perfect.
    e_bfmi : float
        Smallest energy fraction of missing information of a chain.
    level : float
        Probability with which the permutation test rejects equal samplers.
    tau : float
        Resolution: largest upper 95 % bound of the root mean square over points of the shift, and of the difference of
        log sd. A run cannot be distinguished from the reference by smaller differences.
    num_chains, num_runs, num_particles : int
        Smallest number of chains, of runs of the second sampler, and of draws of all these runs together.
    """

    rhat: float = 1.01
    ess: float = 2000.0
    e_bfmi: float = 0.2
    level: float = 0.001
    tau: float = 0.1
    num_chains: int = 8
    num_runs: int = 7
    num_particles: int = 2000


class Criterion(NamedTuple):
    """One criterion: its name, its value, the threshold, whether it passed, and the chain at fault if there is one."""

    name: str
    figure: float
    threshold: float
    passed: bool
    chain: int | None = None


def certify(
    chains: ArrayLike,
    runs: Sequence[ArrayLike],
    thresholds: Thresholds,
    *,
    num_diverging: int,
    energies: ArrayLike,
    seed: int = 0,
) -> list[Criterion]:
    """Evaluate every criterion of a certificate. The reference is certified if all have passed.

    Parameters
    ----------
    chains : array (C, S, n)
        Function draws of the Markov chains at n test and probe points. For classification, n counts all class
        probabilities.
    runs : sequence of arrays (P, n)
        Function draws of each independent run of the second sampler.
    thresholds : Thresholds
    num_diverging : int
        Divergent transitions of all chains after warm-up.
    energies : array (C, S)
        Hamiltonian at each draw of the chains, unthinned.
    seed : int
        Seed of the random arrangements and of the simulated noise of the bounds.

    Raises
    ------
    ValueError
        If an array has the wrong shape.
    ConfigError
        If there are too few chains and runs for the level of the permutation test.
    """
    x, y = _checked(chains, runs)
    particles = sum(len(run) for run in y)
    return [
        _at_least("num_chains", len(x), thresholds.num_chains),
        _at_least("num_runs", len(y), thresholds.num_runs),
        _at_least("num_particles", particles, thresholds.num_particles),
        *mixing(x, thresholds, num_diverging=num_diverging, energies=energies),
        difference(x, y, level=thresholds.level, seed=seed),
        *equivalence(x, y, tau=thresholds.tau, seed=seed),
    ]


def mixing(chains: ArrayLike, thresholds: Thresholds, *, num_diverging: int, energies: ArrayLike) -> list[Criterion]:
    """Criteria of mixing: R-hat, bulk and tail ESS at the worst point, divergences, and E-BFMI of the worst chain.

    The values are computed by :mod:`bdlbench.metrics.diagnostics`. These criteria compare only the chains with each
    other, so chains that all have the same bias pass. Source: Vehtari et al. (2021) and Betancourt (2016).
    """
    x = np.asarray(chains, np.float64)
    num_chains, num_draws, num_points = x.shape
    found = diagnostics.function_diagnostics(
        lambda start, stop: x[..., start:stop], num_points, num_chains=num_chains, num_draws=num_draws
    )
    least = float(diagnostics.e_bfmi(energies).min())

    def figure(name: str, worst: float) -> float:
        value = found[name]
        # If the value at a point never changed, R-hat and ESS are not defined there, and the criterion fails.
        return worst if value is None or found["num_constant"] else float(value)

    rhat = figure("rhat_max", math.inf)
    return [
        Criterion("rhat_max", rhat, thresholds.rhat, rhat < thresholds.rhat),
        _at_least("ess_bulk_min", figure("ess_bulk_min", 0.0), thresholds.ess),
        _at_least("ess_tail_min", figure("ess_tail_min", 0.0), thresholds.ess),
        Criterion("num_diverging", float(num_diverging), 0.0, num_diverging == 0),
        Criterion("e_bfmi_min", least, thresholds.e_bfmi, least > thresholds.e_bfmi),
    ]


def difference(chains: ArrayLike, runs: Sequence[ArrayLike], *, level: float, seed: int = 0) -> Criterion:
    """Test by permutations whether chains and runs have the same joint law; the value of the criterion is p.

    The statistic is the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, in units of the chains' sd at each point.
    It uses only pairs of draws from different chains or runs, so that autocorrelation within a chain has no effect.
    Whole chains and runs are permuted, because they are independent. If their laws are equal, all divisions of the
    C + K chains and runs into groups of C and K are equally likely. p is the share of divisions whose statistic is at
    least as large as the observed one. With eight chains and seven runs there are 6,435. Source: Szekely & Rizzo (2013).

    The test finds differences of any kind in the joint law. It does not give their size, and it finds no difference if
    the chains differ from one another as much as from the runs.

    Parameters
    ----------
    chains : array (C, S, n)
    runs : sequence of arrays (P, n)
    level : float
        The test fails if p is at most this value.
    seed : int
        Seed of the random arrangements, if there are more than ``ENUMERATED``.

    Raises
    ------
    ConfigError
        If there are so few arrangements that no difference could fail at this level.
    """
    x, y = _checked(chains, runs)
    count = math.comb(len(x) + len(y), len(x))
    # The complement of an arrangement of equally many has the same statistic, so the least p is then twice as large.
    least = (2 if len(x) == len(y) else 1) / count
    if least > level:
        raise ConfigError(
            f"level={level:g} is below {least:.2g}, the smallest p-value of {len(x)} chains and {len(y)} runs: add runs."
        )
    _, sd = _units(x)
    wholes = [*(chain / sd for chain in x), *(run / sd for run in y)]
    sizes = np.array([len(whole) for whole in wholes])
    flat = np.concatenate(wholes)
    mean = energy.joint_sums(flat, sizes, flat, sizes) / np.outer(sizes, sizes)
    np.fill_diagonal(mean, 0.0)
    first = _arrangements(len(wholes), len(x), count, seed)
    in_first = np.einsum("pa,pa->p", first @ mean, first)
    total = mean.sum()
    between = (first @ mean * (1 - first)).sum(axis=1)
    in_second = total - in_first - 2 * between
    statistic = (
        2 * between / (len(x) * len(y)) - in_first / (len(x) * (len(x) - 1)) - in_second / (len(y) * (len(y) - 1))
    )
    # The first arrangement is the one that was observed; equal ones differ by rounding.
    p = float(np.mean(statistic >= statistic[0] - 1e-9 * total / len(wholes) ** 2))
    return Criterion("permutation_p", p, level, p > level)


def equivalence(chains: ArrayLike, runs: Sequence[ArrayLike], *, tau: float, seed: int = 0) -> list[Criterion]:
    r"""Upper 95 % bounds of the root mean square over points of a shift and of a difference of log sd.

    There is a bound between the two samplers, and one between each chain and the other chains; the value of the latter
    criterion is the largest of them. A chain is not compared with all chains, because these include its own draws, which
    would hide an error of the chain. Shifts are in units of the chains' sd at each point.

    The observed differences at n points are d = delta + e, where e is assumed to be normal. The covariance of e is
    estimated from the jackknife's pseudo-values of independent chains and runs. For a single chain it is estimated from
    the other chains, so that a wrong chain does not increase its own noise. The bound is the largest |delta| / sqrt(n)
    for which |d| is as small as observed with a probability of 5 % or more. delta has the direction in which e is
    largest, which is the worst case. The simulated noise has the tails of Student's t, because its covariance is
    estimated from few chains and runs.

    The bounds do not measure a difference of shape, or of the dependence between points.

    Parameters
    ----------
    chains : array (C, S, n)
        Function draws of C >= 3 chains.
    runs : sequence of 2 or more arrays (P, n)
        Function draws of each run.
    tau : float
        Largest bound that passes.
    """
    x, y = _checked(chains, runs)
    mean, sd = _units(x)
    a, b = _sums((x - mean) / sd), np.concatenate([_sums(((run - mean) / sd)[None]) for run in y])
    out = []
    for name, of in (("shift", _mean), ("log_sd", _log_sd)):
        roots = [_residuals(_pseudo_values(wholes, of)) / math.sqrt(len(wholes)) for wholes in (a, b)]
        gap = of(a.sum(axis=0)) - of(b.sum(axis=0))
        bound = upper_bound(gap, np.concatenate(roots), len(a) + len(b) - 2, seed=seed)
        out.append(Criterion(f"{name}_between_samplers", bound, tau, bound <= tau))
        bounds = []
        for chain in range(len(a)):
            others = np.delete(a, chain, axis=0)
            gap = of(a[chain]) - of(others.sum(axis=0))
            root = _residuals(_pseudo_values(others, of)) * math.sqrt(1 + 1 / len(others))
            bounds.append(upper_bound(gap, root, len(others) - 1, seed=seed))
        worst = int(np.argmax(bounds))
        out.append(Criterion(f"{name}_between_chains", bounds[worst], tau, bounds[worst] <= tau, worst))
    return out


def upper_bound(gap: Floats, residuals: Floats, degrees: int, *, level: float = 0.95, seed: int = 0) -> float:
    """Upper confidence bound of |delta| / sqrt(n), given gap = delta + e (n,) with e ~ N(0, residuals' residuals).

    Parameters
    ----------
    gap : array (n,)
    residuals : array (m, n)
        A root of the covariance of e, estimated with ``degrees`` of freedom.
    degrees : int
    level : float
        Confidence level of the bound.
    seed : int
        Seed of the simulated noise.

    Returns
    -------
    float
        The bound, at most 100. It is 0 if a gap as small as this one is improbable even for delta = 0.
    """
    n = gap.size
    scales = np.linalg.svd(residuals, compute_uv=False)  # those of e along its principal directions
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(_SIMULATED, scales.size)) * scales
    noise *= np.sqrt(degrees / rng.chisquare(degrees, size=(_SIMULATED, 1)))
    rest, along = (noise[:, 1:] ** 2).sum(axis=1), noise[:, 0]
    observed = float(gap @ gap)

    def share(distance: float) -> float:
        return float(np.mean((along + distance) ** 2 + rest <= observed))

    low, high = 0.0, _MOST_SD * math.sqrt(n)
    if share(low) < 1 - level:
        return 0.0
    if share(high) >= 1 - level:
        return _MOST_SD
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= 1 - level else (low, middle)
    return high / math.sqrt(n)


def _at_least(name: str, figure: float, threshold: float) -> Criterion:
    return Criterion(name, float(figure), float(threshold), bool(figure >= threshold))


def _arrangements(total: int, chosen: int, count: int, seed: int) -> Floats:
    """Indicators (P, total) of the chains and runs in the first group. The first row is the observed arrangement."""
    if count <= ENUMERATED:
        places = np.array(list(itertools.combinations(range(total), chosen)))
    else:
        rng = np.random.default_rng(seed)
        places = np.argsort(rng.random((ENUMERATED, total)), axis=1)[:, :chosen]
        places[0] = np.arange(chosen)
    out = np.zeros((len(places), total))
    np.put_along_axis(out, places, 1.0, axis=1)
    return out


def _sums(wholes: Floats) -> Floats:
    """Number of draws, their sum and their sum of squares (K, 3, n) of standardised draws (K, S, n)."""
    return np.stack([np.full_like(wholes[:, 0], wholes.shape[1]), wholes.sum(axis=1), (wholes**2).sum(axis=1)], axis=1)


def _mean(sums: Floats) -> Floats:
    return sums[..., 1, :] / sums[..., 0, :]


def _log_sd(sums: Floats) -> Floats:
    number, total, squares = sums[..., 0, :], sums[..., 1, :], sums[..., 2, :]
    variance = (squares - total**2 / number) / (number - 1)
    return 0.5 * np.log(np.maximum(variance, _RESOLUTION))  # a chain that stands still has a log sd, and a low one


def _pseudo_values(wholes: Floats, of: Callable[[Floats], Floats]) -> Floats:
    """The jackknife's pseudo-values (K, n) of a statistic of the pooled draws. Each leaves out one chain or run."""
    size, total = len(wholes), wholes.sum(axis=0)
    return size * of(total) - (size - 1) * of(total - wholes)


def _residuals(values: Floats) -> Floats:
    """Residuals (K, n) of the values of chains or runs, scaled so that residuals' residuals is their covariance."""
    return (values - values.mean(axis=0)) / math.sqrt(len(values) - 1)


def _units(x: Floats) -> tuple[Floats, Floats]:
    flat = x.reshape(-1, x.shape[-1])
    still = np.flatnonzero(np.ptp(flat, axis=0) == 0)
    if still.size:
        raise ValueError(f"chains do not vary at point {int(still[0])}, so there is no sd to divide by: leave it out")
    return flat.mean(axis=0), flat.std(axis=0, ddof=1)


def _checked(chains: ArrayLike, runs: Sequence[ArrayLike]) -> tuple[Floats, list[Floats]]:
    x, y = np.asarray(chains, np.float64), [np.asarray(run, np.float64) for run in runs]
    if x.ndim != 3 or any(run.ndim != 2 or run.shape[1] != x.shape[2] for run in y):
        raise ValueError(f"chains must be (C, S, n) and each run (P, n), got {x.shape} and {[run.shape for run in y]}")
    if len(x) < 3 or len(y) < 2 or x.shape[1] < 2 or min(len(run) for run in y) < 2:
        raise ValueError(
            f"a certificate needs three chains and two runs of two draws or more, got {len(x)} and {len(y)}"
        )
    if not (np.isfinite(x).all() and all(np.isfinite(run).all() for run in y)):
        raise FloatingPointError("draws of chains and runs must be finite")
    return x, y
