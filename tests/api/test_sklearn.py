"""The estimators obey scikit-learn's contract and work with its pipelines and searches."""

import numpy as np
import pandas as pd
import pytest
from from_python import NET, rows
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import check_estimator

from bdlbench.sklearn import BayesClassifier, BayesRegressor

QUICK = {"network": NET, "inference": "map", "num_warmup": 150, "random_state": 0}
EXCEPTIONS: dict[str, str] = {}
"""Checks that cannot hold, with the reason."""


def test_regressor_predicts_means_deviations_and_draws():
    """Predictions are in the units of y.

    Columns are found by name, and the same random_state gives the same results.
    """
    x, y = rows()
    table = pd.DataFrame(x, columns=["a", "b", "c"])
    model = BayesRegressor(**QUICK).fit(table, y)
    mean, sd = model.predict(table, return_std=True)
    assert model.score(table, y) > 0.7
    assert (sd > 0).all()
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    assert model.sample_y(table, 7).shape == (40, 7)
    np.testing.assert_array_equal(BayesRegressor(**QUICK).fit(table, y).predict(table), mean)
    # In double precision the order of rows does not show beyond its last digits.
    np.testing.assert_allclose(model.predict(table[::-1])[::-1], mean, rtol=1e-10)


@pytest.mark.slow
def test_classifier_predicts_probabilities_and_takes_more_rows():
    """Probabilities have the order of classes_. partial_fit is an update with the same classes."""
    x, y = rows()
    labels = np.where(y > 100, "high", "low")
    model = BayesClassifier(**QUICK).partial_fit(x[:30], labels[:30], classes=["high", "low"])
    assert model.classes_.tolist() == ["high", "low"]
    np.testing.assert_array_equal(model.predict(x), model.classes_[model.predict_proba(x).argmax(1)])
    model.partial_fit(x[30:], labels[30:])
    assert model.score(x, labels) > 0.8
    with pytest.raises(ValueError, match="must hold all classes"):
        BayesClassifier(**QUICK).partial_fit(x, labels, classes=["high", "low", "mid"])


@pytest.mark.slow
def test_pipelines_cross_validation_and_grid_search():
    """A grid search sets parameters by name, also inside a pipeline."""
    x, y = rows()
    pipeline = make_pipeline(PolynomialFeatures(1, include_bias=False), BayesRegressor(**QUICK))
    assert cross_val_score(pipeline, x, y, cv=2).mean() > 0.5
    search = GridSearchCV(pipeline, {"bayesregressor__num_warmup": [1, 150]}, cv=2).fit(x, y)
    assert search.best_params_ == {"bayesregressor__num_warmup": 150}


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [BayesRegressor, pytest.param(BayesClassifier, marks=pytest.mark.long)])
@pytest.mark.filterwarnings("ignore")  # the checks warn of what they try on purpose
def test_scikit_learns_own_checks(estimator):
    """``check_estimator`` passes with 2 chains and 300 steps to the mode."""
    model = estimator(network=NET, inference="map", num_warmup=300, num_chains=2, random_state=0)
    check_estimator(model, expected_failed_checks=EXCEPTIONS, on_skip=None)
