"""Temperature scaling of a trained network."""

import numpy as np
from scipy import optimize, special

from bdlbench.baselines.base import Baseline, Fitted, Problem, baseline, held_out
from bdlbench.baselines.predictives import Probabilities
from bdlbench.baselines.trained_network import refuse_few, train
from bdlbench.options import at_least, fraction, positive

LARGEST = np.log(100.0)
"""log temperatures are searched in [-LARGEST, LARGEST]."""


@baseline
def temperature_scaling(*, learning_rate: float, num_steps: int, holdout_fraction: float) -> Baseline:
    """The maximum a posteriori network, whose logits f are divided by one temperature: softmax(f / tau).

    The network is trained on a part of the training rows, and tau minimises the negative log likelihood of the other part,
    which it has not seen (Guo, Pleiss, Sun & Weinberger 2017). The classes' order does not change, so that accuracy is that
    of the network. tau is searched between 0.01 and 100.

    Parameters
    ----------
    learning_rate : float
        Of Adam.
    num_steps : int
        Steps of Adam on all fitted rows. They are counted as gradients.
    holdout_fraction : float
        The share of training rows that choose tau.
    """
    positive("inference", learning_rate=learning_rate)
    at_least("inference", 1, num_steps=num_steps)
    fraction("inference", holdout_fraction=holdout_fraction)

    def fit(problem: Problem) -> Fitted:
        rows, held = held_out(len(problem.y), holdout_fraction, problem.seed)
        network = train(problem, rows, learning_rate=learning_rate, num_steps=num_steps)
        tau = best_temperature(network.predictive(problem.x[held]), np.asarray(problem.y)[held])
        return Fitted(
            lambda x: Probabilities(special.softmax(network.predictive(x) / tau, axis=1)), num_grads=network.num_grads
        )

    return Baseline(
        fit, ("classification",), uses_network=True,
        check=lambda num_rows, num_inputs, task: refuse_few(num_rows, holdout_fraction),
    )  # fmt: skip


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in [0.01, 100] that minimises the negative log likelihood of labels (n,) under softmax(f / tau).

    The likelihood is concave in 1 / tau, so that there is one minimum. Where the derivative has no root inside, the
    temperature is the end towards which the likelihood rises.
    """

    def slope(log_tau: float) -> float:
        return temperature_slope(logits, labels, float(np.exp(log_tau)))

    if slope(-LARGEST) >= 0:
        return float(np.exp(-LARGEST))
    if slope(LARGEST) <= 0:
        return float(np.exp(LARGEST))
    return float(np.exp(optimize.brentq(slope, -LARGEST, LARGEST, xtol=1e-12)))


def temperature_slope(logits: np.ndarray, labels: np.ndarray, tau: float) -> float:
    """The derivative of the mean negative log likelihood by log tau: mean over rows of (f_y - sum_k p_k f_k) / tau."""
    probs = special.softmax(logits / tau, axis=1)
    own = logits[np.arange(len(labels)), labels]
    return float(np.mean(own - np.sum(probs * logits, axis=1)) / tau)
