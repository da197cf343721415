"""The k nearest neighbours."""

import numpy as np

from bdlbench.baselines.base import Baseline, Fitted, Problem, as_table, baseline, smoothed
from bdlbench.baselines.predictives import Normal, Probabilities
from bdlbench.errors import ConfigError
from bdlbench.options import at_least


@baseline
def k_nearest_neighbours(*, num_neighbours: int) -> Baseline:
    """The mean of the k training rows that are nearest in the inputs of the run, in Euclidean distance (scikit-learn).

    The predictive of a regression is N(m(x), s^2), where m is the mean of the k targets and s^2 the mean squared error of the
    training rows, each predicted by its k nearest other rows. Classes: (c_k + 1) / (k + K) for c_k of k neighbours
    (Laplace's rule of succession), so that no class has probability 0.

    Parameters
    ----------
    num_neighbours : int
        k, less than the number of training rows.
    """
    at_least("inference", 1, num_neighbours=num_neighbours)

    def check(num_rows: int, num_inputs: int, task: str) -> None:
        if num_neighbours >= num_rows:
            raise ConfigError(
                f"inference.num_neighbours={num_neighbours} must be less than the {num_rows} training rows: use fewer."
            )

    def fit(problem: Problem) -> Fitted:
        from sklearn.neighbors import NearestNeighbors

        tree = NearestNeighbors(n_neighbors=num_neighbours).fit(problem.table)
        y = np.asarray(problem.y)
        if problem.task == "regression":
            others = tree.kneighbors(return_distance=False)  # a row is not its own neighbour here
            noise = float(np.sqrt(np.mean((y - y[others].mean(axis=1)) ** 2)))
            if not noise > 0:
                raise ConfigError(
                    "inference=k_nearest_neighbours: the rows are predicted without error, so no noise is left."
                )

            def predict(x: np.ndarray) -> Normal:
                mean = y[tree.kneighbors(as_table(x), return_distance=False)].mean(axis=1)
                return Normal(np.asarray(mean, np.float64), np.full(len(mean), noise))

            return Fitted(predict)

        def vote(x: np.ndarray) -> Probabilities:
            labels = y[tree.kneighbors(as_table(x), return_distance=False)]
            shares = (labels[..., None] == np.arange(problem.num_classes)).mean(axis=1)
            return Probabilities(smoothed(shares, num_neighbours))

        return Fitted(vote)

    return Baseline(fit, check=check)
