"""Ensembles of trees: gradient boosting and the random forest, fitted by scikit-learn."""

import numpy as np

from bdlbench.baselines.base import (
    Baseline,
    Fitted,
    Problem,
    as_table,
    baseline,
    every_class_fitted,
    from_labels,
    held_out,
    smoothed,
)
from bdlbench.baselines.predictives import Normal, Probabilities
from bdlbench.errors import ConfigError
from bdlbench.options import at_least, fraction, positive

_NO_NOISE = "the held-out errors are all 0, so that the noise is not known: give data with noise."


@baseline
def gradient_boosting(
    *, learning_rate: float, max_iter: int, max_leaf_nodes: int, min_samples_leaf: int, validation_fraction: float
) -> Baseline:
    """Boosted trees on binned inputs (scikit-learn's HistGradientBoosting; Friedman 2001, Ke et al. 2017).

    A part of the training rows is held out, and the number of trees is the one at which their loss is smallest, with a
    patience of ten trees. The predictive of a regression is N(m(x), s^2), where m is the boosted mean and s^2 the mean
    squared error on the held-out rows, the same at each x. These rows have chosen the number of trees too, so that s^2 is a
    little too small. For classes the probabilities are those of the boosted log odds.

    Parameters
    ----------
    learning_rate : float
    max_iter : int
        The largest number of trees, for each class of more than two.
    max_leaf_nodes, min_samples_leaf : int
    validation_fraction : float
        The share of training rows that is held out.
    """
    positive("inference", learning_rate=learning_rate)
    at_least("inference", 1, max_iter=max_iter, min_samples_leaf=min_samples_leaf)
    at_least("inference", 2, max_leaf_nodes=max_leaf_nodes)
    fraction("inference", validation_fraction=validation_fraction)

    def fit(problem: Problem) -> Fitted:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        options = {
            "learning_rate": learning_rate, "max_iter": max_iter, "max_leaf_nodes": max_leaf_nodes,
            "min_samples_leaf": min_samples_leaf, "early_stopping": True, "random_state": problem.random_state,
        }  # fmt: skip
        table = problem.table
        rows, held = held_out(len(table), validation_fraction, problem.seed)
        y = np.asarray(problem.y)
        if problem.task == "regression":
            model = HistGradientBoostingRegressor(**options)
            model.fit(table[rows], y[rows], X_val=table[held], y_val=y[held])
            noise = float(np.sqrt(np.mean((y[held] - model.predict(table[held])) ** 2)))
            if not noise > 0:
                raise ConfigError(f"inference=gradient_boosting: {_NO_NOISE}")
            return Fitted(lambda x: Normal(mean := model.predict(as_table(x)), np.full(len(mean), noise)))
        every_class_fitted(problem, y[rows])
        chosen = HistGradientBoostingClassifier(**options)
        chosen.fit(table[rows], y[rows], X_val=table[held], y_val=y[held])

        def predict(x: np.ndarray) -> Probabilities:
            return Probabilities(from_labels(chosen.predict_proba(as_table(x)), chosen.classes_, problem.num_classes))

        return Fitted(predict)

    return Baseline(fit)


@baseline
def random_forest(*, num_trees: int, min_samples_leaf: int) -> Baseline:
    """The mean of trees that are grown on bootstrap samples of the rows (Breiman 2001; scikit-learn).

    The predictive of a regression is N(m(x), s^2), where s^2 is the mean squared error of the out-of-bag predictions: each
    training row is predicted by the trees that have not seen it. Classes: (c p_k + 1) / (c + K) with c trees and their
    mean shares p_k, so that no class has probability 0.

    Parameters
    ----------
    num_trees : int
        At least 20, so that nearly every row is out of some bag.
    min_samples_leaf : int
    """
    at_least("inference", 20, num_trees=num_trees)
    at_least("inference", 1, min_samples_leaf=min_samples_leaf)

    def fit(problem: Problem) -> Fitted:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        options = {
            "n_estimators": num_trees, "min_samples_leaf": min_samples_leaf, "random_state": problem.random_state
        }  # fmt: skip
        table, y = problem.table, np.asarray(problem.y)
        if problem.task == "regression":
            model = RandomForestRegressor(oob_score=True, **options).fit(table, y)
            noise = float(np.sqrt(np.mean((y - model.oob_prediction_) ** 2)))
            if not noise > 0:
                raise ConfigError(f"inference=random_forest: {_NO_NOISE}")
            return Fitted(lambda x: Normal(mean := model.predict(as_table(x)), np.full(len(mean), noise)))
        every_class_fitted(problem, y)
        votes = RandomForestClassifier(**options).fit(table, y)

        def predict(x: np.ndarray) -> Probabilities:
            probs = from_labels(votes.predict_proba(as_table(x)), votes.classes_, problem.num_classes)
            return Probabilities(smoothed(probs, num_trees))

        return Fitted(predict)

    return Baseline(fit)
