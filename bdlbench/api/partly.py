"""Partly Bayesian networks: some weights get a posterior; the others are first fitted to the mode and stay fixed."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bdlbench.api import fitting
from bdlbench.api.problem import Parts, Rows, make_job
from bdlbench.errors import ConfigError
from bdlbench.model.kept import read_weights, write_weights
from bdlbench.runs import configuration
from bdlbench.runs.job import Job, check_job
from bdlbench.runs.progress import Progress

NETWORK = "network."


def fix_the_rest(
    parts: Parts,
    rows: Rows,
    job: Job,
    bayesian: str | Callable[[str], bool],
    options: Mapping[str, Any],
    shown: Progress,
    place: Callable[[Any], Path] | None = None,
) -> tuple[Parts, dict[str, float]]:
    """Fit all weights to the mode of the posterior, and fix those that get no posterior.

    Parameters
    ----------
    bayesian : "last_layer", or a function of a weight's path, as ``output.kernel``
        Which weights keep a posterior. Sites that are not weights, such as a noise scale, always keep one.
    options : mapping
        Options of the preset ``map``, which finds the mode.
    place : function, optional
        Of what the fixed weights depend on, as plain data; the file in which they are kept, and found again.

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
    sites = target.constrain(jnp.zeros(target.dim))
    chosen = _chosen(target, sites, bayesian)
    names = [name for name in sites if name.startswith(NETWORK) and name not in chosen]
    if not names:
        raise ConfigError("bayesian leaves no weight to fix: leave it out for a posterior of the whole network.")
    file = None if place is None else place([sorted(names), first.config["inference"]])
    if file is not None and file.is_file():
        fixed, price = read_weights(str(file))
        return dataclasses.replace(parts, fixed=fixed), price
    draws = fitting.sample(first, shown)
    chain, draw = np.argwhere(draws.good)[0]
    sites = target.constrain(jnp.asarray(draws.theta[chain, draw]))
    fixed = {name: np.asarray(sites[name]) for name in names}
    seconds = draws.seconds.get("warmup", 0.0) + draws.seconds.get("sample", 0.0)
    price = {"num_grads": sum(draws.num_grads(len(train.y)).values()), "seconds": seconds}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_weights(file, fixed, price)
    return dataclasses.replace(parts, fixed=fixed), price


def _chosen(target: Any, sites: Mapping[str, Any], bayesian: str | Callable[[str], bool]) -> set[str]:
    """Names of the weights that keep a posterior."""
    weights = [name for name in sites if name.startswith(NETWORK)]
    if callable(bayesian):
        chosen = {name for name in weights if _asked(bayesian, name.removeprefix(NETWORK))}
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


def _asked(bayesian: Callable[[str], bool], path: str) -> bool:
    """What the caller's function says of a weight."""
    try:
        return bool(bayesian(path))
    except Exception as error:  # a function of the caller's may raise anything
        raise ConfigError(
            f"bayesian fails at the weight '{path}' ({type(error).__name__}: {error}): give a function of one path that "
            "returns True or False."
        ) from error
