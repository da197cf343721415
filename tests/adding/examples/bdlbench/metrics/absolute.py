"""Errors that outliers do not dominate."""

import numpy as np
from numpy.typing import ArrayLike

from bdlbench.metrics.checks import per_point


def mae(y: ArrayLike, mean: ArrayLike) -> float:
    """Mean absolute error of the predictive mean, (1/n) sum_i |y_i - m_i|, in the units of y.

    Parameters
    ----------
    y, mean : array (n,)
    """
    y, mean = per_point(y=y, mean=mean)
    return float(np.mean(np.abs(y - mean)))
