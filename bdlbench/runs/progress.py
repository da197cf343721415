"""Show the progress of runs: bars on a terminal and lines elsewhere, with the estimated end of a sweep."""

import atexit
import contextlib
import datetime
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from bdlbench.sampling.programs import Phase

Mode = Literal["auto", "lines", "notes", "off"]
"""``notes`` is for worker processes that share the terminal with their sweep, which itself shows the progress."""
_SHOWN = ("loss", "acceptance_rate", "step_size", "log_density")


@runtime_checkable
class Progress(Protocol):
    """The interface of a progress display. Its methods are called while groups of runs are computed."""

    def start(self, name: str, total_steps: int) -> None:
        """A group of runs begins. The number of steps is that of all its stages together."""

    def advance(self, phase: Phase, stage: str, steps_done: int, stats: Mapping[str, Any]) -> None:
        """``steps_done`` steps of all stages are done. ``stats`` has the statistics of the last block, arrays (L, n)."""

    def finish(self, message: str) -> None:
        """The group has ended; the message says how."""

    def note(self, message: str) -> None:
        """Show a message to the user."""

    def sweep_begin(self, num_groups: int, num_runs: int) -> None:
        """A sweep begins. Runs that the store has already are not counted."""

    def group_begin(self, num_runs: int) -> None:
        """A group of the sweep begins. Several groups may run at the same time."""

    def group_end(self, records: Sequence[Mapping[str, Any]]) -> None:
        """A group of the sweep has ended. There is one record for each run, whatever its status."""

    def sweep_end(self) -> None:
        """The sweep has ended."""


def make_progress(mode: Mode) -> Progress:
    """Make the progress display for a mode.

    ``auto`` gives bars if standard error is a terminal, otherwise a line every 5 seconds. ``lines`` gives a line for
    each block, ``notes`` only messages, and ``off`` nothing.
    """
    if mode == "off":
        return Silent()
    if mode == "notes":
        return Notes()
    if mode == "auto" and sys.stderr.isatty():
        return Bars()
    return Lines(every=0.0 if mode == "lines" else 5.0)


def describe(stats: Mapping[str, Any]) -> str:
    """Return up to two statistics of the last step as text, such as ``loss 123.4``.

    A loss is shown for each lane if there are at most four. Otherwise the median over the lanes is shown.
    """

    def value(name: str) -> str:
        last = np.asarray(stats[name][:, -1], np.float64)
        if name == "loss" and 1 < len(last) <= 4:
            return " | ".join(f"{v:.4g}" for v in last)
        return f"{np.median(last):.4g}"

    return "  ".join([f"{name.replace('_', ' ')} {value(name)}" for name in _SHOWN if name in stats][:2])


class Tally:
    """Counts the groups and runs of a sweep that have ended, and estimates when the sweep will end.

    Parameters
    ----------
    num_groups, num_runs : int
        The groups and runs to be computed. Runs found in the store are not counted.
    clock : () -> float
        Seconds.
    """

    def __init__(self, num_groups: int, num_runs: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_groups, self.num_runs, self._clock = num_groups, num_runs, clock
        self.groups_begun = self.groups_done = self.runs_begun = self.runs_done = self.failed = 0
        self._inside = 0.0
        self._started = clock()

    @property
    def running(self) -> int:
        """Runs in groups that have begun and have not ended."""
        return self.runs_begun - self.runs_done

    @property
    def share(self) -> float:
        """The fraction of the runs that have ended. If only one group is running, its finished steps count too."""
        alone = self.groups_begun - self.groups_done == 1
        done = self.runs_done + (self._inside * self.running if alone else 0.0)
        return min(1.0, done / max(1, self.num_runs))

    @property
    def seconds_left(self) -> float | None:
        """The estimated seconds until the end, if the rest runs at the same speed; None before anything is done."""
        if self.share == 0.0:
            return None
        return (self._clock() - self._started) * (1.0 - self.share) / self.share

    def begin(self, num_runs: int) -> None:
        """Count a group that begins."""
        self.groups_begun += 1
        self.runs_begun += num_runs
        self._inside = 0.0

    def inside(self, share: float) -> None:
        """Set the fraction of the running group's steps that are done, from 0 to 1."""
        self._inside = share

    def end(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Count a group that has ended."""
        self.groups_done += 1
        self.runs_done += len(records)
        self.failed += sum(record["status"] != "complete" for record in records)
        self._inside = 0.0

    def when(self) -> str:
        """Return the estimated end as text, ``about 3 min left (15:42)``, or an empty text without an estimate."""
        left = self.seconds_left
        if left is None or self.runs_done == self.num_runs:
            return ""
        end = datetime.datetime.now() + datetime.timedelta(seconds=left)
        return f"about {in_words(left)} left ({end:%H:%M})" if left < 86400 else f"about {in_words(left)} left"


def in_words(seconds: float) -> str:
    """Return a duration as text: 40 s, 3 min, 2 h 10 min, 3 days."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{round(minutes / 1440)} days"


class Silent:
    """Shows nothing."""

    def start(self, name: str, total_steps: int) -> None: ...
    def advance(self, phase: Phase, stage: str, steps_done: int, stats: Mapping[str, Any]) -> None: ...
    def finish(self, message: str) -> None: ...
    def note(self, message: str) -> None: ...
    def sweep_begin(self, num_groups: int, num_runs: int) -> None: ...
    def group_begin(self, num_runs: int) -> None: ...
    def group_end(self, records: Sequence[Mapping[str, Any]]) -> None: ...
    def sweep_end(self) -> None: ...


class Notes(Silent):
    """Shows only messages. For a worker process that writes to the same terminal as its sweep."""

    def note(self, message: str) -> None:
        # The last line of the terminal is the bar of the sweep. It is erased, and the sweep draws it again below.
        _say(f"\r\x1b[2K{message}" if sys.stderr.isatty() else message)


class Notebook(Silent):
    """Shows the progress of a fit in a notebook, in one line of output that is updated."""

    def __init__(self) -> None:
        self.name, self.total = "", 1
        self.handle: Any = None

    def _show(self, text: str) -> None:
        from IPython.display import display

        shown = {"text/plain": text}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)

    def start(self, name: str, total_steps: int) -> None:
        self.name, self.total = name, max(1, total_steps)
        self._show(f"{name}: compiling")

    def advance(self, phase: Any, stage: str, steps_done: int, stats: Mapping[str, Any]) -> None:
        filled = 30 * steps_done // self.total
        word = "warm-up" if phase == "warmup" else "sampling"
        bar = "█" * filled + "░" * (30 - filled)
        self._show(
            f"{self.name}: {bar} {steps_done:,}/{self.total:,} {stage} {word}  {describe(stats) if stats else ''}"
        )

    def finish(self, message: str) -> None:
        self._show(message)

    def note(self, message: str) -> None:
        self._show(message)


class Lines:
    """Prints lines to standard error: at most one in ``every`` seconds, and one for each group of a sweep."""

    def __init__(self, every: float) -> None:
        self.every, self.last = every, 0.0
        self.name, self.total = "", 0
        self.tally: Tally | None = None

    def start(self, name: str, total_steps: int) -> None:
        self.name, self.total, self.last = name, total_steps, time.monotonic()
        self.note(f"{name}: {total_steps:,} steps")

    def advance(self, phase: Phase, stage: str, steps_done: int, stats: Mapping[str, Any]) -> None:
        if self.tally is not None:
            self.tally.inside(steps_done / max(1, self.total))
        if time.monotonic() - self.last >= self.every and stats:
            self.last = time.monotonic()
            word = "warm-up" if phase == "warmup" else "sampling"
            self.note(f"{self.name}: {steps_done:>7,}/{self.total:,} {stage} {word}  {describe(stats)}")

    def finish(self, message: str) -> None:
        if self.tally is None:  # in a sweep, group_end prints a line for the group
            self.note(message)

    def note(self, message: str) -> None:
        _say(message)

    def sweep_begin(self, num_groups: int, num_runs: int) -> None:
        self.tally = None
        if num_runs > 1:
            self.tally = Tally(num_groups, num_runs)
            self.note(f"{num_runs} runs in {num_groups} {'group' if num_groups == 1 else 'groups'}")

    def group_begin(self, num_runs: int) -> None:
        if self.tally is not None:
            self.tally.begin(num_runs)

    def group_end(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self.tally is not None:
            self.tally.end(records)
            self.note(group_line(self.tally, records))

    def sweep_end(self) -> None:
        self.tally = None


def _say(message: str) -> None:
    """Print a line to standard error. Ignore a closed pipe, such as that of ``head``, so that a sweep continues."""
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def group_line(tally: Tally, records: Sequence[Mapping[str, Any]]) -> str:
    """Return ``group 2/5: 20 runs done, 1 failed (why), 40 of 100 runs, about 3 min left (15:42)``."""
    bad = [record for record in records if record["status"] != "complete"]
    first = f" ({bad[0]['id']}: {bad[0]['reason']})" if bad else ""
    parts = [
        f"group {tally.groups_done}/{tally.num_groups}: {len(records)} runs done",
        f"{len(bad)} failed{first}",
        f"{tally.runs_done} of {tally.num_runs} runs",
        tally.when(),
    ]
    return ", ".join(part for part in parts if part)


class Bars:
    """Shows a bar for the running group and, in a sweep, a second bar for the whole sweep below it. Uses rich.

    Parameters
    ----------
    console : rich.console.Console, optional
        Standard error where None.
    """

    def __init__(self, console: Any = None) -> None:
        self.console = console
        self.live: Any = None
        self.bar: Any = None
        self.task: Any = None
        self.name, self.total = "", 0
        self.tally: Tally | None = None

    def start(self, name: str, total_steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._show()
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[info]}"),
            console=self.console,
        )
        self.task = self.bar.add_task(f"{name} compiling", total=total_steps, info="")
        self.name, self.total = name, total_steps

    def advance(self, phase: Phase, stage: str, steps_done: int, stats: Mapping[str, Any]) -> None:
        word = "warm-up" if phase == "warmup" else "sampling"
        if self.bar is not None:
            self.bar.update(self.task, completed=steps_done, description=f"{self.name} {word}", info=describe(stats))
        if self.tally is not None:
            self.tally.inside(steps_done / max(1, self.total))

    def finish(self, message: str) -> None:
        self.bar = None
        if self.tally is None:
            self._hide()
            self.note(message)

    def note(self, message: str) -> None:
        if self.live is not None:
            self.live.console.print(message, highlight=False, markup=False)
        else:
            _say(message)

    def sweep_begin(self, num_groups: int, num_runs: int) -> None:
        self.tally = None
        if num_runs > 1:
            self.tally = Tally(num_groups, num_runs)
            self._show()

    def group_begin(self, num_runs: int) -> None:
        if self.tally is not None:
            self.tally.begin(num_runs)

    def group_end(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self.tally is not None:
            self.bar = None
            self.tally.end(records)
            self.note(group_line(self.tally, records))

    def sweep_end(self) -> None:
        self._hide()
        self.tally = None

    def _show(self) -> None:
        from rich.console import Console
        from rich.live import Live

        if self.live is None:
            self.console = self.console or Console(stderr=True)
            self.live = Live(console=self.console, get_renderable=self._render, transient=True, refresh_per_second=4)
            self.live.start()
            atexit.register(self._hide)  # the cursor of the terminal must be visible again after an interruption

    def _hide(self) -> None:
        if self.live is not None:
            live, self.live = self.live, None
            live.stop()
            atexit.unregister(self._hide)

    def _render(self) -> Any:
        from rich.console import Group

        tally = self.tally
        return Group(*([] if self.bar is None else [self.bar]), *([] if tally is None else [_overall(tally)]))


def _overall(tally: Tally) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    words = [
        f"groups {tally.groups_done}/{tally.num_groups}",
        f"runs {tally.runs_done}/{tally.num_runs}",
        f"{tally.failed} failed",
        f"{tally.running} running",
        tally.when(),
    ]
    row = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=tally.share, width=30)
    row.add_row(Text("sweep"), bar, Text("  ".join(word for word in words if word)))
    return row
