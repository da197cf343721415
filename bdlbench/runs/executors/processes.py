"""The executor that starts worker processes on this machine with joblib's loky and shares out cores and GPUs."""

import contextlib
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.runs.executors.base import Lost, Result, answer, prepare, required

SECTION = "hydra.launcher.processes"
GRACE = 30.0
"""Seconds that a worker has to write its checkpoint after it is told to stop."""
WATCH = 1.0
"""Seconds between two checks of a worker whether its parent process still exists."""


class Processes:
    """The executor that uses several worker processes.

    Each worker has its own loky executor, because loky ends all workers of an executor when one of them dies. A worker
    that is killed because memory ran out must not end the others. loky starts new interpreters; JAX cannot be used
    after a fork.

    Parameters
    ----------
    num_workers : int or None
        The number of worker processes. None means one for each GPU, or one for each core if there is no GPU.
    cores_per_worker : int or None
        None means an equal share of the cores.
    gpus : list or None
        The CUDA devices to share out, named as in ``CUDA_VISIBLE_DEVICES``. None means all that this process can see.
    """

    elsewhere, has_log = True, False

    def __init__(self, *, num_workers: int | None, cores_per_worker: int | None, gpus: Any) -> None:
        from bdlbench.options import at_least  # this imports JAX, which a worker must not import before its work

        if gpus is not None and not isinstance(gpus, list):
            raise ConfigError(f"{SECTION}.gpus={gpus!r} must be a list of devices such as [0,1], or null for all.")
        if num_workers is not None:
            at_least(SECTION, 1, num_workers=num_workers)
        if cores_per_worker is not None:
            at_least(SECTION, 1, cores_per_worker=cores_per_worker)
        self.gpus = visible_gpus() if gpus is None else [str(gpu) for gpu in gpus]
        self.cores = available_cores()
        self.cores_per_worker = cores_per_worker
        self.slots: int = num_workers or len(self.gpus) or max(1, len(self.cores) // (cores_per_worker or 1))
        self.memory_share = 1 / self.slots

    def execute(
        self,
        work: Callable[[Any], list[Any]],
        tasks: Sequence[Any],
        *,
        folder: Path,
        begin: Callable[[int], object],
    ) -> Iterator[tuple[int, Result]]:
        """See :meth:`bdlbench.runs.executors.base.Executor.execute`."""
        del folder
        loky = required("joblib.externals.loky", "cluster")
        waiting = deque(range(len(tasks)))
        running: dict[Future[Any], tuple[int, int]] = {}
        executors: dict[int, Any] = {}
        try:
            while waiting or running:
                for worker in sorted(set(range(self.slots)) - {worker for _, worker in running.values()}):
                    if not waiting:
                        break
                    if worker not in executors:
                        executors[worker] = self._start(loky, worker)
                    index = waiting.popleft()
                    begin(index)
                    running[executors[worker].submit(answer_to, os.getpid(), work, tasks[index])] = index, worker
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    index, worker = running.pop(future)
                    error: Any = future.exception()  # an Exception: see answer()
                    if isinstance(error, loky.BrokenProcessPool):
                        executors.pop(worker).shutdown(kill_workers=True)
                        error = Lost(f"the worker process died{signal_of(error)}")
                    yield index, future.result() if error is None else error
        finally:
            for executor in executors.values():
                for pid in list(executor._processes or ()) if running else ():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
            wait(running, timeout=GRACE)
            for executor in executors.values():
                executor.shutdown(wait=True, kill_workers=bool(running))

    def _start(self, loky: Any, worker: int) -> Any:
        cores, env = self.share(worker)
        begin = {"initializer": begin_work, "initargs": (cores, os.getpid())}
        return loky.ProcessPoolExecutor(max_workers=1, timeout=60, env=env, **begin)

    def share(self, worker: int) -> tuple[list[int], dict[str, str]]:
        """Return the cores of a worker and its environment variables, which are set before its first import."""
        if self.cores_per_worker is None:
            cores = part(self.cores, worker, self.slots)
        else:
            first = worker * self.cores_per_worker
            cores = [self.cores[(first + i) % len(self.cores)] for i in range(self.cores_per_worker)]
        threads = str(len(set(cores)))
        env = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        env["CUDA_VISIBLE_DEVICES"] = ",".join(part(self.gpus, worker, self.slots))
        if self.gpus and self.slots > len(self.gpus):  # by default JAX takes three quarters of the memory of a GPU
            env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.75 / -(-self.slots // len(self.gpus)):.3f}"
        return sorted(set(cores)), env


def begin_work(cores: Sequence[int], parent: int) -> None:
    """Initialise a worker as :func:`bdlbench.runs.executors.base.prepare` does, and end it when its parent ends."""
    prepare(cores)
    threading.Thread(target=follow, args=(parent,), name="bdlbench-follow", daemon=True).start()


def follow(parent: int) -> None:
    """Stop this worker process when its parent no longer exists, for example because it was killed.

    Otherwise the worker would compute results that no process reads, and it would hold the locks of its runs, so that
    the same command could not continue them. The worker sends itself SIGTERM, as the executor would. Its runs then have
    ``GRACE`` seconds to write their checkpoints.
    """
    while os.getppid() == parent:
        time.sleep(WATCH)
    # Python handles signals in the main thread, and the signal must interrupt a system call in which that thread waits.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def answer_to(parent: int, work: Callable[[Any], list[Any]], task: Any) -> list[Any]:
    """See :func:`bdlbench.runs.executors.base.answer`. If the parent process is gone, the worker exits instead."""
    try:
        return answer(work, task)
    finally:
        if os.getppid() != parent:
            os._exit(1)


def part[T](things: Sequence[T], worker: int, workers: int) -> list[T]:
    """Return one worker's share: consecutive items, or one item that several workers share if there are too few."""
    if not things:
        return []
    size = len(things)
    return list(things[worker * size // workers : (worker + 1) * size // workers]) or [things[worker % size]]


def available_cores() -> list[int]:
    """Return the indices of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use. CUDA is not started, because it would reserve them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted((match[1] for match in found if match), key=int)


def signal_of(error: BaseException) -> str:
    """Return the signal that ended a worker according to loky's error, such as `` (SIGKILL)``, or an empty string."""
    named = re.search(r"SIG[A-Z]+", str(error))
    return f" ({named[0]})" if named else ""
