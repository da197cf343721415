"""The cells of an experiment: each is computed once and kept, so that a run that was stopped goes on where it was.

A cell is one fit of one method on one data set. Its results are summarised over data sets.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "results" / "cells"
TABLES = ROOT / "results" / "tables"
Cell = Mapping[str, Any]


class Summary(NamedTuple):
    """One line of a summary: the mean of a metric over n data sets with its 95 % interval."""

    group: tuple[str, ...]
    metric: str
    mean: float
    low: float
    high: float
    n: int


class Cells:
    """The results of cells in a file of one JSON object a line.

    A cell is identified by everything that defines it, with the options of its method, so that a cell of another
    protocol is not taken for it. A line that was not written whole is computed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
            for line in whole.splitlines():
                kept = json.loads(line)
                self.found[_identity(kept["cell"])] = kept["result"]
            if torn:
                path.write_text(whole + "\n" if whole else "", encoding="utf-8")

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The result of a cell, or None if it has not been computed."""
        return self.found.get(_identity(cell))

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keep the result of a cell."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": cell, "result": result}) + "\n")
        self.found[_identity(cell)] = result


def _identity(cell: Cell) -> str:
    return json.dumps(cell, sort_keys=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every experiment has beside its size."""
    parser.add_argument("--cells", type=Path, default=KEPT, help="folder in which finished cells are kept")
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables")
    parser.add_argument(
        "--kept", action="store_true", help="compute nothing, and write the tables of the cells that are kept"
    )


def compute(
    cells: Sequence[Cell],
    kept: Cells,
    run: Callable[[Cell], dict[str, Any]],
    cpu_minutes: float,
    *,
    only_kept: bool = False,
) -> tuple[list[Cell], list[dict[str, Any]]]:
    """Compute the cells that are not kept yet, in their order, and return all cells with their results.

    With ``only_kept`` nothing is computed, and the cells that are not kept are left out.

    The price is printed first. ``cpu_minutes`` is the estimated price of all cells, in minutes of one core; the cells that
    are left are assumed to cost the average.
    """
    if only_kept:
        there = [cell for cell in cells if kept.get(cell) is not None]
        print(f"{len(there)} of {len(cells)} cells are kept in {kept.path.name}.", flush=True)
        return there, [kept.found[_identity(cell)] for cell in there]
    left = sum(kept.get(cell) is None for cell in cells)
    price = cpu_minutes * left / len(cells)
    print(
        f"{len(cells)} cells, of which {len(cells) - left} are kept in {kept.path.name}: about {price:.1f} minutes of one "
        f"core for the other {left}.",
        flush=True,
    )
    results, done = [], 0
    for cell in cells:
        result = kept.get(cell)
        if result is None:
            started = time.process_time()
            result = run(cell) | {"cpu_seconds": time.process_time() - started}
            kept.add(cell, result)
            done += 1
            words = " ".join(str(value) for name, value in cell.items() if name != "options")
            print(f"{done}/{left} {words}: {result['cpu_seconds']:.1f} s of one core", flush=True)
        results.append(result)
    return list(cells), results


def interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of n independent values with its Student interval, (mean, low, high); the ends are nan for n = 1."""
    from scipy.stats import t

    values = np.asarray(list(values), np.float64)
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return mean, math.nan, math.nan
    half = float(t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def summarise(
    cells: Sequence[Cell], results: Sequence[Mapping[str, Any]], by: Sequence[str], metrics: Sequence[str]
) -> list[Summary]:
    """Summarise each metric over the cells that agree in the columns ``by``. A metric that a cell lacks is left out."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for cell, result in zip(cells, results, strict=True):
        groups.setdefault(tuple(str(cell[name]) for name in by), []).append(result)
    out = []
    for group, members in groups.items():
        for metric in metrics:
            values = [member[metric] for member in members if member.get(metric) is not None]
            if values:
                out.append(Summary(group, metric, *interval(values), len(values)))
    return out


def write(path: Path, by: Sequence[str], size: str, lines: Sequence[Summary]) -> None:
    """Write a summary as a CSV with the size of the experiment that made it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["size", *by, "metric", "mean", "low", "high", "n"])
        for line in lines:
            numbers = ("" if math.isnan(v) else f"{v:.5g}" for v in (line.mean, line.low, line.high))
            table.writerow([size, *line.group, line.metric, *numbers, line.n])


class Table(NamedTuple):
    """A summary as it was read: the size that made it, and its lines by (group, metric)."""

    size: str
    lines: dict[tuple[tuple[str, ...], str], Summary]

    def groups(self) -> list[tuple[str, ...]]:
        """The groups in their order in the file."""
        return list(dict.fromkeys(group for group, _ in self.lines))

    def shown(
        self, group: tuple[str, ...], metric: str, digits: int, *, with_interval: bool = False, most: float = math.inf
    ) -> str:
        """A mean as text, with its interval in brackets if asked for; a dash where there is none.

        ``most`` is the largest possible value of a score that is at least 0. An interval is cut there.
        """
        line = self.lines.get((group, metric))
        if line is None:
            return "–"
        mean = f"{line.mean:.{digits}f}"
        if not with_interval or math.isnan(line.low):
            return mean
        low, high = (line.low, line.high) if most == math.inf else (max(line.low, 0.0), min(line.high, most))
        return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def read(path: Path) -> Table:
    """Read a summary that :func:`write` wrote."""
    lines, size = {}, ""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            if row[-1] == "n":  # the header
                continue
            size, *group, metric, mean, low, high, n = row
            numbers = [float(v) if v else math.nan for v in (mean, low, high)]
            lines[tuple(group), metric] = Summary(tuple(group), metric, *numbers, int(n))
    return Table(size, lines)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """A Markdown table whose first ``words`` columns are text and whose other columns are numbers."""
    rule = ["---"] * words + ["---:"] * (len(header) - words)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])
