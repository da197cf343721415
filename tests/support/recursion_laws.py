"""Laws of presets that are linear recursions on a Gaussian posterior: the moments at the step of each draw."""

from collections.abc import Callable
from typing import Any

import numpy as np
from known_posteriors import PRIOR_SCALE, Verdict, moments
from laws import Run
from linear_recursions import Moments, Recursion, moments_of, recursion

CYCLES = 10
"""The number of cycles in the runs of the cyclical presets. Each cycle explores for 30 steps."""


def of_recursion(
    at: Callable[[Run, int], Recursion], start: Callable[[Run], Moments], num_cycles: int = 1
) -> Callable[[Run], Verdict]:
    """Make the verdict that compares draws with the exact moments at their steps.

    The moments follow from those of the start, through all steps including warm-up. ``at(run, t)`` is the recursion of
    step t.
    """

    def verdict(run: Run) -> Verdict:
        dim, plan = run.problem.x.shape[1], run.schedule
        warm, each = plan.num_warmup // num_cycles, plan.num_samples // num_cycles * plan.thinning
        found, now, last = [], start(run), None
        for t in range(num_cycles * (warm + each)):
            here = at(run, t)
            now, last = here.after(now), here
            since = t % (warm + each) - warm + 1
            if since > 0 and since % plan.thinning == 0:
                found.append(now)
        assert last is not None and len(found) == plan.num_samples
        roots = np.linalg.cholesky(np.stack([m.cov[:dim, :dim] for m in found]))
        away = run.drawn.draws - np.stack([m.mean[:dim] for m in found])
        return moments(np.linalg.solve(roots, away[..., None])[..., 0], np.zeros(dim), np.eye(dim))

    return verdict


def cycle(run: Run) -> int:
    """Return the number of steps of a cycle."""
    return (run.schedule.num_warmup + run.schedule.num_samples * run.schedule.thinning) // CYCLES


def cosine(run: Run, t: int) -> float:
    """Return the factor by which the cosine schedule multiplies the step size at step t."""
    return float((np.cos(np.pi * (t % cycle(run)) / cycle(run)) + 1) / 2)


def from_prior(run: Run, momentum: bool = False) -> Moments:
    """Return the moments of theta drawn from the prior and, with ``momentum``, a standard normal momentum."""
    dim = run.problem.x.shape[1]
    variances = np.concatenate([np.full(dim, PRIOR_SCALE**2), np.ones(dim * momentum)])
    return moments_of(np.zeros(len(variances)), np.diag(variances))


def constant(make: Callable[[Run], tuple[Any, np.ndarray]]) -> Callable[[Run, int], Recursion]:
    """Return a function that gives the same recursion at every step. It is made once for each run."""
    made: dict[int, Recursion] = {}

    def at(run: Run, t: int) -> Recursion:
        if id(run) not in made:
            made.clear()
            made[id(run)] = recursion(run.problem, *make(run), run.schedule.batch_size)
        return made[id(run)]

    return at
