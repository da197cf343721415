"""Update a posterior with more rows. The new fit uses all rows and begins where the last fit ended."""

import dataclasses
from typing import Any

import numpy as np

from bdlbench.api import fitting, posterior
from bdlbench.api.inputs import numeric_targets, target_array
from bdlbench.api.problem import Parts, Rows, make_job
from bdlbench.runs.job import check_job
from bdlbench.sampling.programs import NEVER


def updated(old: "posterior.Posterior", x_more: Any, y_more: Any, seed: int) -> "posterior.Posterior":
    """See :meth:`bdlbench.Posterior.update`."""
    origin, server = old._origin, old._server
    assert origin is not None
    x = server.inputs.rows(x_more)
    codes = server.targets.standardised(y_more, len(x))
    y = codes if server.targets.classes is not None else numeric_targets(target_array(y_more))
    first = origin.rows
    rows = Rows(np.concatenate([first.x, x]), np.concatenate([first.y, y]), first.inputs, first.targets, first.notes)
    parts, theta = _begin(old._parts, server.theta, server.good, server.anchor, origin.start, old.schedule.thinning)
    position = origin.position
    if position is not None:
        parts, theta = _without_earlier(old._parts), None
        never = np.full(len(server.theta), NEVER)
        position = position._replace(stage=0, cycle=0, phase="warmup", done=0, bad_step=never, anchor=None)
    job = make_job(parts, rows, seed)
    job = check_job(job)
    progress = fitting.progress_of(False if origin.progress is None else origin.progress)
    draws = fitting.sample(job, progress, theta=theta, position=position)
    return posterior.from_draws(old._parts, rows, job, draws, origin.progress)


def _begin(
    parts: Parts, theta: np.ndarray, good: np.ndarray, anchor: np.ndarray | None, start: str, thinning: int
) -> tuple[Parts, np.ndarray | None]:
    """The stages to run, and the points (C, D) at which the first one begins; None if the method chooses its own start.

    A method that is linearised at a mode runs again the stages that found the mode, and begins at the old mode. A
    method with independent draws does the same from the mean of its draws. A Markov chain continues from its last draw.
    """
    if start == "own" or theta.ndim == 4:
        return parts, None
    if anchor is not None:
        return parts, anchor
    chains = [chain for chain in range(len(theta)) if good[chain].any()]
    use = [chain if good[chain].any() else chains[chain % len(chains)] for chain in range(len(theta))]
    if thinning == 0:
        return parts, np.stack([theta[chain][good[chain]].mean(axis=0) for chain in use])
    return _without_earlier(parts), np.stack([theta[chain][good[chain]][-1] for chain in use])


def _without_earlier(parts: Parts) -> Parts:
    """The method without the stages that prepare its start."""
    if "inference" not in parts.nodes:
        return parts
    return dataclasses.replace(parts, nodes={**parts.nodes, "inference": {**parts.nodes["inference"], "before": []}})
