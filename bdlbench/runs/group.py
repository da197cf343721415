"""The whole flow on one page: a configuration becomes a record in the store."""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bdlbench import signals
from bdlbench.runs import checkpoint, configuration, warm_start
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.job import Job, check_job, make_job
from bdlbench.runs.particles import as_chains, finite_predictions, moments_kept, num_particles, pooled
from bdlbench.runs.progress import Progress, make_progress
from bdlbench.runs.record import common_fields, failure, finish_record, put_record
from bdlbench.runs.recorder import PHASES, Recorder
from bdlbench.sampling import lanes, loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.devices import setup_jax
from bdlbench.sampling.marks import curve_marks, looks, num_steps
from bdlbench.sampling.predictions import Predictor, is_gaussian
from bdlbench.store import NoRoom, RunExists, Store, StoreError

Record = dict[str, Any]
PROVISIONAL_DRAWS = 100
"""Draws by which a running variational posterior is scored during optimisation."""


def run(overrides: Sequence[str] = ()) -> Record:
    """Compose a configuration from Hydra overrides, run it or find it in the store, and return its record.

    >>> run(["inference=svi", "data=diabetes", "seed=3"])["metrics"]["rmse"]  # doctest: +SKIP
    """
    return run_config(*configuration.compose(list(overrides)))


def run_config(config: Mapping[str, Any], labels: Mapping[str, str]) -> Record:
    """Run one resolved configuration, or find its record."""
    started = time.perf_counter()
    setup_jax()
    store = Store(config["store"]["path"])
    progress = make_progress(config["progress"])
    job, record = look_up(config, labels, store, progress.note)
    if record is not None:
        progress.note(f"{job.id}: found in the store")
        return record
    check_job(job)
    store.check_writable()
    return run_group([job], store, progress, time.perf_counter() - started)[0]


def look_up(
    config: Mapping[str, Any], labels: Mapping[str, str], store: Store, note: Callable[[str], object] | None = None
) -> tuple[Job, Record | None]:
    """The job, and the record of its run unless it must be done."""
    signals.check()
    job = make_job(config, labels)
    return job, None if config["rerun"] else finished(store, job.id, note)


def finished(store: Store, run_id: str, note: Callable[[str], object] | None = None) -> Record | None:
    """The record of a run that need not be done again: one that failed is tried again.

    A run whose files do not fit their checksums is set aside, which ``note`` hears of, and is to be done again too.
    """
    record = store.sound_record(run_id, note)
    return None if record is None or record["status"] == "failed" else record


def _to_repeat(job: Job, store: Store) -> bool:
    """Whether a record that is there is to be written again."""
    return bool(job.config["rerun"]) or (store.has(job.id) and store.record(job.id)["status"] == "failed")


def run_group(
    jobs: Sequence[Job], store: Store, progress: Progress, setup_seconds: float = 0.0, *, alone: bool = True
) -> list[Record]:
    """Run jobs of one program and one shape as lanes of one compiled program, jobs x chains.

    A run that another process is writing is waited for. With ``alone`` a failure is a result: it leaves a record that
    says so. Otherwise it is raised and leaves no record, so that the caller can find out whose failure it is.
    """
    records: dict[str, Record] = {}
    with contextlib.ExitStack() as stack:
        writers = {}
        # In the order of their ids, so that two processes with the same jobs cannot wait for each other.
        for job in sorted(jobs, key=lambda job: job.id):
            again = functools.partial(_to_repeat, job, store)
            writer = store.writer(job.id, job.config, resume=True, overwrite=again, on_busy=progress.note)
            try:
                writers[job.id] = stack.enter_context(writer)
            except RunExists:
                records[job.id] = store.record(job.id)
            except (OSError, StoreError) as error:  # its folder cannot be used: no reason to stop the others
                if not alone or isinstance(error, NoRoom):
                    raise
                unstored = {"id": job.id, "config": dict(job.config)}
                blank = common_fields(job, dict.fromkeys(PHASES, 0.0), 1)
                records[job.id] = blank | failure(error) | unstored
                progress.note(f"{job.id}: failed: {records[job.id]['reason']}")
        mine = [job for job in jobs if job.id in writers]
        clock = Clock()
        try:
            for part in checkpoint.parts(mine, writers, progress.note):
                clock = Clock()
                clock.seconds["setup"] = setup_seconds * len(part.jobs)
                records |= {record["id"]: record for record in _run_lanes(part, progress, clock)}
        except signals.Stopped:
            progress.finish(f"{len(mine)} runs: stopped" if len(mine) > 1 else f"{mine[0].id}: stopped")
            raise
        except NoRoom:  # no result: with room the run goes on from its last checkpoint
            progress.finish(f"{mine[0].id}: no room left")
            raise
        except Exception as error:
            if not alone:
                progress.finish(f"{len(mine)} runs: {type(error).__name__}")
                raise
            failed = failure(error, mine)
            progress.finish(f"{mine[0].id}: failed: {failed['reason']}")
            for job in mine:
                seconds = {phase: clock.seconds.get(phase, 0.0) / len(mine) for phase in PHASES}
                common = common_fields(job, seconds, len(mine))
                records[job.id] = put_record(writers[job.id], common | failed)
    return [records[job.id] for job in jobs]


def _run_lanes(part: checkpoint.Part, progress: Progress, clock: Clock) -> list[Record]:
    jobs, program, first = part.jobs, part.jobs[0].program, part.jobs[0].dataset
    assert first.task != "density"  # refused with the configuration
    shared, lane, test, apart = arrange(jobs)
    shared = lanes.replicate(shared)  # once, for sampling and predictions
    gaussian = is_gaussian(program, jobs[0].numbers, first.train.x, first.train.y)
    markov = loop.is_markov(program, shared, lane)
    predictor = Predictor(program, first.task, shared, lane, test, clock)
    others = {name: Predictor(program, first.task, shared, lane, rows, clock) for name, rows in apart.items()}
    name = jobs[0].id if len(jobs) == 1 else f"{jobs[0].id} and {len(jobs) - 1} more"
    lengths = [num_steps(stage.schedule) for stage in program.stages]
    progress.start(name, sum(lengths))
    recorders = _recorders(part, gaussian, markov)
    where, pending = None, list[loop.Block]()
    if part.saved is not None:
        try:
            where, pending = checkpoint.restore(part.saved, recorders, program, shared, lane)
            progress.note(f"{name}: continues from its checkpoint")
        except checkpoint.UNFIT as error:
            progress.note(f"{name}: starts over: its checkpoint does not fit ({error})")
            for writer in part.writers:
                writer.start_over()
            recorders = _recorders(part, gaussian, markov)
    for recorder in recorders:
        recorder.observed()

    def use(block: loop.Block) -> None:
        assert block.draws is not None
        sites = predictor.sites(block.draws)
        seen = predictor.predict(block.draws, block.first_draw, block.anchor) if test is not None else {}
        elsewhere = {n: p.predict(block.draws, block.first_draw, block.anchor) for n, p in others.items()}
        for recorder in recorders:
            if not recorder.over:
                recorder.keep(block, sites, seen, elsewhere)
                _score(recorder, block, clock)

    wanted = [job.config["store"]["checkpoint_seconds"] for job in jobs]
    every = min((seconds for seconds in wanted if seconds is not None), default=None)
    checkpoints = checkpoint.Checkpoints(recorders, clock, every)
    theta = warm_start.thetas(jobs)
    latest = None
    with signals.deferred() as stop:
        for block in loop.run(program, shared, lane, clock=clock, marks=looks(program), resume=where, theta=theta):
            stage = block.stage
            done = sum(lengths[:stage]) + block.steps_done
            progress.advance(block.phase, program.stages[stage].name, done, block.stats)
            for recorder in recorders:
                recorder.count(block)
            last = stage == len(program.stages) - 1
            with clock.measure("predict"):
                if last and block.draws is not None:
                    pending.append(block)
                    if block.first_draw + block.draws.shape[1] in looks(program)(stage, "sample"):
                        use(loop.joined(pending))
                        pending.clear()
                elif last and block.provisional is not None and test is not None:
                    _score_provisional(recorders, predictor, block, clock)
                latest = block.position
                if stop.requested or checkpoints.due():
                    assert latest is not None
                    checkpoints.write(latest, pending)
            stop.check()
        # Still deferred: what is not finished yet goes on from the loop's end.
        records: list[Record] = []
        for index, recorder in enumerate(recorders):
            if stop.requested and latest is not None:
                checkpoints.recorders = recorders[index:]
                checkpoints.write(latest, pending)
            stop.check()
            records.append(finish_record(recorder, clock, len(jobs)))
    progress.finish(f"{name}: {', '.join(sorted({r['status'] for r in records}))}")
    return records


def _recorders(part: checkpoint.Part, gaussian: bool, markov: bool) -> list[Recorder]:
    chains = part.jobs[0].num_chains
    own = [slice(i * chains, (i + 1) * chains) for i in range(len(part.jobs))]
    return [
        Recorder(
            job, writer, some, gaussian=gaussian, markov=markov, predictive_rows=job.config["store"]["predictive_rows"]
        )
        for job, writer, some in zip(part.jobs, part.writers, own, strict=True)
    ]


def _score(recorder: Recorder, block: loop.Block, clock: Clock) -> None:
    assert block.draws is not None
    done, total = block.first_draw + block.draws.shape[1], recorder.schedule.num_samples
    if done == total or done in curve_marks(recorder.job.program)(block.stage, "sample"):
        recorder.curve("sample", recorder.num_draws, recorder.curve_seconds + clock.sampling())


def _score_provisional(recorders: Sequence[Recorder], predictor: Predictor, block: loop.Block, clock: Clock) -> None:
    """Score a guide while it is being optimised, by a few draws from it."""
    from bdlbench.metrics.mixture import PredictiveMixture

    if block.steps_done not in curve_marks(recorders[0].job.program)(block.stage, "warmup"):
        return
    assert block.provisional is not None
    draws = block.provisional(min(PROVISIONAL_DRAWS, recorders[0].schedule.num_samples))
    seen = predictor.predict(draws)
    for recorder in recorders:
        if recorder.over:
            continue
        own = draws[recorder.lanes]
        population = num_particles(own)
        good = as_chains(np.isfinite(own).all(-1).reshape(len(own), -1), population)
        mixture = PredictiveMixture(gaussian=recorder.gaussian)
        predicted = {name: as_chains(a[recorder.lanes], population) for name, a in seen.items()}
        predicted = moments_kept(predicted, good)
        good &= finite_predictions(predicted)
        pooled(mixture, predicted, good)
        seconds = recorder.curve_seconds + clock.sampling()
        recorder.curve("warmup", int(good.sum()), seconds, mixture)
