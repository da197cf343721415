"""Range checks on a configuration's numbers.

Factories call them on whatever they are handed. Before anything is compiled they are handed the numbers themselves;
while a program is traced they are handed tracers, which have been checked already and pass.
"""

import math
from typing import Any

from bdlbench.errors import ConfigError


def _each(values: dict[str, Any]) -> list[tuple[str, float]]:
    return [(n.replace("__", "."), v) for n, v in values.items() if isinstance(v, int | float)]


def positive(section: str, **values: Any) -> None:
    """Raise ConfigError unless every value is finite and > 0. ``a__b`` is shown as ``a.b``."""
    for name, value in _each(values):
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{section}.{name}={value} must be a positive finite number.")


def non_negative(section: str, **values: Any) -> None:
    """Raise ConfigError unless every value is finite and >= 0."""
    for name, value in _each(values):
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{section}.{name}={value} must be zero or a positive finite number.")


def fraction(section: str, **values: Any) -> None:
    """Raise ConfigError unless every value lies strictly between 0 and 1."""
    for name, value in _each(values):
        if not 0 < value < 1:
            raise ConfigError(f"{section}.{name}={value} must lie strictly between 0 and 1.")


def at_least(section: str, smallest: int, **values: Any) -> None:
    """Raise ConfigError unless every value is >= ``smallest``."""
    for name, value in _each(values):
        if value < smallest:
            raise ConfigError(f"{section}.{name}={value} must be at least {smallest}.")


def full_data(section: str, method: str, batch_size: int | None) -> None:
    """Raise ConfigError where a method that compares log densities between steps is given batches."""
    if batch_size is not None:
        raise ConfigError(
            f"{section}.schedule.batch_size={batch_size} does not fit {method}, whose steps compare log densities of all "
            "rows: use null."
        )
