"""Step sizes: a number, or an optax schedule of the stage's step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdlbench.checks import positive
from bdlbench.errors import ConfigError
from bdlbench.types import Schedule

LOOKS = 1000
"""Steps, evenly spaced over a stage, at which a schedule of step sizes is checked."""


def at(step_size: float | optax.Schedule, t: Any) -> Any:
    """The step size of the stage's step t, counted from 0 through warm-up and sampling."""
    return step_size(t) if callable(step_size) else step_size


def check(schedule: Schedule, step_size: float | optax.Schedule) -> float | None:
    """The largest step size of the stage, checked; None while a program is traced, which has been checked before.

    Raises
    ------
    ConfigError
        Unless a number is positive and finite, and a schedule finite, never negative and somewhere positive.
    """
    if not callable(step_size):
        if isinstance(step_size, dict | tuple):
            raise ConfigError("inference.step_size must be a number or a schedule, as optax.exponential_decay is one.")
        positive("inference", step_size=step_size)
        return step_size if isinstance(step_size, int | float) else None
    last = schedule.num_warmup + schedule.num_samples * schedule.thinning - 1
    steps = np.unique(np.linspace(0, max(last, 0), LOOKS).astype(np.int32))
    try:
        with jax.ensure_compile_time_eval():
            values = np.asarray(jax.vmap(lambda t: jnp.asarray(step_size(t), jnp.float32))(steps))
    except (jax.errors.UnexpectedTracerError, jax.errors.TracerArrayConversionError):
        return None
    bad = ~(np.isfinite(values) & (values >= 0))
    bad[0] |= values[0] == 0 and not values.any()
    if bad.any():
        raise ConfigError(
            f"inference.step_size is {values[bad][0]:g} at step {steps[bad][0]}: its schedule must be finite, never "
            "negative and not zero throughout."
        )
    return float(values.max())
