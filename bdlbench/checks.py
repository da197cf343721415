"""Range checks on a configuration's numbers.

Factories call them on whatever they are handed. Before anything is compiled they are handed the numbers themselves;
while a program is traced they are handed tracers, which have been checked already and pass.
"""

import math
from collections.abc import Mapping
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.types import Data, Schedule, Target

MOST_BYTES = 2**31
"""Bytes of one chain's state above which it is refused."""
MOST_STEPS = 2**31 - 1
"""Steps of a stage: the step index is a 32-bit number."""
POSITIVE = ("learning_rate", "step_size", "init_value", "peak_value")
SHARES = ("momentum", "decay", "b1", "b2", "b3", "beta")
"""Optimisers' averages: in [0, 1)."""


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
    """Raise ConfigError unless every value is finite and >= ``smallest``."""
    for name, value in _each(values):
        if not (value >= smallest and math.isfinite(value)):
            raise ConfigError(f"{section}.{name}={value} must be at least {smallest}, and finite.")


def at_most(section: str, largest: int, **values: Any) -> None:
    """Raise ConfigError unless every value is <= ``largest``."""
    for name, value in _each(values):
        if value > largest:
            raise ConfigError(f"{section}.{name}={value} must be at most {largest}.")


def fits(section: str, num_bytes: float, what: str, remedy: str, *, limit: float = MOST_BYTES, **values: Any) -> None:
    """Raise ConfigError where a state would take more than ``limit`` bytes a chain, before it is allocated.

    Parameters
    ----------
    values : the option that makes it so large, by name.
    what : str
        What is so large: "a 3 x 3 matrix".
    remedy : str
        What to do instead.
    """
    if num_bytes > limit:
        given = " and ".join(f"{section}.{name}={value}" for name, value in values.items())
        raise ConfigError(
            f"{given} needs {what} of {num_bytes / 2**30:,.2f} GiB a chain, more than {limit / 2**30:g} GiB: {remedy}."
        )


def full_data(section: str, method: str, batch_size: int | None) -> None:
    """Raise ConfigError where a method that compares log densities between steps is given batches."""
    if batch_size is not None:
        raise ConfigError(
            f"{section}.schedule.batch_size={batch_size} does not fit {method}, whose steps compare log densities of all "
            "rows: use null."
        )


def batches_fit(target: Target, schedule: Schedule, data: Data) -> None:
    """Raise ConfigError where a model has something of its own for each row, so that a batch would be taken for others.

    Looked at on fewer rows than all: broadcasting hides it on one row, and the order of the rows on all of them.
    """
    import jax

    size = schedule.batch_size
    if size is None or data.size < 3:
        return
    theta, few = target.start(jax.random.key(0)), max(2, min(size, data.size - 1))
    try:
        shape = target.terms(theta, data.x[:few], data.y[:few]).log_lik.shape
    except (TypeError, ValueError):
        shape = ()
    if shape != (few,):
        raise ConfigError(
            f"inference.schedule.batch_size={size} does not fit this model, which cannot be evaluated on some of its "
            f"{data.size} rows, as where each row has a latent of its own: use null."
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
    if (steps := given["num_warmup"] + given["num_samples"] * given["thinning"]) > MOST_STEPS:
        raise ConfigError(
            f"{path}.num_warmup + num_samples thinning = {steps} is more than the {MOST_STEPS} steps that are counted: "
            "take fewer."
        )
    return Schedule(**given)


def check_optimizers(node: Any, path: str) -> None:
    """Raise ConfigError for a number that no optimiser or schedule of optax can use: optax does not look.

    Rates are positive, averages in [0, 1), a decay of weights is not negative, steps are counted from 1, and anything
    else is finite.
    """
    if isinstance(node, list):
        for i, value in enumerate(node):
            check_optimizers(value, f"{path}.{i}")
    if not isinstance(node, Mapping):
        return
    ours = str(node.get("_target_", "")).startswith("optax.")
    for name, value in node.items():
        check_optimizers(value, f"{path}.{name}")
        if not ours or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name in POSITIVE:
            positive(path, **{name: value})
        elif name in SHARES:
            if not 0 <= value < 1:
                raise ConfigError(f"{path}.{name}={value} must be at least 0 and below 1.")
        elif name in ("weight_decay", "eps"):
            non_negative(path, **{name: value})
        elif name.endswith("steps"):
            at_least(path, 1, **{name: value})
        elif not math.isfinite(value):
            raise ConfigError(f"{path}.{name}={value} must be finite.")


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
