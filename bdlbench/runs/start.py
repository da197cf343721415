"""The start points of the chains of a run: the option ``inference.init``, and the sentence about it in a record."""

from collections.abc import Mapping
from typing import Any

from bdlbench.errors import ConfigError

# Keywords, as one of the names is also that of a method, which no string outside of inference may be.
STEPS = dict(prior=0, map=3000, adam=200)
"""Steps of Adam on the log density that follow a draw from the prior."""


def with_init(inference: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``inference``, in which ``start`` and ``before`` are set as ``init`` demands.

    ``prior``: each chain starts at a draw from the prior, so that the chains are dispersed, as R-hat assumes. ``map``:
    3,000 steps of Adam from there, to a mode. ``adam``: 200 steps of Adam, to a point where the density is less steep.
    None: the start of the preset. A run has the same id as one that sets ``start`` and ``before`` directly.

    Raises
    ------
    ConfigError
        If ``init`` has another value.
    """
    out = {key: value for key, value in inference.items() if key != "init"}
    init = inference.get("init")
    if init is None:
        return out
    if not (isinstance(init, str) and init in STEPS):
        raise ConfigError(
            f"inference.init={init!r} is unknown: use prior, map, adam or null, for the preset's own start."
        )
    schedule = {"num_warmup": STEPS[init], "num_samples": 0, "thinning": 0}
    ascent = {
        "_target_": "bdlbench.inference.point.maximum_a_posteriori",
        "optimizer": {"_target_": "optax.adam", "learning_rate": 0.01},
        "schedule": schedule,
    }
    return out | {"start": "prior", "before": [ascent] if STEPS[init] else []}


def described(program: Any, parent: Any) -> str:
    """A description in words of the start points of a run's chains.

    Parameters
    ----------
    program : Program
    parent : Parent or None
        The stored run whose draws they start from.
    """
    names = {"prior": "draws from the prior", "network": "random initialisations of the network"}
    where = names[program.start] if parent is None else f"draws of run {parent.id}"
    return ", then ".join([where, *(f"{s.schedule.num_warmup:,} steps of {s.name}" for s in program.stages[:-1])])
