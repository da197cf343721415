"""Many jobs: what the store has is found, equal programs run as lanes of one, and nothing stops the rest."""

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
"""Resolved configuration, labels, and the overrides that the user would recognise the job by."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Jobs of one program and one store, run as lanes together, with their places in the sweep."""

    members: list[tuple[int, Job]]
    path: str


@dataclasses.dataclass(frozen=True)
class Parcel:
    """A batch as plain data: what another process, perhaps on another machine, needs to make its jobs again."""

    jobs: list[tuple[Mapping[str, Any], Mapping[str, str]]]
    store: str
    folder: str
    progress: Mode
    max_lanes: int
    setup_seconds: float
    memory_share: float


class Plan:
    """What of a sweep is there already, what cannot be done, and what is to do in groups of equal programs."""

    def __init__(self, composed: Sequence[Composed], outcome: Outcome, progress: Progress) -> None:
        started = time.perf_counter()
        self.records: list[Record | None] = [None] * len(composed)
        self.groups: dict[Any, list[tuple[int, Job]]] = {}
        self.stores: dict[str, Store] = {}
        self.same: dict[int, int] = {}
        self.before: dict[tuple[str, str], Record] = {}
        """Old records of runs that are to be done again, by path of the store and id."""
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
                elif (path, job.id) in first:  # options that come to the same run, as n_train=null and n_train=<all>
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
        """What the executor is given: at least one batch for each of its slots, where there are so many runs.

        How many lanes fit into memory is known where they run, so an executor elsewhere cuts its batches there.
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
        """Put the records of a batch in their places."""
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
    """Run or find every job.

    Parameters
    ----------
    composed : sequence of (config, labels, overrides)
    outcome : Outcome
        Gets the records, in the jobs' order, and a sentence for each job that cannot be done.
    max_lanes : int
        Jobs x chains in one program at most.
    executor : Executor or None
        Where the batches are computed; None: in this process.

    Returns
    -------
    list
        A record a job; None where it cannot be done.
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
    """Hand batches to the executor: as they are in this process, as plain data to another."""

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
    """Run a batch in another process than the sweep's, in as many parts as fit into memory there."""
    if os.path.isdir(parcel.folder):  # relative paths are meant from there, and a user's own modules lie there
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
    """Records of a batch that did not come back: what it had finished, and a failure for each of the rest.

    The failure is written to the store where nothing would be lost by it. A run with a checkpoint keeps that, and the
    next command continues it; a run that was to be repeated keeps its old record.
    """
    store, records = plan.stores[batch.path], []
    for _, job in batch.members:
        old = store.record(job.id) if store.has(job.id) else None
        if old is not None and old != plan.before.get((batch.path, job.id)):  # clocks differ between machines
            records.append(old)
            continue
        record = failed_record(job, error, num_jobs=len(batch.members))
        if (old is None or old["status"] == "failed") and not store.has_checkpoint(job.id):
            with contextlib.suppress(RunBusy, RunExists), store.writer(job.id, job.config, overwrite=True) as writer:
                record = writer.finish(record)
        records.append(record)
    return records


def leave_accelerators_alone() -> None:
    """Have this process compute on the CPU: JAX would take the memory of devices that the workers are to use."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def explain(error: Exception) -> str:
    """A sentence for what the user did; name and place for what we did."""
    if isinstance(error, ConfigError):
        return sentence(error)
    if os.environ.get("BDLBENCH_TRACEBACK"):
        traceback.print_exc(file=sys.stderr)
    return f"{type(error).__name__}: {sentence(error)} (BDLBENCH_TRACEBACK=1 shows where)"


def group_key(job: Job) -> Any:
    """Jobs with equal keys are lanes of one program: same computation, same shapes."""
    parts = {"train": job.dataset.train, "validation": job.dataset.validation, "test": job.dataset.test}
    parts |= {f"shifted {name}": rows for name, rows in job.dataset.shifted.items()}
    parts |= {f"ood {name}": rows for name, rows in job.dataset.ood.items()}
    shapes = tuple((n, r.x.shape, r.x.dtype.str, r.y.shape, r.y.dtype.str) for n, r in parts.items() if r is not None)
    rest = tuple(job.metrics), job.config["store"]["predictive_rows"], job.parent is None
    return job.program.key, job.precision, job.dataset.task, shapes, *rest


def batches(
    members: Sequence[tuple[int, Job]], max_lanes: int, memory_share: float = 1.0
) -> list[list[tuple[int, Job]]]:
    """Cut a group into batches of nearly equal size, each of at most ``max_lanes`` lanes (one job at least)."""
    fit = memory.jobs_that_fit([job for _, job in members], memory_share)
    return pieces(members, max(1, min(max_lanes // members[0][1].num_chains, fit)))


def pieces(members: Sequence[tuple[int, Job]], most: int) -> list[list[tuple[int, Job]]]:
    """Cut into parts of nearly equal size, each of at most ``most`` jobs."""
    count = -(-len(members) // most)
    size = -(-len(members) // count)
    return [list(members[i : i + size]) for i in range(0, len(members), size)]


def run_together(jobs: Sequence[Job], store: Store, progress: Progress, setup: float) -> list[Record]:
    """Run jobs as one group; if that fails, as halves, so that only what is at fault fails."""
    try:
        return group.run_group(jobs, store, progress, setup, alone=len(jobs) == 1)
    except NoRoom:
        raise
    except Exception as error:
        if len(jobs) == 1:
            raise
        why = "out of memory" if memory.is_out_of_memory(error) else type(error).__name__
    # Out of the except block: while an error is being handled its frames live, and with them the group's arrays.
    gc.collect()
    progress.note(f"{len(jobs)} runs together failed ({why}): trying halves")
    half = len(jobs) // 2
    return [*run_together(jobs[:half], store, progress, setup), *run_together(jobs[half:], store, progress, setup)]
