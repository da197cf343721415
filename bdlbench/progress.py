"""What a waiting user sees: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from bdlbench.sampling.programs import Phase

Mode = Literal["auto", "lines", "off"]
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
        """One of the sweep's groups begins."""

    def group_end(self, records: Sequence[Mapping[str, Any]]) -> None:
        """One of the sweep's groups is done; a record a run, whatever its status."""

    def sweep_end(self) -> None:
        """The sweep is over."""


def make_progress(mode: Mode) -> Progress:
    """Bars where standard error is a terminal and ``mode`` is auto; lines; or nothing."""
    if mode == "off":
        return Silent()
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


class Lines:
    """A line at most every ``every`` seconds, to standard error."""

    def __init__(self, every: float) -> None:
        self.every, self.last = every, 0.0
        self.name, self.total = "", 0

    def start(self, name: str, total_steps: int) -> None:
        self.name, self.total, self.last = name, total_steps, time.monotonic()
        self.note(f"{name}: {total_steps:,} steps")

    def advance(self, phase: Phase, stage: str, steps_done: int, stats: Mapping[str, Any]) -> None:
        if time.monotonic() - self.last >= self.every and stats:
            self.last = time.monotonic()
            word = "warm-up" if phase == "warmup" else "sampling"
            self.note(f"{self.name}: {steps_done:>7,}/{self.total:,} {stage} {word}  {describe(stats)}")

    def finish(self, message: str) -> None:
        self.note(message)

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def sweep_begin(self, num_groups: int, num_runs: int) -> None: ...
    def group_begin(self, num_runs: int) -> None: ...
    def group_end(self, records: Sequence[Mapping[str, Any]]) -> None: ...
    def sweep_end(self) -> None: ...


class Bars:
    """One bar a group, with rich."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None

    def start(self, name: str, total_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[info]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.bar.add_task(f"{name} compiling", total=total_steps, info="")
        self.name = name
        self.bar.start()

    def advance(self, phase: Phase, stage: str, steps_done: int, stats: Mapping[str, Any]) -> None:
        word = "warm-up" if phase == "warmup" else "sampling"
        self.bar.update(self.task, completed=steps_done, description=f"{self.name} {word}", info=describe(stats))

    def finish(self, message: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        self.note(message)

    def note(self, message: str) -> None:
        if self.bar is not None:
            self.bar.console.print(message, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)

    def sweep_begin(self, num_groups: int, num_runs: int) -> None: ...
    def group_begin(self, num_runs: int) -> None: ...
    def group_end(self, records: Sequence[Mapping[str, Any]]) -> None: ...
    def sweep_end(self) -> None: ...
