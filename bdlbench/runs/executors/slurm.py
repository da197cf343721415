"""The executor that submits a SLURM job array with submitit: one job for each batch, requeued when it is preempted."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.runs.executors.base import Lost, Result, required, use_cores

SECTION = "hydra.launcher.slurm"
ALIVE = {
    "CONFIGURING", "COMPLETING", "PENDING", "PREEMPTED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING",
    "RESV_DEL_HOLD", "RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED",
}  # fmt: skip
"""States of a job that may still give a result. A preempted job is in state PREEMPTED before it is requeued."""
PATIENCE = 15.0
"""Seconds to wait for the result file after a job has ended, because shared file systems are slow."""


class Slurm:
    """The executor of a SLURM cluster.

    Parameters
    ----------
    cluster : str or None
        ``slurm``; ``local`` for processes that submitit starts on this machine; ``debug`` for this process; None for
        slurm if ``srun`` is installed, otherwise local.
    partition : str or None
    timeout_min : int
        The time limit of a job in minutes. A job that reaches it is requeued and continues from its checkpoints.
    gpus_per_node, cpus_per_task : int or None
    mem_gb : float or None
        Memory of a job in GB.
    array_parallelism : int
        The largest number of jobs that run at the same time.
    signal_delay_s : int
        How many seconds before the time limit a job is told to write its checkpoint.
    max_num_timeout : int
        How often a job may reach its time limit. Preemptions are not counted.
    setup : list or None
        Shell commands that run before the job, such as ``module load cuda``.
    additional : dict or None
        Other options of ``sbatch``, such as ``{qos: high, constraint: a100}``.
    poll_s : float
        Seconds between two queries of the queue.
    """

    elsewhere, has_log, slots, memory_share = True, True, 1, 1.0

    def __init__(
        self,
        *,
        cluster: str | None,
        partition: str | None,
        timeout_min: int,
        gpus_per_node: int | None,
        cpus_per_task: int | None,
        mem_gb: float | None,
        array_parallelism: int,
        signal_delay_s: int,
        max_num_timeout: int,
        setup: Any,
        additional: Any,
        poll_s: float,
    ) -> None:
        from bdlbench.options import at_least, positive  # this imports JAX, which a job must not import before its work

        if cluster not in (None, "slurm", "local", "debug"):
            raise ConfigError(f"{SECTION}.cluster={cluster!r} is unknown: use slurm, local, debug, or null for either.")
        if setup is not None and not (isinstance(setup, list) and all(isinstance(line, str) for line in setup)):
            raise ConfigError(f"{SECTION}.setup={setup!r} must be a list of shell commands, or null.")
        if additional is not None and not isinstance(additional, Mapping):
            raise ConfigError(f"{SECTION}.additional={additional!r} must map options of sbatch to values, or be null.")
        at_least(SECTION, 1, timeout_min=timeout_min, array_parallelism=array_parallelism, cpus_per_task=cpus_per_task)
        at_least(
            SECTION, 0, max_num_timeout=max_num_timeout, signal_delay_s=signal_delay_s, gpus_per_node=gpus_per_node
        )
        positive(SECTION, poll_s=poll_s, mem_gb=mem_gb)
        self.cluster, self.poll_s, self.max_num_timeout = cluster, poll_s, max_num_timeout
        self.cpus_per_task = cpus_per_task
        self.parameters = {
            "name": "bdlbench",
            "timeout_min": timeout_min,
            "gpus_per_node": gpus_per_node,
            "cpus_per_task": cpus_per_task,
            "mem_gb": mem_gb,
            "slurm_partition": partition,
            "slurm_array_parallelism": array_parallelism,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_setup": setup,
            "slurm_additional_parameters": dict(additional) if additional else None,
            "local_setup": setup,
        }

    def execute(
        self,
        work: Callable[[Any], list[Any]],
        tasks: Sequence[Any],
        *,
        folder: Path,
        begin: Callable[[int], object],
    ) -> Iterator[tuple[int, Result]]:
        """See :meth:`bdlbench.runs.executors.base.Executor.execute`. ``folder`` gets the scripts, logs and results."""
        submitit = required("submitit", "cluster")
        try:
            executor = submitit.AutoExecutor(
                folder.absolute(), cluster=self.cluster, slurm_max_num_timeout=self.max_num_timeout
            )
        except RuntimeError as error:
            raise ConfigError(
                f"{SECTION}.cluster=slurm needs SLURM's srun and sbatch on this machine's path."
            ) from error
        executor.update_parameters(**self.parameters)
        try:
            with executor.batch():
                jobs = [executor.submit(Task(work, task, self.cpus_per_task)) for task in tasks]
        except submitit.core.utils.FailedJobError as error:
            said = str(error).strip().splitlines() or ["it gives no reason"]
            raise ConfigError(f"{SECTION}: sbatch did not take the jobs: {said[-1].strip()}") from error
        pending = dict(enumerate(jobs))
        begun: set[int] = set()
        ended: dict[int, float] = {}
        try:
            while pending:
                states = self._states(pending)
                for index, job in list(pending.items()):
                    state = states[index]
                    if index not in begun and state not in ("PENDING", "CONFIGURING"):
                        begun.add(index)
                        begin(index)
                    if job.paths.result_pickle.exists() or self.cluster == "debug":
                        del pending[index]
                        yield index, _result(job)
                    elif state not in ALIVE:
                        if time.monotonic() - ended.setdefault(index, time.monotonic()) >= self._patience():
                            del pending[index]
                            yield index, Lost(f"job {job.job_id} ended without a result ({state}): {job.paths.stderr}")
                    else:
                        ended.pop(index, None)
                if pending:
                    time.sleep(self.poll_s)
        finally:
            for job in pending.values():
                job.cancel(check=False)

    def _patience(self) -> float:
        return 1.0 if self.cluster == "local" else PATIENCE

    def _states(self, pending: Mapping[int, Any]) -> dict[int, str]:
        """Return the state of each job, read with squeue. submitit reads sacct, which some clusters do not have."""
        if not isinstance(next(iter(pending.values())), required("submitit", "cluster").SlurmJob):
            return {index: job.state if job.done() else "RUNNING" for index, job in pending.items()}
        arrays = ",".join(sorted({job.job_id.split("_")[0] for job in pending.values()}))
        asked = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={arrays}"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        known = dict(line.split() for line in done.stdout.splitlines())
        # SLURM's controller forgets jobs that ended minutes ago. If it does not answer, all jobs count as running.
        answers = done.returncode == 0 or "Invalid job id" in done.stderr
        return {i: known.get(job.job_id, "FORGOTTEN" if answers else "RUNNING") for i, job in pending.items()}


def _result(job: Any) -> Result:
    try:
        return job.result()
    except Exception as error:
        # The message of submitit: "failed with trace", a line of dashes, the traceback, dashes, the place of the logs.
        parts = re.split(r"^-{10,}$", str(error), flags=re.M)
        lines = parts[min(1, len(parts) - 1)].strip().splitlines() or [type(error).__name__]
        lost = Lost(f"job {job.job_id} failed: {lines[-1].strip()}")
        lost.add_note(str(error))
        return lost


class Task:
    """A call that SLURM may interrupt. It then writes its checkpoints, is requeued, and continues.

    submitit requeues a job as soon as its signal SIGUSR2 arrives. This class first sends SIGTERM to the process, so
    that the runs write their checkpoints, and requeues the job afterwards.
    """

    def __init__(self, work: Callable[[Any], list[Any]], task: Any, cores: int | None) -> None:
        self.work, self.task, self.cores = work, task, cores

    def __call__(self) -> list[Any]:
        """Compute the task and return the result of ``work``."""
        if self.cores is not None:
            use_cores(self.cores)
        requeue, ignored = signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM)
        if not callable(requeue):
            return self.work(self.task)
        told: list[int] = []

        def tell(number: int, frame: Any) -> None:
            heeds = signal.getsignal(signal.SIGTERM)
            if heeds is ignored:  # no run has set its handler: there are no checkpoints to write
                requeue(number, frame)
            told.append(number)
            if heeds is not signal.SIG_DFL:  # the default handler means that SIGTERM came before and the work stops
                os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGUSR2, tell)
        try:
            return self.work(self.task)
        except BaseException:
            if told:
                requeue(told[0], None)  # this ends the process
            raise

    def checkpoint(self) -> Any:
        """Return the call for the requeued job. It is the same call, because the checkpoints are in the store."""
        return required("submitit", "cluster").helpers.DelayedSubmission(Task(self.work, self.task, self.cores))
