"""The standard error of a mean over splits of one data set, which share rows and are therefore correlated."""

import math

import numpy as np
from numpy.typing import ArrayLike


def error_factor(num_splits: int, rho: float) -> float:
    r"""Standard error of a mean over splits in standard deviations of one split, :math:`\sqrt{1/n + \rho/(1 - \rho)}`.

    With rho = n_test / (n_test + n_train) the second term is n_test / n_train. With rho = 0 it is the usual error of
    independent values. Source: Nadeau & Bengio (2003, "Inference for the generalization error"), section 3.1.

    Parameters
    ----------
    num_splits : int
        n, 1 or more.
    rho : float
        Correlation of two splits, in [0, 1).
    """
    return math.sqrt(1 / num_splits + rho / (1 - rho))


def spread(values: ArrayLike) -> float:
    """The standard deviation over splits, divisor n - 1. It is exactly 0 where all values are equal.

    Parameters
    ----------
    values : array (n,)
        Finite, n of 2 or more.
    """
    values = np.asarray(values, np.float64)
    return float(values.std(ddof=1)) if np.ptp(values) > 0 else 0.0


def corrected_error(values: ArrayLike, *, rho: float) -> float:
    """The standard error of the mean over splits: :func:`spread` times :func:`error_factor`.

    Parameters
    ----------
    values : array (n,)
        One for each split, n of 2 or more. The error is nan where one is not finite: a spread around infinity has no
        meaning.
    rho : float
        Correlation of two splits.
    """
    values = np.asarray(values, np.float64)
    return spread(values) * error_factor(values.size, rho) if np.isfinite(values).all() else math.nan
