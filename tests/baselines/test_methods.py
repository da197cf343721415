"""Each baseline against an independent computation on small data."""

import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn.linear_model import LogisticRegression

from bdlbench.baselines import conformal_prediction, trained_network
from bdlbench.baselines.base import Problem, held_out
from bdlbench.baselines.gaussian_processes import exact_gp
from bdlbench.baselines.linear_models import least_squares, logistic_regression, ridge
from bdlbench.baselines.neighbours import k_nearest_neighbours
from bdlbench.baselines.temperature_scaling import best_temperature, temperature_slope
from bdlbench.baselines.tree_ensembles import gradient_boosting, random_forest
from bdlbench.errors import ConfigError

RNG = np.random.default_rng(7)
X = RNG.normal(size=(40, 3))
Y = X @ [1.0, -2.0, 0.0] + 0.5 + 0.3 * RNG.normal(size=40)
NEW = RNG.normal(size=(5, 3))
LINE = Problem(X, Y, "regression", 1, 0)
LABELS = Problem(X, np.digitize(Y, [-1.0, 1.5]), "classification", 3, 0)


def test_least_squares_is_the_posterior_predictive_of_the_normal_linear_model():
    """The integral over sigma^2 ~ scaled inverse chi-squared of N(y; z'b, sigma^2 (1 + h)), by quadrature.

    At 4,000 midpoints of the levels of sigma^2 the rule errs by less than 1e-4 of the density within two scales.
    """
    found = least_squares().fit(LINE).predict(NEW)
    z, at = np.column_stack([np.ones(40), X]), np.column_stack([np.ones(5), NEW])
    inverse = np.linalg.inv(z.T @ z)
    b = inverse @ z.T @ Y
    residual = np.sum((Y - z @ b) ** 2)
    leverage = np.einsum("ij,jk,ik->i", at, inverse, at)
    sigma2 = residual / stats.chi2(36).ppf((np.arange(4000) + 0.5) / 4000)
    y = at @ b + np.linspace(-2, 2, 5) * np.sqrt(residual / 36)
    density = stats.norm.pdf(y[:, None], (at @ b)[:, None], np.sqrt(sigma2 * (1 + leverage[:, None]))).mean(1)
    assert found.df == 36
    np.testing.assert_allclose(np.exp(found.log_density(y)), density, rtol=1e-3)


def test_least_squares_with_dependent_columns_counts_the_rank():
    """A repeated column changes neither the degrees of freedom nor the predictive at new rows that repeat it too."""
    twice = lambda x: np.column_stack([x, x[:, :1]])
    plain, double = least_squares().fit(LINE), least_squares().fit(LINE._replace(x=twice(X)))
    one, other = plain.predict(NEW), double.predict(twice(NEW))
    assert one.df == other.df
    np.testing.assert_allclose((other.mean, other.scale), (one.mean, one.scale), rtol=1e-9)


def test_ridge_maximises_the_evidence():
    """At the fitted precisions the predictive is that of the conjugate posterior, and the evidence has no slope.

    scikit-learn stops when a coefficient moves by less than 1e-3, so that the slope by the logs of the precisions is small
    beside the scale N / 2 of its two opposite terms: 1 %.
    """
    found = ridge(max_iter=300).fit(LINE)
    predicted = found.predict(NEW)
    centred, mean = X - X.mean(0), Y.mean()

    def evidence(logs):
        cov = np.exp(-logs[0]) * np.eye(40) + np.exp(-logs[1]) * centred @ centred.T
        return stats.multivariate_normal(np.zeros(40), cov).logpdf(Y - mean)

    best = optimize.minimize(lambda logs: -evidence(logs), np.zeros(2)).x
    alpha, penalty = np.exp(best)
    cov = np.linalg.inv(alpha * centred.T @ centred + penalty * np.eye(3))
    at = NEW - X.mean(0)
    np.testing.assert_allclose(predicted.mean, at @ (alpha * cov @ centred.T @ (Y - mean)) + mean, rtol=0.01, atol=0.01)
    # The mean of Y takes a degree of freedom that the evidence above counts: 1 / (2 N) of the deviation.
    np.testing.assert_allclose(predicted.sd, np.sqrt(np.sum(at @ cov * at, 1) + 1 / alpha), rtol=0.03)


def test_logistic_regression_is_a_mode():
    """The gradient of the penalised likelihood is 0 up to the tolerance 1e-4 of L-BFGS, which holds for each entry."""
    probs = logistic_regression(penalty=0.7, max_iter=1000).fit(LABELS).predict(X).probs
    model = LogisticRegression(C=1 / 0.7, max_iter=1000).fit(X, LABELS.y)
    slope = (probs - np.eye(3)[LABELS.y]).T @ X + 0.7 * model.coef_
    assert np.abs(slope).max() < 1e-4 * 40
    assert np.abs((probs - np.eye(3)[LABELS.y]).sum(0)).max() < 1e-4 * 40  # the intercepts have no penalty


def test_the_gaussian_process_is_that_of_a_cholesky_factor(monkeypatch):
    """Algorithm 2.1 of Rasmussen & Williams (2006) with the fitted kernel; the marginal likelihood has no slope there."""
    from sklearn.gaussian_process import GaussianProcessRegressor

    kept = []
    real = GaussianProcessRegressor.fit
    monkeypatch.setattr(GaussianProcessRegressor, "fit", lambda self, *a: kept.append(real(self, *a)) or kept[-1])
    found = exact_gp(num_restarts=0, max_rows=100).fit(LINE).predict(NEW)
    kernel = kept[0].kernel_
    a2, scales, noise = kernel.k1.k1.constant_value, kernel.k1.k2.length_scale, kernel.k2.noise_level

    def k(p, q):
        return a2 * np.exp(-0.5 * (((p[:, None] - q) / scales) ** 2).sum(-1))

    t = (Y - Y.mean()) / Y.std()

    def marginal(logs):
        own = np.exp(logs[0]) * np.exp(-0.5 * (((X[:, None] - X) / np.exp(logs[1:4])) ** 2).sum(-1))
        return stats.multivariate_normal(np.zeros(40), own + np.exp(logs[4]) * np.eye(40)).logpdf(t)

    factor = np.linalg.cholesky(k(X, X) + noise * np.eye(40))
    weights = np.linalg.solve(factor.T, np.linalg.solve(factor, t))
    v = np.linalg.solve(factor, k(X, NEW))
    np.testing.assert_allclose(found.mean, Y.mean() + Y.std() * k(NEW, X) @ weights, rtol=1e-6)
    np.testing.assert_allclose(found.sd, Y.std() * np.sqrt(a2 + noise - (v**2).sum(0)), rtol=1e-6)
    slope = optimize.approx_fprime(kernel.theta, marginal, 1e-5)
    inside = (kernel.theta > kernel.bounds[:, 0] + 1e-3) & (kernel.theta < kernel.bounds[:, 1] - 1e-3)
    assert np.abs(slope[inside]).max() < 0.05  # L-BFGS stops at a relative change of 2e-9 of about 30 nats


def test_neighbours_are_those_of_a_sort():
    found = k_nearest_neighbours(num_neighbours=4).fit(LINE).predict(NEW)
    distance = ((NEW[:, None] - X) ** 2).sum(-1)
    np.testing.assert_allclose(found.mean, Y[np.argsort(distance, 1)[:, :4]].mean(1), rtol=1e-12)
    own = ((X[:, None] - X) ** 2).sum(-1) + np.diag(np.full(40, np.inf))
    errors = Y - Y[np.argsort(own, 1)[:, :4]].mean(1)
    np.testing.assert_allclose(found.sd, np.sqrt(np.mean(errors**2)), rtol=1e-12)
    probs = k_nearest_neighbours(num_neighbours=4).fit(LABELS).predict(NEW).probs
    votes = np.eye(3)[LABELS.y[np.argsort(distance, 1)[:, :4]]].sum(1)
    np.testing.assert_allclose(probs, (votes + 1) / 7, rtol=1e-12)


def test_trees_have_the_noise_of_rows_that_they_have_not_seen():
    """The noise of boosting is the error at the held-out rows, that of the forest the out-of-bag error by hand."""
    boosted = gradient_boosting(
        learning_rate=0.3, max_iter=5, max_leaf_nodes=3, min_samples_leaf=2, validation_fraction=0.25
    ).fit(LINE)
    _, held = held_out(40, 0.25, 0)
    at = boosted.predict(X)
    assert len(held) == 10
    np.testing.assert_allclose(at.sd, np.sqrt(np.mean((Y - at.mean)[held] ** 2)), rtol=1e-12)

    from sklearn.ensemble import RandomForestRegressor

    found = random_forest(num_trees=60, min_samples_leaf=1).fit(LINE).predict(NEW)
    forest = RandomForestRegressor(60, random_state=0).fit(X, Y)
    total, count = np.zeros(40), np.zeros(40)
    for tree, seen in zip(forest.estimators_, forest.estimators_samples_, strict=True):
        out = np.setdiff1d(np.arange(40), seen)
        total[out] += tree.predict(X[out].astype(np.float32))
        count[out] += 1
    np.testing.assert_allclose(found.mean, forest.predict(NEW), rtol=1e-12)
    np.testing.assert_allclose(found.sd, np.sqrt(np.mean((Y - total / count) ** 2)), rtol=1e-9)
    shares = random_forest(num_trees=60, min_samples_leaf=1).fit(LABELS).predict(NEW).probs
    assert shares.min() >= 1 / 63
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-12)


def test_the_temperature_has_no_slope_and_recovers_a_known_one():
    """Labels drawn from softmax(f / 2.5): the estimate is within 5 standard errors, 1 / sqrt(information) on the log scale."""
    rng = np.random.default_rng()
    logits = 3 * rng.normal(size=(4000, 4))
    probs = special.softmax(logits / 2.5, 1)
    labels = (rng.random((4000, 1)) > probs.cumsum(1)).sum(1).clip(0, 3)
    found = best_temperature(logits, labels)
    assert abs(temperature_slope(logits, labels, found)) < 1e-9  # brentq's 1e-12 in log tau, times a curvature near 1
    loss = lambda log_tau: -special.log_softmax(logits / np.exp(log_tau), 1)[np.arange(4000), labels].mean()
    numeric = (loss(np.log(3) + 1e-5) - loss(np.log(3) - 1e-5)) / 2e-5
    assert temperature_slope(logits, labels, 3.0) == pytest.approx(numeric, rel=1e-5)
    information = 4000 * np.mean((probs * logits**2).sum(1) - (probs * logits).sum(1) ** 2) / 2.5**2
    assert abs(np.log(found / 2.5)) < 5 / np.sqrt(information)
    assert best_temperature(np.eye(4) * 5, np.arange(4)) == pytest.approx(0.01)  # all right: as sure as allowed
    assert best_temperature(np.eye(4) * 5, np.arange(4)[::-1]) == pytest.approx(100)


def test_conformal_errors_are_those_of_the_rows_that_were_held_out():
    method = conformal_prediction.split_conformal(base="ridge", learning_rate=0.01, num_steps=1, holdout_fraction=0.25)
    found = method.fit(LINE).predict(X)
    rows, held = held_out(40, 0.25, 0)
    assert not set(rows) & set(held)
    assert sorted({*rows, *held}) == list(range(40))
    np.testing.assert_allclose(found.errors, np.sort(np.abs(Y - found.mean)[held]), rtol=1e-12)
    assert not method.uses_network


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match="4 coefficients and the noise, and data has 4"):
        least_squares().check(4, 3, "regression")
    with pytest.raises(ConfigError, match=r"inference\.max_rows=100"):
        exact_gp(num_restarts=0, max_rows=100).check(101, 3, "regression")
    with pytest.raises(ConfigError, match="must be less than the 4"):
        k_nearest_neighbours(num_neighbours=4).check(4, 3, "regression")
    with pytest.raises(ConfigError, match=r"holdout_fraction=0\.1 of 9"):
        trained_network.refuse_few(9, 0.1)
    with pytest.raises(ConfigError, match="no fitted row has class 3"):
        logistic_regression(penalty=1.0, max_iter=9).fit(LABELS._replace(num_classes=4))
