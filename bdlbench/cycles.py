"""Cyclical step sizes: a cosine that starts again (Zhang et al. 2020; Loshchilov & Hutter 2017)."""

from collections.abc import Callable

import optax

from bdlbench.checks import at_least
from bdlbench.errors import ConfigError
from bdlbench.types import Array, Schedule


def cosine(schedule: Schedule, num_cycles: int) -> Callable[[Array], Array]:
    r"""The factor of step t, from 1 at a cycle's start to nearly 0 at its end.

    .. math:: c_t = \tfrac12 \left(\cos \frac{\pi (t \bmod C)}{C} + 1\right), \quad C = (W + S k) / M

    for W warm-up steps and S draws after k steps each, shared out over M cycles.

    Raises
    ------
    ConfigError
        Where W or S is not a multiple of M, or k is 0.
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
