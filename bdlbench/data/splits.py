"""Split rows into those for training, for validation and for testing."""

from typing import NamedTuple

import numpy as np

from bdlbench.errors import ConfigError

MAX_SPLITS = 1000


class Split(NamedTuple):
    """Row indices of the three parts. ``train`` may be a slice for rows in order, which needs no copy."""

    train: np.ndarray | slice
    validation: np.ndarray
    test: np.ndarray


def check_split(split: int, num_splits: int) -> None:
    """Raise ConfigError unless ``split`` is one of 0..num_splits-1."""
    if isinstance(split, bool) or not isinstance(split, int) or not 0 <= split < num_splits:
        raise ConfigError(f"data.split={split} is out of range: choose a whole number from 0 to {num_splits - 1}.")


def generator(seed: int) -> np.random.Generator:
    """NumPy's default generator with this seed. Raises ConfigError unless the seed is a whole number from 0 up."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"data.seed={seed} is out of range: choose a whole number from 0 up.")
    return np.random.default_rng(seed)


def permutation(n: int, split: int) -> np.ndarray:
    """Row order (n,) of split k: draw number k, from 0, of successive permutations from ``RandomState(1)``.

    This rule gives the standard UCI splits of Hernandez-Lobato & Adams (2015), which Gal & Ghahramani (2016) published
    as index files. One generator draws one ``choice(n, n, replace=False)`` for each split.
    """
    rng = np.random.RandomState(1)
    for _ in range(split):
        rng.choice(n, n, replace=False)
    return rng.choice(n, n, replace=False)


def random_split(
    n: int,
    *,
    split: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
    num_splits: int = MAX_SPLITS,
) -> Split:
    """Split n rows by the rule of the standard UCI splits.

    The first ``round((1 - test_fraction) n)`` rows of :func:`permutation` are for training and validation, and
    :func:`cut` divides them. The other rows are for testing.

    Raises
    ------
    ConfigError
        If a fraction is outside [0, 1), a fraction above 0 gives no row, or ``split`` or ``n_train`` is out of range.
    """
    check_split(split, num_splits)
    _check_fraction("test_fraction", test_fraction)
    order = permutation(n, split)
    num_fit = int(np.round((1 - test_fraction) * n))
    if test_fraction > 0 and num_fit == n:
        raise ConfigError(f"data.test_fraction={test_fraction} of {n} rows is less than one row: raise it.")
    train, validation = cut(order[:num_fit], validation_fraction=validation_fraction, n_train=n_train)
    return Split(train, validation, order[num_fit:])


def cut(order: np.ndarray, *, validation_fraction: float, n_train: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Cut shuffled training rows into (train, validation).

    Validation is the last ``round(validation_fraction len(order))`` rows. Train is the first ``n_train`` of the other
    rows, or all of them if it is None. The training sets of a learning curve are therefore nested and have the same
    validation set.

    Raises
    ------
    ConfigError
        If the fraction is outside [0, 1), a fraction above 0 gives no row, or ``n_train`` is not between 1 and the
        number of rows that are left.
    """
    _check_fraction("validation_fraction", validation_fraction)
    num_validation = int(np.round(validation_fraction * len(order)))
    if validation_fraction > 0 and num_validation == 0:
        raise ConfigError(
            f"data.validation_fraction={validation_fraction} of {len(order)} training rows is less than one: raise it."
        )
    left = len(order) - num_validation
    if n_train is not None and not 1 <= n_train <= left:
        raise ConfigError(f"data.n_train={n_train} is out of range: choose from 1 to the {left} training rows.")
    return order[: left if n_train is None else n_train], order[left:]


def _check_fraction(field: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"data.{field}={value} is no fraction: choose one from 0 (none) to below 1.")
