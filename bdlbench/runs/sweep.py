"""Sweeps: many jobs in one command.

Runs that the store has are not computed again. Jobs with the same program run together as lanes. A job that fails does
not stop the others.
"""

import contextlib
import dataclasses
import gc
import os
import sys
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from bdlbench.errors import ConfigError
from bdlbench.runs import configuration, group, memory
from bdlbench.runs.executors.base import Executor
from bdlbench.runs.executors.local import Local
from bdlbench.runs.job import Job, check_job, make_job, seen
from bdlbench.runs.outcome import Outcome, sentence
from bdlbench.runs.progress import Mode, Progress, Silent, make_progress
from bdlbench.runs.record import Record, failed_record
from bdlbench.sampling.devices import setup_jax
from bdlbench.signals import on_signals
from bdlbench.store import NoRoom, Store
from bdlbench.store.errors import RunBusy, RunExists

Composed = tuple[Mapping[str, Any], Mapping[str, str], str]
"""A job as (resolved configuration, labels, overrides). Messages show the overrides, which the user knows."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Jobs of one program and one store that run together as lanes, each with its index in the sweep."""

    members: list[tuple[int, Job]]
    path: str


@dataclasses.dataclass(frozen=True)
class Parcel:
    """A batch as plain data, from which another process, possibly on another machine, makes the jobs again."""

    jobs: list[tuple[Mapping[str, Any], Mapping[str, str]]]
    store: str
    folder: str
    progress: Mode
    max_lanes: int
    setup_seconds: float
    memory_share: float


class Plan:
    """Sort the jobs of a sweep: found in the store, refused with an error, or to be run, grouped by program."""

    def __init__(self, composed: Sequence[Composed], outcome: Outcome, progress: Progress) -> None:
        started = time.perf_counter()
        self.records: list[Record | None] = [None] * len(composed)
        self.groups: dict[Any, list[tuple[int, Job]]] = {}
        self.stores: dict[str, Store] = {}
        self.same: dict[int, int] = {}
        self.before: dict[tuple[str, str], Record] = {}
        """Old records of runs that will be repeated, by path of the store and id."""
        first: dict[tuple[str, str], int] = {}
        found = 0
        for index, (config, labels, overrides) in enumerate(composed):
            try:
                configuration.check_sections(config)
                path = config["store"]["path"]
                store = self.stores.setdefault(path, Store(path))
                job, self.records[index] = group.look_up(config, labels, store, progress.note)
                if self.records[index] is not None:
                    found += 1
                    if len(composed) <= 20:
                        progress.note(f"{job.id}: found in the store")
                elif (path, job.id) in first:  # different options may give the same run: n_train=null, n_train=<all>
                    self.same[index] = first[path, job.id]
                else:
                    job = check_job(job)
                    store.check_writable()
                    died = pass_over(job, store, overrides)
                    first[path, job.id] = index
                    if store.has(job.id):
                        self.before[path, job.id] = store.record(job.id)
                    # One that died is done last and alone: it may be at fault, and others died with it.
                    key = died, job.id if died else group_key(job)
                    self.groups.setdefault((key, path), []).append((index, job))
            except Exception as error:
                outcome.errors.append(f"{explain(error)} ({overrides})")
        self.groups = dict(sorted(self.groups.items(), key=lambda group: group[0][0][0]))
        if found and len(composed) > 20:
            progress.note(f"{found} of {len(composed)} runs found in the store")
        self.num_runs = sum(len(members) for members in self.groups.values())
        self.setup_seconds = (time.perf_counter() - started) / max(1, self.num_runs)

    def batches(self, executor: Executor, max_lanes: int) -> list[Batch]:
        """Divide the runs into batches, at least one for each slot of the executor if there are enough runs.

        Here the batches of an executor in other processes are limited only by ``max_lanes``. Each worker cuts its batch
        further to fit its memory, because only the worker knows how much there is.
        """
        work = []
        for (_, path), members in self.groups.items():
            most = max(1, max_lanes // members[0][1].num_chains)
            cut = pieces(members, most) if executor.elsewhere else batches(members, max_lanes)
            work += [Batch(part, path) for part in cut]
        while 0 < len(work) < executor.slots and any(len(batch.members) > 1 for batch in work):
            at = max(range(len(work)), key=lambda i: len(work[i].members))
            half = -(-len(work[at].members) // 2)
            work[at : at + 1] = [Batch(part, work[at].path) for part in pieces(work[at].members, half)]
        return work

    def keep(self, batch: Batch, records: Sequence[Record]) -> None:
        """Store the records of a batch at the indices of their jobs in the sweep."""
        for (index, _), record in zip(batch.members, records, strict=True):
            self.records[index] = record
        for index, other in self.same.items():
            self.records[index] = self.records[other]


def pass_over(job: Job, store: Store, overrides: str) -> int:
    """How often a run has died, see :meth:`bdlbench.store.Store.deaths`.

    Raises
    ------
    ConfigError
        If it died ``limits.attempts`` times. The sentence has the command that tries it again.
    """
    most, died = job.config.get("limits", {}).get("attempts"), store.deaths(job.id)
    if most is not None and died >= most and not job.config["rerun"]:
        raise ConfigError(
            f"{job.id} was killed {died} times without progress, by the kernel for its memory perhaps, and is passed over: "
            f"'bdlbench {overrides} limits.attempts=null' tries it again."
        )
    return died


def run_sweep(
    composed: Sequence[Composed], outcome: Outcome, *, max_lanes: int, executor: Executor | None = None
) -> list[Record | None]:
    """Run every job, or find its record in the store.

    Parameters
    ----------
    composed : sequence of (config, labels, overrides)
    outcome : Outcome
        Receives the records in the order of the jobs, and one error message for each job that is refused.
    max_lanes : int
        The largest number of lanes (jobs x chains) in one program.
    executor : Executor or None
        Computes the batches; None means in this process.

    Returns
    -------
    list
        The record of each job; None for a job that is refused.

    Raises
    ------
    NoRoom
        If the disk of the store is full.
    """
    if not composed:
        return []
    executor = executor or Local()
    if executor.elsewhere:
        leave_accelerators_alone()
    setup_jax()
    progress = make_progress(composed[0][0]["progress"])
    outcome.report = dict(composed[0][0]["report"])
    plan = Plan(composed, outcome, progress)
    work = plan.batches(executor, max_lanes)
    progress.sweep_begin(len(work), plan.num_runs)
    try:
        results = execute(executor, work, plan, progress, max_lanes)
        with contextlib.closing(results):
            for index, result in results:
                if isinstance(result, NoRoom):
                    raise result
                if isinstance(result, Exception):
                    result = lost(work[index], plan, result)
                plan.keep(work[index], result)
                progress.group_end(result)
    finally:
        progress.sweep_end()
    outcome.records.extend(record for record in plan.records if record is not None)
    return plan.records


def execute(
    executor: Executor, work: Sequence[Batch], plan: Plan, progress: Progress, max_lanes: int
) -> Generator[tuple[int, list[Record] | Exception]]:
    """Give the batches to the executor and yield the index and the result of each.

    An executor in this process gets the batches themselves, any other gets them as plain data.
    """

    def begin(index: int) -> None:
        progress.group_begin(len(work[index].members))

    def here(batch: Batch) -> list[Record]:
        jobs = [job for _, job in batch.members]
        return run_together(jobs, plan.stores[batch.path], progress, plan.setup_seconds)

    def parcel(batch: Batch) -> Parcel:
        jobs = [(job.config, job.labels) for _, job in batch.members]
        store = str(plan.stores[batch.path].path.absolute())
        mode: Mode = "lines" if executor.has_log else "off" if isinstance(progress, Silent) else "notes"
        return Parcel(jobs, store, os.getcwd(), mode, max_lanes, plan.setup_seconds, executor.memory_share)

    if work:
        folder = plan.stores[work[0].path].path.absolute() / f".{type(executor).__name__.lower()}"
        function, tasks = (run_parcel, [parcel(batch) for batch in work]) if executor.elsewhere else (here, work)
        yield from executor.execute(function, tasks, folder=folder, begin=begin)


def run_parcel(parcel: Parcel) -> list[Record]:
    """Run a batch in a worker process, divided into parts that fit into the memory there. Return the records."""
    if os.path.isdir(parcel.folder):  # relative paths start there, and a user's own modules are found there
        os.chdir(parcel.folder)
        if parcel.folder not in sys.path:
            sys.path.append(parcel.folder)
    setup_jax()
    store, progress = Store(parcel.store), make_progress(parcel.progress)
    members = [(i, seen(make_job(*job))) for i, job in enumerate(parcel.jobs)]
    records: list[Record] = []
    with on_signals():
        for batch in batches(members, parcel.max_lanes, parcel.memory_share):
            records += run_together([job for _, job in batch], store, progress, parcel.setup_seconds)
    return records


def lost(batch: Batch, plan: Plan, error: Exception) -> list[Record]:
    """Return the records of a batch that was lost: those of its finished runs, and a failed record for each other run.

    The failed record is written to the store unless it would replace something useful: a run with a checkpoint keeps
    the checkpoint, so that the same command continues it, and a run that was being repeated keeps its old record.
    """
    store, records = plan.stores[batch.path], []
    for _, job in batch.members:
        old = store.record(job.id) if store.has(job.id) else None
        # The contents decide whether a record is new, because the clocks of different machines differ.
        if old is not None and old != plan.before.get((batch.path, job.id)):
            records.append(old)
            continue
        record = failed_record(job, error, num_jobs=len(batch.members))
        if (old is None or old["status"] == "failed") and not store.has_checkpoint(job.id):
            with contextlib.suppress(RunBusy, RunExists), store.writer(job.id, job.config, overwrite=True) as writer:
                record = writer.finish(record)
        records.append(record)
    return records


def leave_accelerators_alone() -> None:
    """Restrict JAX in this process to the CPU. Otherwise it would reserve the memory of the workers' accelerators."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def explain(error: Exception) -> str:
    """Return the message for an error: the sentence of a ConfigError, or the type and message of any other error.

    With ``BDLBENCH_TRACEBACK`` set, the traceback of an error that is not a ConfigError is printed.
    """
    if isinstance(error, ConfigError):
        return sentence(error)
    if os.environ.get("BDLBENCH_TRACEBACK"):
        traceback.print_exc(file=sys.stderr)
    return f"{type(error).__name__}: {sentence(error)} (BDLBENCH_TRACEBACK=1 shows where)"


def group_key(job: Job) -> Any:
    """Return a key that is equal for two jobs if they can run as lanes of one program, with the same data shapes."""
    parts = {"train": job.dataset.train, "validation": job.dataset.validation, "test": job.dataset.test}
    parts |= {f"shifted {name}": rows for name, rows in job.dataset.shifted.items()}
    parts |= {f"ood {name}": rows for name, rows in job.dataset.ood.items()}
    shapes = tuple((n, r.x.shape, r.x.dtype.str, r.y.shape, r.y.dtype.str) for n, r in parts.items() if r is not None)
    rest = tuple(job.metrics), job.config["store"]["predictive_rows"], job.parent is None
    return job.program.key, job.precision, job.dataset.task, shapes, *rest


def batches(
    members: Sequence[tuple[int, Job]], max_lanes: int, memory_share: float = 1.0
) -> list[list[tuple[int, Job]]]:
    """Cut a group into batches of nearly equal size.

    A batch has at least one job, at most ``max_lanes`` lanes, and no more jobs than fit into ``memory_share`` of the
    free memory.
    """
    fit = memory.jobs_that_fit([job for _, job in members], memory_share)
    return pieces(members, max(1, min(max_lanes // members[0][1].num_chains, fit)))


def pieces(members: Sequence[tuple[int, Job]], most: int) -> list[list[tuple[int, Job]]]:
    """Cut a list of jobs into parts of nearly equal size, each of at most ``most`` jobs."""
    count = -(-len(members) // most)
    size = -(-len(members) // count)
    return [list(members[i : i + size]) for i in range(0, len(members), size)]


def run_together(jobs: Sequence[Job], store: Store, progress: Progress, setup: float) -> list[Record]:
    """Run jobs as one group. If it fails, run each half of it, and so on, so that only the faulty jobs fail."""
    try:
        return group.run_group(jobs, store, progress, setup, alone=len(jobs) == 1)
    except NoRoom:
        raise
    except Exception as error:
        if len(jobs) == 1:
            raise
        why = "out of memory" if memory.is_out_of_memory(error) else type(error).__name__
    # This is outside of the except block, because a handled error keeps its frames, and they keep the group's arrays.
    gc.collect()
    progress.note(f"{len(jobs)} runs together failed ({why}): trying halves")
    half = len(jobs) // 2
    return [*run_together(jobs[:half], store, progress, setup), *run_together(jobs[half:], store, progress, setup)]
