"""Reference posteriors as artefacts: draws, certificate and checks, read without JAX."""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.references import problems
from bdlbench.references.problems import Problem, problem

DRAWS, CERTIFICATE = "draws.npz", "certificate.json"


class Reference(NamedTuple):
    """A reference posterior.

    Attributes
    ----------
    problem : Problem
    certificate : dict
        ``certified``; ``resolution`` (tau); ``attempts``, each with its plan, its criteria (name, threshold, figure,
        passed) and its cost; ``quantities``, the meaning of each of the M numbers; ``target_id``, versions, device and
        checksums.
    draws : array (C, R / C, M), float32
        Function draws in original units, R in all, from C chains.
    points : array (P, ...)
        Test and probe inputs in original units.
    weights : array (K, D), float32
        Some draws of the unconstrained parameters of the standardised problem.
    """

    problem: Problem
    certificate: dict[str, Any]
    draws: np.ndarray
    points: np.ndarray
    weights: np.ndarray

    @property
    def certified(self) -> bool:
        """Whether an attempt passed all criteria."""
        return bool(self.certificate["certified"])

    @property
    def kinds(self) -> np.ndarray:
        """``test`` or ``probe`` for each of the M numbers."""
        return np.array([quantity["kind"] for quantity in self.certificate["quantities"]])

    @property
    def sites(self) -> list[str]:
        """Names of the scalar sites among the M numbers."""
        return [label["site"] for label in self.certificate["quantities"] if label["quantity"] == "site"]

    def quantities(
        self, function: Mapping[str, np.ndarray], sites: Mapping[str, np.ndarray], units: tuple[float, float]
    ) -> np.ndarray:
        """The M numbers of draws of any sampler, (L, n, M), in original units.

        Parameters
        ----------
        function : mapping
            ``mean`` and ``variance`` (L, n, P), or ``probs`` (L, n, P, K), at the points of this reference.
        sites : mapping of arrays (L, n)
            The named sites of :attr:`sites`.
        units : (loc, scale)
            The units of y, since ``function`` is in standardised units.
        """
        loc, scale = units
        columns = []
        for label in self.certificate["quantities"]:
            kind = label["quantity"]
            if kind == "site":
                columns.append(sites[label["site"]].astype(np.float64))
            elif kind == "probs":
                columns.append(function["probs"][..., label["point"], label["class"]].astype(np.float64))
            elif kind == "mean":
                columns.append(loc + scale * function["mean"][..., label["point"]].astype(np.float64))
            else:
                with np.errstate(invalid="ignore", divide="ignore"):  # a draw that is not finite stays so
                    variance = function["variance"][..., label["point"]].astype(np.float64)
                    columns.append(np.log(scale) + 0.5 * np.log(variance))
        return np.stack(columns, -1)


def available() -> list[str]:
    """Names of the problems that have an artefact, certified or not."""
    return [name for name in problems.names() if (problems.folder() / name / CERTIFICATE).is_file()]


@functools.lru_cache(maxsize=4)
def load(name: str) -> Reference:
    """Read the reference posterior of this name.

    Raises
    ------
    ConfigError
        If the name is unknown, the problem has not been sampled, or :func:`faults` finds the artefact damaged.
    """
    found = problem(name)
    if name not in available():
        raise ConfigError(f"reference '{name}' has not been sampled yet: run `bdlbench-references make {name}`.")
    wrong = faults(name)
    if wrong:
        raise ConfigError(f"reference '{name}': {wrong[0]}")
    certificate = json.loads((problems.folder() / name / CERTIFICATE).read_text(encoding="utf-8"))
    with np.load(problems.folder() / name / DRAWS, allow_pickle=False) as arrays:
        return Reference(found, certificate, arrays["draws"], arrays["points"], arrays["weights"])


def faults(name: str) -> list[str]:
    """The faults of an artefact, one text for each: a changed file, or a problem that was changed after sampling."""
    certificate = json.loads((problems.folder() / name / CERTIFICATE).read_text(encoding="utf-8"))
    found = []
    if hashlib.sha256((problems.folder() / name / DRAWS).read_bytes()).hexdigest() != certificate["draws_sha256"]:
        found.append("its draws do not fit the checksum in the certificate: install bdlbench again.")
    if problem(name).sha256 != certificate["problem_sha256"]:
        found.append("problem.yaml has changed since the draws were made: make the reference again.")
    passed = any(all(c["passed"] for c in attempt["criteria"]) for attempt in certificate["attempts"])
    if passed != certificate["certified"]:
        found.append("its certificate contradicts its own criteria: install bdlbench again.")
    return found


def by_target(target_id: str) -> str | None:
    """The name of the reference whose distribution has this ``target_id``, or None."""
    return _targets().get(target_id)


@functools.cache
def _targets() -> dict[str, str]:
    out = {}
    for name in available():
        certificate = json.loads((problems.folder() / name / CERTIFICATE).read_text(encoding="utf-8"))
        out[certificate["target_id"]] = name
    return out
