"""Reference posteriors as artefacts: draws, certificate and checks, read without JAX."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.evaluation import reference_problems
from bdlbench.evaluation.reference_problems import Problem, folder, problem

NUM_DRAWS = 4000
"""Number of draws that an artefact keeps, evenly spaced and equally many from each NUTS chain."""
KEPT_WEIGHTS = 64
"""Number of draws of the weights that an artefact keeps, from which other samplers can start."""
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


def available() -> list[str]:
    """Names of the problems that have an artefact, certified or not."""
    return [name for name in reference_problems.names() if (folder() / name / CERTIFICATE).is_file()]


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
    certificate = json.loads((folder() / name / CERTIFICATE).read_text(encoding="utf-8"))
    with np.load(folder() / name / DRAWS, allow_pickle=False) as arrays:
        return Reference(found, certificate, arrays["draws"], arrays["points"], arrays["weights"])


def faults(name: str) -> list[str]:
    """The faults of an artefact, one text for each: a changed file, or a problem that was changed after sampling."""
    certificate = json.loads((folder() / name / CERTIFICATE).read_text(encoding="utf-8"))
    found = []
    if hashlib.sha256((folder() / name / DRAWS).read_bytes()).hexdigest() != certificate["draws_sha256"]:
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
        certificate = json.loads((folder() / name / CERTIFICATE).read_text(encoding="utf-8"))
        out[certificate["target_id"]] = name
    return out


def make(name: str, work: Path, output: Path | None = None, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Sample a problem and write its artefact. Return the certificate.

    The plans of the problem are tried in order until one passes all criteria. The certificate has all attempts. If none
    passes, the draws of the last attempt are kept, and the certificate names the failed criteria. Parts that are in
    ``work`` already are not sampled again, so that a call that was interrupted can be repeated and continues.

    Parameters
    ----------
    name : str
        Name of the problem.
    work : path
        Folder for the finished parts of the sampling.
    output : path, optional
        Folder for the artefacts; None is that of the package.
    say : callable (message)
        Called with a message about the cost before sampling, and about each part.
    """
    from bdlbench.evaluation import certificate, reference_sampling
    from bdlbench.runs.provenance import device, versions
    from bdlbench.sampling.devices import settings

    found = problem(name)
    with settings("float64"):
        job = reference_sampling.job_of(found)
        quantities = reference_sampling.Quantities(found, job)
        attempts = []
        for attempt in range(len(found.plans)):
            nuts = reference_sampling.sample(found, "nuts", attempt, work, say=say)
            smc = reference_sampling.sample(found, "smc", attempt, work, say=say)
            criteria = [
                criterion._asdict()
                for criterion in certificate.certify(
                    nuts.values,
                    list(smc.values),
                    certificate.Thresholds(tau=found.tau, **found.thresholds),
                    num_diverging=int(nuts.num_diverging.sum()),
                    energies=nuts.energy,
                )
            ]
            price = {
                kind: {"num_grads": float(part.num_grads.sum()), "seconds": round(part.seconds, 1)}
                for kind, part in (("nuts", nuts), ("smc", smc))
            }
            attempts.append({"plan": attempt + 1, "criteria": criteria, "price": price})
            failed = [c for c in criteria if not c["passed"]]
            say(f"{name}: plan {attempt + 1} " + ("passes" if not failed else f"fails: {_in_words(failed)}"))
            if not failed:
                break
    chains = len(nuts.values)
    each = min(NUM_DRAWS // chains, nuts.values.shape[1])
    every = np.linspace(0, nuts.values.shape[1] - 1, each).round().astype(int)
    into = (folder() if output is None else output) / name
    into.mkdir(parents=True, exist_ok=True)
    weights = nuts.theta.reshape(-1, nuts.theta.shape[-1])[:KEPT_WEIGHTS]
    np.savez_compressed(
        into / DRAWS,
        draws=nuts.values[:, every].astype(np.float32),
        points=quantities.points.original,
        weights=weights.astype(np.float32),
    )
    content = {
        "name": name,
        "certified": not failed,
        "resolution": found.tau,
        "problem_sha256": found.sha256,
        "attempts": attempts,
        "quantities": quantities.labels(),
        "num_weights": int(weights.shape[1]),
        "target_id": job.target_id,
        "data_checksum": job.dataset.checksum,
        "device": device(),
        "versions": versions(),
        "draws_sha256": hashlib.sha256((into / DRAWS).read_bytes()).hexdigest(),
    }
    (into / CERTIFICATE).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return content


def _in_words(criteria: Sequence[dict[str, Any]]) -> str:
    return "; ".join(f"{c['name']} {c['figure']:.4g} (threshold {c['threshold']:g})" for c in criteria)
