"""Tables of raw rows, which are checked once and shared by all splits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bdlbench.errors import ConfigError

LARGEST = 1e150
"""Values of a larger magnitude are refused, because sums of squares must stay finite."""


class Table(NamedTuple):
    """Rows as their source gives them, not scaled and not split. All splits of a set share them, so they are read-only.

    Attributes
    ----------
    x : array (n, ...)
    y : array (n,)
    feature_names : tuple of str
        Empty for images and signals.
    target_name : str
    class_names : tuple of str
        The names of the classes 0..K-1. Empty for regression.
    """

    x: np.ndarray
    y: np.ndarray
    feature_names: tuple[str, ...] = ()
    target_name: str = "y"
    class_names: tuple[str, ...] = ()


def make_table(
    x: np.ndarray,
    y: np.ndarray,
    *,
    feature_names: tuple[str, ...] = (),
    target_name: str = "y",
    class_names: tuple[str, ...] = (),
    source: str = "data",
    part: str = "",
) -> Table:
    """Check raw rows once and make them read-only, so that all splits can share them.

    ``source`` (a file, for example) and ``part`` (the suffix of the names of its arrays) name the rows in error
    messages.

    Raises
    ------
    ConfigError
        If a value is NaN, infinite or beyond :data:`LARGEST`, or x and y differ in length. The message names the column
        and the first row of such values.
    """
    faults = [
        *_faults(x, tuple(name + part for name in feature_names), f"x{part}"),
        *_faults(y, (target_name + part,), f"y{part}"),
    ]
    if faults:
        raise ConfigError(f"{source}: {joined(faults)}: remove such rows, fill them in, or give other units.")
    if len(x) != len(y):
        raise ConfigError(f"{source} has {len(x)} rows of inputs but {len(y)} targets: give one target for every row.")
    for array in (x, y):
        array.flags.writeable = False
    return Table(x, y, feature_names, target_name, class_names)


def _faults(values: np.ndarray, names: tuple[str, ...], name: str) -> list[str]:
    """A phrase for each column of (n, d) or (n,) values that has a refused value, or one phrase for all images."""
    if not np.issubdtype(values.dtype, np.floating):
        return []
    wrong = ~(np.abs(values) <= min(LARGEST, float(np.finfo(values.dtype).max)))  # this is also true of NaN
    if not wrong.any():
        return []
    wrong, flat = (np.asarray(array).reshape(len(values), -1) for array in (wrong, values))
    columns = np.flatnonzero(wrong.any(0))
    if values.ndim > 2:  # one pixel is named for all
        rows = np.flatnonzero(wrong.any(1))
        column = int(np.flatnonzero(wrong[rows[0]])[0])
        return [_phrase(name, flat[rows[0], column], rows)]
    named = names if len(names) == flat.shape[1] else tuple(f"{name}{i}" for i in range(flat.shape[1]))
    return [_phrase(named[c], flat[np.flatnonzero(wrong[:, c])[0], c], np.flatnonzero(wrong[:, c])) for c in columns]


def _phrase(name: str, value: float, rows: np.ndarray) -> str:
    more = f" (and in {len(rows) - 1:,} more rows)" if len(rows) > 1 else ""
    return f"{name} is {value:g} in row {rows[0]}{more}"


def joined(phrases: Sequence[str], separator: str = "; ", most: int = 10) -> str:
    """The first ``most`` phrases joined by ``separator``, and the number of the others."""
    more = f" and {len(phrases) - most:,} more" if len(phrases) > most else ""
    return separator.join(phrases[:most]) + more
