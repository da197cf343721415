r"""Distances between the draws of a run and those of a reference posterior, in function space.

Draws are function values (for classification, class probabilities) at n points, as arrays (chains, draws, n). All
distances are in units of the reference's standard deviation at each point. Averages over points are ratios of means,
not means of ratios. ``docs/evaluation.md`` says which number answers which question.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bdlbench.metrics import energy, mixing
from bdlbench.metrics.checks import Floats, probabilities
from bdlbench.metrics.diagnostics import MIN_DRAWS
from bdlbench.metrics.energy import Estimate, Pairs

MAX_BLOCKS = 20
"""Largest number of blocks into which draws are cut if there are fewer than three chains."""
_MIN_BLOCKS = 4  # of a single chain: without one of them two are still left that are not neighbours
_BLOCK_TIMES = 5  # length of a block in autocorrelation times, so that blocks which are not neighbours are independent


def agreement(probs: ArrayLike, reference_probs: ArrayLike) -> float:
    """Share of points with the same most probable class, (1/n) sum_i [argmax p_i = argmax q_i].

    Here p_i are the run's probabilities at point i and q_i those of the reference. The score does not depend on how
    confident the two predictions are. Source: Izmailov et al. (2021); Wilson et al. (2022), the NeurIPS competition.

    Parameters
    ----------
    probs, reference_probs : array (n, K)
        Class probabilities averaged over draws.
    """
    p, q = _same_points(probs, reference_probs)
    return float(np.mean(p.argmax(axis=1) == q.argmax(axis=1)))


def total_variation(probs: ArrayLike, reference_probs: ArrayLike) -> float:
    """Mean total variation distance, (1/n) sum_i (1/2) sum_k |p_ik - q_ik|, between run p and reference q.

    It compares averages over draws, so it does not depend on how much the draws differ from each other. The sources are
    those of :func:`agreement`.

    Parameters
    ----------
    probs, reference_probs : array (n, K)
        Class probabilities averaged over draws.
    """
    p, q = _same_points(probs, reference_probs)
    return float(0.5 * np.abs(p - q).sum(axis=1).mean())


class Worth(NamedTuple):
    """The number of exact draws with the same accuracy as the draws of a run, with a 95 % interval.

    No number is larger than ``ceiling``, the number of draws of the reference, because the reference cannot measure a
    higher accuracy. A number that is equal to ``ceiling`` means "at least this many", and is printed with "≥".
    """

    value: float
    low: float
    high: float
    ceiling: int

    def __str__(self) -> str:
        return f"{in_words(self.value, self.ceiling)} ({in_words(self.low, self.ceiling)} to {in_words(self.high, self.ceiling)})"


class Bias(NamedTuple):
    r"""Distance of the law of a run's chains from the reference, in standard deviations.

    Attributes
    ----------
    value, low, high : float
        :math:`\sqrt{\max(0, s)}` of ``squared`` and of the ends of its 95 % interval.
    squared : float
        The signed square s. Averages over runs are taken of it, since the root of a negative estimate is lost.
    squared_low, squared_high : float
        Its interval by the jackknife. Infinite where there are too few chains to have one.
    """

    value: float
    low: float
    high: float
    squared: float
    squared_low: float
    squared_high: float


class Fidelity(NamedTuple):
    """Every distance between a run and a reference at one group of points. A number that is not defined is NaN.

    Attributes
    ----------
    worth : Worth
        sum_i G_i / sum_i D_i^2 over points i (see :func:`fidelity`). It does not measure dependence between points.
    worth_joint : Worth
        The same for the joint law of all points. It measures dependence between points. An error at a single point
        changes it little.
    bias, bias_joint : Bias
        Root mean square over points, and the bias of the joint law. They do not depend on the number of draws.
    w1, w1_floor : float
        Mean over points of W_1 in sd, and the expected value of this mean for the same number of exact draws.
    shift : float
        Root mean square over points of the difference of means, in sd. It does not measure the spread.
    log_sd : float
        Root mean square over points of log(sd / sd of the reference). It does not measure the location.
    worth_at, squared_bias_at, shift_at, log_sd_at : array (n,)
        The same quantities at each point. The last three have a sign.
    num_draws, num_reference : int
        S, the number of draws of the run, and R, that of the reference.
    weak : bool
        Whether the bias comes from only one or two chains. Blocks of draws then take the place of chains, and the
        interval does not include the error of a mode that no chain visited.
    """

    worth: Worth
    worth_joint: Worth
    bias: Bias
    bias_joint: Bias
    w1: float
    w1_floor: float
    shift: float
    log_sd: float
    worth_at: Floats
    squared_bias_at: Floats
    shift_at: Floats
    log_sd_at: Floats
    num_draws: int
    num_reference: int
    weak: bool

    def scalars(self) -> dict[str, float | bool]:
        """The numbers for a record, by name: all attributes that are not arrays, with the ends of the intervals."""
        out: dict[str, float | bool] = {}
        for name in ("worth", "worth_joint", "bias", "bias_joint"):
            one = getattr(self, name)
            out |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        out |= {"squared_bias": self.bias.squared, "squared_bias_joint": self.bias_joint.squared}
        for name in ("w1", "w1_floor", "shift", "log_sd", "num_draws", "num_reference", "weak"):
            out[name] = getattr(self, name)
        return out

    def gradients_per_exact_draw(self, num_grads: float) -> float:
        """The cost of one exact draw: all gradients of the run, in full-data evaluations, divided by ``worth``."""
        return num_grads / self.worth.value


class Reference:
    """The draws of a reference posterior, prepared once for comparisons with many runs.

    Parameters
    ----------
    draws : array (K, R, n)
        K chains of R draws of the function at n points. Independent draws are one chain, (1, R, n).
    independent : bool
        Whether all draws are independent of one another.

    Raises
    ------
    ValueError
        If the array has another number of axes or fewer than two draws, or if the draws do not vary at a point, where
        their standard deviation then cannot be the unit.
    FloatingPointError
        If a value is not finite.
    """

    def __init__(self, draws: ArrayLike, *, independent: bool = False) -> None:
        chains = _checked(draws, "the reference")
        flat = chains.reshape(-1, chains.shape[-1])
        if len(flat) < 2:
            raise ValueError("the reference must have at least two draws, got one")
        constant = np.flatnonzero(np.ptp(flat, axis=0) == 0)
        if constant.size:
            raise ValueError(f"the reference does not vary at point {int(constant[0])}, so there is no sd to divide by")
        self.mean, self.sd = flat.mean(axis=0), flat.std(axis=0, ddof=1)
        self.draws = (flat - self.mean) / self.sd
        self.sizes, self.apart, self.weak = units(chains, independent=independent)

    @functools.cached_property
    def line(self) -> tuple[Floats, Floats, Floats, Floats]:
        """At each point (n): sorted draws (n, R) and their sums from the left (n, R + 1), G, and E|Y - Y'| of chains apart."""
        ordered = np.ascontiguousarray(np.sort(self.draws, axis=0).T)
        sums = np.concatenate([np.zeros((len(ordered), 1)), np.cumsum(ordered, axis=1)], axis=1)
        num = ordered.shape[1]
        all_pairs = energy.sum_of_pairs(ordered)
        if np.array_equal(self.apart, ~np.eye(self.sizes.size, dtype=bool)):  # then sorting each chain is enough
            chains = np.split(self.draws, np.cumsum(self.sizes)[:-1])
            within = [energy.sum_of_pairs(np.sort(chain.T, axis=1)) for chain in chains]
            between, number = all_pairs - np.sum(within, axis=0), num**2 - (self.sizes**2).sum()
        else:
            unit = np.repeat(np.arange(self.sizes.size), self.sizes)
            at = energy.marginals(np.ascontiguousarray(self.draws.T), unit, self.sizes.astype(np.float64), 1)
            between = np.array([np.where(self.apart, one.sums, 0.0).sum() for one in at])
            number = np.where(self.apart, np.outer(self.sizes, self.sizes), 0).sum()
        with np.errstate(invalid="ignore"):  # a reference without two chains apart leaves no bias
            return ordered, sums, all_pairs / (num * (num - 1)), between / np.float64(number)

    @functools.cached_property
    def sums(self) -> Floats:
        """Sums of joint distances between the chains of the reference, which only a joint distance needs."""
        return energy.joint_sums(self.draws, self.sizes, self.draws, self.sizes)


def fidelity(
    draws: ArrayLike, reference: Reference | ArrayLike, *, independent: bool = False, joint: bool = True
) -> Fidelity:
    r"""All distances between a run's draws and a reference at one group of points.

    At each point, and jointly with the Euclidean norm of the standardised values,

    .. math:: D^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'|, \qquad G = E|Y - Y'|,

    X from the run and Y from the reference (Szekely & Rizzo 2013). Two estimators of D^2 answer two questions.

    - ``worth`` = sum G / sum D^2, where the run's pairs include each draw with itself, and the reference's pairs are of
      two different draws. For S exact independent draws the mean of D^2 is G / S, so that their worth is S. This number
      contains Monte Carlo error, bias and missed modes together, and does not separate them. Its interval is for the
      same number of chains and draws.
    - ``bias`` = sqrt(max(0, s)) with s = sqrt(pi) mean D^2, where only pairs of different chains are used. Then Monte
      Carlo error does not change the mean. A Gaussian shifted by a small part b of its sd has the bias b. For the joint
      law s = 2 D^2 / G. This is the same number for a one-dimensional Gaussian, and it is b^2 if independent points are
      all shifted by b. The bias does not separate a shift from a wrong spread: an sd that is 10 % too large gives .069.

    W_1 is exact for empirical laws. Its floor is sqrt(2/pi) sqrt(1/S + 1/R) mean of int sqrt(G (1 - G)) over sd, with G
    the reference's distribution function, as if the S draws were independent (del Barrio, Gine & Matran 1999). A
    distance divided by its floor grows with the number of draws and cannot rank methods.

    Parameters
    ----------
    draws : array (C, S, n)
        C chains of S draws of the function at n points. An ensemble is (members, 1, n). To treat test and probe points
        separately, call this function twice.
    reference : Reference, or array (K, R, n)
    independent : bool
        Whether all draws of the run are independent, as those of a guide are. They need no chains then.
    joint : bool
        Whether the joint law is compared too, which takes most of the time. Its numbers are NaN otherwise.

    Raises
    ------
    ValueError, FloatingPointError
        As :class:`Reference`.
    """
    if not isinstance(reference, Reference):
        reference = Reference(reference)
    chains = _checked(draws, "the run")
    if chains.shape[-1] != reference.mean.size:
        raise ValueError(
            f"the run has {chains.shape[-1]} points and the reference {reference.mean.size}: give the same"
        )
    x = (chains.reshape(-1, chains.shape[-1]) - reference.mean) / reference.sd
    sizes, apart, weak = units(chains, independent=independent)
    num_draws, num_reference, num_run = len(x), len(reference.draws), len(sizes)
    all_sizes = np.concatenate([sizes, reference.sizes])
    all_apart = np.ones((all_sizes.size,) * 2, bool)
    all_apart[:num_run, :num_run], all_apart[num_run:, num_run:] = apart, reference.apart

    unit = np.repeat(np.arange(all_sizes.size), all_sizes)
    both = np.ascontiguousarray(np.concatenate([x, reference.draws]).T)
    size = all_sizes.astype(np.float64)
    at = energy.marginals(both, unit, size, num_run)
    marginal = Pairs(np.stack([one.sums for one in at]), size, num_run, all_apart)
    over = marginal._replace(sums=marginal.sums.mean(axis=0, keepdims=True))
    worth_joint, bias_joint = Worth(np.nan, np.nan, np.nan, num_reference), Bias(*[np.nan] * 6)
    if joint:
        sums = energy.assembled(
            energy.joint_sums(x, sizes, x, sizes),
            energy.joint_sums(x, sizes, reference.draws, reference.sizes),
            reference.sums,
        )
        together = marginal._replace(sums=sums[None])
        worth_joint = _worth(together, num_reference)
        bias_joint = _bias(energy.of_pairs_apart(together), 2 / energy.reference_spread(together).item())

    shift, log_sd = x.mean(axis=0), np.full(x.shape[1], np.nan)
    if num_draws > 1:
        with np.errstate(divide="ignore"):  # a point at which the run stands still: minus infinity
            log_sd = np.log(np.where(np.ptp(x, axis=0) > 0, x.std(axis=0, ddof=1), 0.0))
    spread = np.mean([one.spread for one in at])
    return Fidelity(
        worth=_worth(over, num_reference),
        worth_joint=worth_joint,
        bias=_bias(energy.of_pairs_apart(over), np.sqrt(np.pi)),
        bias_joint=bias_joint,
        w1=float(np.mean([one.w1 for one in at])),
        w1_floor=float(np.sqrt(2 / np.pi) * np.sqrt(1 / num_draws + 1 / num_reference) * spread),
        shift=float(np.sqrt(np.mean(shift**2))),
        log_sd=float(np.sqrt(np.mean(log_sd**2))),
        worth_at=_capped(energy.reference_spread(marginal), energy.of_all_pairs(marginal).value, num_reference),
        squared_bias_at=np.sqrt(np.pi) * energy.of_pairs_apart(marginal).value,
        shift_at=shift,
        log_sd_at=log_sd,
        num_draws=num_draws,
        num_reference=num_reference,
        weak=weak or reference.weak,
    )


def worth_and_bias(draws: ArrayLike, reference: Reference, *, independent: bool = False) -> tuple[float, float]:
    """``worth`` and ``bias`` of :func:`fidelity` without intervals, in O(S log R) a point: cheap enough for a curve.

    The bias is of pairs between chains, of two chains too, which :func:`fidelity` cuts into blocks. A single chain has
    none (NaN), unless its draws are independent.

    Parameters
    ----------
    draws, reference, independent
        As :func:`fidelity` takes them.
    """
    chains = _checked(draws, "the run")
    x = np.moveaxis((chains - reference.mean) / reference.sd, -1, 0)  # (n, C, S)
    ordered, sums, spread, own = reference.line
    num_chains, num_draws = x.shape[1:]
    size, num_reference = num_chains * num_draws, ordered.shape[1]
    flat = np.sort(x.reshape(len(x), -1), axis=1)
    between = np.empty(len(x))
    for point, (values, at, left) in enumerate(zip(flat, ordered, sums, strict=True)):
        below = np.searchsorted(at, values)
        between[point] = (values * (2 * below - num_reference) - 2 * left[below]).sum() + size * left[-1]
    between /= size * num_reference
    all_pairs = energy.sum_of_pairs(flat)
    squared = (2 * between - all_pairs / size**2 - spread).mean(keepdims=True)
    worth = _capped(spread.mean(keepdims=True), squared, num_reference).item()
    if independent:
        of_run, number = all_pairs, size * (size - 1)
    else:
        of_run = all_pairs - energy.sum_of_pairs(np.sort(x, axis=2)).sum(axis=1)
        number = size**2 - num_chains * num_draws**2
    if number == 0:
        return worth, np.nan
    apart = np.sqrt(np.pi) * np.mean(2 * between - of_run / number - own)
    return worth, float(np.sqrt(np.maximum(apart, 0.0)))


def units(chains: Floats, *, independent: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """Cut draws (C, S, n) into units that are independent of each other. Three or more chains are units themselves.

    One or two chains are cut into blocks of at least five autocorrelation times (of the slowest point, by bulk ESS).
    Blocks of one chain that are not neighbours count as independent. Independent draws are cut into equal groups.

    Returns
    -------
    sizes : integer array (A,)
    apart : bool array (A, A)
        Which pairs of units are independent.
    weak : bool
        Whether blocks take the place of chains.
    """
    num_chains, num_draws, _ = chains.shape
    if independent:
        size = num_chains * num_draws
        sizes = np.array([len(part) for part in np.array_split(np.arange(size), min(MAX_BLOCKS, size))])
        return sizes, ~np.eye(sizes.size, dtype=bool), False
    if num_chains > 2:
        return np.full(num_chains, num_draws), ~np.eye(num_chains, dtype=bool), False
    blocks = 1
    if num_draws >= MIN_DRAWS:
        # The ESS of each chain is computed alone, because a difference between the chains would lower their joint ESS.
        slowest = min(float(mixing.ess_bulk(chain[None]).min()) for chain in chains)
        blocks = int(min(MAX_BLOCKS // num_chains, slowest // _BLOCK_TIMES))
        if blocks < _MIN_BLOCKS // num_chains:
            blocks = 1
    sizes = np.tile([len(part) for part in np.array_split(np.arange(num_draws), blocks)], num_chains)
    chain, block = np.divmod(np.arange(sizes.size), blocks)
    apart = (chain[:, None] != chain) | (np.abs(block[:, None] - block) > 1)
    return sizes, apart, True


def in_words(worth: float, ceiling: int) -> str:
    """A worth as text; one that reaches the number of the reference's draws means "at least so many"."""
    if worth >= ceiling:
        return f"≥ {ceiling:,}"
    return f"{worth:,.0f}" if worth >= 9.95 else f"{worth:.1f}"


def _worth(pairs: Pairs, ceiling: int) -> Worth:
    distance = energy.of_all_pairs(pairs)
    low, high = distance.bounds()
    spread = energy.reference_spread(pairs)
    value, least, most = (_capped(spread, end, ceiling).item() for end in (distance.value, high, low))
    return Worth(value, least, most, ceiling)


def _capped(spread: Floats, squared: Floats, ceiling: int) -> Floats:
    # A distance of 0 or below, which noise of the reference makes possible, is worth as much as can be said.
    positive = squared > spread / ceiling
    return np.where(positive, spread / np.where(positive, squared, 1.0), float(ceiling))


def _bias(squared: Estimate, factor: float) -> Bias:
    low, high = ((factor * end).item() for end in squared.bounds())
    value = (factor * squared.value).item()
    root, least, most = (float(np.sqrt(np.maximum(end, 0.0))) for end in (value, low, high))
    return Bias(root, least, most, value, low, high)


def _same_points(probs: ArrayLike, reference_probs: ArrayLike) -> tuple[Floats, Floats]:
    p, q = probabilities(probs), probabilities(reference_probs, "reference_probs")
    if p.shape != q.shape:
        raise ValueError(f"probs {p.shape} and reference_probs {q.shape} must have the same points and classes")
    return p, q


def _checked(draws: Any, whose: str) -> Floats:
    chains = np.asarray(draws, np.float64)
    if chains.ndim != 3 or chains.size == 0:
        raise ValueError(f"draws of {whose} must be (chains, draws, points), got {chains.shape}")
    if not np.isfinite(chains).all():
        raise FloatingPointError(f"draws of {whose} must be finite")
    return chains
