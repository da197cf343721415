"""Options of a fit by what they belong to: the method, a part of the model, the fit of the rest, or the run that is kept."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.runs.configuration import sections
from bdlbench.types import Schedule

PARTS = ("network", "prior", "likelihood")
REST = "rest"
KEPT = {
    "store": ("predictive_rows", "checkpoint_seconds"),
    "limits": ("memory", "attempts"),
    "rerun": (),
    "warm_start": (),
}
"""Options of a command that belong to a run in a store, with their own options."""
ARGUMENTS = ("model", "seed", "temperature", "precision", "progress", *PARTS, "inference", "store")
ELSEWHERE = {
    "data": "the rows are x and y, and standardize says whether they are scaled",
    "metrics": "give them to score_table",
    "report": "score_table compares posteriors",
    "tuned": "give the tuned values themselves, as in step_size=1e-3",
    "tuned_for": "give the tuned values themselves, as in step_size=1e-3",
    "tuning_num_grads": "a fit has no record of a search",
    "experiment": "an experiment is run by the command bdlbench",
    "paths": "a fit downloads no data",
    "hydra": "a fit is one run, without launcher and sweeper",
}
"""What a command has beside these, and what a fit has in its place."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options by their dotted path within what they belong to.

    Attributes
    ----------
    method : dict
        Of the method and its schedule.
    parts : dict of dict
        Of the presets of network, prior and likelihood.
    rest : dict
        Of the fit of the weights that have no posterior.
    kept : dict
        Of the run in a store, such as ``store.checkpoint_seconds``.
    """

    method: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    rest: dict[str, Any]
    kept: dict[str, Any]


def sorted_options(options: Any, keywords: Mapping[str, Any]) -> Options:
    """Sort the options of a fit by what they belong to.

    Options have the paths of the command line. Those of the method may leave out ``inference`` and ``schedule``.

    Raises
    ------
    ConfigError
        For an option that is given twice, that is an argument of ``fit``, or that a fit does not have.
    """
    found = Options({}, {name: {} for name in PARTS}, {}, {})
    for path, value in _merged(options, keywords).items():
        first, _, inner = path.partition(".")
        if first == REST and inner:
            found.rest[inner] = value
        elif first == "inference" and inner:
            _of_method(inner, value, found.method)
        elif first in PARTS and inner:
            found.parts[first][inner] = value
        elif first in KEPT and (inner or first not in ARGUMENTS):
            found.kept.update(_kept(first, inner, value))
        elif first in ARGUMENTS:
            raise ConfigError(f"{path} is no option of the method: give the argument {first}=... of fit.")
        elif first.split("/")[0] in ELSEWHERE:
            raise ConfigError(f"{path} belongs to a command and not to a fit: {ELSEWHERE[first.split('/')[0]]}.")
        elif first in sections():
            raise ConfigError(f"{path} belongs to a command and not to a fit: leave it out.")
        else:
            _of_method(path, value, found.method)
    return found


def _of_method(path: str, value: Any, found: dict[str, Any]) -> None:
    """Add an option of the method, whose schedule's options have no prefix."""
    inner = path.removeprefix("schedule.")
    name = inner if inner in Schedule._fields else path
    if name in found:
        raise ConfigError(f"{name} is given twice, once with its whole path: give it once.")
    found[name] = value


def refuse_kept(kept: Mapping[str, Any]) -> None:
    """Raise ConfigError for options of a run in a store, where none is kept."""
    for path in kept:
        if path == "limits.memory":
            continue  # a fit in memory has this limit too
        if path == "warm_start":
            raise ConfigError("warm_start names a run in a store: give store='results/store' too, or use update.")
        raise ConfigError(f"{path} belongs to a run that is kept: give store='results/store' too, or leave it out.")


def _kept(first: str, inner: str, value: Any) -> dict[str, Any]:
    if not KEPT[first]:
        if inner:
            raise ConfigError(f"{first}.{inner} is unknown: {first} has no options.")
        return {first: value}
    given = {inner: value} if inner else value
    if not isinstance(given, Mapping):
        raise ConfigError(f"{first}={value!r} must be a mapping of {', '.join(KEPT[first])}.")
    unknown = [name for name in given if name not in KEPT[first]]
    if unknown:
        raise ConfigError(
            f"{first}.{unknown[0]} is unknown: a fit takes {', '.join(f'{first}.{n}' for n in KEPT[first])}."
        )
    return {f"{first}.{name}": item for name, item in given.items()}


def _merged(options: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options={options!r} must be a mapping of options by name, as {{'num_samples': 500}}.")
    options = {str(name): value for name, value in (options or {}).items()}
    twice = set(options) & set(keywords)
    if twice:
        raise ConfigError(f"{min(twice)} is given twice, as a keyword and in options: give it once.")
    return options | dict(keywords)
