"""What is timed and how: in turns, so that whatever else the machine does falls on both sides of a ratio."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax


class Skipped(Exception):  # noqa: N818 - not an error
    """A row that cannot be measured here; the message says why."""


class Row(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    name : str
        What ``--only`` calls it.
    what : str
        What was measured, in words.
    unit : str
        ``x`` for a ratio; seconds, milliseconds, programs otherwise.
    values : list of float
        All repeats; the median is what counts.
    limit : float or None
        The figure to stay under; None where the line is there to be compared with.
    peer : str
        Today's best elsewhere.
    detail : mapping
        Whatever else a reader of the JSON wants: seconds of both sides, counts.
    """

    name: str
    what: str
    unit: str
    values: list[float]
    limit: float | None = None
    peer: str = ""
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
    """``repeat`` pairs of measurements a ratio; ``quick`` shortens everything so that a test can walk through it."""

    repeat: int = 7
    quick: bool = False
    lanes: bool = False


Measure = Callable[[], float]
"""Runs once and returns what it cost in seconds a unit (a gradient, a step)."""


def in_turns(measures: Mapping[str, Measure], repeat: int) -> dict[str, list[float]]:
    """Time A, B, ... A, B, ... ``repeat`` times, in alternating direction, after one round that is thrown away."""
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


def steady(function: Callable[[int], Any], per_call: float, smallest: int = 1) -> Measure:
    """A measure of ``function(n)``, which does n units: n is found once so that a call lasts about ``per_call``."""
    count = smallest
    jax.block_until_ready(function(count))  # compiles
    while (took := seconds(lambda: function(count))) < per_call / 4 and count < 2**30:
        count *= 2
    count = max(smallest, int(count * per_call / took))
    return lambda: seconds(lambda: function(count)) / count


def drawn(blocks: Iterator[Any], phase: str, unit: Callable[[Any], float], least: float) -> Measure:
    """A measure that takes blocks of the library's own loop, those of ``phase``, until ``least`` seconds are timed.

    What is charged is what the loop's clock charged: seconds over units.
    """

    def measure() -> float:
        timed = units = 0.0
        while timed < least:
            block = next(blocks)
            if block.phase == phase and block.draws_or_steps:
                timed += block.seconds
                units += unit(block)
        return timed / units

    return measure
