"""Raw rows: checked once, shared by every split."""

from typing import NamedTuple

import numpy as np

from bdlbench.errors import ConfigError


class Table(NamedTuple):
    """Rows as their source gives them: unscaled, unsplit, shared by all splits of a set and therefore read-only.

    Attributes
    ----------
    x : array (n, ...)
    y : array (n,)
    feature_names : tuple of str
        Empty for images and signals.
    target_name : str
    class_names : tuple of str
        What the labels 0..K-1 stand for; empty for regression.
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
    first_row: int = 0,
    unit: str = "row",
) -> Table:
    """Check raw rows once and freeze them, so that every split can share them.

    ``first_row`` is the number that the source gives its first ``unit``, for error messages.

    Raises
    ------
    ConfigError
        A value is NaN or infinite (names column and row), or x and y differ in length.
    """
    if len(x) != len(y):
        raise ConfigError(f"data has {len(x)} rows of inputs but {len(y)} targets: give one target for every row.")
    for part, names in ((x, feature_names), (y, (target_name,))):
        if np.issubdtype(part.dtype, np.floating) and not np.isfinite(part).all():
            row, *rest = (int(i) for i in np.argwhere(~np.isfinite(part))[0])
            value = part[(row, *rest)]
            column = names[rest[0] if rest else 0] if len(rest) <= 1 and names else f"x{rest}"
            raise ConfigError(
                f"data.{column} is {value} in {unit} {row + first_row}: remove or fill in such rows first."
            )
    for part in (x, y):
        part.flags.writeable = False
    return Table(x, y, feature_names, target_name, class_names)
