"""ESS and R-hat of all columns at once against ArviZ's of one column."""

import numpy as np
import pytest
from arviz_stats.base import array_stats

from bdlbench.metrics import mixing


def columns(kind, chains, draws, seed):
    """Twelve columns (C, S, 12) of autocorrelations from -0.95 to 0.95."""
    rng = np.random.default_rng(seed)
    rho = np.linspace(-0.95, 0.95, 12)
    out = rng.normal(size=(chains, draws, 12))
    for t in range(1, draws):
        out[:, t] = rho * out[:, t - 1] + np.sqrt(1 - rho**2) * out[:, t]
    if kind == "ties":
        return np.round(2 * out)
    if kind == "apart":
        return out + 3 * np.arange(chains)[:, None, None]
    return np.exp(4 * out) if kind == "heavy" else out


@pytest.mark.parametrize("draws", [4, 5, 6, 7, 8, 9, 50, 51, 400])
@pytest.mark.parametrize("chains", [1, 2, 5])
@pytest.mark.parametrize("kind", ["smooth", "heavy", "ties", "apart"])
def test_each_column_has_the_numbers_of_arviz(kind, chains, draws):
    """The same sums in another order: 1e-9 is a thousand roundings of a sum of 2,000 terms in float64."""
    values = columns(kind, chains, draws, draws)
    values = values[..., np.ptp(values, axis=(0, 1)) > 0]
    bulk = array_stats.ess(values, chain_axis=0, draw_axis=1, method="bulk")
    np.testing.assert_allclose(mixing.ess_bulk(values), bulk, rtol=1e-9)
    tail = array_stats.ess(values, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95))
    np.testing.assert_allclose(mixing.ess_tail(values, (0.05, 0.95)), tail, rtol=1e-9)
    halves = np.concatenate([values[:, : draws // 2], values[:, -(draws // 2) :]])
    moving = ~(np.ptp(halves, axis=1) == 0).all(axis=0)
    if chains > 1 and moving.any():
        with np.errstate(all="ignore"):
            expected = array_stats.rhat(values[..., moving], chain_axis=0, draw_axis=1, method="rank")
        np.testing.assert_allclose(mixing.rhat(values[..., moving]), expected, rtol=1e-9)
