"""The exact Gaussian process, fitted by scikit-learn."""

import warnings

import numpy as np

from bdlbench.baselines.base import Baseline, Fitted, Problem, as_table, baseline, every_class_fitted, from_labels
from bdlbench.baselines.predictives import Normal, Probabilities
from bdlbench.errors import ConfigError
from bdlbench.options import at_least


@baseline
def exact_gp(*, num_restarts: int, max_rows: int) -> Baseline:
    r"""A Gaussian process with a squared-exponential kernel that has a length scale for each input.

    Regression: y = f(x) + e, f ~ GP(0, k), e ~ N(0, sigma^2),

    .. math:: k(x, x') = a^2 \exp\left(-\tfrac12 \sum_d (x_d - x'_d)^2 / l_d^2\right) ,

    on targets of mean 0 and variance 1. a, l_d and sigma maximise the marginal likelihood (L-BFGS, from 1 and from
    ``num_restarts`` random points). The predictive is normal at each row (Rasmussen & Williams 2006, algorithm 2.1); rows
    are scored one by one, so that its covariance between rows is not used. Classification: the Laplace approximation of
    the latent function with a logistic likelihood, for more than two classes one against the rest and normalised
    (section 3.4 there). The time grows as N^3 and the memory as N^2.

    Parameters
    ----------
    num_restarts : int
        Further starts of the optimiser, 0 or more.
    max_rows : int
        The largest number of training rows. More are refused before anything is computed.
    """
    at_least("inference", 0, num_restarts=num_restarts)
    at_least("inference", 1, max_rows=max_rows)

    def check(num_rows: int, num_inputs: int, task: str) -> None:
        if num_rows > max_rows:
            raise ConfigError(
                f"inference.max_rows={max_rows}: data has {num_rows:,} training rows, and the time of an exact Gaussian process "
                "grows with their cube: give fewer with data.n_train, or raise it."
            )

    def fit(problem: Problem) -> Fitted:
        with warnings.catch_warnings():
            # An input that does not matter has a length scale at the upper bound, as it should.
            warnings.filterwarnings("ignore", r".*length_scale is close to the specified upper bound")
            return (_regression if problem.task == "regression" else _classification)(problem, num_restarts)

    return Baseline(fit, check=check)


def _regression(problem: Problem, num_restarts: int) -> Fitted:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    table = problem.table
    scales = np.ones(table.shape[1])
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(scales, (1e-2, 1e3)) + WhiteKernel(0.1, (1e-6, 1e1))
    model = GaussianProcessRegressor(
        kernel, alpha=0.0, n_restarts_optimizer=num_restarts, normalize_y=True, random_state=problem.random_state
    ).fit(table, np.asarray(problem.y, np.float64))

    def predict(x: np.ndarray) -> Normal:
        # The kernel's own diagonal holds the noise, so that this is the deviation of y and not of f.
        return Normal(*model.predict(as_table(x), return_std=True))

    return Fitted(predict)


def _classification(problem: Problem, num_restarts: int) -> Fitted:
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    every_class_fitted(problem, problem.y)
    table = problem.table
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * RBF(np.ones(table.shape[1]), (1e-2, 1e3))
    model = GaussianProcessClassifier(kernel, n_restarts_optimizer=num_restarts, random_state=problem.random_state).fit(
        table, problem.y
    )

    def predict(x: np.ndarray) -> Probabilities:
        return Probabilities(from_labels(model.predict_proba(as_table(x)), model.classes_, problem.num_classes))

    return Fitted(predict)
