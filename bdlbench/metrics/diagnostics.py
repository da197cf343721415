"""Diagnostics of the draws of Markov chains, as ArviZ computes them, in bounded memory."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from bdlbench.metrics import mixing
from bdlbench.metrics.checks import Floats

CHAIN_DIAGNOSTICS = ("ess_bulk_min", "ess_bulk_median", "ess_tail_min", "rhat_max")
"""Names of the values in a record that describe the mixing of Markov chains."""
TEMPERATURE = ("configurational_temperature", "configurational_temperature_mcse")
"""Names of the values in a record that describe the bias of a sampler without a Metropolis test."""
MIN_DRAWS = 4  # fewer draws in a chain cannot be split and give no variance
_TAIL = (0.05, 0.95)
_CHUNK = 2**19  # values of one chunk of columns, 4 MiB; some ten arrays of that size are made


def function_diagnostics(
    read_columns: Callable[[int, int], ArrayLike], num_columns: int, *, num_chains: int, num_draws: int
) -> dict[str, float | int | None]:
    """Worst and typical mixing over columns, for example function values and log likelihoods at test points.

    The diagnostics are bulk ESS, tail ESS (the smaller one of the 5 % and 95 % quantiles) and rank-normalised split
    R-hat (the larger one of bulk and folded), as ArviZ computes them. Source: Vehtari, Gelman, Simpson, Carpenter &
    Buerkner (2021).

    A column that never changes has no ESS and no R-hat. It is left out and counted in ``num_constant``. If each half of
    each chain is constant, but not all have the same value, R-hat is infinite; if the chains do not overlap, the ESS is
    about the number of chains.

    Parameters
    ----------
    read_columns : callable (start, stop) -> array (C, S, stop - start)
        Returns some columns. It is called for consecutive ranges, so that only these columns need to be in memory.
    num_columns : int
    num_chains, num_draws : int
        C and S.

    Returns
    -------
    dict
        ``ess_bulk_min``, ``ess_bulk_median``, ``ess_tail_min``, ``rhat_max``: None if chains have fewer than 4 draws or
        all columns are constant. ``rhat_max`` is also None for a single chain, which cannot show a second mode.
        ``num_constant``: the number of constant columns, None if nothing was read.

    Raises
    ------
    FloatingPointError
        If a value is not finite. The message names chain, draw and column.
    """
    out: dict[str, float | int | None] = dict.fromkeys((*CHAIN_DIAGNOSTICS, "num_constant"))
    if num_draws < MIN_DRAWS or num_columns == 0:
        return out
    width = max(1, _CHUNK // (num_chains * num_draws))
    bulk: list[Floats] = []
    tail: list[Floats] = []
    rhat: list[Floats] = []
    num_constant = 0
    for start in range(0, num_columns, width):
        stop = min(start + width, num_columns)
        block = _read(read_columns, start, stop, (num_chains, num_draws, stop - start))
        varies = np.ptp(block, axis=(0, 1)) > 0
        num_constant += int((~varies).sum())
        block = block[..., varies]
        if block.shape[-1] == 0:
            continue
        bulk.append(mixing.ess_bulk(block))
        tail.append(mixing.ess_tail(block, _TAIL))
        if num_chains > 1:
            rhat.append(rhat_of_columns(block))
    out["num_constant"] = num_constant
    if bulk:
        all_bulk = np.concatenate(bulk)
        out["ess_bulk_min"] = _defined("bulk ESS", all_bulk.min())
        out["ess_bulk_median"] = _defined("bulk ESS", np.median(all_bulk))
        out["ess_tail_min"] = _defined("tail ESS", np.concatenate(tail).min())
    if rhat:
        out["rhat_max"] = _defined("R-hat", np.concatenate(rhat).max())
    return out


def e_bfmi(energy: ArrayLike) -> Floats:
    """Energy Bayesian fraction of missing information of each chain, sum_t (E_t - E_{t-1})^2 / sum_t (E_t - mean E)^2.

    If it is below about 0.2 to 0.3, the resampled momentum changes the energy too little, and the chain explores the
    energies slowly. Source: Betancourt (2016).

    Parameters
    ----------
    energy : array (C, S)
        Hamiltonian at each draw.

    Returns
    -------
    array (C,)
    """
    energy = np.asarray(energy, np.float64)
    if energy.ndim != 2 or energy.shape[1] < MIN_DRAWS:
        raise ValueError(f"energy must be (C, S) with S of at least {MIN_DRAWS}, got {energy.shape}")
    if not np.isfinite(energy).all():
        raise FloatingPointError("energy must be finite")
    if (np.ptp(energy, axis=1) == 0).any():
        raise ValueError("energy does not vary in a chain, which has no E-BFMI")
    steps = np.diff(energy, axis=1) ** 2
    return steps.sum(axis=1) / ((energy - energy.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)


def mean_and_error(series: ArrayLike) -> tuple[float, float]:
    """The mean of Markov chains and its Monte Carlo standard error, sd / sqrt(ESS) (Vehtari et al. 2021, section 4).

    The ESS is that of the mean, computed from the values themselves over the halves of all chains. If chains disagree,
    this increases the error.

    Parameters
    ----------
    series : array (C, S)
        S of at least 4.
    """
    values = np.asarray(series, np.float64)
    if values.ndim != 2 or values.shape[1] < MIN_DRAWS:
        raise ValueError(f"series must be (C, S) with S of at least {MIN_DRAWS}, got {values.shape}")
    if not np.isfinite(values).all():
        raise FloatingPointError("series must be finite")
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(mixing.ess_mean(values[..., None])[0]))


def psis_khat(log_ratios: ArrayLike) -> float:
    """Pareto shape k of the largest importance ratios r_s = p(theta_s) / q(theta_s), theta_s independent draws of q.

    If k is below min(1 - 1/log10 S, 0.7), q is close enough to p for reliable importance sampling. Source: Vehtari,
    Simpson, Gelman, Yao & Gabry (2024); Yao et al. (2018) for variational posteriors; ArviZ.

    Parameters
    ----------
    log_ratios : array (S,)
        log r_s up to a constant, S of at least 25, so that the tail has 5 draws.

    Returns
    -------
    float
        k; minus infinity if all ratios of the tail are equal.
    """
    from arviz_stats.base import array_stats

    ratios = np.asarray(log_ratios, np.float64)
    if ratios.ndim != 1 or ratios.size < 25:
        raise ValueError(f"log_ratios must be (S,) with S of at least 25, got {ratios.shape}")
    if not np.isfinite(ratios).all():
        raise FloatingPointError("log_ratios must be finite")
    try:
        # ArviZ takes log likelihoods of leave-one-out, whose ratios are their inverses: hence the sign.
        _, khat = array_stats.psislw(-ratios)
    except ValueError as error:
        if "same" in str(error):
            return -np.inf
        raise
    return float(khat)


def _read(read_columns: Callable[[int, int], ArrayLike], start: int, stop: int, shape: tuple[int, int, int]) -> Floats:
    block = np.asarray(read_columns(start, stop), np.float64)
    if block.shape != shape:
        raise ValueError(f"read_columns({start}, {stop}) must give (chains, draws, columns) {shape}, got {block.shape}")
    bad = np.argwhere(~np.isfinite(block))
    if bad.size:
        chain, draw, column = bad[0]
        raise FloatingPointError(f"not finite in chain {chain}, draw {draw}, column {start + int(column)}")
    return block


def rhat_of_columns(block: Floats) -> Floats:
    """Return rank-normalised split R-hat (k,) of columns (C, S, k), infinite where each half of each chain is constant."""
    half = block.shape[1] // 2
    halves = np.concatenate([block[:, :half], block[:, -half:]])
    still = (np.ptp(halves, axis=1) == 0).all(axis=0)
    out = np.full(block.shape[2], np.inf)
    if not still.all():
        # Only columns with variance within: else one would divide by the rounding of a mean and find 1e16.
        out[~still] = mixing.rhat(block[..., ~still])
    return out


def _defined(name: str, value: float) -> float:
    if np.isnan(value):
        raise FloatingPointError(f"{name} of a varying column is undefined")
    return float(value)
