"""Signals are deferred or raised at once, a second signal ends the process, and the old handlers are restored."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from bdlbench.signals import Stopped, check, deferred, on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_raised_where_nothing_is_deferred(number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped, on_signals():
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_deferred_signal_is_heeded_at_the_end_or_where_it_is_asked_for():
    reached = []
    with pytest.raises(Stopped), on_signals(), deferred() as stop:
        stop.check()
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        reached.append("end")
    with pytest.raises(Stopped), on_signals(), deferred() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check()
        reached.append("not here")
    with on_signals(), deferred() as stop:  # an earlier command's signal is none of this one's
        assert not stop.requested
    assert reached == ["end"]


def test_what_a_library_swallows_is_raised_again():
    """If a library prints the exception of a callback and continues, it is raised again later."""
    reached = []
    with pytest.raises(Stopped) as stopped, on_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            reached.append("swallowed")
        check()
        reached.append("not here")
    assert (reached, stopped.value.exit_code) == (["swallowed"], 143)
    with pytest.raises(Stopped), on_signals():  # and at the end of the command at the latest
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            reached.append("swallowed")
    assert reached == ["swallowed"] * 2


def test_the_command_hears_before_it_imports():
    """The entry module imports only the standard library."""
    code = "import sys; before = set(sys.modules); import bdlbench.cli.main; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = {name.split(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names) - {"bdlbench"}
    assert not foreign


def test_an_error_inside_is_not_hidden():
    with pytest.raises(ZeroDivisionError), on_signals(), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        1 / 0  # noqa: B018


def test_a_library_sets_no_handlers():
    """Without a command, and outside of the main thread, no signal handlers are set."""
    before = signal.getsignal(signal.SIGTERM)
    with deferred() as stop:
        assert not stop.requested
        assert signal.getsignal(signal.SIGTERM) is before
    found = []

    def other():
        with on_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [before]


def test_the_second_signal_is_the_systems():
    code = (
        "import os, signal\nfrom bdlbench.signals import *\nwith on_signals(), deferred():\n"
        "  os.kill(os.getpid(), signal.SIGTERM)\n  os.kill(os.getpid(), signal.SIGINT)\n  print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == ""
