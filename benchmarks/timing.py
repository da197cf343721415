"""What is timed and how: in turns, so that whatever else the machine does falls on both sides of a ratio."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax


class Skipped(Exception):
    """A row that cannot be measured here; the message says why."""


class Row(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    what : str
        What was measured, in words.
    unit : str
        ``x`` for a ratio; seconds, milliseconds, programs otherwise.
    values : list of float
        All repeats; the median is what counts.
    limit : float or None
        The figure not to exceed; None where the line is there to be compared with.
    elsewhere : str
        Today's best elsewhere.
    detail : mapping
        What else a reader of the JSON wants: seconds of both sides, counts.
    """

    what: str
    unit: str
    values: list[float]
    limit: float | None = None
    elsewhere: str = ""
    detail: Mapping[str, Any] = {}

    @property
    def median(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median is within the limit."""
        return None if self.limit is None else self.median <= self.limit


class Options(NamedTuple):
    """How long to measure.

    ``repeat`` pairs a ratio, ``least`` seconds a measurement; ``quick`` shrinks problems too, so that a test can walk
    through; ``lanes`` asks for the rows about many lanes off an accelerator, ``full`` for MILE at its published length.
    """

    repeat: int = 15
    least: float = 0.2
    quick: bool = False
    lanes: bool = False
    full: bool = False


Measure = Callable[[], float]
"""Runs once and returns what it cost in seconds a unit (a gradient, a step)."""


def in_turns(measures: Mapping[str, Measure], repeat: int) -> dict[str, list[float]]:
    """Time A, B, ... ``repeat`` times, every other round backwards, after one round that is thrown away."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    order = list(measures)
    for turn in range(repeat + 1):
        for name in order if turn % 2 else reversed(order):
            cost = measures[name]()
            if turn:
                found[name].append(cost)
    return found


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Ratio of each pair measured next to one another."""
    return [a / b for a, b in zip(over, under, strict=True)]


def seconds(function: Callable[[], Any]) -> float:
    """Wall seconds of a call, until its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def steady(function: Callable[[int], Any], least: float) -> Measure:
    """A measure of ``function(n)``, which does n units: n is found once, so that a call lasts about ``least`` s."""
    jax.block_until_ready(function(1))  # compiles

    def timed(count: int) -> float:
        return seconds(lambda: function(count))

    count = 1
    while (took := timed(count)) < least / 4 and count < 2**30:
        count *= 2
    count = max(1, int(count * least / took))
    return lambda: timed(count) / count


def in_blocks(blocks: Iterator[Any], stage: int, phase: str, unit: Callable[[Any], float], least: float) -> Measure:
    """A measure that takes blocks of the library's own loop until ``least`` seconds have passed.

    It begins after the first block of ``phase`` of ``stage``, so that compilation and what comes before are left out.
    Everything the loop does on the host between blocks is included.
    """
    waiting = True

    def measure() -> float:
        nonlocal waiting
        while waiting:
            block = next(blocks)
            waiting = not (block.stage == stage and block.phase == phase)
        start, units = time.perf_counter(), 0.0
        while (took := time.perf_counter() - start) < least:
            units += unit(next(blocks))
        return took / units

    return measure


def num_grads(block: Any) -> float:
    """Gradients on all rows that a block cost, over all lanes."""
    return float(block.num_grads.sum())


def ratio_row(
    what: str,
    found: Mapping[str, list[float]],
    over: str,
    under: str,
    limit: float | None = None,
    elsewhere: str = "",
) -> Row:
    """The row that says how much ``over`` costs in units of ``under``."""
    detail = {f"{name}_us": [1e6 * s for s in found[name]] for name in (over, under)}
    detail["ratio_of_minima"] = min(found[over]) / min(found[under])
    return Row(what, "x", ratios(found[over], found[under]), limit, elsewhere, detail)
