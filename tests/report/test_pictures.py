"""Figures of stored runs: what is drawn is what the arrays say."""

import matplotlib

matplotlib.use("agg")

import numpy as np
import pytest

from bdlbench.errors import ConfigError
from bdlbench.report import calibration_figures, chain_figures, fidelity_figures, pictures


def block(worth, draws):
    low, high = 0.5 * worth, 2.0 * worth
    return {
        "worth": worth, "worth_low": low, "worth_high": high, "num_reference": 4000, "num_draws": draws,
        "gradients_per_exact_draw": 1e5 / worth,
    }  # fmt: skip


def test_worth_is_drawn_with_its_interval_and_price():
    """Discs at worth, ticks at the number of draws, gradients per exact draw on the right, on axes of logarithms."""
    names, blocks = ["nuts", "svi"], [{"test": block(900.0, 2000)}, {"test": block(5.0, 1000)}]
    figure = fidelity_figures.worth(names, blocks)
    left, right = figure.axes
    drawn = {tuple(np.round(line.get_xdata(), 6)) for line in left.lines}
    assert {(900.0, 5.0), (450.0, 2.5), (1800.0, 10.0), (2000.0, 1000.0), (4000.0, 4000.0)} <= drawn
    np.testing.assert_allclose(right.lines[0].get_xdata(), [1e5 / 900, 1e5 / 5])
    assert left.get_xscale() == right.get_xscale() == "log"
    assert [text.get_text() for text in left.get_yticklabels()] == names


def test_coverage_and_pit_are_distribution_functions_of_the_transforms():
    """Of u = .05, .15, ..., .95 the central half holds 4 or 6 of 10; PIT draws share less u."""
    u = np.arange(0.05, 1, 0.1)
    figure = calibration_figures.coverage({"run": u})
    curve = next(line for line in figure.axes[0].lines if line.get_label() == "run")
    assert curve.get_ydata()[49] == pytest.approx(100 * np.mean(2 * np.abs(u - 0.5) <= 0.5))
    drawn = next(line for line in calibration_figures.pit({"run": u}).axes[0].lines if len(line.get_xdata()) > 2)
    z = np.asarray(drawn.get_xdata())
    np.testing.assert_allclose(drawn.get_ydata(), [(u <= one).mean() - one for one in z], atol=1e-12)


def test_reliability_of_a_sure_and_right_classifier_is_one():
    """All probabilities 1 and all predictions right: the only points are at (1, 1)."""
    y = np.array([0, 1] * 20)
    figure = calibration_figures.reliability({"run": (y, np.eye(2)[y])}, num_bins=2)
    bars = figure.axes[0].containers[0]
    np.testing.assert_allclose(np.concatenate([bars[0].get_xdata(), bars[0].get_ydata()]), 1.0)


def test_chains_are_drawn_each_by_itself():
    """Two panels with four lines each, the values of the chains; ranks of a single chain are refused in one sentence."""
    values = np.random.default_rng(0).normal(size=(4, 50))
    figure = chain_figures.trace({"a": values, "b": 2 * values})
    assert len(figure.axes) == 2
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 50]
    np.testing.assert_allclose([line.get_ydata() for line in lines], 2 * values)
    assert len(chain_figures.rank({"a": values}).axes) == 1
    with pytest.raises(ConfigError, match="a single chain"):
        chain_figures.rank({"a": values[:1]})


def test_every_kind_has_a_function():
    """The command offers the kinds that can be drawn."""
    from bdlbench.cli import results

    assert set(results._PLOTS) == set(pictures.KINDS)
