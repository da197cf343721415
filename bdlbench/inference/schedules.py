"""Step sizes and learning rates: numbers, optax schedules of the stage's step, and the cosine of cyclical methods.

A cyclical step size follows a cosine in each cycle (Zhang et al. 2020; Loshchilov & Hutter 2017).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdlbench.errors import ConfigError
from bdlbench.options import at_least, positive
from bdlbench.types import Array, Schedule

LOOKS = 1000
"""Number of steps, evenly spaced over a stage, at which a schedule is checked."""


def at(step_size: float | optax.Schedule, t: Any) -> Any:
    """The step size of the stage's step t, counted from 0 through warm-up and sampling."""
    return step_size(t) if callable(step_size) else step_size


def check_step_size(schedule: Schedule, step_size: Any, path: str = "inference.step_size") -> float | None:
    """Check a step size and return its largest value in the stage.

    While a program is traced it returns None and checks nothing, since the check was done before.

    Parameters
    ----------
    step_size : float or optax schedule
        Anything else is refused, such as an optimiser or a mapping without ``_target_``.
    path : str
        The name of the step size in the configuration.

    Raises
    ------
    ConfigError
        If a number is not positive and finite, or a schedule is not finite, is negative, or is 0 everywhere.
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
    """Check the learning-rate schedules in the configuration of a stage.

    The factory of the method gets a finished optimiser, whose schedule it cannot check.

    Parameters
    ----------
    node : dict, list or leaf
        The stage's configuration, or a part of it. The configurations of earlier stages in it are skipped.
    path : str
        The path of ``node`` in the configuration.
    build : (node, path) -> object
        Makes the object that a node with ``_target_`` describes.

    Raises
    ------
    ConfigError
        As :func:`check_step_size`.
    """
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        place = f"{path}.{key}"
        if key == "learning_rate" and isinstance(value, Mapping):
            check_step_size(schedule, build(value, place) if "_target_" in value else value, place)
        elif key not in ("before", "schedule"):
            check_learning_rates(value, place, schedule, build)


def cosine(schedule: Schedule, num_cycles: int) -> Callable[[Array], Array]:
    r"""The factor of step t, from 1 at a cycle's start to nearly 0 at its end.

    .. math:: c_t = \tfrac12 \left(\cos \frac{\pi (t \bmod C)}{C} + 1\right), \quad C = (W + S k) / M

    for W warm-up steps and S draws, with k steps for each draw, which are divided equally between M cycles.

    Raises
    ------
    ConfigError
        If W or S is not a multiple of M, or k is 0.
    """
    at_least("inference", 1, num_cycles=num_cycles)
    at_least("inference", 1, schedule__thinning=schedule.thinning)
    for name in ("num_warmup", "num_samples"):
        total = getattr(schedule, name)
        if total % num_cycles:
            raise ConfigError(
                f"inference.schedule.{name}={total} cannot be shared out over {num_cycles} cycles: use a multiple."
            )
    length = (schedule.num_warmup + schedule.num_samples * schedule.thinning) // num_cycles
    factor = optax.cosine_decay_schedule(1.0, length)
    return lambda t: factor(t % length)
