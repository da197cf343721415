"""Scores of decisions that are taken from predictive probabilities."""

import numpy as np
from numpy.typing import ArrayLike

from bdlbench.errors import ConfigError
from bdlbench.metrics.checks import Floats, labels, probabilities


def referral_cost(y: ArrayLike, probs: ArrayLike, *, costs: list[list[float]] | None, referral: float) -> float:
    r"""Mean cost of the Bayes decisions, where a row may be referred, to a person for example, at a fixed cost.

    With C_jk the cost of the decision k where the class is j, and c that of a referral, each row is decided by

    .. math:: a_i = \arg\min_k \sum_j p_{ij} C_{jk}, \quad
       \text{and referred if } \min_k \sum_j p_{ij} C_{jk} > c .

    The score is (1/n) sum_i of C at the true class and the decision, or c where the row is referred. It lies between the
    smallest and the largest of these costs; smaller is better. If the probabilities are right, no other rule has a smaller
    expected cost. With cost 1 for each error it is Chow's rule: refer where max_k p_k < 1 - c, and the score is the share of
    errors plus c times the share of referred rows. Ties go to the lowest class, and a row whose expected cost is c is
    decided. Source: Chow (1970), "On optimum recognition error and reject tradeoff", IEEE Trans. Inf. Theory 16.

    Parameters
    ----------
    y : integer array (n,)
    probs : array (n, K)
        Class probabilities averaged over draws.
    costs : list of K lists of K numbers, or None
        C, a row for each true class. None is 0 for the right class and 1 for each other.
    referral : float
        c, 0 or more, in the unit of the costs.

    Raises
    ------
    ConfigError
        If C is not K x K and finite, or c is negative or not finite.
    """
    probs = probabilities(probs)
    num_points, num_classes = probs.shape
    label = labels(y, num_classes, num_points)
    table = 1.0 - np.eye(num_classes) if costs is None else _matrix(costs, num_classes)
    if not 0 <= referral < np.inf:
        raise ConfigError(f"metrics.referral_cost.referral={referral} must be zero or a positive finite number.")
    expected = probs @ table
    decision = expected.argmin(axis=1)
    paid = np.where(expected.min(axis=1) > referral, referral, table[label, decision])
    return float(paid.mean())


def _matrix(costs: list[list[float]], num_classes: int) -> Floats:
    table: Floats
    try:
        table = np.asarray(costs, np.float64)
    except (TypeError, ValueError):
        table = np.empty(0)
    if table.shape != (num_classes, num_classes) or not np.isfinite(table).all():
        raise ConfigError(
            f"metrics.referral_cost.costs={costs!r} must be {num_classes} lists of {num_classes} finite numbers, one list for "
            "each true class, or null."
        )
    return table
