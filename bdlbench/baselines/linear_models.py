"""Linear baselines: least squares, ridge regression and logistic regression."""

import numpy as np

from bdlbench.baselines.base import Baseline, Fitted, Problem, as_table, baseline, every_class_fitted, from_labels
from bdlbench.baselines.predictives import Normal, Probabilities, StudentT
from bdlbench.errors import ConfigError
from bdlbench.options import at_least, positive


@baseline
def least_squares() -> Baseline:
    r"""Ordinary least squares with an intercept, and its exact predictive of a new observation.

    With the design matrix Z (N, p) of a column of ones and the inputs, b = (Z'Z)^- Z'y, and
    s^2 = |y - Zb|^2 / (N - p), y at z is Student's t with N - p degrees of freedom:

    .. math:: y \sim t_{N - p}\left(z'b, \; s^2 (1 + z'(Z'Z)^- z)\right) .

    This is the posterior predictive of the linear model with normal noise under the prior p(b, sigma^2) ~ 1/sigma^2 (Gelman
    et al. 2013, "Bayesian Data Analysis", section 14.2). If columns are linearly dependent, p is the rank of Z, and ^- is
    the pseudo-inverse.

    Raises
    ------
    ConfigError
        If there are no more training rows than coefficients, so that the noise cannot be estimated.
    """

    def check(num_rows: int, num_inputs: int, task: str) -> None:
        if num_rows <= num_inputs + 1:
            raise ConfigError(
                f"inference=least_squares estimates {num_inputs + 1} coefficients and the noise, and data has {num_rows} "
                "training rows: give more rows, or use ridge."
            )

    def fit(problem: Problem) -> Fitted:
        z, y = _design(problem.table), np.asarray(problem.y, np.float64)
        inverse = np.linalg.pinv(z, rcond=len(z) * np.finfo(np.float64).eps)
        rank = int(np.linalg.matrix_rank(z))
        b = inverse @ y
        df = len(y) - rank
        noise = float(np.sum((y - z @ b) ** 2) / df)
        if not noise > 0:
            raise ConfigError(
                "inference=least_squares: the inputs fit the targets without error, so that no noise is left."
            )

        def predict(x: np.ndarray) -> StudentT:
            at = _design(as_table(x))
            leverage = np.sum((at @ inverse) ** 2, axis=1)  # z'(Z'Z)^- z = |z'Z^+|^2
            return StudentT(df, at @ b, np.sqrt(noise * (1 + leverage)))

        return Fitted(predict)

    return Baseline(fit, ("regression",), check=check)


@baseline
def ridge(*, max_iter: int) -> Baseline:
    """Bayesian ridge regression, whose penalty and noise maximise the evidence (scikit-learn's BayesianRidge).

    Coefficients ~ N(0, I / lambda), noise ~ N(0, 1 / alpha), and lambda and alpha maximise the marginal likelihood, with
    nearly flat priors (MacKay 1992; Tipping 2001). The predictive at x is N(x'm + intercept, x' S x + 1 / alpha). The
    uncertainty of the intercept, alpha, and lambda is left out, which is of order 1 / N.

    Parameters
    ----------
    max_iter : int
        The largest number of updates of alpha and lambda.
    """
    at_least("inference", 1, max_iter=max_iter)

    def fit(problem: Problem) -> Fitted:
        from sklearn.linear_model import BayesianRidge

        table = problem.table
        centre = table.mean(axis=0)  # the library's predictive variance is that of centred inputs
        model = BayesianRidge(max_iter=max_iter).fit(table - centre, np.asarray(problem.y, np.float64))

        def predict(x: np.ndarray) -> Normal:
            return Normal(*model.predict(as_table(x) - centre, return_std=True))

        return Fitted(predict)

    return Baseline(fit, ("regression",))


@baseline
def logistic_regression(*, penalty: float, max_iter: int) -> Baseline:
    """Multinomial logistic regression with the penalty (penalty / 2) |W|^2 on its weights (scikit-learn).

    It is the mode of the posterior under W ~ N(0, I / penalty) and a flat prior of the intercepts. For its posterior run
    ``inference=nuts network=linear``, as ``experiment=bayesian_logistic_regression`` does.

    Parameters
    ----------
    penalty : float
        Above 0. It is 1 / C of scikit-learn.
    max_iter : int
        The largest number of steps of L-BFGS.
    """
    positive("inference", penalty=penalty)
    at_least("inference", 1, max_iter=max_iter)

    def fit(problem: Problem) -> Fitted:
        from sklearn.linear_model import LogisticRegression

        every_class_fitted(problem, problem.y)
        model = LogisticRegression(C=1 / penalty, max_iter=max_iter).fit(problem.table, problem.y)

        def predict(x: np.ndarray) -> Probabilities:
            return Probabilities(from_labels(model.predict_proba(as_table(x)), model.classes_, problem.num_classes))

        return Fitted(predict)

    return Baseline(fit, ("classification",))


def _design(x: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(x)), x])
