"""The frontier of stored runs in words, and the curves that its figure shows."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.evaluation import frontiers
from bdlbench.evaluation.frontiers import Curve
from bdlbench.report import tables
from bdlbench.store import Store, StoreError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
_UNITS = {"num_grads": "gradients", "seconds": "seconds"}
_NAMES = {"bias": "bias (sd)", "1/worth": "1/worth", "nll": "NLL"}


class Frontier(NamedTuple):
    """Methods that sample one posterior.

    Attributes
    ----------
    title : str
    resolution : float
        In sd, of the certified reference; 0 without one.
    ceiling : int or None
        Draws of the reference.
    curves : mapping
        By metric and price: for each method a curve by seed and split.
    notes : list of str
    """

    title: str
    resolution: float
    ceiling: int | None
    curves: dict[tuple[str, str], dict[str, dict[object, Curve]]]
    notes: list[str]

    def finest(self, metric: str) -> float:
        """Below which the reference says nothing."""
        if metric == "nll":
            return -math.inf
        return self.resolution if metric == "bias" else 1 / self.ceiling if self.ceiling else 0.0


def gather(store: Store, records: Sequence[Record], *, tuning: bool) -> list[Frontier]:
    """One frontier for each posterior that at least one of the complete runs samples.

    Parameters
    ----------
    store : Store
    records : sequence of mappings
    tuning : bool
        Whether the gradients of the search for tuned settings are part of the price. Their seconds are not known.
    """
    complete = [record for record in records if record["status"] == "complete"]
    out = []
    # A record of an earlier version may lack its target; one of a baseline has none, and no curve.
    complete_with_target = [record for record in complete if record.get("target_id", "") is not None]
    for target in dict.fromkeys(record.get("target_id") for record in complete_with_target):
        own = [record for record in complete if record.get("target_id") == target]
        groups = tables.grouped(own)
        names = tables.method_names([group[0] for group in groups], ignore_runs=True)
        blocks = [record["fidelity"] for record in own if record.get("fidelity")]
        certified = bool(blocks) and blocks[0]["certified"]
        title = str(own[0]["labels"].get("data") or tables.MISSING)
        notes = []
        if blocks:
            title += f" (reference {blocks[0]['reference']}{'' if certified else ', not certified'})"
        curves: dict[tuple[str, str], dict[str, dict[object, Curve]]] = {}
        for name, group in zip(names, groups, strict=True):
            if tuning and any(record.get("tuning_num_grads") is None for record in group):
                notes.append(f"{name}: no price of tuning is known, or its settings are not tuned; none is added.")
            for record in group:
                try:
                    look = store.curve(record["id"])
                except (ConfigError, StoreError) as error:
                    notes.append(f"{record['id']} is left out: {error}")
                    continue
                key = record["seed"] if "seed" in record else record["labels"].get("seed"), tables.split_of(record)
                for metric, price in itertools.product(frontiers.METRICS, frontiers.PRICES):
                    curve = _curve(look, metric, price, (record.get("tuning_num_grads") or 0) if tuning else 0)
                    if curve is not None:
                        curves.setdefault((metric, price), {}).setdefault(name, {})[key] = curve
        if len(complete) < len(records):
            notes.append(f"{len(records) - len(complete)} of {len(records)} runs are not complete and are left out.")
        ceiling = blocks[0]["test"]["num_reference"] if blocks and "test" in blocks[0] else None
        out.append(Frontier(title, blocks[0]["resolution"] if certified else 0.0, ceiling, curves, notes))
    return out


def _curve(look: Any, metric: str, price: str, tuning: float) -> Curve | None:
    """The looks of a stored curve at which the metric is known; None where there is none."""
    column = {"bias": "bias", "1/worth": "worth", "nll": "lppd"}[metric]
    if column not in look:
        return None
    value = look[column].to_numpy(np.float64)
    if metric != "bias":
        value = 1 / value if metric == "1/worth" else -value
    paid = look[price].to_numpy(np.float64) + (tuning if price == "num_grads" else 0.0)
    known = np.isfinite(value) & (paid > 0)
    # Looks at one price, as those of draws from a finished guide, count by the last of them.
    known &= np.append(np.diff(paid) > 0, True)
    if known.sum() < 1:
        return None
    phase = look["phase"].to_numpy()
    return Curve(paid[known], look["num_draws"].to_numpy(np.float64)[known], value[known], (phase == "sample")[known])


def in_words(found: Sequence[Frontier], price: str) -> str:
    """Fits and crossings of each frontier as Markdown.

    Raises
    ------
    ConfigError
        If no run has a curve.
    """
    lines: list[str] = []
    for one in found:
        lines += [f"**{one.title}**", ""]
        if not one.curves:
            lines += ["No run has a curve.", ""]
        for metric in frontiers.METRICS:
            methods = one.curves.get((metric, price))
            if not methods:
                continue
            lines += [f"{_NAMES[metric]} against {_UNITS[price]}:", ""]
            lines += [_method(one, metric, price, name, curves) for name, curves in methods.items()]
            for a, b in itertools.combinations(methods, 2):
                lines.append(_crossing(one, metric, price, (a, methods[a]), (b, methods[b])))
            lines.append("")
        lines += [f"- {note}" for note in one.notes]
    if not lines:
        raise ConfigError("no complete run is among these: make some, or change the filter.")
    return "\n".join(lines).strip() + "\n"


def _method(one: Frontier, metric: str, price: str, name: str, curves: Mapping[object, Curve]) -> str:
    last = [curve.value[-1] for curve in curves.values()]
    paid = np.mean([curve.price[-1] for curve in curves.values()])
    finest = one.finest(metric)
    value = _number(float(np.mean(last)), finest)
    text = f"- {name}: {value} after {tables.count(float(paid))} {_UNITS[price]} ({_seeds(len(last))})"
    if metric == "bias":
        return f"{text}."
    fitted = frontiers.fit(list(curves.values()), least=0.0 if metric == "1/worth" else -math.inf)
    if fitted is None:
        return f"{text}; fewer than three looks after warm-up, so no fit."
    limit, low, high = fitted.limit
    between = "" if fitted.num_seeds < 2 else f" ({_number(low, finest)} to {_number(high, finest)})"
    text += (
        f"; with more draws it goes to {_number(limit, finest)}{between}, and S draws add {_number(fitted.slope[0])}/S"
    )
    if metric == "1/worth" and limit < finest:
        text += f"; {one.ceiling:,} draws of the reference tell no more"
    return f"{text}."


def _crossing(
    one: Frontier, metric: str, price: str, a: tuple[str, Mapping[object, Curve]], b: tuple[str, Mapping[object, Curve]]
) -> str:
    units = _UNITS[price]
    try:
        found = [frontiers.crossing(*pair, finest=one.finest(metric)) for pair in ((a[1], b[1]), (b[1], a[1]))]
    except ConfigError as error:
        return f"- {a[0]} and {b[0]}: {error}"
    _, first, last, num_seeds = found[0]
    span = f"between {tables.count(first)} and {tables.count(last)} {units}, {num_seeds} seeds"
    for crossing, (nearer, other) in zip(found, ((a[0], b[0]), (b[0], a[0])), strict=True):
        if crossing.price is not None:
            where = "at every price" if crossing.price <= first else f"from {tables.count(crossing.price)} {units} on"
            return f"- {nearer} is nearer than {other} {where} ({span})."
    return f"- {a[0]} and {b[0]}: no crossing, as neither is known to stay nearer from any price on ({span})."


def figure(one: Frontier) -> "Figure":
    """A frontier as a figure: bias, 1/worth and NLL against gradients and seconds, with bands over seeds."""
    from bdlbench.report.figures import frontier

    bands = {
        key: {name: frontiers.band(list(curves.values())) for name, curves in methods.items()}
        for key, methods in one.curves.items()
    }
    return frontier(bands, title=one.title, finest={metric: one.finest(metric) for metric in frontiers.METRICS})


def _number(value: float, finest: float = -math.inf) -> str:
    """A value as text. One below ``finest``, which the reference cannot resolve, is shown as below it."""
    if not math.isfinite(value):
        return "unknown"
    return f"< {finest:.3g}" if value < finest else f"{value:.3g}"


def _seeds(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"
