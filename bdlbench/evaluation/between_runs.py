"""Distances between the draws of two stored runs, from their stored predictions, without JAX."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.metrics.fidelity import Fidelity, Reference, fidelity
from bdlbench.store import Store

MOST_DRAWS = 4_000
"""Largest number of draws of the run that takes the place of a reference; for the other run it is 10,000."""
MOST_QUANTITIES = 60
"""Largest number of values of a draw that are compared: means, or class probabilities, at evenly spaced test rows."""


class Between(NamedTuple):
    """The comparison of two runs.

    ``fidelity`` is that of the first run against the second at ``num_points`` test rows. ``same_posterior`` is None if
    a record does not name its posterior.
    """

    fidelity: Fidelity
    gradients_per_exact_draw: float
    num_points: int
    same_posterior: bool | None


def between(store: Store, run_id: str, against: str) -> Between:
    """Compare a run with another run, which takes the place of a reference and has no certificate.

    Parameters
    ----------
    store : Store
    run_id, against : str
        Ids of two runs that were scored at the same test rows.

    Raises
    ------
    ConfigError
        If the runs were scored at different rows, stored no predictions, or a chain has no finite value.
    """
    records = [store.record(one) for one in (run_id, against)]
    for name, record in zip((run_id, against), records, strict=True):
        if "schedule" not in record["config"]["inference"]:
            raise ConfigError(
                f"--against: run '{name}' is a baseline, which has no draws: choose runs of other methods."
            )
    if records[0].get("test_checksum") is None or len({one.get("test_checksum") for one in records}) > 1:
        raise ConfigError(
            f"--against: runs '{run_id}' and '{against}' have other test rows, or none: choose two of one set."
        )
    found = [_function_draws(store, record, most) for record, most in zip(records, (10_000, MOST_DRAWS), strict=True)]
    (mine, rows), (theirs, other_rows) = found
    if mine.shape[-1] != theirs.shape[-1] or not np.array_equal(rows, other_rows):
        raise ConfigError(
            f"--against: '{run_id}' and '{against}' stored predictions at other rows: set store.predictive_rows."
        )
    varies = np.ptp(theirs, axis=(0, 1)) > 0
    if not varies.any():
        raise ConfigError(f"--against: the draws of '{against}' do not vary, so there is no sd to divide by.")
    independent = [
        _is_fitted(record) and len(draws) == 1 for record, draws in zip(records, (mine, theirs), strict=True)
    ]
    reference = Reference(theirs[..., varies], independent=independent[1])
    one = fidelity(mine[..., varies], reference, independent=independent[0])
    targets = [record.get("target_id") for record in records]
    price = one.gradients_per_exact_draw(sum(records[0]["num_grads"].values()))
    return Between(one, price, len(rows), None if None in targets else targets[0] == targets[1])


def _function_draws(store: Store, record: Mapping[str, Any], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Means or class probabilities (C, n, M) at a few test rows, and which rows they are; only chains that are finite."""
    with store.posterior(record["id"]) as tree:
        group: Any = tree["predictions"] if "predictions" in tree.children else {}
        name = "probs" if "probs" in group else "mean"
        if name not in group:
            raise ConfigError(f"id: run '{record['id']}' stored no predictions: choose one with store.predictive_rows.")
        stored = group[name]
        width = stored.shape[3] if stored.ndim == 4 else 1
        num = max(1, min(MOST_QUANTITIES // width, stored.shape[2]))
        rows = np.unique(np.linspace(0, stored.shape[2] - 1, num).round().astype(int))
        values = stored.isel(row=rows).to_numpy().astype(np.float64)
    values = values.reshape(*values.shape[:2], -1)
    lanes = int(record["config"]["inference"]["schedule"]["num_chains"])
    values = values.reshape(lanes, -1, values.shape[-1])  # particles of one population are no chains
    values = values[np.isfinite(values).all((1, 2))]
    if not values.size:
        raise ConfigError(f"id: no chain of run '{record['id']}' has finite predictions throughout.")
    return values[:, :: -(-values.shape[0] * values.shape[1] // most)], rows


def _is_fitted(record: Mapping[str, Any]) -> bool:
    """Whether draws are independent, from a fitted distribution."""
    return record["config"]["inference"]["schedule"].get("thinning") == 0
