"""Step sizes and learning rates: a number, or an optax schedule of the stage's step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdlbench.checks import positive
from bdlbench.errors import ConfigError
from bdlbench.types import Schedule

LOOKS = 1000
"""Steps, evenly spaced over a stage, at which a schedule is checked."""


def at(step_size: float | optax.Schedule, t: Any) -> Any:
    """The step size of the stage's step t, counted from 0 through warm-up and sampling."""
    return step_size(t) if callable(step_size) else step_size


def check(schedule: Schedule, step_size: Any, path: str = "inference.step_size") -> float | None:
    """The largest step size of the stage, checked; None while a program is traced, which has been checked before.

    Parameters
    ----------
    step_size : float or optax schedule
        Anything else is refused, as a mapping that lacks ``_target_`` or an optimiser.
    path : str
        What the step size is called in the configuration.

    Raises
    ------
    ConfigError
        Unless a number is positive and finite, and a schedule finite, never negative and somewhere positive.
    """
    if not callable(step_size):
        if isinstance(step_size, Mapping | tuple):
            raise ConfigError(f"{path} must be a number or a schedule, as optax.exponential_decay is one.")
        section, _, name = path.rpartition(".")
        positive(section, **{name: step_size})
        return step_size if isinstance(step_size, int | float) else None
    last = schedule.num_warmup + schedule.num_samples * schedule.thinning - 1
    steps = np.unique(np.linspace(0, max(last, 0), LOOKS).astype(np.int32))
    try:
        with jax.ensure_compile_time_eval():
            values = np.asarray(jax.vmap(lambda t: jnp.asarray(step_size(t), jnp.float32))(steps))
    except (jax.errors.UnexpectedTracerError, jax.errors.TracerArrayConversionError):
        return None
    bad = ~(np.isfinite(values) & (values >= 0))
    bad[0] |= last >= 0 and not values.any()
    if bad.any():
        raise ConfigError(
            f"{path} is {values[bad][0]:g} at step {steps[bad][0]}: its schedule must be finite, never negative and not "
            "zero throughout."
        )
    return float(values.max())


def check_learning_rates(node: Any, path: str, schedule: Schedule, build: Callable[..., Any]) -> None:
    """Check the schedules of a stage's optimisers, which their factory gets built and cannot look into.

    Parameters
    ----------
    node : dict, list or leaf
        The stage's configuration, or a part of it; the stages before it are theirs to check.
    path : str
        Where it stands.
    build : (node, path) -> object
        Makes what a node with ``_target_`` describes.

    Raises
    ------
    ConfigError
        As :func:`check`.
    """
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        place = f"{path}.{key}"
        if key == "learning_rate" and isinstance(value, Mapping):
            check(schedule, build(value, place) if "_target_" in value else value, place)
        elif key not in ("before", "schedule"):
            check_learning_rates(value, place, schedule, build)
