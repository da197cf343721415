"""The interface of executors, and functions that several executors use."""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bdlbench.errors import ConfigError

Result = list[Any] | Exception
"""The list that a task returned, or the exception that ended it."""
PASSED_ON = ("BDLBENCH_", "JAX_", "XLA_")
"""Prefixes of the environment variables that affect what a run computes or where it finds its data."""


class Lost(Exception):
    """A task ended without a result: its process was killed, its machine failed, or the task was cancelled."""


def was_lost(record: Mapping[str, Any]) -> bool:
    """Whether a record says that its run ended because its worker was lost, and not because the run itself failed."""
    return record["status"] == "failed" and str(record["reason"]).startswith(f"{Lost.__name__}: ")


@runtime_checkable
class Executor(Protocol):
    """The interface of an executor, which computes tasks in this process or in others.

    Attributes
    ----------
    elsewhere : bool
        Whether other processes compute the tasks. The arguments must then be plain data that can be pickled, and this
        process must not use the accelerators.
    has_log : bool
        Whether the standard error of a task goes to a separate file and not to the standard error of this process.
    slots : int
        The smallest number of tasks with which no worker is idle. A sweep is divided into at least so many batches.
    memory_share : float
        The fraction of its machine's memory that one task may use.
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
        """Compute ``work(task)`` for every task, and yield (index, result) in the order in which the tasks end.

        A task that is lost does not stop the others. If the iterator is closed or this process is interrupted, the
        remaining tasks are cancelled. Each running task first receives a signal, so that it can write its checkpoint.

        Parameters
        ----------
        work : callable (task) -> list
        tasks : sequence
            The arguments of ``work``, one for each task.
        folder : Path
            A folder for the files of the executor. It need not exist yet. All machines must have access to it.
        begin : callable (index)
            Called when a task begins.
        """


def required(module: str, extra: str) -> Any:
    """Import an optional package.

    Raises
    ------
    ConfigError
        If it is not installed. The message names the extra of bdlbench that installs it.
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
    """Call ``work(task)`` in a worker process.

    A task that a signal stops raises an exception that is not an ``Exception`` and that would end the worker process.

    Raises
    ------
    Lost
        In place of such an exception.
    """
    try:
        return work(task)
    except Exception:
        raise
    except BaseException as stopped:
        raise Lost(f"the worker was stopped ({type(stopped).__name__})") from None


def passed_on() -> dict[str, str]:
    """Return the environment variables that another process must have so that its runs give the same results."""
    return {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}


def use_cores(cores: int) -> None:
    """Limit the number of JAX's CPU devices to ``cores`` if this process may use more. Call it before JAX starts."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags = os.environ.get("XLA_FLAGS", "")
    if cores < seen and "xla_force_host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={max(2, cores)}".strip()


def prepare(cores: Sequence[int]) -> None:
    """Bind a new worker process to its cores, and move it to a process group of its own.

    Ctrl-C in the terminal then does not interrupt the worker directly. The executor sends it one signal instead.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    else:
        use_cores(len(cores))
    os.setpgid(0, 0)
