"""Diagnostics against ArviZ column by column, an independent R-hat, and chains whose answer is known."""

import arviz_stats
import numpy as np
import pytest
from scipy.stats import genpareto, norm, rankdata

from bdlbench.metrics import diagnostics


def autoregression(rho, shape, seed=0):
    """Return stationary AR(1) chains of unit variance along axis 1."""
    noise = np.random.default_rng(seed).normal(size=shape)
    out = noise.copy()
    for t in range(1, shape[1]):
        out[:, t] = rho * out[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return out


def diagnose(values):
    return diagnostics.function_diagnostics(
        lambda start, stop: values[..., start:stop],
        values.shape[2],
        num_chains=values.shape[0],
        num_draws=values.shape[1],
    )


def test_axes_are_chain_then_draw():
    """C = 3 and S = 60 differ, so exchanged axes would show; ArviZ's array interface, one column at a time."""
    values = autoregression(0.6, (3, 60, 7))
    got = diagnose(values)
    columns = [values[:, :, i] for i in range(7)]
    bulk = [float(arviz_stats.ess(column, method="bulk")) for column in columns]
    tail = [float(arviz_stats.ess(column, method="tail", prob=(0.05, 0.95))) for column in columns]
    rhat = [float(arviz_stats.rhat(column, method="rank")) for column in columns]
    assert got["ess_bulk_min"] == pytest.approx(min(bulk), rel=1e-12)
    assert got["ess_bulk_median"] == pytest.approx(np.median(bulk), rel=1e-12)
    assert got["ess_tail_min"] == pytest.approx(min(tail), rel=1e-12)
    assert got["rhat_max"] == pytest.approx(max(rhat), rel=1e-12)
    assert got["num_constant"] == 0


def test_rhat_is_the_rank_normalised_split_one():
    """Written out from Vehtari et al. (2021): the larger of R-hat of z-ranks and of folded z-ranks of split chains."""
    values = autoregression(0.9, (4, 100, 1))
    values[0] += 0.5
    halves = np.concatenate([values[:, :50, 0], values[:, 50:, 0]])

    def rhat(x):
        z = norm.ppf((rankdata(x).reshape(x.shape) - 3 / 8) / (x.size + 1 / 4))
        within, between = z.var(axis=1, ddof=1).mean(), z.mean(axis=1).var(ddof=1)
        return np.sqrt((49 / 50 * within + between) / within)

    expected = max(rhat(halves), rhat(np.abs(halves - np.median(halves))))
    assert diagnose(values)["rhat_max"] == pytest.approx(expected, rel=1e-12)


def test_ess_of_an_autoregression():
    """S (1 - rho) / (1 + rho) = 16,000 / 3.

    With M = 10 lags that count the estimate's relative sd is about sqrt(2 (2 M + 1) / S) = 5 %, and the median of 9
    columns is within five of these. Split R-hat is about 1 + (8 / ESS) chi2 / 14, the
    chi2 of 7 degrees from 8 halves, so 1.01 would need a chi2 of 93.
    """
    got = diagnose(autoregression(0.5, (4, 4000, 9)))
    assert got["ess_bulk_median"] == pytest.approx(16_000 / 3, rel=0.25)
    assert 0.999 < got["rhat_max"] < 1.01


def test_chunks_cover_all_columns_in_bounded_memory(monkeypatch):
    """At most ``_CHUNK`` values are asked for at once, each column once, and the answer is the same."""
    values = autoregression(0.3, (2, 50, 10))
    whole = diagnose(values)
    monkeypatch.setattr(diagnostics, "_CHUNK", 300)
    asked = []

    def read(start, stop):
        asked.append((start, stop))
        return values[..., start:stop]

    assert diagnostics.function_diagnostics(read, 10, num_chains=2, num_draws=50) == whole
    assert asked == [(0, 3), (3, 6), (6, 9), (9, 10)]


def test_constant_columns_are_counted_and_enter_nothing():
    """A constant column would have R-hat 0/0, and ArviZ gives it an ESS of all draws."""
    values = autoregression(0.3, (2, 50, 4))
    padded = np.concatenate([values, np.full((2, 50, 2), 3.0)], axis=2)
    assert diagnose(padded) == {**diagnose(values), "num_constant": 2}
    nothing = dict.fromkeys(("ess_bulk_min", "ess_bulk_median", "ess_tail_min", "rhat_max"))
    assert diagnose(np.ones((2, 50, 3))) == {**nothing, "num_constant": 3}


@pytest.mark.parametrize("values_of_chains", [[0.0, 1.0], [0.0, 1.0, 2.0, 5.0], [0.0, 0.0, 1.0, 1.0]])
def test_chains_that_stand_apart_have_infinite_rhat(values_of_chains):
    """No variance within, some between; as many effective draws as chains, to within a factor of two."""
    num_chains = len(values_of_chains)
    values = np.repeat(np.array(values_of_chains)[:, None, None], 100, axis=1)
    moving = autoregression(0.3, (num_chains, 100, 1))
    got = diagnose(np.concatenate([moving, values], axis=2))
    assert got["rhat_max"] == np.inf
    assert num_chains / 2 <= got["ess_bulk_min"] <= 2 * num_chains
    assert got["num_constant"] == 0


def test_a_jump_between_the_halves_has_infinite_rhat():
    """Both chains jump once, at their middle: no half varies, as in chains that stand apart."""
    values = np.repeat([[0.0, 1.0]], 2, axis=0).repeat(50, axis=1)[:, :, None]
    assert diagnose(values)["rhat_max"] == np.inf


def test_binary_columns_have_finite_rhat():
    """Moving columns of two values, whose folded ranks are all equal when both are met equally often: bulk decides."""
    values = np.tile([0.0, 1.0], (4, 50))[:, :, None]
    got = diagnose(values)
    assert np.isfinite(got["rhat_max"])


def test_short_chains_and_single_chains_say_none():
    """Fewer than 4 draws: nothing is read. One chain: ESS, but no R-hat."""

    def refuse(start, stop):
        raise AssertionError

    got = diagnostics.function_diagnostics(refuse, 5, num_chains=4, num_draws=3)
    assert set(got.values()) == {None}
    single = diagnose(autoregression(0.3, (1, 100, 3)))
    assert single["rhat_max"] is None
    assert single["ess_bulk_min"] > 0


def test_non_finite_and_misshaped_columns_are_errors():
    """The column's own number, not that within the chunk."""
    values = autoregression(0.3, (2, 50, 4))
    values[1, 7, 2] = np.nan
    with pytest.raises(FloatingPointError, match="chain 1, draw 7, column 2"):
        diagnose(values)
    with pytest.raises(ValueError, match="must give"):
        diagnostics.function_diagnostics(lambda start, stop: values, 2, num_chains=2, num_draws=50)


def test_e_bfmi_by_hand_and_axes():
    """Energies 0 1 0 1: squared steps 3 over squared deviations 1. One number a chain."""
    energy = np.array([[0.0, 1, 0, 1], [0.0, 1, 2, 3]])
    assert diagnostics.e_bfmi(energy) == pytest.approx([3.0, 3 / 5])
    with pytest.raises(ValueError, match="does not vary"):
        diagnostics.e_bfmi(np.ones((1, 10)))


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_khat_finds_the_shape_of_pareto_ratios(shape):
    """Ratios with a generalised Pareto tail; sd of the estimate from m tail draws is (1 + k) / sqrt(m), m = 3 sqrt(S).

    Five sd, and ArviZ's prior pulls towards 1/2 with a weight of ten draws. A wrong sign would see the short tail.
    """
    num = 40_000
    ratios = genpareto.rvs(shape, size=num, random_state=0)
    tail = 3 * np.sqrt(num)
    error = 5 * (1 + shape) / np.sqrt(tail) + 10 / tail * abs(shape - 0.5)
    assert diagnostics.psis_khat(np.log(ratios)) == pytest.approx(shape, abs=error)


def test_khat_of_a_perfect_approximation():
    """Equal ratios have no tail."""
    assert diagnostics.psis_khat(np.full(100, 2.0)) == -np.inf
    with pytest.raises(ValueError, match="at least 25"):
        diagnostics.psis_khat(np.zeros(10))
