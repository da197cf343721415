"""Verdicts between methods from stored records, as a table for the terminal, Markdown, LaTeX or CSV.

There are two kinds of comparison, called leagues, which have separate tables. In the first, both methods approximate the
same distribution: the ``target_id`` of their records is the same on every split. In the second they do not, so that
predictions may be better because the model is better.
"""

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from bdlbench.errors import ConfigError
from bdlbench.evaluation import verdicts
from bdlbench.evaluation.verdicts import Difference, Hierarchy, Verdict
from bdlbench.report import tables
from bdlbench.report.escaping import markdown

Record = Mapping[str, Any]
DIRECTIONS = {
    "lppd": 1, "lppd_gaussian": 1, "accuracy": 1,
    "rmse": -1, "crps": -1, "brier": -1, "ece": -1, "interval_score_90": -1,
}  # fmt: skip
"""Metrics that say which method is better, with 1 where more is better and -1 where less is."""
_BY_SET = ("rmse", "crps", "interval_score_90")  # in the units of the target, and compared in its standard deviations
SENSITIVITY = (0.5, 2.0)
"""Scales of the prior of the sd between data sets for the note on sensitivity, in multiples of the default."""
SAME, OPEN = "same posterior", "open"
_COLUMNS = ["A", "B", "data", "splits", "A - B", "95 % interval", "P(better)", "P(equivalent)", "P(worse)", "verdict",
            "smallest delta"]  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


class Pair(NamedTuple):
    """Two methods on the splits that both have, with A - B oriented so that more is better.

    ``by_data`` has one difference for each data set, ``missing`` counts splits on which a run of either failed or lacks
    the metric, and ``league`` is ``SAME`` or ``OPEN``.
    """

    first: str
    second: str
    league: str
    by_data: dict[str, Difference]
    missing: int


class League(NamedTuple):
    """The table of one league: its name, the cells of its rows as text, and the sentences below it."""

    name: str
    rows: list[list[str]]
    notes: list[str]


def compare(
    records: Sequence[Record],
    *,
    metric: str,
    delta: float,
    by_data: bool = False,
    baseline: str | None = None,
    rho: float | None = None,
    with_plan: bool = False,
) -> list[League]:
    """Verdicts on all pairs of methods, or on all methods against a baseline, with one table for each league.

    A datum is the difference on one split, after averaging over the seeds of the split. Several data sets are compared
    by the hierarchical model. RMSE, CRPS and interval scores are in standard deviations of the target.

    Parameters
    ----------
    records : sequence of mappings
        Records of finished runs, failed ones too.
    metric : str
        One of ``DIRECTIONS``.
    delta : float
        The smallest difference that matters, above 0, in the unit of the metric.
    by_data : bool
        Whether to add a row for each data set.
    baseline : str, optional
        Name of the method that is B in every pair.
    rho : float, optional
        Correlation of two splits, for data whose configuration has no ``test_fraction``.
    with_plan : bool
        Whether to add, for undecided pairs, the number of splits or data sets that would decide.

    Raises
    ------
    ConfigError
        If the metric or the baseline is unknown, fewer than two methods have two splits in common, or rho is not known.
    """
    if metric not in DIRECTIONS:
        raise ConfigError(f"--metric: '{metric}' does not say which method is better: use {', '.join(DIRECTIONS)}.")
    found = pairs(records, metric, baseline=baseline, rho=rho)
    if not found:
        raise ConfigError(
            "--metric: no two methods have two splits of a data set in common: run them on the same splits."
        )
    questions = [list(pair.by_data.values()) for pair in found]
    answers = verdicts.hierarchical(questions, delta=delta)
    several = [index for index, question in enumerate(questions) if len(question) > 1]
    words: dict[int, set[str]] = {index: {answers[index].overall.word} for index in several}
    for between in SENSITIVITY if several else ():
        again = verdicts.hierarchical([questions[index] for index in several], delta=delta, between=between)
        for index, answer in zip(several, again, strict=True):
            words[index].add(answer.overall.word)
    leagues = []
    for name in (SAME, OPEN):
        mine = [(pair, answers[index], words.get(index)) for index, pair in enumerate(found) if pair.league == name]
        if mine:
            leagues.append(_league(name, mine, metric, delta, by_data, with_plan))
    return leagues


def pairs(
    records: Sequence[Record], metric: str, *, baseline: str | None = None, rho: float | None = None
) -> list[Pair]:
    """All pairs of methods that have two or more splits of one data set in common. With a baseline, it is always B."""
    groups = tables.grouped(records)
    names = tables.method_names([group[0] for group in groups], ignore_runs=True)
    cells: dict[str, dict[tuple[str, Any], list[Record]]] = {}
    for name, group in zip(names, groups, strict=True):
        for record in group:
            place = (str(record["labels"].get("data")), tables.split_of(record))
            cells.setdefault(name, {}).setdefault(place, []).append(record)
    if baseline is not None and baseline not in cells:
        raise ConfigError(f"--baseline: no method is called '{baseline}': use {', '.join(cells)}.")
    chosen = (
        itertools.combinations(cells, 2)
        if baseline is None
        else ((name, baseline) for name in cells if name != baseline)
    )
    out = []
    for first, second in chosen:
        shared = [place for place in cells[first] if place in cells[second]]
        same, missing = True, 0
        values: dict[str, list[float]] = {}
        for place in shared:
            one, other = cells[first][place], cells[second][place]
            same &= len({record.get("target_id") or id(record) for record in (*one, *other)}) == 1
            a, b = _score(one, metric), _score(other, metric)
            if a is None or b is None:
                missing += 1
            else:
                values.setdefault(place[0], []).append(DIRECTIONS[metric] * (a - b))
        by_data = {
            data: verdicts.difference(many, rho=_rho(data, records, rho))
            for data, many in values.items()
            if len(many) > 1
        }
        if by_data:
            out.append(Pair(first, second, SAME if same else OPEN, by_data, missing))
    return out


def as_markdown(leagues: Sequence[League]) -> str:
    """Every league as Markdown: a heading, a table and its notes."""
    lines: list[str] = []
    for league in leagues:
        lines += [f"### {league.name}", "", f"| {' | '.join(map(markdown, _COLUMNS))} |", "|" + "---|" * len(_COLUMNS)]
        lines += [f"| {' | '.join(map(markdown, row))} |" for row in league.rows]
        lines += ["", *(f"- {markdown(note)}" for note in league.notes), ""]
    return "\n".join(lines).strip() + "\n"


def as_latex(leagues: Sequence[League]) -> str:
    """Every league as a LaTeX table of the package booktabs, with its notes below."""
    lines: list[str] = []
    for league in leagues:
        lines += [r"\begin{table}", rf"\caption{{{_latex(league.name)}}}", r"\begin{tabular}{lllrrlrrrlr}", r"\toprule"]
        lines += [" & ".join(map(_latex, _COLUMNS)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(_latex, row)) + r" \\" for row in league.rows]
        lines += [r"\bottomrule", r"\end{tabular}", *(rf"\par\footnotesize {_latex(note)}" for note in league.notes)]
        lines += [r"\end{table}", ""]
    return "\n".join(lines)


def as_csv(leagues: Sequence[League]) -> str:
    """All leagues as one CSV text, whose first column is the league. Notes are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["league", *_COLUMNS])
    for league in leagues:
        writer.writerows([league.name, *row] for row in league.rows)
    return out.getvalue()


def _league(
    name: str,
    mine: Sequence[tuple[Pair, Hierarchy, set[str] | None]],
    metric: str,
    delta: float,
    by_data: bool,
    with_plan: bool,
) -> League:
    rows, notes, pronounced, moved = [], [], [], []
    for pair, answer, words in mine:
        sets = list(pair.by_data)
        splits = sum(one.num_splits for one in pair.by_data.values())
        word = answer.overall.word
        if pair.missing:
            # A failed run has no score of its own, and leaving its split out would favour the method that failed.
            word = "incomplete"
            notes.append(f"{pair.first}, {pair.second}: {pair.missing} splits with a failed run or without {metric}.")
        else:
            pronounced.append(answer.overall)
        of = sets[0] if len(sets) == 1 else f"{len(sets)} sets"
        rows.append([pair.first, pair.second, of, str(splits), *_cells(answer.overall, word)])
        if by_data and len(sets) > 1:
            rows += [
                [pair.first, pair.second, data, str(one.num_splits), *_cells(of_set, of_set.word)]
                for (data, one), of_set in zip(pair.by_data.items(), answer.by_data, strict=True)
            ]
        if with_plan and word == "undecided":
            notes.append(f"{pair.first}, {pair.second}: {verdicts.plan(list(pair.by_data.values()), answer.overall)}")
        if words and len(words) > 1:
            moved.append(f"{pair.first}, {pair.second} ({', '.join(sorted(words))})")
    if any(words for _, _, words in mine):
        notes.append(
            "With the prior of the sd between data sets half or twice as wide, "
            + (f"these change: {'; '.join(moved)}." if moved else "no verdict changes.")
        )
    unit = "standard deviations of the target" if metric in _BY_SET else "the metric's own unit"
    false = verdicts.expected_false(pronounced)
    notes.append(
        f"{metric} in {unit}; above 0 A is better; delta = {delta:g}. A verdict needs a probability of "
        f"{verdicts.LEVEL:.2f}. Intervals allow for the overlap of splits (Nadeau & Bengio 2003)."
    )
    notes.append(f"Expected number of false verdicts in this table: {false:.2f}.")
    return League(name, rows, notes)


def _cells(verdict: Verdict, word: str) -> list[str]:
    interval = f"{verdict.low:.3g} to {verdict.high:.3g}"
    probabilities = (f"{value:.2f}" for value in (verdict.better, verdict.equivalent, verdict.worse))
    return [f"{verdict.median:.3g}", interval, *probabilities, word, f"{verdict.smallest_delta:.2g}"]


def _score(runs: Sequence[Record], metric: str) -> float | None:
    """The mean over the seeds of a split; None if a run failed or lacks the metric."""
    values = []
    for record in runs:
        scores = record["metrics"]
        value = (scores.get("standardized") or {}).get(metric) if metric in _BY_SET else scores.get(metric)
        if record["status"] != "complete" or value is None or not math.isfinite(value):
            return None
        values.append(value)
    return fmean(values)


def _rho(data: str, records: Sequence[Record], given: float | None) -> float:
    """The correlation of two splits: what the user gave, or the share of test rows of the data set."""
    if given is not None:
        return given
    for record in records:
        if record["labels"].get("data") == data:
            options = (record.get("config") or {}).get("data")
            share = options.get("test_fraction") if isinstance(options, Mapping) else None
            if share is not None:
                return float(share)
    raise ConfigError(
        f"--rho: the share of test rows of '{data}' is not in its configuration: give it, as in --rho 0.1."
    )


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
