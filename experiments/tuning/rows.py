"""A data set for tuning: what is scored are rows cut from the training rows, and the test rows are gone."""

import dataclasses
from typing import Any

from bdlbench.data.dataset import Dataset, checksum
from bdlbench.errors import ConfigError


def held_out(*, of: Any) -> Dataset:
    """The data set ``of`` with its validation rows in the place of its test rows.

    Everything that scores on test rows (metrics, function-space diagnostics, the curve) then scores on rows that were
    cut from the training rows, and no part of a tuning run can see a test row.

    Parameters
    ----------
    of : Dataset
        One with ``validation_fraction`` > 0; scaled by what is left of its training rows.

    Raises
    ------
    ConfigError
        Where ``of`` has no validation rows.
    """
    if not isinstance(of, Dataset) or of.validation is None:
        raise ConfigError("data.of has no validation rows to tune on: give data.of.validation_fraction > 0.")
    parts = {"train": of.train, "test": of.validation, "scaler/x": of.x_scaler, "scaler/y": of.y_scaler}
    return dataclasses.replace(
        of, validation=None, test=of.validation, shifted={}, ood={}, checksum=checksum({**parts, "held out": ()})
    )
