"""The executor that computes one task after another in this process. Each batch of lanes uses all devices."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bdlbench.runs.executors.base import Result


class Local:
    """The executor that uses only this process."""

    elsewhere, has_log, slots, memory_share = False, False, 1, 1.0

    def execute(
        self,
        work: Callable[[Any], list[Any]],
        tasks: Sequence[Any],
        *,
        folder: Path,
        begin: Callable[[int], object],
    ) -> Iterator[tuple[int, Result]]:
        """See :meth:`bdlbench.runs.executors.base.Executor.execute`. Errors of ``work`` are raised and end a sweep."""
        del folder
        for index, task in enumerate(tasks):
            begin(index)
            yield index, work(task)
