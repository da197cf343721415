"""Small reference posteriors of made-up draws, in a folder of a test."""

import contextlib
import hashlib
import json

import numpy as np
import pytest
import yaml

from bdlbench.references import artefacts, problems

CRITERION = {"name": "rhat", "figure": 1.0, "threshold": 1.01, "passed": True, "chain": None}
PLAN = {"seed": 1, "nuts": {"num_chains": 8}, "smc": {"num_runs": 8}}


def forget():
    """Empty the caches of everything that reads references."""
    from bdlbench.runs import against

    for cache in (problems.problem, artefacts.load, artefacts._targets, against.prepared):
        cache.cache_clear()


@contextlib.contextmanager
def references_in(folder):
    """References are those of a folder within this context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "folder", lambda: folder)
        forget()
        yield
    forget()


def write_reference(
    folder, name, *, options, target_id, draws, points, labels, certified=True, tau=0.05, weights=((0.0,),)
):
    """Write problem and artefact of a reference; call it within :func:`references_in`."""
    place = folder / name
    place.mkdir(parents=True)
    quantities = list(dict.fromkeys(label["quantity"] for label in labels if label["quantity"] != "site"))
    sites = [label["site"] for label in labels if label["quantity"] == "site"]
    content = {"about": "A test.", "options": list(options), "points": {"test": 1}, "tau": tau, "thresholds": {}}
    content |= {"plans": [PLAN], "quantities": quantities, "sites": sites}
    (place / "problem.yaml").write_text(yaml.safe_dump(content))
    np.savez_compressed(
        place / "draws.npz", draws=draws.astype(np.float32), points=points, weights=np.array(weights, np.float32)
    )
    certificate = {
        "name": name,
        "certified": certified,
        "resolution": tau,
        "problem_sha256": problems.problem(name).sha256,
        "attempts": [{"plan": 1, "criteria": [CRITERION | {"passed": certified}], "price": {}}],
        "quantities": labels,
        "num_weights": 1,
        "target_id": target_id,
        "versions": {"bdlbench": "0"},
        "draws_sha256": hashlib.sha256((place / "draws.npz").read_bytes()).hexdigest(),
    }
    (place / "certificate.json").write_text(json.dumps(certificate))
    forget()
