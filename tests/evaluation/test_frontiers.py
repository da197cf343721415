"""Fits, crossings and bands of curves whose law is known, and the command that prints them."""

import numpy as np
import pytest

from bdlbench.cli.results import main
from bdlbench.evaluation import frontiers
from bdlbench.evaluation.frontiers import Curve
from bdlbench.store import Store

DRAWS = np.array([10.0, 20, 50, 100, 200, 500, 1000])


def curves(rng, limit, slope, price, num_seeds=8):
    """Curves limit + slope / S, with an error of 5 % of the second term, at a price of so much a draw."""
    noise = 1 + 0.05 * rng.normal(size=(num_seeds, DRAWS.size))
    values = limit + slope / DRAWS * noise
    return {seed: Curve(price * DRAWS, DRAWS, row, np.ones(DRAWS.size, bool)) for seed, row in enumerate(values)}


def test_limit_and_slope_are_found():
    """The mean of eight seeds is within 5 of its standard errors: that of the slope is at most 5 % / sqrt(8)."""
    rng = np.random.default_rng(0)
    found = frontiers.fit(list(curves(rng, 0.02, 1.5, 3.0).values()), least=0.0)
    assert found.num_seeds == 8
    assert found.slope[0] == pytest.approx(1.5, abs=5 * 1.5 * 0.05 / np.sqrt(8))
    assert found.limit[0] == pytest.approx(0.02, abs=5 * 1.5 * 0.05 / np.sqrt(8) / 100)
    assert found.limit[1] < 0.02 < found.limit[2]
    exact = frontiers.fit([Curve(DRAWS, DRAWS, -3 + 2 / DRAWS, np.ones(7, bool))])
    assert exact.limit == pytest.approx((-3, -np.inf, np.inf), rel=1e-6)
    assert exact.slope[0] == pytest.approx(2, rel=1e-6)
    assert frontiers.fit([Curve(DRAWS, DRAWS, DRAWS, np.arange(7) < 2)]) is None


def test_curves_cross_where_their_laws_do():
    """A is biased and cheap, B exact: .02 + 1 / p = 10 / p at p = 450. The grid has steps of 9 %, the errors are 5 %."""
    rng = np.random.default_rng(1)
    a, b = curves(rng, 0.02, 1.0, 1.0), curves(rng, 0.0, 1.0, 10.0)
    found = frontiers.crossing(b, a)
    assert found.num_seeds == 8
    assert (found.first, found.last) == (100, 1000)
    assert found.price == pytest.approx(450, rel=0.2)
    assert frontiers.crossing(a, b).price is None
    assert frontiers.crossing(a, a).price is None
    # Where both are below what the reference resolves neither is nearer.
    assert frontiers.crossing(b, a, finest=0.5).price is None
    with pytest.raises(Exception, match="at least two seeds"):
        frontiers.crossing({0: a[0]}, b)


def test_a_band_is_the_interval_over_seeds():
    rng = np.random.default_rng(2)
    own = list(curves(rng, 0.0, 1.0, 2.0, 3).values())
    prices, (mean, low, high) = frontiers.band(own, 5)
    assert prices[[0, -1]].tolist() == [20, 2000]
    ends = np.array([curve.value[[0, -1]] for curve in own])
    np.testing.assert_allclose(mean[[0, -1]], ends.mean(0))
    # The 97.5 % quantile of Student's t with two degrees of freedom.
    half = 4.302653 * ends.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose((high - low)[[0, -1]], 2 * half, rtol=1e-6)


def test_the_command_says_fits_and_crossings_and_draws_them(tmp_path, capsys):
    rng = np.random.default_rng(3)
    store = Store(tmp_path)
    block = {"reference": "line", "certified": True, "resolution": 0.05, "test": {"num_reference": 4000}}
    for method, limit, price, tuned in (("sgld", 0.02, 1.0, 5000), ("nuts", 0.0, 10.0, None)):
        for seed, curve in curves(rng, limit, 1.0, price, 3).items():
            config = {"seed": seed, "inference": {"_target_": method}}
            with store.writer(f"{method}-{seed}", config) as writer:
                for s, paid, value in zip(DRAWS, curve.price, curve.value, strict=True):
                    writer.append_curve(
                        {"phase": "sample", "num_draws": int(s), "num_grads": paid, "seconds": paid / 100, "lppd": -value,
                         "worth": 1 / value, "bias": limit}
                    )  # fmt: skip
                writer.finish(
                    {
                        "status": "complete", "labels": {"data": "line", "inference": method}, "metrics": {}, "seconds": {},
                        "num_grads": {}, "device": "cpu", "versions": {}, "warnings": [], "target_id": "t", "seed": seed,
                        "fidelity": block, "tuning_num_grads": tuned,
                    }
                )  # fmt: skip
    asked = ["frontier", "--store", str(tmp_path)]
    assert main([*asked, "--figure", str(tmp_path / "figure.png")]) == 0
    said = capsys.readouterr().out
    assert "line (reference line)" in said
    assert "nuts is nearer than sgld from 4" in said.split("1/worth against")[1].split("NLL against")[0]
    assert said.count("no crossing") == 1  # of the bias, which is below the resolution for both
    assert "4,000 draws of the reference tell no more" in said
    assert "nuts: < 0.05 after" in said and "it goes to < 0.00025" in said
    assert "bias (sd) against gradients" in said
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    # With the price of tuning sgld begins where nuts is done.
    assert main([*asked, "--tuning"]) == 0
    said = capsys.readouterr().out
    assert "sgld: 0.021 after 6.0k gradients" in said
    assert "nuts: no price of tuning is known" in said
    assert main([*asked, "--price", "seconds"]) == 0
    said = capsys.readouterr().out.split("1/worth against")[1]
    assert "nuts is nearer than sgld from" in said and "seconds on" in said
