"""Check before compilation that a stage's method, schedule and data fit each other."""

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
"""The prefix with which the messages of factories name their options."""


def nodes(inference: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the configuration of each stage by its path, in the order in which the stages run."""
    earlier = inference.get("before") or []
    return {f"inference.before.{i}": node for i, node in enumerate(earlier)} | {"inference": inference}


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """Replace the prefix of options in a ConfigError by the path of their stage.

    Factories name their options ``inference.<option>`` in every stage.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(FIELD.sub(f"{path}.", str(error))) from error


def check(stage: Stage, target: Target, data: Data, numbers: Mapping[str, Any], *, first: bool, parent: Any) -> None:
    """Make the method of a stage, and check that its schedule, its data and its start fit it.

    Parameters
    ----------
    stage : Stage
    target : Target
    data : Data
        All training rows.
    numbers : mapping
        The floats of the program by their dotted paths.
    first : bool
        Whether the stage is the first of the run.
    parent
        The stored run from which the first stage starts, or None.

    Raises
    ------
    ConfigError
        If the batch size, the held-out rows, ``thinning`` or the start do not fit the method, or its factory refuses an
        option.
    """
    batches.check(stage.schedule, data.size)
    batches_fit(target, stage.schedule, data)
    method = stage.factory(target, stage.schedule, numbers)
    check_target(stage.name, method, target)
    if method.markov and stage.schedule.num_samples and not stage.schedule.thinning:
        raise ConfigError(f"inference.schedule.thinning=0 would keep one state of {stage.name}: use 1 or more.")
    if method.start == "own" and not first:
        raise ConfigError(
            f"inference.before has a stage before {stage.name}, which draws its own start points from the prior: leave "
            "that stage out, as inference.before=[] does."
        )
    if method.start == "own" and parent is not None:
        raise ConfigError(
            f"warm_start={parent.id} cannot be used with {stage.name}, which draws its own start points from the prior: "
            "use null."
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
    """Raise ConfigError if minibatches are configured for a model that cannot be evaluated on a part of the rows.

    An example is a model with one latent variable for each row. The model is evaluated on at least two rows and fewer
    than all: with one row, broadcasting hides the fault, and all rows fit the shapes of such a model.
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
