"""Tables that a paper can print: a row for each method, means with standard errors over splits, the best marked.

Two leagues are kept apart, as :mod:`bdlbench.report.verdicts` does: methods that sample the same posterior share a table,
and a table with all methods follows if there are others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.evaluation import verdicts
from bdlbench.metrics.resampling import corrected_error
from bdlbench.report import printing, tables
from bdlbench.report.printing import Number, Sheet
from bdlbench.report.verdicts import DIRECTIONS, OPEN, SAME

Record = Mapping[str, Any]
BEST, EQUAL = "best", "equal"
COLUMNS = ("data", "metric")
_OF_TARGET = "in the unit of the target"
UNITS = {
    "lppd": "nats a point, in the unit of the target", "lppd_gaussian": "nats a point, in the unit of the target",
    "joint_log_loss": "nats a point, in the unit of the target",
    "rmse": _OF_TARGET, "crps": _OF_TARGET, "interval_width_90": _OF_TARGET, "interval_score_90": _OF_TARGET,
    "referral_cost": "in the unit of the costs",
    "accuracy": "a share", "brier": "from 0 to 2", "ece": "a share", "coverage_50": "a share", "coverage_80": "a share",
    "coverage_90": "a share", "coverage_95": "a share",
}  # fmt: skip
"""What a value is counted in."""

_Places = dict[tuple[str, Any], list[Record]]


class Entry(NamedTuple):
    """One number of a table.

    Attributes
    ----------
    mean : float or None
        Over splits, seeds averaged first. None without any score.
    error : float or None
        Nadeau and Bengio's corrected standard error of the mean; None of fewer than two splits.
    num_scored, num_asked : int
        Splits with a score, and splits of the data set on which any method of the store was run.
    mark : str
        ``BEST``, ``EQUAL`` or nothing.
    """

    mean: float | None
    error: float | None
    num_scored: int
    num_asked: int
    mark: str = ""


class Paper(NamedTuple):
    """One table. ``entries`` is by method, data set and metric; all have either one metric or one data set."""

    league: str
    title: str
    methods: list[str]
    columns: list[tuple[str, str]]
    headings: list[str]
    entries: dict[tuple[str, str, str], Entry]
    notes: list[str]


def paper(
    records: Sequence[Record], *, metrics: Sequence[str], columns: str = "data", rho: float | None = None
) -> list[Paper]:
    """Tables of means over splits, for each league and metric, or for each league and data set.

    The best mean of a column is marked, and with it its equals: the methods whose difference from the best on the same
    splits has a 95 % interval that contains 0 (Student's t with the corrected standard error, which is the posterior
    interval of :func:`bdlbench.evaluation.verdicts.verdict`). An interval is not adjusted for the number of methods. A
    method that lacks a score on a split, because a run failed for example, has the number of its splits beside its mean,
    and is neither best nor equal: its mean is over easier splits, maybe.

    Parameters
    ----------
    records : sequence of mappings
        Records of finished runs, failed ones too.
    metrics : sequence of str
        Names of metrics in the records. Those not in ``DIRECTIONS`` have no best value, and nothing is marked.
    columns : "data" or "metric"
        What the columns are. Each value of the other has a table of its own.
    rho : float, optional
        Correlation of two splits; None takes n_test / (n_test + n_train).

    Raises
    ------
    ConfigError
        If no record has a metric, or rho is outside [0, 1).
    """
    for metric in metrics:
        if not any(metric in record["metrics"] for record in records):
            raise ConfigError(
                f"--metric: no run has '{metric}': add it with bdlbench-results rescore --metric {metric}."
            )
    if rho is not None and not 0 <= rho < 1:
        raise ConfigError(f"--rho: {rho} must lie in [0, 1): give the share of test rows.")
    cells = tables.by_method(records)
    sets = list(dict.fromkeys(data for places in cells.values() for data, _ in places))
    asked = {data: {split for places in cells.values() for d, split in places if d == data} for data in sets}
    correlation = {data: _correlation(data, records) if rho is None else rho for data in sets}
    out = []
    for league, methods in leagues(cells):
        here = [data for data in sets if any(data == d for method in methods for d, _ in cells[method])]
        entries: dict[tuple[str, str, str], Entry] = {}
        for data in here:
            for metric in metrics:
                column = _column(cells, methods, data, metric, asked[data], correlation[data])
                entries |= {(method, data, metric): entry for method, entry in column.items()}
        for name in metrics if columns == "data" else here:
            chosen = [(data, name) for data in here] if columns == "data" else [(name, metric) for metric in metrics]
            own = {key: entry for key, entry in entries.items() if key[1:] in chosen}
            notes = _notes(cells, methods, chosen, own, records, rho)
            headings = [column[0 if columns == "data" else 1] for column in chosen]
            out.append(Paper(league, f"{name}, {league}", methods, chosen, headings, own, notes))
    return out


def as_markdown(papers: Sequence[Paper]) -> str:
    """Every table with a heading and its notes. The best number is bold, and its equals have a dagger."""
    return printing.as_markdown([_sheet(one) for one in papers])


def as_latex(papers: Sequence[Paper]) -> str:
    """Every table for the package booktabs, with its notes beneath."""
    return printing.as_latex([_sheet(one) for one in papers])


def as_csv(papers: Sequence[Paper]) -> str:
    """One line for each number of all tables, with all its digits. Notes are left out."""
    heading = [
        "league",
        "method",
        "data",
        "metric",
        "mean",
        "standard error",
        "splits scored",
        "splits",
        "mark",
        "unit",
    ]
    rows: Iterable[list[object]] = (
        [one.league, *key, *("" if value is None else value for value in entry), UNITS.get(key[2], "")]
        for one in papers
        for key, entry in one.entries.items()
    )
    return printing.as_csv(heading, rows)


def _sheet(one: Paper) -> Sheet:
    rows = [[method, *(_cell(one.entries[method, *column]) for column in one.columns)] for method in one.methods]
    return Sheet(one.title, ["method", *one.headings], rows, one.notes, "l" + "r" * len(one.columns))


def _cell(entry: Entry) -> str | Number:
    after = "†" if entry.mark == EQUAL else ""
    if entry.num_scored < entry.num_asked:
        after = f"({entry.num_scored}/{entry.num_asked})"
    if entry.mean is None:
        return f"{tables.MISSING} {after}".strip()
    if not entry.error:
        return Number(f"{entry.mean:.4g}", "" if entry.error is None else "0", after, entry.mark == BEST)
    # Two digits of the error, and the mean to the same place.
    decimals = max(0, 1 - math.floor(math.log10(entry.error)))
    return Number(f"{entry.mean:.{decimals}f}", f"{entry.error:.{decimals}f}", after, entry.mark == BEST)


def _column(
    cells: Mapping[str, _Places], methods: Sequence[str], data: str, metric: str, asked: set[Any], rho: float
) -> dict[str, Entry]:
    scores: dict[str, dict[Any, float]] = {}
    for method in methods:
        found = {
            split: tables.score_of_split(runs, metric)
            for (where, split), runs in cells[method].items()
            if where == data
        }
        scores[method] = {split: value for split, value in found.items() if value is not None}
    out = {}
    for method, of_split in scores.items():
        values = np.array(list(of_split.values()))
        mean = float(values.mean()) if values.size else None
        error = corrected_error(values, rho=rho) if values.size > 1 else None
        out[method] = Entry(mean, error, values.size, len(asked))
    whole = [method for method, of_split in scores.items() if len(of_split) == len(asked) > 1]
    if metric not in DIRECTIONS or len(whole) < 2:
        return out
    sign = DIRECTIONS[metric]
    best = max(whole, key=lambda method: sign * np.mean(list(scores[method].values())))
    for method in whole:
        ahead = [sign * (scores[best][split] - value) for split, value in scores[method].items()]
        if method == best:
            out[method] = out[method]._replace(mark=BEST)
        elif verdicts.verdict(verdicts.difference(ahead, rho=rho), 0.0).low <= 0:
            out[method] = out[method]._replace(mark=EQUAL)
    return out


def leagues(cells: Mapping[str, _Places]) -> list[tuple[str, list[str]]]:
    """Sets of methods that were asked for the same distribution wherever both ran; then all methods, if they differ."""
    targets = {
        method: {place: {record.get("target_id") or id(record) for record in runs} for place, runs in places.items()}
        for method, places in cells.items()
    }

    def agree(one: str, other: str) -> bool:
        shared = targets[one].keys() & targets[other].keys()
        return bool(shared) and all(len(targets[one][p] | targets[other][p]) == 1 for p in shared)

    classes: list[list[str]] = []
    for method in cells:
        for members in classes:
            if all(agree(method, other) for other in members):
                members.append(method)
                break
        else:
            classes.append([method])
    several = [members for members in classes if len(members) > 1]
    names = [SAME if len(several) == 1 else f"{SAME} {place}" for place in range(1, len(several) + 1)]
    out = list(zip(names, several, strict=True))
    return out if len(classes) == 1 and out else [*out, (OPEN, list(cells))]


def _correlation(data: str, records: Sequence[Record]) -> float:
    """Of the splits of a data set; 0 where it is not known, of which a note warns."""
    return tables.correlation_of_splits([r for r in records if r["labels"].get("data") == data]) or 0.0


def _notes(
    cells: Mapping[str, _Places],
    methods: Sequence[str],
    columns: Sequence[tuple[str, str]],
    entries: Mapping[tuple[str, str, str], Entry],
    records: Sequence[Record],
    rho: float | None,
) -> list[str]:
    sets, metrics = (list(dict.fromkeys(column[axis] for column in columns)) for axis in (0, 1))
    notes = [f"{metric}: {UNITS.get(metric, 'in its own unit')}{_direction(metric)}." for metric in metrics]
    meanings: dict[str, list[str]] = {}
    for data in sets:
        counts = {entry.num_scored for (_, where, _), entry in entries.items() if where == data and entry.num_scored}
        if not counts or max(counts) < 2:
            text = "there is one split, so that the mean has no standard error and nothing is marked"
        elif rho is not None:
            text = f"± is the standard error of the mean over splits, corrected for a correlation of {rho:g} between splits"
        else:
            own = [record for record in records if record["labels"].get("data") == data]
            (meaning,) = tables.meaning_of_error("splits", own).values()
            text = f"± is {meaning}"
        meanings.setdefault(text, []).append(f"{data} ({max(counts, default=0)} splits)")
    notes += [f"{', '.join(owners)}: {text}." for text, owners in meanings.items()]
    if any(entry.mark for entry in entries.values()):
        notes.append(
            "Bold: the best mean of a column. †: a method that these splits do not tell from the best, because the 95 % "
            "interval of the paired difference (Student's t, with the same correction as ±) contains 0. This is not adjusted "
            "for the number of methods."
        )
    if any(entry.num_scored < entry.num_asked for entry in entries.values()):
        notes.append(
            "(k/n): k of n splits have a score, the others failed, lack it or were not run. Such a mean is not marked."
        )
    below: dict[str, list[str]] = {}
    for method in methods:
        for data in sets:
            runs = [record for (where, _), some in cells[method].items() if where == data for record in some]
            owner = f"{method}, {data}" if len(sets) > 1 else method
            failed = [record for record in runs if record["status"] != "complete"]
            for status in dict.fromkeys(record["status"] for record in failed):
                of = [record for record in failed if record["status"] == status]
                why = tables.shorten(of[0].get("reason") or "no reason given")
                text = f"{len(of)} of {len(runs)} runs {status}, the first because: {why}"
                below.setdefault(text, []).append(owner)
            for record in runs:
                for warning in record["warnings"]:
                    below.setdefault(tables.shorten(warning), []).append(owner)
                for check in record.get("not_assessed") or ():
                    below.setdefault(f"not assessed: {tables.shorten(check)}", []).append(owner)
                for metric, why in (record.get("not_existing") or {}).items():
                    if metric in metrics:
                        below.setdefault(f"{metric} does not exist: {tables.shorten(why)}", []).append(owner)
                for note in record.get("notes") or ():
                    if data not in (owners := below.setdefault(tables.shorten(note), [])):
                        owners.append(data)
    notes += tables.footnotes(below)
    untuned = [m for m in methods if all(r.get("tuning_num_grads") is None for runs in cells[m].values() for r in runs)]
    if 0 < len(untuned) < len(methods):
        notes.append(f"Not tuned, or with settings whose search was not priced: {', '.join(untuned)}.")
    here = [r for m in methods for (data, _), runs in cells[m].items() if data in sets for r in runs]
    return notes + tables.tuned_on_themselves(here)


def _direction(metric: str) -> str:
    sign = DIRECTIONS.get(metric)
    return "" if sign is None else f"; {'more' if sign > 0 else 'less'} is better"
