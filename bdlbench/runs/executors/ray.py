"""The executor that computes tasks with Ray, on a running cluster or on a Ray that it starts on this machine."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.options import at_least, non_negative
from bdlbench.runs.executors.base import Lost, Result, answer, passed_on, required, use_cores
from bdlbench.signals import deferred

SECTION = "hydra.launcher.ray"
GRACE = 30.0
"""Seconds that a task has to write its checkpoint after it is cancelled."""


class Ray:
    """The executor of a Ray cluster.

    Parameters
    ----------
    address : str or None
        ``auto`` or the address of a running cluster. None means the address in ``RAY_ADDRESS``; without that variable
        Ray is started on this machine.
    num_cpus, num_gpus : float
        The number of CPUs and GPUs that Ray reserves for one batch.
    resources : dict or None
        Ray's custom resources that one batch needs, such as ``{a100: 1}``.
    max_retries : int
        How often a batch is started again after its worker or its machine failed.
    """

    elsewhere, has_log, slots, memory_share = True, True, 1, 1.0

    def __init__(
        self,
        *,
        address: str | None,
        num_cpus: float,
        num_gpus: float,
        resources: Any,
        max_retries: int,
    ) -> None:
        if resources is not None and not isinstance(resources, Mapping):
            raise ConfigError(f"{SECTION}.resources={resources!r} must map Ray's resources to numbers, or be null.")
        non_negative(SECTION, num_cpus=num_cpus, num_gpus=num_gpus)
        at_least(SECTION, 0, max_retries=max_retries)
        self.address, self.cores = address, num_cpus
        self.takes: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": max_retries}
        self.takes |= {"resources": dict(resources)} if resources else {}

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
        ray = required("ray", "ray")
        mine = not ray.is_initialized()
        if mine:
            try:
                with warnings.catch_warnings():  # Ray executes a program right after its fork, which is safe with JAX
                    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                    ray.init(
                        address=self.address,
                        log_to_driver=False,
                        logging_level=logging.WARNING,
                        runtime_env={"env_vars": passed_on()},
                    )
            except (ConnectionError, ValueError) as error:
                raise ConfigError(
                    f"{SECTION}.address={self.address!r} is not the address of a Ray cluster: {error}"
                ) from error
        pending: dict[Any, int] = {}
        try:
            remote = ray.remote(**self.takes)(call)
            for index, task in enumerate(tasks):
                pending[remote.remote(work, task, self.cores)] = index
                begin(index)
            while pending:
                with deferred():  # Ray would suppress the exception that our signal handler raises
                    done = ray.wait(list(pending), num_returns=1, timeout=0.5)[0]
                for reference in done:
                    index = pending.pop(reference)
                    with deferred():
                        result = self._result(ray, reference)
                    yield index, result
        finally:
            for reference in pending:  # without force, so that the worker's handler of SIGINT can write a checkpoint
                ray.cancel(reference, force=False)
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=GRACE)
            if mine:
                ray.shutdown()

    def _result(self, ray: Any, reference: Any) -> Result:
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            return cause if isinstance(cause, Exception) else Lost(f"the task was stopped ({type(cause).__name__})")
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            return Lost(f"Ray lost the task ({type(error).__name__}: {lines[0] if lines else 'no message'})")


def call(work: Callable[[Any], list[Any]], task: Any, cores: float) -> list[Any]:
    """Compute a task in a Ray worker."""
    if cores >= 1:  # Ray reserves cores, but does not limit a task to them
        use_cores(int(cores))
    return answer(work, task)
