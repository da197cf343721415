"""A reference posterior in the layout of posteriordb, for tools that read it."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from bdlbench.references.artefacts import Reference

FOLDER = Path("reference_posteriors") / "draws"


def parameter_names(reference: Reference) -> list[str]:
    """A name for each of the M numbers, as Stan numbers them: ``mean[1]``, ``probs[2,1]``, or the name of a site."""
    out = []
    for label in reference.certificate["quantities"]:
        if label["quantity"] == "site":
            out.append(label["site"])
        else:
            at = [label["point"] + 1, *([label["class"] + 1] if "class" in label else [])]
            out.append(f"{label['quantity']}[{','.join(map(str, at))}]")
    return out


def export(reference: Reference, into: Path) -> list[Path]:
    """Write draws and info of a reference below a folder, and return the paths.

    ``reference_posteriors/draws/draws/NAME.json.zip`` holds a list with one object for each chain, which maps the name of
    each quantity to its draws. ``reference_posteriors/draws/info/NAME.info.json`` says how they were made. Source:
    Magnusson et al. (2024), "posteriordb: Testing, benchmarking and developing Bayesian inference algorithms".
    """
    name, names = reference.problem.name, parameter_names(reference)
    draws = into / FOLDER / "draws" / f"{name}.json.zip"
    info = into / FOLDER / "info" / f"{name}.info.json"
    for path in (draws, info):
        path.parent.mkdir(parents=True, exist_ok=True)
    # The shortest text that gives the float32 back.
    chains = [
        {key: [float(str(value)) for value in chain[:, index]] for index, key in enumerate(names)}
        for chain in reference.draws
    ]
    with zipfile.ZipFile(draws, "w", zipfile.ZIP_DEFLATED) as archive:
        stamped = zipfile.ZipInfo(
            f"{name}.json"
        )  # the earliest date of the format, so that the same draws give the same file
        stamped.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(stamped, json.dumps(chains, allow_nan=False))
    info.write_text(json.dumps(_info(reference, names), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return [draws, info]


def _info(reference: Reference, names: list[str]) -> dict[str, Any]:
    from bdlbench.metrics import mixing

    certificate = reference.certificate
    attempt = certificate["attempts"][-1]
    columns = reference.draws.astype(np.float64)
    num_chains, each, _ = columns.shape
    rhat, bulk, tail = mixing.rhat(columns), mixing.ess_bulk(columns), mixing.ess_tail(columns, (0.05, 0.95))
    plan = reference.problem.plans[attempt["plan"] - 1]
    return {
        "name": reference.problem.name,
        "inference": {"method": "nuts", "method_arguments": {"seed": plan["seed"], **plan["nuts"]}},
        "diagnostics": {
            "diagnostic_information": {"names": names},
            "ndraws": num_chains * each,
            "nchains": num_chains,
            "effective_sample_size_bulk": bulk.tolist(),
            "effective_sample_size_tail": tail.tolist(),
            "r_hat": rhat.tolist(),
        },
        "checks_made": {
            "certified": reference.certified,
            "ndraws_is_10k": num_chains * each == 10_000,
            "nchains_is_gte_4": num_chains >= 4,
            "r_hat_below_1_01": bool((rhat < 1.01).all()),
        },
        "criteria": attempt["criteria"],
        "comments": f"{reference.problem.about} Function values at {len(reference.points)} points, thinned.",
        "points": reference.points.tolist(),
        "versions": certificate["versions"],
    }
