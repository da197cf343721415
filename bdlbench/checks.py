"""Range checks on a configuration's numbers.

Factories call them on whatever they are handed. Before anything is compiled they are handed the numbers themselves;
while a program is traced they are handed tracers, which have been checked already and pass.
"""

import math
from collections.abc import Mapping
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.types import Schedule


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


def checked_schedule(node: Any, path: str, last: Schedule | None) -> Schedule:
    """A schedule, checked. Earlier stages have the last stage's chains."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path}={node!r} must be a schedule with {', '.join(Schedule._fields)}.")
    given = dict(node) if last is None else {"num_chains": last.num_chains, **node}
    unknown = set(given) - set(Schedule._fields)
    if unknown:
        raise ConfigError(f"{path}.{min(unknown)} is unknown: a schedule has {', '.join(Schedule._fields)}.")
    for name in ("num_chains", "num_warmup", "num_samples", "thinning"):
        least = 1 if name == "num_chains" or (name == "num_samples" and last is None) else 0
        value = given.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{path}.{name}={value} must be a whole number, at least {least}.")
    size = given.get("batch_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise ConfigError(f"{path}.batch_size={size} must be a whole number, or null for all rows.")
    if given.get("batching", "epoch") not in ("epoch", "iid"):
        raise ConfigError(f"{path}.batching={given['batching']!r} is unknown: use epoch or iid.")
    return Schedule(**given)


def check_options(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a top-level option that no factory would look at."""
    if not isinstance(config["rerun"], bool):
        raise ConfigError(f"rerun={config['rerun']!r} must be true or false.")
    if config["progress"] not in ("auto", "lines", "off"):
        raise ConfigError(f"progress={config['progress']!r} is unknown: use auto, lines or off.")
    rows = config["store"]["predictive_rows"]
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise ConfigError(f"store.predictive_rows={rows!r} must be a whole number, at least 1.")
    seconds = config["store"]["checkpoint_seconds"]
    good = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < math.inf
    if seconds is not None and not good:
        raise ConfigError(f"store.checkpoint_seconds={seconds!r} must be a number of seconds, or null for never.")


def refuse_missing(node: Any, path: str = "") -> None:
    """Raise ConfigError where a value is still ``???``."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        name = f"{path}.{key}" if path else str(key)
        if value == "???":
            raise ConfigError(f"{name} is required: give {name}=... on the command line.")
        refuse_missing(value, name)
