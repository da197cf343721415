"""Turn new inputs in the units of the source into rows that are scaled as the training rows were."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bdlbench.data.dataset import Dataset
from bdlbench.errors import ConfigError


def new_inputs(x: Any, dataset: Dataset) -> np.ndarray:
    """Check inputs in original units, and scale them as the training rows of the data set were scaled.

    Parameters
    ----------
    x : array (n, d), array (n,) where there is one feature, or table
        The columns of an array must have the order of ``dataset.feature_names``. The columns of a table (a data frame,
        a dict of columns, a structured array) are found by name, in any order. Other columns of a table are ignored.
    dataset : Dataset

    Returns
    -------
    array (n, ...)
        In the dtype of the training inputs.

    Raises
    ------
    ConfigError
        If a table lacks a feature or has it twice, x is a table but the features have no names, the shape is wrong, or
        a value is not a finite number, or not a whole number where the training inputs are integers.
    """
    columns = _columns(x)
    try:
        rows = np.asarray(x, np.float64) if columns is None else _by_name(x, columns, dataset)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"x holds what is no number ({error}): give numbers.") from None
    if rows.ndim == 1 and dataset.feature_shape == (1,):
        rows = rows[:, None]
    if rows.shape[1:] != dataset.feature_shape or not len(rows):
        named = f" ({', '.join(dataset.feature_names)})" if dataset.feature_names else ""
        raise ConfigError(
            f"x has shape {np.shape(x)}, but inputs of '{dataset.name}' have shape {dataset.feature_shape}{named}: "
            "give rows of that shape."
        )
    if not np.isfinite(rows).all():
        raise ConfigError("x holds a value that is not finite: remove such rows.")
    dtype = dataset.train.x.dtype
    if dtype.kind == "i" and not (rows == np.rint(rows)).all():
        raise ConfigError(f"x holds a fraction, but inputs of '{dataset.name}' are integers: give whole numbers.")
    rows = rows if dataset.x_scaler is None else dataset.x_scaler.standardise(rows)
    return np.ascontiguousarray(rows, dtype)


def _columns(x: Any) -> list[Any] | None:
    """The labels of the columns of a table, or None for an array."""
    if isinstance(x, Mapping):
        return list(x)
    for attribute in ("column_names", "columns"):  # PyArrow has the first, pandas and Polars the second
        if hasattr(x, attribute):
            return list(getattr(x, attribute))
    names = getattr(getattr(x, "dtype", None), "names", None)
    return None if names is None else list(names)


def _by_name(x: Any, columns: list[Any], dataset: Dataset) -> np.ndarray:
    wanted = dataset.feature_names
    if not wanted:
        raise ConfigError(f"x is a table, but the features of '{dataset.name}' have no names: give an array.")
    found: dict[str, Any] = {}
    for label in columns:
        name = str(label).strip()  # names that are read from a file are stripped too
        if name in found and name in wanted:
            raise ConfigError(f"x has two columns named {name}: keep the one that is meant.")
        found[name] = label
    if missing := [name for name in wanted if name not in found]:
        raise ConfigError(
            f"x is a table without {', '.join(missing)}: name its columns as the features of '{dataset.name}' "
            f"({', '.join(wanted)}), or give an array with columns in that order."
        )
    return np.column_stack([np.asarray(x[found[name]], np.float64) for name in wanted])
