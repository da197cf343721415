"""Standard output and error of a command: one that cannot be written to must not change what the run came to."""

import os
import sys
from typing import Any


class Lenient:
    """A text stream that goes on without a word after a write has failed; anything else is the stream's own.

    A reader such as ``head`` closes a pipe when it has seen enough, a disk may be full, and a terminal may know no more
    than ASCII.

    Parameters
    ----------
    stream : text stream
    told : text stream or None
        Where one line says that this one cannot be written to, unless its reader has closed it.
    """

    def __init__(self, stream: Any, told: Any = None) -> None:
        self._stream, self._told = stream, told
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or lose, the text."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what waits, or lose it."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        # What waits in the stream is written to nowhere when the interpreter ends; it would end with code 120 otherwise.
        number = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(number, self._stream.fileno())
        except (OSError, ValueError):  # it has no descriptor, or is closed
            self._stream = open(os.devnull, "w")  # noqa: SIM115
        finally:
            os.close(number)
        if self._told is not None and not isinstance(error, BrokenPipeError):
            print(
                f"bdlbench: standard output cannot be written to ({error}); the store has all results", file=self._told
            )
        self._told = None


def make_lenient() -> None:
    """Make this process's standard streams lenient; those that are closed get the null device in their place.

    A file that is opened later would otherwise get the number of a closed stream, and whatever a library prints.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if not isinstance(sys.stderr, Lenient):
        sys.stderr = Lenient(sys.stderr)
    if not isinstance(sys.stdout, Lenient):
        sys.stdout = Lenient(sys.stdout, sys.stderr)
