"""Figures of stored runs by their kind, drawn from what the store has of them: ``bdlbench-results plot``."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.metrics.diagnostics import MIN_DRAWS, rhat_of_columns
from bdlbench.report import calibration_figures, chain_figures, fidelity_figures, tables
from bdlbench.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
PANELS = 4
"""Functions in a trace or rank plot, and quantities beside a reference."""


def worth(store: Store, records: Sequence[Record], *, trust: bool) -> "list[Figure]":
    """Worth and gradients per exact draw of the runs, a figure for each reference."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.get("fidelity"):
            found.setdefault(record["fidelity"]["reference"], []).append(record)
    if not found:
        raise ConfigError(
            "worth: no run was compared with a reference: choose runs of a problem as reference=diabetes."
        )
    return [
        fidelity_figures.worth(_names(some), [record["fidelity"] for record in some], title=f"reference {name}")
        for name, some in found.items()
    ]


def beside(store: Store, records: Sequence[Record], *, trust: bool) -> "list[Figure]":
    """Draws of the runs beside those of their reference, at probe points, or at test points if there is no probe point."""
    from bdlbench.references import artefacts
    from bdlbench.runs.rescore import values_at_reference

    found: dict[str, list[Record]] = {}
    for record in records:
        name = artefacts.by_target(str(record.get("target_id")))
        if name is not None:
            found.setdefault(name, []).append(record)
    if not found:
        raise ConfigError("beside: no run samples the posterior of a reference: choose runs as of reference=diabetes.")
    figures = []
    for name, some in found.items():
        reference = artefacts.load(name)
        kind = "probe" if (reference.kinds == "probe").any() else "test"
        places = np.flatnonzero(reference.kinds == kind)
        places = places[np.linspace(0, len(places) - 1, min(2 * PANELS, len(places))).round().astype(int)]
        labels = [_label(reference.certificate["quantities"][place]) for place in places]
        draws = {
            title: values_at_reference(store, record["id"], name, trust=trust)[..., places]
            for title, record in zip(_names(some), some, strict=True)
        }
        title = f"draws beside the reference {name}, at {kind} points"
        figures.append(
            fidelity_figures.beside_reference(
                draws, reference.draws[..., places], labels, xlabel="in the units of the target", title=title
            )
        )
    return figures


def trace(store: Store, records: Sequence[Record], *, trust: bool) -> "list[Figure]":
    """Traces of function values at the test rows where the chains disagree most, a figure for each run."""
    figures = []
    for title, record in zip(_names(records), records, strict=True):
        functions, diverging = _functions(store, record)
        figures.append(chain_figures.trace(functions, diverging=diverging, title=title))
    return figures


def rank(store: Store, records: Sequence[Record], *, trust: bool) -> "list[Figure]":
    """Ranks of each chain's function values at the test rows where the chains disagree most, a figure for each run."""
    named = zip(_names(records), records, strict=True)
    return [chain_figures.rank(_functions(store, record)[0], title=title) for title, record in named]


def pit(store: Store, records: Sequence[Record], *, trust: bool) -> "list[Figure]":
    """Probability integral transforms of the test rows of regressions."""
    return [calibration_figures.pit(_ingredient(store, records, "pit", trust=trust))]


def coverage(store: Store, records: Sequence[Record], *, trust: bool) -> "list[Figure]":
    """Coverage of central intervals at the test rows of regressions."""
    return [calibration_figures.coverage(_ingredient(store, records, "pit", trust=trust))]


def reliability(store: Store, records: Sequence[Record], *, trust: bool) -> "list[Figure]":
    """Reliability of the class probabilities at the test rows."""
    both = _ingredient(store, records, "probs", trust=trust, labels=True)
    return [calibration_figures.reliability(both)]


KINDS: dict[str, Callable[..., "list[Figure]"]] = {
    "worth": worth, "beside": beside, "trace": trace, "rank": rank, "pit": pit, "coverage": coverage,
    "reliability": reliability,
}  # fmt: skip
"""The figures by the name that the command has for them."""


def _names(records: Sequence[Record]) -> list[str]:
    sets = {record["labels"].get("data") for record in records}
    names = tables.method_names(records, ignore_runs=False)
    if len(sets) == 1:
        return names
    return [f"{name}, {record['labels'].get('data')}" for name, record in zip(names, records, strict=True)]


def _label(quantity: Mapping[str, Any]) -> str:
    named = quantity.get("site") or quantity["quantity"]
    return f"{named}, point {quantity['point']}" if "point" in quantity else str(named)


def _functions(store: Store, record: Record) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Function values (C, S) at test rows, those with the largest split R-hat, and which draws diverged."""
    with store.posterior(record["id"]) as tree:
        if "predictions" not in tree.children:
            raise ConfigError(
                f"id: run '{record['id']}' has no predictions at test rows, so there is no function to draw."
            )
        group = tree["predictions"]
        name = next(some for some in ("mean", "probs") if some in group)
        values = np.asarray(group[name].to_numpy(), np.float64)
        stats = tree.children.get("sample_stats")
        diverging = None if stats is None or "diverging" not in stats else stats["diverging"].to_numpy()
    if name == "probs":
        values = values[..., 0]
    values = values.reshape(*values.shape[:2], -1)
    if len(values) < 2 or values.shape[1] < MIN_DRAWS:
        chosen, disagreement = np.arange(min(PANELS, values.shape[-1])), None
    else:
        varies = np.ptp(values, axis=(0, 1)) > 0
        every = np.full(values.shape[-1], np.nan)
        every[varies] = rhat_of_columns(values[..., varies])
        chosen, disagreement = np.argsort(-every, kind="stable")[:PANELS], every
    of = {"mean": "E[y | x, theta]", "probs": "P(first class | x, theta)"}[name]
    return {
        f"{of}, test row {row}" + ("" if disagreement is None else f" (R-hat {disagreement[row]:.3f})"): values[
            ..., row
        ]
        for row in chosen.tolist()
    }, diverging


def _ingredient(
    store: Store, records: Sequence[Record], name: str, *, trust: bool, labels: bool = False
) -> dict[str, Any]:
    from bdlbench.runs.rescore import ingredients

    out: dict[str, Any] = {}
    for title, record in zip(_names(records), records, strict=True):
        y, found = ingredients(store, record["id"], trust=trust)
        if name not in found:
            raise ConfigError(
                f"id: run '{record['id']}' has no '{name}': pit and coverage are of regressions, reliability is of "
                "classifications."
            )
        out[title] = (y, found[name]) if labels else found[name]
    return out
