"""What a waiting user sees: bars on a terminal, plain lines elsewhere; of a sweep, how far it is and when it will end."""

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
"""``notes`` is for worker processes that share the terminal of their sweep: it shows how far they are."""
_SHOWN = ("loss", "acceptance_rate", "step_size", "log_density")


@runtime_checkable
class Progress(Protocol):
    """Told of a group of runs as it goes."""

    def start(self, name: str, total_steps: int) -> None:
        """A group of runs begins."""

    def advance(self, phase: Phase, stage: str, steps_done: int, stats: Mapping[str, Any]) -> None:
        """``steps_done`` of all stages' steps are done; ``stats`` (L, n) are those of the last block."""

    def finish(self, message: str) -> None:
        """The group is done."""

    def note(self, message: str) -> None:
        """Something else the user should see."""

    def sweep_begin(self, num_groups: int, num_runs: int) -> None:
        """A sweep begins: what is not in the store yet, and in how many groups of lanes."""

    def group_begin(self, num_runs: int) -> None:
        """One of the sweep's groups begins; several may be under way."""

    def group_end(self, records: Sequence[Mapping[str, Any]]) -> None:
        """One of the sweep's groups is done; a record a run, whatever its status."""

    def sweep_end(self) -> None:
        """The sweep is over."""


def make_progress(mode: Mode) -> Progress:
    """Bars where standard error is a terminal and ``mode`` is auto; lines; notes alone; or nothing."""
    if mode == "off":
        return Silent()
    if mode == "notes":
        return Notes()
    if mode == "auto" and sys.stderr.isatty():
        return Bars()
    return Lines(every=0.0 if mode == "lines" else 5.0)


def describe(stats: Mapping[str, Any]) -> str:
    """The statistics worth a glance at the last step, ``loss 123.4``: of each of a few lanes, else their median."""

    def value(name: str) -> str:
        last = np.asarray(stats[name][:, -1], np.float64)
        if name == "loss" and 1 < len(last) <= 4:
            return " | ".join(f"{v:.4g}" for v in last)
        return f"{np.median(last):.4g}"

    return "  ".join([f"{name.replace('_', ' ')} {value(name)}" for name in _SHOWN if name in stats][:2])


class Tally:
    """What of a sweep is done, and when the rest will be.

    Parameters
    ----------
    num_groups, num_runs : int
        What there is to do. A run found in the store is not counted.
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
        """Share of the work that is done: runs, and of the group in progress, if it is the only one, its steps."""
        alone = self.groups_begun - self.groups_done == 1
        done = self.runs_done + (self._inside * self.running if alone else 0.0)
        return min(1.0, done / max(1, self.num_runs))

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end if the rest goes as what is done went; None while nothing is."""
        if self.share == 0.0:
            return None
        return (self._clock() - self._started) * (1.0 - self.share) / self.share

    def begin(self, num_runs: int) -> None:
        """A group begins."""
        self.groups_begun += 1
        self.runs_begun += num_runs
        self._inside = 0.0

    def inside(self, share: float) -> None:
        """So much of the group in progress is done, from 0 to 1."""
        self._inside = share

    def end(self, records: Sequence[Mapping[str, Any]]) -> None:
        """A group is done."""
        self.groups_done += 1
        self.runs_done += len(records)
        self.failed += sum(record["status"] != "complete" for record in records)
        self._inside = 0.0

    def when(self) -> str:
        """The estimated end in words, ``about 3 min left (15:42)``; empty while there is no estimate."""
        left = self.seconds_left
        if left is None or self.runs_done == self.num_runs:
            return ""
        end = datetime.datetime.now() + datetime.timedelta(seconds=left)
        return f"about {in_words(left)} left ({end:%H:%M})" if left < 86400 else f"about {in_words(left)} left"


def in_words(seconds: float) -> str:
    """A duration as one would say it: 40 s, 3 min, 2 h 10 min, 3 days."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{round(minutes / 1440)} days"


class Silent:
    """Says nothing."""

    def start(self, name: str, total_steps: int) -> None: ...
    def advance(self, phase: Phase, stage: str, steps_done: int, stats: Mapping[str, Any]) -> None: ...
    def finish(self, message: str) -> None: ...
    def note(self, message: str) -> None: ...
    def sweep_begin(self, num_groups: int, num_runs: int) -> None: ...
    def group_begin(self, num_runs: int) -> None: ...
    def group_end(self, records: Sequence[Mapping[str, Any]]) -> None: ...
    def sweep_end(self) -> None: ...


class Notes(Silent):
    """Notes alone, on the standard error of a sweep in another process."""

    def note(self, message: str) -> None:
        # The sweep's bar is the terminal's last line: it gives way, and is drawn again beneath.
        _say(f"\r\x1b[2K{message}" if sys.stderr.isatty() else message)


class Notebook(Silent):
    """Progress of a fit in a notebook: one line of output that is replaced as the fit goes on."""

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
    """A line at most every ``every`` seconds, and one for each group of a sweep, to standard error."""

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
        if self.tally is None:  # of a group of a sweep, its line says it
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
    """A line on standard error. That nobody reads it any more, as behind ``head``, is no reason to stop a sweep."""
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def group_line(tally: Tally, records: Sequence[Mapping[str, Any]]) -> str:
    """``group 2/5: 20 runs done, 1 failed (why), 40 of 100 runs, about 3 min left (15:42)``."""
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
    """A bar for the group in progress and, in a sweep, one for the whole beneath it: one live display, with rich.

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
            atexit.register(self._hide)  # an interruption must not leave the terminal without its cursor

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
