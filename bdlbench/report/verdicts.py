"""Verdicts between methods from stored records, as a table for the terminal, Markdown, LaTeX or CSV.

There are two kinds of comparison, called leagues, which have separate tables. In the first, both methods approximate the
same distribution: the ``target_id`` of their records is the same on every split. In the second they do not, so that
predictions may be better because the model is better.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bdlbench.errors import ConfigError
from bdlbench.evaluation import verdicts
from bdlbench.evaluation.verdicts import Difference, Hierarchy, Verdict
from bdlbench.report import printing, tables

Record = Mapping[str, Any]
DIRECTIONS = {
    "lppd": 1, "lppd_gaussian": 1, "accuracy": 1,
    "rmse": -1, "crps": -1, "brier": -1, "ece": -1, "interval_score_90": -1, "joint_log_loss": -1,
    "referral_cost": -1,
}  # fmt: skip
"""Metrics that say which method is better, with 1 where more is better and -1 where less is."""
BY_SET = ("rmse", "crps", "interval_score_90")  # in the units of the target, and compared in its standard deviations
SENSITIVITY = (0.5, 2.0)
"""Scales of the prior of the sd between data sets for the note on sensitivity, in multiples of the default."""
SAME, OPEN = "same posterior", "open"
_COLUMNS = ["A", "B", "data", "splits", "A - B", "95 % interval", "P(better)", "P(equivalent)", "P(worse)", "verdict",
            "smallest delta"]  # fmt: skip
_ALIGNED = "lllrrlrrrlr"


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
            league = _league(name, mine, metric, delta, by_data, with_plan)
            compared = {data for pair, _, _ in mine for data in pair.by_data}
            own = tables.tuned_on_themselves(r for r in records if r["labels"].get("data") in compared)
            leagues.append(league._replace(notes=[*own, *league.notes]))
    return leagues


def pairs(
    records: Sequence[Record], metric: str, *, baseline: str | None = None, rho: float | None = None
) -> list[Pair]:
    """All pairs of methods that have two or more splits of one data set in common. With a baseline, it is always B."""
    cells = tables.by_method(records)
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
            a, b = (tables.score_of_split(runs, metric, standardized=metric in BY_SET) for runs in (one, other))
            if a is None or b is None:
                missing += 1
            else:
                values.setdefault(place[0], []).append(DIRECTIONS[metric] * (a - b))
        by_data = {
            data: verdicts.difference(many, rho=correlation_of(data, records, rho))
            for data, many in values.items()
            if len(many) > 1
        }
        if by_data:
            out.append(Pair(first, second, SAME if same else OPEN, by_data, missing))
    return out


def as_markdown(leagues: Sequence[League]) -> str:
    """Every league as Markdown: a heading, a table and its notes."""
    return printing.as_markdown([_sheet(league) for league in leagues])


def as_latex(leagues: Sequence[League]) -> str:
    """Every league as a LaTeX table of the package booktabs, with its notes below."""
    return printing.as_latex([_sheet(league) for league in leagues])


def as_csv(leagues: Sequence[League]) -> str:
    """All leagues as one CSV text, whose first column is the league. Notes are left out."""
    return printing.as_csv(["league", *_COLUMNS], ([league.name, *row] for league in leagues for row in league.rows))


def _sheet(league: League) -> printing.Sheet:
    return printing.Sheet(league.name, _COLUMNS, league.rows, league.notes, _ALIGNED)


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
    unit = "standard deviations of the target" if metric in BY_SET else "the metric's own unit"
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


def correlation_of(data: str, records: Sequence[Record], given: float | None) -> float:
    """The correlation of two splits: what the user gave, or the share of test rows of the data set."""
    if given is not None:
        return given
    own = [record for record in records if record["labels"].get("data") == data]
    if tables.one_test_set(own):
        raise ConfigError(
            f"--rho: the splits of '{data}' share one test set, so that its share of the rows says nothing: give --rho 0 "
            "if their training rows are disjoint."
        )
    rho = tables.correlation_of_splits(own)
    if rho is None:
        raise ConfigError(
            f"--rho: the share of test rows of '{data}' is not in its configuration: give it, as in --rho 0.1."
        )
    return rho
