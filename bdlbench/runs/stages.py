"""What a stage is asked to do, looked at before anything is compiled."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bdlbench.errors import ConfigError
from bdlbench.sampling import batches
from bdlbench.sampling.programs import check_target
from bdlbench.types import Data, Schedule, Stage, Target

FIELD = re.compile(r"(?<![\w.])inference\.(?!before\b)")
"""How a factory begins the name of an option of its own."""


def nodes(inference: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The configuration of each stage by its path, in the order in which they run."""
    earlier = inference.get("before") or []
    return {f"inference.before.{i}": node for i, node in enumerate(earlier)} | {"inference": inference}


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """Give the options that an error names the path of their stage: factories call each ``inference.<option>``."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(FIELD.sub(f"{path}.", str(error))) from error


def check(stage: Stage, target: Target, data: Data, numbers: Mapping[str, Any], *, first: bool, parent: Any) -> None:
    """Make a stage's method and look at what it is given.

    Parameters
    ----------
    data : Data
        All training rows.
    first : bool
        Whether no stage runs before it.
    parent
        The stored run that the first stage starts from, or None.

    Raises
    ------
    ConfigError
        A batch, rows held out, draws or a start that do not fit the method, and what its factory refuses.
    """
    batches.check(stage.schedule, data.size)
    batches_fit(target, stage.schedule, data)
    method = stage.factory(target, stage.schedule, numbers)
    check_target(stage.name, method, target)
    if method.markov and stage.schedule.num_samples and not stage.schedule.thinning:
        raise ConfigError(f"inference.schedule.thinning=0 would keep one state of {stage.name}: use 1 or more.")
    if method.start == "own" and not first:
        raise ConfigError(
            f"inference.before has no use for {stage.name}, which begins at draws from the prior of its own: leave no "
            "stage before it, as inference.before=[] does."
        )
    if method.start == "own" and parent is not None:
        raise ConfigError(
            f"warm_start={parent.id} has no use for {stage.name}, which begins at draws from the prior of its own: use "
            "null."
        )
    if method.start == "mode" and first and parent is None:
        raise ConfigError(
            f"inference.before has no stage that finds the mode that {stage.name} is taken around: keep the preset's, or "
            "give warm_start=<id of a run that found it>."
        )
    rows = batches.hold_out(data, jnp.arange(data.size), method.validation_fraction)
    batches.check(stage.schedule, rows.size)
    method.init(jax.random.key(0), jnp.zeros(target.dim), rows)


def batches_fit(target: Target, schedule: Schedule, data: Data) -> None:
    """Raise ConfigError where a model has something of its own for each row, so that a batch would be taken for others.

    Looked at on fewer rows than all: broadcasting hides it on one row, and the order of the rows on all of them.
    """
    size = schedule.batch_size
    if size is None or data.size < 3:
        return
    theta, few = target.sample_prior(jax.random.key(0)), max(2, min(size, data.size - 1))
    try:
        some = data._replace(x=data.x[:few], y=data.y[:few])
        shape = target.terms(theta, some).log_lik.shape
    except (TypeError, ValueError):
        shape = ()
    if shape != (few,):
        raise ConfigError(
            f"inference.schedule.batch_size={size} does not fit this model, which cannot be evaluated on some of its "
            f"{data.size} rows, as where each row has a latent of its own: use null."
        )
