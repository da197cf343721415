"""Split conformal prediction around a fitted mean."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from bdlbench.baselines.base import Baseline, Fitted, Problem, as_table, baseline, held_out
from bdlbench.baselines.predictives import ConformalIntervals
from bdlbench.baselines.trained_network import refuse_few, train
from bdlbench.options import at_least, fraction, positive

Base = Literal["network", "ridge"]


@baseline
def split_conformal(*, base: Base, learning_rate: float, num_steps: int, holdout_fraction: float) -> Baseline:
    r"""Split conformal intervals m(x) +- r around a mean that is fitted on a part of the training rows.

    r_1 <= ... <= r_n are the absolute errors of the n rows that were held out. The interval of level 1 - a has r_k,
    k = ceil((n + 1)(1 - a)). If rows are exchangeable, whatever the mean, it contains a new y with probability P over
    all rows,

    .. math:: 1 - a \le P \le 1 - a + \frac{1}{n + 1} ,

    the upper bound without ties (Papadopoulos et al. 2002; Lei et al. 2018, theorem 2.2). The promise is about the average
    over x, not about each x: the interval has the same width everywhere. There is no density, so that log scores do not
    exist.

    Parameters
    ----------
    base : "network" or "ridge"
        What gives the mean: the maximum a posteriori of the run's network, or Bayesian ridge regression, which uses neither
        ``learning_rate`` nor ``num_steps``, nor the network of the run.
    learning_rate : float
        Of Adam.
    num_steps : int
        Steps of Adam on all fitted rows. They are counted as gradients.
    holdout_fraction : float
        The share of training rows that calibrate the intervals.
    """
    positive("inference", learning_rate=learning_rate)
    at_least("inference", 1, num_steps=num_steps)
    fraction("inference", holdout_fraction=holdout_fraction)

    def fit(problem: Problem) -> Fitted:
        rows, held = held_out(len(problem.y), holdout_fraction, problem.seed)
        price, mean = None, None
        if base == "network":
            network = train(problem, rows, learning_rate=learning_rate, num_steps=num_steps)
            price, mean = network.num_grads, network.predictive
        else:
            mean = _ridge(problem, rows)
        errors = np.sort(np.abs(np.asarray(problem.y, np.float64)[held] - mean(problem.x[held])))
        return Fitted(lambda x: ConformalIntervals(mean(x), errors), price)

    return Baseline(
        fit, ("regression",), uses_network=base == "network",
        check=lambda num_rows, num_inputs, task: refuse_few(num_rows, holdout_fraction),
        remark="its intervals are right on average over the inputs, and there is no density",
    )  # fmt: skip


def _ridge(problem: Problem, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.linear_model import BayesianRidge

    model = BayesianRidge().fit(problem.table[rows], np.asarray(problem.y, np.float64)[rows])
    return lambda x: model.predict(as_table(x))
