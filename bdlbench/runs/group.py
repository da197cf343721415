"""Run a configuration, or a group of jobs with one program, and put the records in the store."""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bdlbench import signals
from bdlbench.errors import ConfigError
from bdlbench.runs import baselines, checkpoint, configuration, memory, rescore, warm_start
from bdlbench.runs.against import Beside
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.job import Job, check_job, make_job
from bdlbench.runs.look import look_at
from bdlbench.runs.member import Earlier, Member, make_member
from bdlbench.runs.progress import Progress, make_progress
from bdlbench.runs.record import Record, failed_record, finish_record, put_record
from bdlbench.runs.tally import Tally
from bdlbench.sampling import lanes, loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.devices import computing_in, setup_jax
from bdlbench.sampling.marks import curve_marks, looks, num_steps
from bdlbench.sampling.predictions import Predictor, is_gaussian
from bdlbench.sampling.programs import NEVER, size_of
from bdlbench.store import NoRoom, RunBusy, RunExists, Store, StoreError

PROVISIONAL_DRAWS = 100
"""The number of draws with which a variational posterior is scored while it is being optimised."""


def run(overrides: Sequence[str] = ()) -> Record:
    """Compose a configuration from Hydra overrides, run it or find it in the store, and return its record.

    >>> run(["inference=svi", "data=diabetes", "seed=3"])["metrics"]["rmse"]  # doctest: +SKIP
    """
    return run_config(*configuration.compose(list(overrides)))


def run_config(config: Mapping[str, Any], labels: Mapping[str, str]) -> Record:
    """Run one resolved configuration, or find its record in the store. Return the record."""
    started = time.perf_counter()
    configuration.check_sections(config)
    setup_jax()
    store = Store(config["store"]["path"])
    progress = make_progress(config["progress"])
    job, record = look_up(config, labels, store, progress.note)
    if record is not None:
        progress.note(f"{job.id}: found in the store")
        return record
    job = check_job(job)
    store.check_writable()
    return run_group([job], store, progress, time.perf_counter() - started)[0]


def look_up(
    config: Mapping[str, Any], labels: Mapping[str, str], store: Store, note: Callable[[str], object] | None = None
) -> tuple[Job, Record | None]:
    """Return the job of a configuration, and the record of its run, or None if the run must be computed."""
    signals.check()
    job = make_job(config, labels)
    record = None if config["rerun"] else finished(store, job.id, note)
    return job, record if record is None else with_metrics(record, job, store, note)


def with_metrics(record: Record, job: Job, store: Store, note: Callable[[str], object] | None = None) -> Record:
    """Return the record of a stored run with all metrics that the job asks for, and its distance from a reference.

    What is missing is computed from the stored draws. If that is impossible, ``note`` is called with the reason and
    the record is returned unchanged. The run is not repeated.
    """
    wanted, reference = rescore.lacking(record, job.config["metrics"]), rescore.lacks_fidelity(record)
    for name, missing in ((", ".join(wanted), bool(wanted)), ("fidelity", reference is not None)):
        if not missing:
            continue
        try:
            if name == "fidelity":
                record = rescore.compare(store, job.id, str(reference), job=job)
            else:
                record = rescore.rescore(store, job.id, wanted, job=job)
        except (ConfigError, RunBusy) as error:
            if note is not None:
                note(f"{job.id}: its record stays without {name}: {error}")
    return record


def finished(store: Store, run_id: str, note: Callable[[str], object] | None = None) -> Record | None:
    """Return the record of a run that need not be repeated, otherwise None.

    A failed run is repeated. So is a run whose files do not match their checksums: its folder is moved aside, and
    ``note`` is called with a message that says so.
    """
    record = store.sound_record(run_id, note)
    return None if record is None or record["status"] == "failed" else record


def _to_repeat(job: Job, store: Store) -> bool:
    """Whether an existing record must be replaced, because ``rerun`` is set or the run failed."""
    return bool(job.config["rerun"]) or (store.has(job.id) and store.record(job.id)["status"] == "failed")


def run_group(
    jobs: Sequence[Job], store: Store, progress: Progress, setup_seconds: float = 0.0, *, alone: bool = True
) -> list[Record]:
    """Run jobs with the same program and the same data shapes together as lanes (jobs x chains).

    If another process is writing one of the runs, this function waits for it.

    Parameters
    ----------
    jobs : sequence of Job
    store : Store
    progress : Progress
    setup_seconds : float
        Seconds that were spent to make each job.
    alone : bool
        Whether an error is stored as a failed record. If False the error is raised and no record is written, so that
        the caller can find out which job caused it.

    Returns
    -------
    list of dict
        The records in the order of the jobs.

    Raises
    ------
    Stopped
        If a signal has told the command to stop.
    NoRoom
        If the disk of the store is full.
    """
    with computing_in(jobs[0].precision):
        return _run_group(jobs, store, progress, setup_seconds, alone=alone)


def _run_group(
    jobs: Sequence[Job], store: Store, progress: Progress, setup_seconds: float, *, alone: bool
) -> list[Record]:
    records: dict[str, Record] = {}
    with contextlib.ExitStack() as stack:
        writers = {}
        # The locks are taken in the order of the ids, so that two processes with the same jobs cannot deadlock.
        for job in sorted(jobs, key=lambda job: job.id):
            again = functools.partial(_to_repeat, job, store)
            writer = store.writer(job.id, job.config, resume=True, overwrite=again, on_busy=progress.note)
            try:
                writers[job.id] = stack.enter_context(writer)
            except RunExists:
                records[job.id] = store.record(job.id)
            except (OSError, StoreError) as error:  # the folder of this run cannot be used; the others continue
                if not alone or isinstance(error, NoRoom):
                    raise
                records[job.id] = failed_record(job, error)
                progress.note(f"{job.id}: failed: {records[job.id]['reason']}")
        mine = [job for job in jobs if job.id in writers]
        clock = Clock()
        if mine and mine[0].baseline:
            with signals.deferred() as stop:
                for job in mine:
                    stop.check()
                    records[job.id] = baselines.run(job, writers[job.id], progress, setup_seconds)
            return [records[job.id] for job in jobs]
        try:
            for part in checkpoint.parts(mine, writers, progress.note):
                clock = Clock()
                clock.seconds["setup"] = setup_seconds * len(part.jobs)
                records |= {record["id"]: record for record in _run_lanes(part, progress, clock)}
        except signals.Stopped:
            progress.finish(f"{len(mine)} runs: stopped" if len(mine) > 1 else f"{mine[0].id}: stopped")
            raise
        except NoRoom:  # not a failure: once there is free space, the run continues from its last checkpoint
            progress.finish(f"{mine[0].id}: no room left")
            raise
        except Exception as error:
            if not alone:
                progress.finish(f"{len(mine)} runs: {type(error).__name__}")
                raise
            seconds = {phase: spent / len(mine) for phase, spent in clock.seconds.items()}
            failed = {job.id: failed_record(job, error, seconds, len(mine), mine) for job in mine}
            progress.finish(f"{mine[0].id}: failed: {failed[mine[0].id]['reason']}")
            records |= {run_id: put_record(writers[run_id], record) for run_id, record in failed.items()}
    return [records[job.id] for job in jobs]


def _run_lanes(part: checkpoint.Part, progress: Progress, clock: Clock) -> list[Record]:
    jobs, program, first = part.jobs, part.jobs[0].program, part.jobs[0].dataset
    assert first.task != "density"  # make_program refuses it
    shared, lane, test, apart = arrange(jobs)
    stages = loop.every_stage(program, shared, lane)
    memory.refuse(jobs[0], stages, size_of(shared), len(lane.dataset))
    shared = lanes.replicate(shared)  # once, for sampling and predictions
    gaussian = is_gaussian(program, jobs[0].numbers, first.train.x, first.train.y)
    markov = stages[-1].markov
    predictor = Predictor(program, first.task, shared, lane, test, clock)
    at = {"": predictor} if test is not None else {}
    at |= {name: Predictor(program, first.task, shared, lane, rows, clock) for name, rows in apart.items()}
    beside = Beside(jobs, first.task, shared, lane, clock)
    name = jobs[0].id if len(jobs) == 1 else f"{jobs[0].id} and {len(jobs) - 1} more"
    lengths, last = [num_steps(stage.schedule) for stage in program.stages], len(program.stages) - 1
    schedule, marks, curve = program.stages[last].schedule, looks(program), curve_marks(program)
    look_marks = {*marks(last, "sample")}
    warmup_marks = {*curve(last, "warmup")} if test is not None else set()
    sample_marks = {*curve(last, "sample"), schedule.num_samples}
    progress.start(name, sum(lengths))

    def make(earlier: Sequence[Earlier | None]) -> list[Member]:
        each = zip(jobs, part.writers, range(len(jobs)), earlier, strict=True)
        return [
            make_member(*arguments, gaussian=gaussian, reference=reference)
            for arguments, reference in zip(each, beside.names, strict=True)
        ]

    where, pending, members = None, list[loop.Block](), None
    if part.saved is not None:
        try:
            where, pending = checkpoint.restore(part.saved, program, shared, lane)
            earlier = [saved.earlier for saved in part.saved]
            members = make(earlier)
            progress.note(f"{name}: continues from its checkpoint")
        except checkpoint.UNFIT as error:
            progress.note(f"{name}: starts over: its checkpoint does not fit ({error})")
            where, pending = None, []
            for writer in part.writers:
                writer.start_over()
    if members is None:
        members = make([None] * len(jobs))
    for member in members:
        member.storage.observed()

    def use(block: loop.Block) -> None:
        """Add the draws of a block to each job, with their sites and predictions."""
        assert block.draws is not None
        sites = predictor.sites(block.draws)
        predictions = {place: p.predict(block.draws, block.first_draw, block.anchor) for place, p in at.items()}
        function = beside.values(block.draws, block.anchor, sites)
        for member in members:
            if member.tally.over or member.storage.writer.gone:
                continue
            absent = member.tally.absent
            look = look_at(
                block, member.lanes, schedule.thinning, sites, predictions, absent, function, gaussian=gaussian
            )
            member.use(look)
            if look.stop in sample_marks:
                member.append_curve("sample", member.tally, clock, len(jobs))

    def peek(block: loop.Block) -> None:
        """Score an approximation while it is being optimised, with a few draws from it."""
        assert block.provisional is not None
        draws = block.provisional(min(PROVISIONAL_DRAWS, schedule.num_samples))
        predictions, function = {"": predictor.predict(draws)}, beside.values(draws, None)
        ahead = block._replace(draws=draws, first_draw=0, stats={}, bad_step=np.full(len(draws), NEVER))
        for member in members:
            if not (member.tally.over or member.storage.writer.gone):
                each = member.tally.mixtures[""].each
                tally = Tally(member.job.num_chains, [], gaussian=gaussian, each=each)
                tally.add(look_at(ahead, member.lanes, 0, {}, predictions, (), function, gaussian=gaussian))
                member.append_curve("warmup", tally, clock, len(jobs))

    wanted = [job.config["store"]["checkpoint_seconds"] for job in jobs]
    every = min((seconds for seconds in wanted if seconds is not None), default=None)
    checkpoints = checkpoint.Checkpoints(clock, len(jobs), every)
    theta = warm_start.thetas(jobs)
    latest = None
    with signals.deferred() as stop:
        for block in loop.run(program, shared, lane, clock=clock, marks=marks, resume=where, theta=theta):
            stage = block.stage
            done = sum(lengths[:stage]) + block.steps_done
            progress.advance(block.phase, program.stages[stage].name, done, block.stats)
            for member in members:
                member.tally.charge(block.of(member.lanes), len(first.train.y), last=stage == last)
            with clock.measure("predict"):
                if stage == last and block.draws is not None:
                    pending.append(block)
                    if block.first_draw + block.draws.shape[1] in look_marks:
                        use(loop.joined(pending))
                        pending.clear()
                elif stage == last and block.provisional is not None and block.steps_done in warmup_marks:
                    peek(block)
                latest = block.position
                if stop.requested or checkpoints.due():
                    assert latest is not None
                    checkpoints.write(members, latest, pending)
            stop.check()
        # Signals are still deferred. A run that is not finished now continues later from the end of the loop.
        records: list[Record] = []
        for index, member in enumerate(members):
            if stop.requested and latest is not None:
                checkpoints.write(members[index:], latest, pending)
            stop.check()
            records.append(finish_record(member, clock, len(jobs), markov=markov, fault=beside.faults[index]))
    progress.finish(f"{name}: {', '.join(sorted({r['status'] for r in records}))}")
    return records
