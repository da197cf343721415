"""The entry points of the commands. They set the signal handlers before they import the slow modules."""

import signal
import sys

if (  # From its first statement on, a command that receives Ctrl-C ends without a traceback. main() sets its own handlers.
    sys.argv[0].endswith(("bdlbench", "bdlbench-results", "bdlbench-references"))
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import importlib
import threading
from typing import Any

from bdlbench import __version__
from bdlbench.cli.streams import make_lenient
from bdlbench.signals import Stopped, deferred, on_signals, requested


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 130 after Ctrl-C and 143 after SIGTERM."""
    if argv is None and threading.current_thread() is threading.main_thread():
        # While the interpreter ends, and in the moments around the handlers, nobody can catch what Python's handler raises.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.unraisablehook = without_signals
        make_lenient()
    if "--version" in (sys.argv[1:] if argv is None else argv):
        print(f"bdlbench {__version__}")
        return 0
    try:
        with on_signals():
            try:
                with deferred():  # a signal must not interrupt an import
                    from bdlbench.cli.command import execute

                return execute(argv)
            except Stopped:
                raise
            except BaseException as error:
                # A library may have replaced the exception of the signal handler by another one.
                if (number := requested()) is not None:
                    raise Stopped(number) from error
                raise
    except Stopped as stopped:
        print(f"bdlbench: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:  # outside of the main thread no handler could be set
        print("bdlbench: stopped; the same command continues", file=sys.stderr)
        return 130


def results() -> int:
    """The entry point of ``bdlbench-results``: Ctrl-C during its imports ends the process without a traceback."""
    return _short("results")


def references() -> int:
    """The entry point of ``bdlbench-references``, as :func:`results`."""
    return _short("references")


def _short(module: str) -> int:
    """Run a command that has nothing to save when it is stopped."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = importlib.import_module(f"bdlbench.cli.{module}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return int(command.main())
    finally:  # while the interpreter ends nobody can catch what Python's own handler raises
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def without_signals(unraisable: Any) -> None:
    """Print nothing about a Stopped exception in a place where Python ignores it. The next check raises it again."""
    if not isinstance(unraisable.exc_value, Stopped | KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main())
