"""Closed forms of predictives against libraries, and the guarantee of conformal intervals by its exact law."""

import numpy as np
import pytest
import scoringrules
from scipy import integrate, stats

from bdlbench.baselines.predictives import ConformalIntervals, Normal, StudentT
from bdlbench.baselines.scoring import ClosedPredictive, closed_forms, scored
from bdlbench.metrics.calibration import coverage, interval_score, interval_width
from bdlbench.metrics.evaluate import evaluate
from bdlbench.metrics.predictive import crps, lppd
from bdlbench.runs.configuration import default_metrics

pytestmark = pytest.mark.quick
MEAN, SD, Y = np.array([0.3, -2.0, 5.0]), np.array([0.5, 2.0, 1.0]), np.array([0.1, 3.0, 5.0])


def test_crps_and_density_are_those_of_libraries():
    """scoringrules has the same closed forms. They are compared to rounding: 1e-10 is 1e5 times the spacing of doubles."""
    normal, student = Normal(MEAN, SD), StudentT(4.5, MEAN, SD)
    np.testing.assert_allclose(normal.crps(Y), scoringrules.crps_normal(Y, MEAN, SD), rtol=1e-10)
    np.testing.assert_allclose(student.crps(Y), scoringrules.crps_t(Y, 4.5, MEAN, SD), rtol=1e-10)
    np.testing.assert_allclose(student.log_density(Y), stats.t(4.5, MEAN, SD).logpdf(Y), rtol=1e-12)
    np.testing.assert_allclose(student.variance(), stats.t(4.5, MEAN, SD).var(), rtol=1e-12)
    np.testing.assert_allclose(normal.log_density(Y), stats.norm(MEAN, SD).logpdf(Y), rtol=1e-12)


@pytest.mark.parametrize("found", [Normal(MEAN, SD), StudentT(1.5, MEAN, SD), StudentT(30.0, MEAN, SD)])
def test_interval_and_distribution_function_belong_together_and_scale(found):
    """The ends of an interval have the levels (1 -+ level) / 2, and the CRPS is int (F - 1[y <= t])^2 dt."""
    lower, upper = found.interval(0.8)
    np.testing.assert_allclose((found.cdf(lower), found.cdf(upper)), [[0.1] * 3, [0.9] * 3], rtol=1e-9)
    other = found.scaled(7.0, 3.0)
    np.testing.assert_allclose(other.crps(7 + 3 * Y), 3 * found.crps(Y), rtol=1e-9)
    np.testing.assert_allclose(other.log_density(7 + 3 * Y), found.log_density(Y) - np.log(3), rtol=1e-9)
    one = type(found)(*(v[1:2] if np.ndim(v) else v for v in vars(found).values() if not isinstance(v, dict)))
    below = integrate.quad(lambda t: one.cdf(np.array([t]))[0] ** 2, -np.inf, Y[1])[0]
    above = integrate.quad(lambda t: (1 - one.cdf(np.array([t]))[0]) ** 2, Y[1], np.inf)[0]
    assert found.crps(Y)[1] == pytest.approx(below + above, rel=1e-6)  # quad's own bound is 1.5e-8


def test_a_normal_predictive_has_the_scores_of_a_mixture_of_one():
    from bdlbench.metrics.mixture import PredictiveMixture

    mixture, found = PredictiveMixture(), Normal(MEAN, SD)
    mixture.update({"log_lik": found.log_density(Y)[None], "mean": MEAN[None], "variance": SD[None] ** 2,
                    "cdf": found.cdf(Y)[None]})  # fmt: skip
    metrics = default_metrics()
    theirs = evaluate(metrics, 2 + 5 * Y, mixture.to_original(2, 5))
    ours = evaluate(closed_forms(metrics), 2 + 5 * Y, ClosedPredictive(found, Y).to_original(2, 5))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-5), name  # CRPS on a grid errs by 1e-6


def test_conformal_ranks():
    """Nine errors 1, ..., 9: the interval of 80 % has r_8, that of 95 % is the line, and no density exists."""
    found = ConformalIntervals(np.zeros(3), np.arange(1.0, 10.0))
    assert [float(found.interval(level)[1][0]) for level in (0.5, 0.75, 0.8, 0.9, 0.95)] == [5, 8, 8, 9, np.inf]
    y = np.array([7.9, 8.1, -8.0])
    closed = ClosedPredictive(found, y)
    values = evaluate(
        closed_forms({"coverage": lambda pit: coverage(pit, level=0.8), "width": _bound(interval_width, level=0.8),
                      "score": _bound(interval_score, level=0.8), "lppd": lppd, "crps": crps}),
        y, closed.ingredients(),
    )  # fmt: skip
    assert values == {"coverage": pytest.approx(2 / 3), "width": 16.0, "score": pytest.approx(16 + 10 * 0.1 / 3)}
    assert set(closed.lacking({"lppd": lppd, "crps": crps})) == {"lppd", "crps"}


def _bound(metric, **options):
    import functools

    return functools.partial(metric, **options)


def test_the_conformal_guarantee():
    """Of exchangeable errors without ties the interval of level L contains a new one with probability k / (n + 1) exactly.

    k = ceil((n + 1) L), between L and L + 1 / (n + 1). 1,000 repetitions of 50 new rows, whose counts in one repetition
    follow the beta-binomial law with Beta(k, n + 1 - k): their mean is compared by a z-score, which is beyond 5 once in
    1.7 million.
    """
    rng, num, new, times = np.random.default_rng(), 19, 50, 1000
    for level in (0.5, 0.87, 0.9):
        k = int(np.ceil((num + 1) * level - 1e-12))
        assert level <= k / (num + 1) + 1e-12 <= level + 1 / (num + 1) + 2e-12
        hits = 0
        for _ in range(times):
            errors = rng.standard_cauchy(num + new)
            found = ConformalIntervals(np.zeros(new), np.sort(np.abs(errors[:num])))
            hits += int((np.abs(found.cdf(errors[num:]) - 0.5) <= level / 2).sum())
        law = stats.betabinom(new, k, num + 1 - k)
        z = (hits / times - law.mean()) / (law.std() / np.sqrt(times))
        assert abs(z) < 5, (level, z)


def test_what_is_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match="row 1"):
        scored(Normal(np.array([0.0, np.nan]), np.ones(2)), np.zeros(2))
