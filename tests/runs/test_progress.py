"""The progress of a sweep: counts of groups and runs, the estimated end, one display, and lines without a terminal."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from bdlbench.runs import progress
from bdlbench.runs.progress import Bars, Lines, Silent, Tally, in_words, make_progress

STATS = {"loss": np.full((2, 3), 1.5)}


def records(complete, failed=0):
    """Records of a group with the entries that the progress reads."""
    good = [{"id": f"run{i}", "status": "complete", "reason": None} for i in range(complete)]
    return good + [{"id": f"bad{i}", "status": "failed", "reason": "ValueError: no"} for i in range(failed)]


class Hand:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self):
        return self.now


def test_the_estimate_is_what_is_left_at_the_pace_so_far():
    """25 of 100 runs in 60 s leave 180 s.

    With half of a group of 50 more, 60 s are left. At the start there is no estimate.
    """
    clock = Hand()
    tally = Tally(3, 100, clock)
    assert tally.seconds_left is None and tally.when() == ""
    tally.begin(25)
    clock.now = 60.0
    tally.end(records(24, 1))
    assert (tally.groups_done, tally.runs_done, tally.failed, tally.running) == (1, 25, 1, 0)
    assert tally.seconds_left == pytest.approx(180.0)
    tally.begin(50)
    tally.inside(0.5)
    assert tally.running == 50
    assert tally.seconds_left == pytest.approx(60.0)
    assert re.fullmatch(r"about 60 s left \(\d\d:\d\d\)", tally.when())
    tally.end(records(50))
    tally.begin(25)
    tally.end(records(25))
    assert tally.share == 1.0 and tally.when() == ""


def test_groups_side_by_side_are_counted_when_they_end():
    """If several groups run, it is not known to which one a step belongs, so only finished runs count."""
    tally = Tally(2, 20, Hand())
    tally.begin(10)
    tally.begin(10)
    tally.inside(0.9)
    assert (tally.running, tally.share) == (20, 0.0)
    tally.end(records(10))
    assert (tally.running, tally.share) == (10, 0.5)
    tally.end(records(8, 2))
    assert (tally.running, tally.share, tally.failed) == (0, 1.0, 2)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "1 s"), (89.2, "90 s"), (90.0, "2 min"), (181.0, "4 min"), (7800.0, "2 h 10 min"), (260_000.0, "3 days")],
)
def test_durations_in_words(seconds, words):
    """Durations are rounded up and have the usual unit."""
    assert in_words(seconds) == words


def test_a_line_a_group(capsys):
    """The line has the counts of the group and of the sweep, the failed runs with reasons, and the estimated end."""
    lines = Lines(every=1e9)
    lines.sweep_begin(2, 6)
    lines.group_begin(4)
    lines.start("a and 3 more", 10)
    lines.advance("sample", "sgld", 5, STATS)
    lines.finish("a and 3 more: complete")
    lines.group_end(records(3, 1))
    lines.group_begin(2)
    lines.group_end(records(2))
    lines.sweep_end()
    assert lines.tally is None
    out = capsys.readouterr().err.splitlines()
    assert out[:2] == ["6 runs in 2 groups", "a and 3 more: 10 steps"]
    first = r"group 1/2: 4 runs done, 1 failed \(bad0: ValueError: no\), 4 of 6 runs, about 1 s left \(\d\d:\d\d\)"
    assert re.fullmatch(first, out[2])
    assert out[3:] == ["group 2/2: 2 runs done, 0 failed, 6 of 6 runs"]


@pytest.mark.parametrize("make", [lambda: Lines(every=1e9), lambda: Bars(Console(file=io.StringIO()))])
def test_one_run_is_no_sweep(make, capsys):
    """For a single run the outcome is shown, and no sweep is mentioned."""
    shown = make()
    shown.sweep_begin(1, 1)
    shown.group_begin(1)
    shown.start("a", 10)
    shown.advance("warmup", "map", 5, STATS)
    shown.finish("a: complete")
    shown.group_end(records(1))
    shown.sweep_end()
    err = capsys.readouterr().err
    assert "a: complete" in err
    assert "group" not in err and "sweep" not in err


def screen(shown, width=160):
    """The present content of the screen as plain text."""
    console = Console(file=io.StringIO(), width=width)
    console.print(shown._render())
    return console.file.getvalue()


def test_one_display_has_both_bars():
    """The bar of the running group is above the bar of the sweep, and both show the present counts."""
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    bars = Bars(console)
    bars.sweep_begin(2, 6)
    live = bars.live
    assert "groups 0/2  runs 0/6  0 failed  0 running" in screen(bars)
    bars.group_begin(4)
    bars.start("a and 3 more", 10)
    assert bars.live is live, "one display, not one a group"
    bars.advance("warmup", "map", 5, STATS)
    group, whole = screen(bars).splitlines()
    assert group.startswith("a and 3 more warm-up") and "5/10" in group and "loss 1.5 | 1.5" in group
    assert whole.startswith("sweep") and "groups 0/2  runs 0/6  0 failed  4 running  about 1 s left" in whole
    bars.finish("a and 3 more: complete")
    bars.group_end(records(3, 1))
    (whole,) = screen(bars).splitlines()
    assert "groups 1/2  runs 4/6  1 failed  0 running" in whole
    bars.note("[a note]")
    bars.sweep_end()
    assert bars.live is None
    written = console.file.getvalue()
    assert "group 1/2: 4 runs done, 1 failed (bad0: ValueError: no), 4 of 6 runs" in written
    assert "[a note]" in written, "text in brackets is no markup"
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1, "the cursor is given back"


def test_a_display_that_nobody_ends_is_ended_at_exit(monkeypatch):
    """After an interruption the display stays. At the exit of the interpreter, the cursor is visible again."""
    left = []
    monkeypatch.setattr(progress.atexit, "register", left.append)
    console = Console(file=io.StringIO(), force_terminal=True)
    bars = Bars(console)
    bars.sweep_begin(1, 2)
    assert len(left) == 1
    left[0]()
    assert console.file.getvalue().count("\x1b[?25h") == 1 and bars.live is None


def test_the_mode_chooses(monkeypatch):
    """The mode gives bars on a terminal, lines elsewhere, and nothing with ``off``."""
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(make_progress("auto"), Bars)
    assert isinstance(make_progress("lines"), Lines)
    assert isinstance(make_progress("off"), Silent)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(make_progress("auto"), Lines)


@pytest.mark.parametrize(("terminal", "before"), [(False, ""), (True, "\r\x1b[2K")])
def test_notes_alone_make_the_sweeps_bar_give_way(terminal, before, monkeypatch, capsys):
    """A worker's line on the terminal replaces the bar, which is drawn again below it."""
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal)
    shown = make_progress("notes")
    shown.start("run", 100)
    shown.advance("warmup", "sgld", 50, STATS)
    shown.note("run: continues from its checkpoint")
    shown.finish("run: complete")
    assert capsys.readouterr().err == f"{before}run: continues from its checkpoint\n"
