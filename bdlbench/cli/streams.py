"""Standard output and error of a command. If a stream cannot be written to, this must not change the result of a run."""

import os
import sys
from typing import Any


class Lenient:
    """A text stream that ignores all writes after one has failed. Everything else is passed to the original stream.

    A write can fail because a reader such as ``head`` closes a pipe early, a disk is full, or a terminal accepts only
    ASCII.

    Parameters
    ----------
    stream : text stream
    told : text stream or None
        The stream to which one line is written that this stream has failed, unless its reader has closed it.
    """

    def __init__(self, stream: Any, told: Any = None) -> None:
        self._stream, self._told = stream, told
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text. If that fails, discard it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write the buffered text. If that fails, discard it."""
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
    """Make the standard streams of this process lenient, and replace closed ones by the null device.

    Otherwise a file that is opened later would get the number of a closed stream, and the output of libraries with it.
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
