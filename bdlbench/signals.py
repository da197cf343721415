"""How a command stops when it receives SIGTERM, SIGINT or SIGHUP.

A scheduler that needs the machine sends SIGTERM, Ctrl-C sends SIGINT, and a closed terminal sends SIGHUP.

The handler first stores the number of the signal. While the sampling loop runs (:func:`deferred`), the handler does
nothing else: at the end of the current block, which lasts about a second, the loop writes the checkpoints and raises
:class:`Stopped`. Outside of the loop there is nothing to save, and the handler itself raises :class:`Stopped`. A
library may suppress that exception in one of its callbacks or during an import. The number is still stored then, and
the next :func:`check` raises the exception again. A second signal meets the default handler of the system, which ends
the process at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """Raised when a signal has told the command to stop.

    It is not an ``Exception``, because it is not a failure of a run. ``exit_code`` is 128 plus the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__("stopped; the same command continues")
        self.exit_code = 128 + number


class _Word:
    """The number of the signal that this process has received, and how many :func:`deferred` blocks are open."""

    requested: int | None = None
    deferring = 0


def requested() -> int | None:
    """Return the number of the signal that has told this process to stop, or None if there was no signal."""
    return _Word.requested


def check() -> None:
    """Raise :class:`Stopped` if a signal has told this process to stop and no :func:`deferred` block is open."""
    if _Word.requested is not None and not _Word.deferring:
        raise Stopped(_Word.requested)


class Deferred:
    """What :func:`deferred` yields: it tells whether a signal has arrived."""

    @property
    def requested(self) -> bool:
        """Whether a signal has told this process to stop."""
        return _Word.requested is not None

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal has told this process to stop."""
        if _Word.requested is not None:
            raise Stopped(_Word.requested)


@contextmanager
def on_signals() -> Iterator[None]:
    """Handle ``SIGNALS`` inside this context as a command does, and restore the earlier handlers afterwards.

    SIGHUP stays ignored where it was ignored before, as ``nohup`` requires. Python can set handlers only in the main
    thread. In any other thread this context changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, _heed)
    try:
        yield
        check()
    finally:
        _Word.requested = None
        for put_back, handler in before.items():
            signal.signal(put_back, signal.SIG_DFL if handler is None else handler)


@contextmanager
def deferred() -> Iterator[Deferred]:
    """Postpone the effect of signals: inside this context a signal is only stored.

    The code inside calls :meth:`Deferred.check` at places where it can stop safely. At the end of the outermost context
    :class:`Stopped` is raised if a signal has arrived.
    """
    _Word.deferring += 1
    try:
        yield Deferred()
    finally:
        _Word.deferring -= 1
    check()


def _heed(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:  # a second signal meets the system's default handler and ends the process
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)
    _Word.requested = number
    check()
