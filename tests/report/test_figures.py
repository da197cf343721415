"""Figures: what they show is what they were given, they name what is missing, and one picture is one file."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")

import matplotlib.pyplot as plt

from bdlbench.report import figures

X = np.linspace(-1, 1, 21)
LEVELS = np.array([0.025, 0.25, 0.5, 0.75, 0.975])


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def prediction(spread=1.0):
    mean = np.stack([X + spread * s for s in (-1.0, 0.0, 1.0)])
    mean_quantiles = np.quantile(mean, LEVELS, axis=0)
    noise = (LEVELS - 0.5)[:, None]
    return {"mean": mean, "levels": LEVELS, "mean_quantiles": mean_quantiles, "quantiles": mean_quantiles + noise}


def record(name, ess, rhat, chains=4):
    return {
        "labels": {"inference": name},
        "metrics": {"ess_bulk_min": ess, "rhat_max": rhat},
        "config": {"inference": {"schedule": {"num_chains": chains}}},
    }


def test_bands_reach_from_quantile_to_quantile():
    given = prediction()
    axes = figures.predictive_bands(X, given, data=(X, X), truth=X).axes[0]
    wide, narrow = (c.get_paths()[0].vertices[:, 1] for c in axes.collections)
    assert (wide.min(), wide.max()) == (given["mean_quantiles"][0].min(), given["mean_quantiles"][4].max())
    assert (narrow.min(), narrow.max()) == (given["mean_quantiles"][1].min(), given["mean_quantiles"][3].max())
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(drawn["predictive mean"], given["mean"].mean(0))
    np.testing.assert_array_equal(drawn["95 % of y, with noise"], given["quantiles"][0])
    np.testing.assert_array_equal(drawn["training data"], X)


def test_a_missing_level_is_named():
    given = prediction() | {"levels": LEVELS[1:4]}
    with pytest.raises(ValueError, match=r"needs 0\.025"):
        figures.predictive_bands(X, given)


def test_panels_share_one_scale_and_one_legend():
    figure = figures.compare_bands(X, {"a": prediction(), "b": prediction(3.0)})
    first, second = figure.axes
    assert first.get_ylim() == second.get_ylim()
    assert [first.get_title(), second.get_title()] == ["a", "b"]
    assert len(figure.legends) == 1
    assert first.get_legend() is None


def test_curves_are_against_the_logarithm_of_the_price():
    curve = pd.DataFrame({"num_grads": [1.0, 10.0, 100.0], "seconds": [0.1, 0.2, 0.3], "lppd": [-3.0, -2.0, -1.0]})
    axes = figures.curves({"nuts": curve, "sgld": curve}, label="LPPD (nats a row)").axes[0]
    assert axes.get_xscale() == "log"
    assert "gradient" in axes.get_xlabel()
    assert axes.get_ylabel() == "LPPD (nats a row)"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), curve["lppd"])
    looks = [(line.get_linestyle(), line.get_marker()) for line in axes.lines]
    assert len(set(looks)) == 2  # told apart without colour


def test_bars_show_their_values_and_say_what_is_missing():
    runs = [record("nuts", 1234.4, 1.003), record("svi", None, None), record("x", 80.0, np.inf)]
    figure = figures.convergence_bars(runs)
    left, right = figure.axes
    texts = [text.get_text() for text in [*left.texts, *right.texts]]
    assert texts == ["1234", "no chain: none", "80", "1.003", "no chain: none", "inf"]
    assert [bar.get_x() + bar.get_width() for bar in left.patches] == [1234.4, 80.0]
    assert left.get_xlim()[1] > 1234.4


def test_no_chain_at_all_leaves_a_figure():
    figures.png(figures.convergence_bars([record("svi", None, None)]))


def test_the_same_figure_is_the_same_small_file(tmp_path):
    made = [figures.save(figures.compare_bands(X, {"a": prediction()}), tmp_path / f"{i}" / "x.png") for i in range(2)]
    first, second = (path.read_bytes() for path in made)
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert len(first) < 60_000
    assert b"Matplotlib" not in first
