"""Posteriors of ranks from stored records, as a table or a figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.evaluation.ranks import Ranks, ranks, undecided_groups
from bdlbench.report import printing, tables
from bdlbench.report.paper import leagues
from bdlbench.report.printing import Sheet
from bdlbench.report.verdicts import BY_SET, DIRECTIONS, correlation_of
from bdlbench.store.records import flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]


class Ranking(NamedTuple):
    """The ranks of some methods: a title, their names, the posterior, and sentences below."""

    title: str
    methods: list[str]
    ranks: Ranks
    notes: list[str]


def ranking(
    records: Sequence[Record], *, metric: str, rho: float | None = None, by: str | None = None
) -> list[Ranking]:
    """Ranks of the methods of each league over the data sets that all of them have, or over all if there is none.

    A method without a score on every split is not ranked.

    Parameters
    ----------
    records : sequence of mappings
        Records of finished runs, failed ones too.
    metric : str
        One of ``DIRECTIONS``. RMSE, CRPS and interval scores are in standard deviations of the target.
    rho : float, optional
        Correlation of two splits; None takes n_test / (n_test + n_train).
    by : str, optional
        A setting, as in ``prior.weight_scale``. Each of its values has a ranking of its own, so that one sees how far the
        order depends on it.

    Raises
    ------
    ConfigError
        An unknown metric or setting, an unknown rho, or fewer than two methods with two splits in common.
    """
    if metric not in DIRECTIONS:
        raise ConfigError(f"--metric: '{metric}' does not say which method is better: use {', '.join(DIRECTIONS)}.")
    out = []
    for value, some in _by_setting(records, by).items():
        cells = tables.by_method(some)
        for league, methods in leagues(cells):
            found = _ranking(cells, methods, metric, rho)
            if found is not None:
                title = f"{metric}, {league}" + (f", {by}={value}" if by else "")
                out.append(found._replace(title=title))
    if not out:
        raise ConfigError(
            "--metric: no two methods have two splits of a data set in common: run them on the same splits."
        )
    return out


def as_markdown(found: Sequence[Ranking]) -> str:
    """Every ranking as a table, the best expected rank first, and its notes."""
    return printing.as_markdown([_sheet(one) for one in found])


def figure(one: Ranking) -> "Figure":
    """The ranking as a diagram; see :func:`bdlbench.report.figures.rank_diagram`."""
    from bdlbench.report.figures import rank_diagram

    found = one.ranks
    sets = [drawn.mean(axis=0) for drawn in found.by_data.values()] if len(found.by_data) > 1 else None
    return rank_diagram(
        one.methods, found.expected, found.interval, undecided_groups(found), title=one.title, by_data=sets
    )


def _sheet(one: Ranking) -> Sheet:
    low, high = one.ranks.interval
    first, expected = one.ranks.probabilities[:, 0], one.ranks.expected
    sets = list(one.ranks.by_data) if len(one.ranks.by_data) > 1 else []
    rows = [
        [
            one.methods[k], f"{expected[k]:.1f}", f"{low[k]:g} to {high[k]:g}", f"{first[k]:.2f}",
            *(f"{one.ranks.by_data[data][:, k].mean():.1f}" for data in sets),
        ]
        for k in np.argsort(expected, kind="stable")
    ]  # fmt: skip
    columns = ["method", "expected rank", "95 % interval", "P(first)", *sets]
    return Sheet(one.title, columns, rows, one.notes, "lrlr" + "r" * len(sets))


def _ranking(
    cells: Mapping[str, Mapping[tuple[str, Any], list[Record]]], methods: Sequence[str], metric: str, rho: float | None
) -> Ranking | None:
    """The ranking on the data sets that all methods have, or else on all; None of fewer than two methods.

    A method must have a score on every split that another has.
    """
    every = list(dict.fromkeys(data for method in methods for data, _ in cells[method]))
    # A method that was run on further data sets must not take the others out of the ranking.
    shared = [data for data in every if all(any(data == d for d, _ in cells[method]) for method in methods)]
    asked = [p for p in dict.fromkeys(p for m in methods for p in cells[m]) if p[0] in (shared or every)]
    score = {
        method: {
            place: tables.score_of_split(runs, metric, standardized=metric in BY_SET)
            for place, runs in cells[method].items()
        }
        for method in methods
    }
    whole = [method for method in methods if all(score[method].get(place) is not None for place in asked)]
    if len(whole) < 2:
        return None
    scores: dict[str, np.ndarray] = {}
    correlation = {}
    for data in dict.fromkeys(data for data, _ in asked):
        here = [place for place in asked if place[0] == data]
        if len(here) > 1:
            scores[data] = DIRECTIONS[metric] * np.array([[score[m][place] for m in whole] for place in here], float)
            own = [record for method in whole for place in here for record in cells[method][place]]
            correlation[data] = correlation_of(data, own, rho)
    if not scores:
        return None
    found = ranks(scores, rho=correlation)
    splits = ", ".join(f"{data} ({len(values)} splits)" for data, values in scores.items())
    what = "the mean over data sets like these" if len(scores) > 1 else "the mean over splits"
    notes = [f"Ranks of {what}: {splits}; 1 is the best. P is the posterior of the model of the verdicts."]
    if lost := [data for data in every if data not in scores]:
        notes.append(f"Without two splits that all methods have, and left out: {', '.join(lost)}.")
    if left := [method for method in methods if method not in whole]:
        notes.append(f"Without a score on every split, and not ranked: {', '.join(left)}.")
    if not found.converged:
        notes.append(f"The chains disagree (R-hat {found.rhat:.2f}): do not rely on these ranks.")
    used = [r for method in whole for (data, _), runs in cells[method].items() if data in scores for r in runs]
    return Ranking("", whole, found, notes + tables.tuned_on_themselves(used))


def _by_setting(records: Sequence[Record], by: str | None) -> dict[Any, list[Record]]:
    if by is None:
        return {None: list(records)}
    out: dict[Any, list[Record]] = {}
    for record in records:
        settings = dict(flatten(record.get("config") or {}))
        if by in settings:
            out.setdefault(settings[by], []).append(record)
    if not out:
        raise ConfigError(f"--by: no run has the setting '{by}': give one as in --by prior.weight_scale.")
    return dict(sorted(out.items(), key=lambda item: (isinstance(item[0], str), item[0])))
