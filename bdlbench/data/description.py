"""A description of a data set without its rows, which is enough to scale new rows to a model's units and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bdlbench.data.dataset import Dataset, Rows, Scaler


def describe(dataset: Dataset) -> dict[str, Any]:
    """Names, shapes, types, classes and scalers of a data set, as plain values for a record."""
    x, y = dataset.train
    return {
        "name": dataset.name,
        "task": dataset.task,
        "num_outputs": dataset.num_outputs,
        "x": [list(x.shape), x.dtype.name],
        "y": [list(y.shape), y.dtype.name],
        "feature_names": list(dataset.feature_names),
        "target_name": dataset.target_name,
        "class_names": list(map(str, dataset.class_names)),
        "x_scaler": _plain(dataset.x_scaler),
        "y_scaler": _plain(dataset.y_scaler),
    }


def without_rows(description: Mapping[str, Any], checksum: str) -> Dataset:
    """Make a data set from a description. Its training rows have the right shapes and types and are all zeros.

    Parameters
    ----------
    description : mapping
        The result of :func:`describe`.
    checksum : str
        The checksum of the original data set.
    """
    x, y = (np.broadcast_to(np.zeros((), dtype), shape) for shape, dtype in (description["x"], description["y"]))
    return Dataset(
        name=description["name"],
        task=description["task"],
        train=Rows(x, y),
        validation=None,
        test=None,
        shifted={},
        ood={},
        num_outputs=description["num_outputs"],
        x_scaler=_scaler(description["x_scaler"]),
        y_scaler=_scaler(description["y_scaler"]),
        feature_names=tuple(description["feature_names"]),
        target_name=description["target_name"],
        notes=(),
        checksum=checksum,
        class_names=tuple(description["class_names"]),
    )


def _plain(scaler: Scaler | None) -> list[Any] | None:
    return None if scaler is None else [scaler.loc.tolist(), scaler.scale.tolist()]


def _scaler(plain: Any) -> Scaler | None:
    return None if plain is None else Scaler(*(np.asarray(part, np.float64) for part in plain))
