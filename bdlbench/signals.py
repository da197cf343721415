"""Being told to stop: SIGTERM (a scheduler wants the machine), SIGINT (Ctrl-C) and SIGHUP (a lost terminal) end a
command in good order.

A signal always leaves word first. While runs are in the loop nothing else happens at once: the loop writes checkpoints
at the end of the block, which lasts about a second, and raises :class:`Stopped`. Anywhere else there is nothing to save,
and the handler raises it. What is raised inside a callback of a library, or while a module is imported, may be lost
there; the word is not, and the next :func:`check` raises it again. A second signal meets the system's own handler and
ends the process there and then.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """The command was told to stop. No failure of a run's, so it is no ``Exception``."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped; the same command continues")
        self.exit_code = 128 + number


class _Word:
    """What signals have said so far, in this process."""

    requested: int | None = None
    deferring = 0


def requested() -> int | None:
    """The number of the signal that has asked this process to stop; None while none has."""
    return _Word.requested


def check() -> None:
    """Raise :class:`Stopped` if a signal has asked to stop and nothing defers it."""
    if _Word.requested is not None and not _Word.deferring:
        raise Stopped(_Word.requested)


class Deferred:
    """Inside :func:`deferred`."""

    @property
    def requested(self) -> bool:
        """Whether a signal has asked to stop."""
        return _Word.requested is not None

    def check(self) -> None:
        """Raise :class:`Stopped` if one has."""
        if _Word.requested is not None:
            raise Stopped(_Word.requested)


@contextmanager
def on_signals() -> Iterator[None]:
    """Heed ``SIGNALS`` inside, as a command does; earlier handlers are put back afterwards.

    A SIGHUP that is ignored stays so, which is what ``nohup`` asks for. Only the main thread can set handlers: in any
    other nothing changes.
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
    """Signals only leave word inside; whoever holds this asks for it and stops where it is good to."""
    _Word.deferring += 1
    try:
        yield Deferred()
    finally:
        _Word.deferring -= 1
    check()


def _heed(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:  # the next one is the system's affair
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)
    _Word.requested = number
    check()
