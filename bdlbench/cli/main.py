"""The entry point of the command ``bdlbench``. It sets the signal handlers before it imports the slow modules."""

import signal
import sys
import threading

from bdlbench.signals import Stopped, deferred, on_signals, requested


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code, which is 130 after Ctrl-C and 143 after SIGTERM."""
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
    finally:
        if argv is None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # an exception could not be caught while the interpreter ends


if __name__ == "__main__":
    sys.exit(main())
