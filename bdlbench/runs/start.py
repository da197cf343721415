"""Where the chains of a run start: the option ``inference.init``, and the sentence about it in a record."""

from collections.abc import Mapping
from typing import Any

from bdlbench.errors import ConfigError

# Keywords, as one of the names is also that of a method, which no string outside of inference may be.
STEPS = dict(prior=0, map=3000, adam=200)
"""Steps of Adam on the log density that follow a draw from the prior."""


def with_init(inference: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``inference`` in which ``init`` is written out as ``start`` and ``before``, which it replaces.

    ``prior``: each chain starts at a draw from the prior, so that chains are as dispersed as R-hat supposes. ``map``: 3,000
    steps of Adam from there, to a mode. ``adam``: 200 steps, to where the density is not steep any more. None: as the
    preset says. A run has the identity of one in which the same start is written out.

    Raises
    ------
    ConfigError
        For another value.
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
    """How the chains of a run started, in words.

    Parameters
    ----------
    program : Program
    parent : Parent or None
        The stored run whose draws they start from.
    """
    names = {"prior": "draws from the prior", "network": "random initialisations of the network"}
    where = names[program.start] if parent is None else f"draws of run {parent.id}"
    return ", then ".join([where, *(f"{s.schedule.num_warmup:,} steps of {s.name}" for s in program.stages[:-1])])
