"""What every executor does, and what several of them need."""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bdlbench.errors import ConfigError

Result = list[Any] | Exception
"""What a task returned, or why it did not."""
PASSED_ON = ("BDLBENCH_", "JAX_", "XLA_")
"""Beginnings of the environment variables that decide what a run computes, or where it finds its data."""


class Lost(Exception):
    """A task that did not come back: its process was killed, its machine went down, or it was cancelled."""


def was_lost(record: Mapping[str, Any]) -> bool:
    """Whether a record says that its run was lost with its worker, which is no failure of the run's own."""
    return record["status"] == "failed" and str(record["reason"]).startswith(f"{Lost.__name__}: ")


@runtime_checkable
class Executor(Protocol):
    """Computes tasks somewhere.

    Attributes
    ----------
    elsewhere : bool
        Tasks are computed by other processes. Their arguments must then be plain data, and this process must leave
        the accelerators alone.
    has_log : bool
        A task's standard error goes to a file of its own, and not to that of this process.
    slots : int
        How many tasks should be made at least, so that nobody idles.
    memory_share : float
        Which part of its machine's memory a task may plan with.
    """

    elsewhere: bool
    has_log: bool
    slots: int
    memory_share: float

    def execute(
        self,
        work: Callable[[Any], list[Any]],
        tasks: Sequence[Any],
        *,
        folder: Path,
        begin: Callable[[int], object],
    ) -> Iterator[tuple[int, Result]]:
        """Compute ``work(task)`` for every task; yields index and result of each, in the order in which they end.

        A task that is lost does not stop the others. Closing the iterator, or an interrupt of this process, cancels
        the tasks that are left: each is told by a signal first, so that it can write its checkpoint.

        Parameters
        ----------
        folder : Path
            A folder, perhaps not there yet, for what the executor has to keep. Every machine must see it.
        begin : callable (index)
            Called when a task begins.
        """


def required(module: str, extra: str) -> Any:
    """Import an optional package.

    Raises
    ------
    ConfigError
        If it is not installed; the sentence names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise ConfigError(
            f"hydra.launcher: the package {module.split('.')[0]} is not installed: pip install 'bdlbench[{extra}]'."
        ) from error


def answer(work: Callable[[Any], list[Any]], task: Any) -> list[Any]:
    """Call the work in a worker. One that is told to stop raises no ``Exception``, and would end the worker with it."""
    try:
        return work(task)
    except Exception:
        raise
    except BaseException as stopped:
        raise Lost(f"the worker was stopped ({type(stopped).__name__})") from None


def passed_on() -> dict[str, str]:
    """The environment that a process elsewhere must share for its runs to be the same."""
    return {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}


def use_cores(cores: int) -> None:
    """Have JAX make host devices for so many cores, where it would see more; before it makes any."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = os.environ.get("XLA_FLAGS", "")
    if cores < seen and "xla_force_host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={max(2, cores)}".strip()


def prepare(cores: Sequence[int]) -> None:
    """A worker's first act: its own cores, and a process group that the terminal's Ctrl-C does not reach.

    The executor passes an interrupt on, once.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    else:
        use_cores(len(cores))
    os.setpgid(0, 0)
