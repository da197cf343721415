"""Partly Bayesian networks: some weights get a posterior; the others are first fitted to the mode and stay fixed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bdlbench.api import fitting
from bdlbench.api.problem import Parts, Rows, make_job
from bdlbench.errors import ConfigError
from bdlbench.runs import configuration
from bdlbench.runs.job import Job, check_job
from bdlbench.runs.progress import Progress

NETWORK = "network."
REST = "rest."
"""Prefix of the options for the fit of the fixed weights."""


def fix_the_rest(
    parts: Parts,
    rows: Rows,
    job: Job,
    bayesian: str | Callable[[str], bool],
    options: Mapping[str, Any],
    shown: Progress,
) -> tuple[Parts, dict[str, float]]:
    """Fit all weights to the mode of the posterior, and fix those that get no posterior.

    Parameters
    ----------
    bayesian : "last_layer", or a function of a weight's path, as ``output.kernel``
        Which weights keep a posterior. Sites that are not weights, such as a noise scale, always keep one.
    options : mapping
        Options of the preset ``map``, which finds the mode.

    Returns
    -------
    tuple (parts, price)
        The model with the other weights fixed, and the cost of the fit: gradient evaluations on all rows, and seconds.
    """
    if not parts.has_network:
        raise ConfigError("bayesian chooses weights of a network, but this is a NumPyro model: leave it out.")
    given = {f"schedule.{name}" if name in fitting.SCHEDULE else name: value for name, value in options.items()}
    node = configuration.preset("inference", "map", given)
    mode = dataclasses.replace(
        parts,
        nodes=configuration.coerced({**parts.nodes, "inference": node}, ""),
        objects={name: thing for name, thing in parts.objects.items() if name != "inference"},
        labels={**parts.labels, "inference": "map of the rest"},
    )
    first = make_job(mode, rows, job.seed)
    first = check_job(first)
    train = first.dataset.train
    target = first.program.make_target(first.numbers, jnp.asarray(train.x), jnp.asarray(train.y))
    draws = fitting.sample(first, shown)
    chain, draw = np.argwhere(draws.good)[0]
    sites = {name: np.asarray(value) for name, value in target.constrain(jnp.asarray(draws.theta[chain, draw])).items()}
    chosen = _chosen(target, sites, bayesian)
    fixed = {name: value for name, value in sites.items() if name.startswith(NETWORK) and name not in chosen}
    if not fixed:
        raise ConfigError("bayesian leaves no weight to fix: leave it out for a posterior of the whole network.")
    seconds = draws.seconds.get("warmup", 0.0) + draws.seconds.get("sample", 0.0)
    price = {"num_grads": sum(draws.num_grads(len(train.y)).values()), "seconds": seconds}
    return dataclasses.replace(parts, fixed=fixed), price


def _chosen(target: Any, sites: Mapping[str, np.ndarray], bayesian: str | Callable[[str], bool]) -> set[str]:
    """Names of the weights that keep a posterior."""
    weights = [name for name in sites if name.startswith(NETWORK)]
    if callable(bayesian):
        chosen = {name for name in weights if bayesian(name.removeprefix(NETWORK))}
        if not chosen:
            known = ", ".join(name.removeprefix(NETWORK) for name in weights)
            raise ConfigError(f"bayesian chooses none of the network's weights: say True for some of {known}.")
        return chosen
    if bayesian != "last_layer":
        raise ConfigError(f"bayesian={bayesian!r} is unknown: use 'last_layer' or a function of a weight's path.")
    # A site is of the last layer if moving theta there moves it.
    mask = jnp.asarray(target.last_layer(), float)
    still, moved = target.constrain(jnp.zeros(target.dim)), target.constrain(mask)
    return {name for name in weights if not np.array_equal(still[name], moved[name])}
