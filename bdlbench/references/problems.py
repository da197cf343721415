"""Reference problems: a fully specified posterior, with plans and thresholds that are fixed before sampling.

A problem is one yaml file. Its hash is taken before anything is sampled, so that neither the plans nor the thresholds
can be chosen with knowledge of the draws.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bdlbench.errors import ConfigError

MAX_PLANS = 3
"""Largest number of plans of one problem."""
MAX_QUANTITIES = 60
"""Largest number of values of one draw that a reference keeps."""
_KEYS = {"about", "options", "points", "tau", "thresholds", "plans"}
_OPTIONAL = {"quantities", "sites"}
_QUANTITIES = ("mean", "log_sd", "probs")


def folder() -> Path:
    """The folder of the shipped references, which has one folder for each problem."""
    return Path(__file__).parent


class Problem(NamedTuple):
    """The posterior of a reference, and the plans and thresholds that are fixed before it is sampled.

    Attributes
    ----------
    name : str
    about : str
        One sentence about the problem.
    options : tuple of str
        Options of the command line that fix data, model, network, prior and likelihood.
    points : mapping
        ``test``: number of evenly spaced test rows. ``far``: number of test rows whose standardised inputs are
        multiplied by three. ``grid``: (low, high, num), evenly spaced probe points of one feature in original units.
        ``rows``: true for the training rows themselves, for a model with one latent variable for each row.
    quantities : tuple of str
        The values of a draw at each point that are kept: ``mean`` and ``log_sd`` of y given theta in original units, or
        ``probs``.
    sites : tuple of str
        Scalar named sites that are kept in addition.
    tau : float
        The resolution: the largest deviation, in standard deviations, that the certificate may leave undetected.
    thresholds : mapping
        The thresholds of the other criteria.
    plans : tuple of mapping
        ``seed``, ``nuts`` and ``smc`` of each attempt.
    sha256 : str
        Checksum of the file's content. It does not depend on layout and comments.
    """

    name: str
    about: str
    options: tuple[str, ...]
    points: Mapping[str, Any]
    quantities: tuple[str, ...]
    sites: tuple[str, ...]
    tau: float
    thresholds: Mapping[str, Any]
    plans: tuple[Mapping[str, Any], ...]
    sha256: str


def names() -> list[str]:
    """Names of all problems, sorted."""
    return sorted(path.parent.name for path in folder().glob("*/problem.yaml"))


@functools.cache
def problem(name: str) -> Problem:
    """Read the problem of this name.

    Raises
    ------
    ConfigError
        If the name is unknown, or the file lacks an entry or has an unknown one.
    """
    path = folder() / name / "problem.yaml"
    if not path.is_file():
        raise ConfigError(f"reference '{name}' is unknown: choose one of {', '.join(names())}.")
    return parse(name, path.read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Problem:
    """Make a problem from the text of its yaml file; see :func:`problem`."""
    content = yaml.safe_load(text)
    if not isinstance(content, dict) or not content.keys() >= _KEYS or content.keys() - _KEYS - _OPTIONAL:
        raise ConfigError(
            f"reference '{name}': problem.yaml must have {', '.join(sorted(_KEYS))}, may have "
            f"{' and '.join(sorted(_OPTIONAL))}, and has {', '.join(map(str, content or ()))}."
        )
    if not 1 <= len(content["plans"]) <= MAX_PLANS:
        raise ConfigError(f"reference '{name}': write 1 to {MAX_PLANS} plans down; there are {len(content['plans'])}.")
    quantities = tuple(content.get("quantities", ["mean"]))
    if not quantities or set(quantities) - set(_QUANTITIES):
        raise ConfigError(f"reference '{name}': quantities={list(quantities)} must be of {', '.join(_QUANTITIES)}.")
    canonical = json.dumps(content, sort_keys=True, allow_nan=False)
    return Problem(
        name,
        content["about"],
        tuple(content["options"]),
        content["points"],
        quantities,
        tuple(content.get("sites", ())),
        float(content["tau"]),
        content["thresholds"],
        tuple(content["plans"]),
        hashlib.sha256(canonical.encode()).hexdigest(),
    )


def flags(options: Mapping[str, Any], prefix: str) -> list[str]:
    """A mapping as options of the command line under a dotted prefix."""
    return [f"{prefix}.{key}={json.dumps(value)}" for key, value in options.items()]


def sampler_options(problem: Problem, inference: str, plan: Mapping[str, Any]) -> Sequence[str]:
    """Options of one sampler of a plan. Its chains start from the prior, without a search for a mode before."""
    given = dict(plan[inference])
    given.pop("num_chains", None)
    given.pop("num_runs", None)
    schedule = {key: given.pop(key) for key in ("num_warmup", "num_samples", "thinning") if key in given}
    return [
        *problem.options,
        f"inference={inference}",
        "~tuned",
        "precision=float64",
        "inference.before=[]",
        "inference.start=prior",
        f"seed={plan['seed']}",
        *flags(schedule, "inference.schedule"),
        *flags(given, "inference"),
    ]
