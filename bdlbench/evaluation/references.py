"""Making a reference posterior: its plans are sampled and judged, and draws and certificate are written."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdlbench.references import problems
from bdlbench.references.artefacts import CERTIFICATE, DRAWS

NUM_DRAWS = 4000
"""Number of draws that an artefact keeps, evenly spaced and equally many from each NUTS chain."""
KEPT_WEIGHTS = 64
"""Number of draws of the weights that an artefact keeps, from which other samplers can start."""


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

    found = problems.problem(name)
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
    into = (problems.folder() if output is None else output) / name
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
