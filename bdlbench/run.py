"""The whole flow on one page: a configuration becomes a record in the store."""

import contextlib
import datetime
import functools
import importlib.metadata
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bdlbench import config as configuration
from bdlbench import memory
from bdlbench.config import Job
from bdlbench.predict import Predictor, is_gaussian
from bdlbench.progress import Progress, make_progress
from bdlbench.recording import OOD, Recorder
from bdlbench.sampling import lanes, loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.programs import Lane, Phase, Shared
from bdlbench.store import Store
from bdlbench.store.errors import RunExists

Record = dict[str, Any]
PROVISIONAL_DRAWS = 100
"""Draws by which a running variational posterior is scored during optimisation."""
DRAWS_AT_ONCE = 200
"""Draws a chain that are stored and scored together."""
VERSIONED = ("bdlbench", "jax", "jaxlib", "numpyro", "flax", "optax", "blackjax", "numpy")


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
    job = configuration.make_job(config, labels)
    record = None if config["rerun"] else finished(store, job.id)
    if record is not None:
        progress.note(f"{job.id}: found in the store")
        return record
    configuration.check(job)
    store.check_writable()
    return run_group([job], store, progress, time.perf_counter() - started)[0]


def finished(store: Store, run_id: str) -> Record | None:
    """The record of a run that need not be done again: one that failed is tried again."""
    if not store.has(run_id):
        return None
    record = store.record(run_id)
    return None if record["status"] == "failed" else record


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
            again = job.config["rerun"] or (store.has(job.id) and finished(store, job.id) is None)
            writer = store.writer(job.id, job.config, overwrite=again, on_busy=progress.note)
            try:
                writers[job.id] = stack.enter_context(writer)
            except RunExists:
                records[job.id] = store.record(job.id)
        mine = [job for job in jobs if job.id in writers]
        clock = Clock()
        clock.seconds["setup"] = setup_seconds * len(mine)
        try:
            made = _run_lanes(mine, [writers[job.id] for job in mine], progress, clock) if mine else []
            records |= {record["id"]: record for record in made}
        except Exception as error:
            if not alone:
                progress.finish(f"{len(mine)} runs: {type(error).__name__}")
                raise
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
            if memory.is_out_of_memory(error):
                reason = memory.reason(error, mine)
            progress.finish(f"{mine[0].id}: failed: {reason}")
            failed = {"status": "failed", "reason": reason, "traceback": traceback.format_exc(), "metrics": {}}
            for job in mine:
                records[job.id] = writers[job.id].finish(common(job, clock, len(mine)) | failed)
    return [records[job.id] for job in jobs]


def _run_lanes(jobs: Sequence[Job], writers: Sequence[Any], progress: Progress, clock: Clock) -> list[Record]:
    program, first = jobs[0].program, jobs[0].dataset
    assert first.task != "density"  # refused with the configuration
    shared, lane, test, apart = arrange(jobs)
    shared = lanes.replicate(shared)  # once, for sampling and predictions
    gaussian = is_gaussian(program, jobs[0].numbers, first.train.x, first.train.y)
    chains = jobs[0].num_chains
    markov = loop.is_markov(program, shared, lane)
    recorders = [
        Recorder(
            job,
            writer,
            slice(i * chains, (i + 1) * chains),
            gaussian=gaussian,
            markov=markov,
            predictive_rows=job.config["store"]["predictive_rows"],
        )
        for i, (job, writer) in enumerate(zip(jobs, writers, strict=True))
    ]
    predictor = Predictor(program, first.task, shared, lane, test, clock)
    others = {name: Predictor(program, first.task, shared, lane, rows, clock) for name, rows in apart.items()}
    name = jobs[0].id if len(jobs) == 1 else f"{jobs[0].id} and {len(jobs) - 1} more"
    progress.start(name, sum(s.schedule.num_warmup + _num_sampling(s.schedule) for s in program.stages))
    for recorder in recorders:
        recorder.observed()

    before, stage = 0, 0
    pending: list[loop.Block] = []

    def use(block: loop.Block) -> None:
        assert block.draws is not None
        sites = predictor.sites(block.draws)
        seen = predictor.predict(block.draws, block.first_draw, block.anchor) if test is not None else {}
        elsewhere = {n: p.predict(block.draws, block.first_draw, block.anchor) for n, p in others.items()}
        for recorder in recorders:
            recorder.keep(block, sites, seen, elsewhere)
            _score(recorder, block, clock)

    for block in loop.run(program, shared, lane, clock=clock, marks=looks(program)):
        if block.stage != stage:
            before += program.stages[stage].schedule.num_warmup + _num_sampling(program.stages[stage].schedule)
            stage = block.stage
        progress.advance(block.phase, program.stages[stage].name, before + block.steps_done, block.stats)
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
    with clock.measure("predict"):
        if pending:  # every lane failed before the next look
            use(loop.joined(pending))

    records = []
    with clock.measure("predict"):
        results = [(recorder.scores(), recorder.diagnostics()) for recorder in recorders]
    for job, recorder, (scores, diagnostics) in zip(jobs, recorders, results, strict=True):
        with clock.measure("predict"):
            for name, mixture in recorder.apart.items():
                if name.startswith(OOD):
                    scores.setdefault("ood", {})[name.removeprefix(OOD)] = recorder.detection(mixture)
                else:
                    found = recorder.scores(mixture, job.dataset.shifted[name].y)
                    scores.setdefault("shifted", {})[name] = found
        status, reason = recorder.status()
        record = common(job, clock, len(jobs)) | {
            "status": status,
            "reason": reason,
            "metrics": {**scores, **diagnostics},
            "num_grads": dict(recorder.num_grads),
            "num_draws": recorder.num_draws,
            "num_diverging": recorder.num_diverging,
            "num_nonfinite": recorder.num_nonfinite,
            "warnings": recorder.warnings(diagnostics),
        }
        records.append(recorder.writer.finish(record))
    progress.finish(f"{name}: {', '.join(sorted({r['status'] for r in records}))}")
    return records


def arrange(jobs: Sequence[Job]) -> tuple[Shared, Lane, Shared | None, dict[str, Shared]]:
    """Stack the jobs' different data sets, and lay jobs x chains out as lanes."""
    datasets = {job.dataset.checksum: job.dataset for job in jobs}
    unique = list(datasets.values())
    index = {checksum: i for i, checksum in enumerate(datasets)}

    def stack(rows: Sequence[Any]) -> Shared:
        return Shared(np.stack([r.x for r in rows]), np.stack([r.y for r in rows]))

    shared = stack([d.train for d in unique])
    if unique[0].validation is not None:
        held = stack([d.validation for d in unique])
        shared = shared._replace(validation=(held.x, held.y))
    test = None if unique[0].test is None else stack([d.test for d in unique])
    apart = {name: stack([d.shifted[name] for d in unique]) for name in unique[0].shifted}
    for name in unique[0].ood:  # their labels mean nothing to the model
        rows = stack([d.ood[name] for d in unique])
        apart[OOD + name] = rows._replace(y=np.zeros_like(rows.y))
    chains = jobs[0].num_chains
    keys = jax.vmap(lambda seed, chain: jax.random.fold_in(jax.random.key(seed), chain))(
        np.repeat(np.array([job.seed for job in jobs], np.uint32), chains), np.tile(np.arange(chains), len(jobs))
    )
    real = np.float64 if jax.config.jax_enable_x64 else np.float32
    numbers = {n: np.repeat(np.array([job.numbers[n] for job in jobs], real), chains) for n in jobs[0].numbers}
    dataset = np.repeat(np.array([index[job.dataset.checksum] for job in jobs], np.int32), chains)
    return shared, Lane(keys, dataset, numbers, None), test, apart


def curve_marks(program: Any) -> loop.Marks:
    """Log-spaced looks at the running posterior: 1, 2, 5, 10, ... steps of an optimiser or draws of a sampler."""

    def marks(stage: int, phase: Phase) -> list[int]:
        schedule = program.stages[stage].schedule
        if stage != len(program.stages) - 1 or (phase == "warmup") != (schedule.thinning == 0):
            return []
        total = schedule.num_warmup if phase == "warmup" else schedule.num_samples
        return [m * 10**e for e in range(8) for m in (1, 2, 5) if m * 10**e <= total]

    return marks


def looks(program: Any) -> loop.Marks:
    """Where draws are stored and scored: at the curve's marks and every ``DRAWS_AT_ONCE`` draws.

    Blocks in between depend on the machine's speed. Averages are taken over these pieces instead, which do not, so that
    a repeated run repeats bit for bit.
    """
    curve = curve_marks(program)

    def marks(stage: int, phase: Phase) -> Sequence[int]:
        if phase == "warmup" or stage != len(program.stages) - 1:
            return curve(stage, phase)
        total = program.stages[stage].schedule.num_samples
        return sorted({*curve(stage, phase), *range(DRAWS_AT_ONCE, total, DRAWS_AT_ONCE), total})

    return marks


def _score(recorder: Recorder, block: loop.Block, clock: Clock) -> None:
    assert block.draws is not None
    done, total = block.first_draw + block.draws.shape[1], recorder.schedule.num_samples
    if done == total or done in curve_marks(recorder.job.program)(block.stage, "sample"):
        recorder.curve("sample", recorder.num_draws, _seconds(clock), recorder.scores())


def _score_provisional(recorders: Sequence[Recorder], predictor: Predictor, block: loop.Block, clock: Clock) -> None:
    """Score a guide while it is being optimised, by a few draws from it."""
    from bdlbench.metrics.mixture import PredictiveMixture
    from bdlbench.recording import as_chains, num_particles, pooled

    if block.steps_done not in curve_marks(recorders[0].job.program)(block.stage, "warmup"):
        return
    assert block.provisional is not None
    draws = block.provisional(min(PROVISIONAL_DRAWS, recorders[0].schedule.num_samples))
    seen = predictor.predict(draws)
    for recorder in recorders:
        own = draws[recorder.lanes]
        population = num_particles(own)
        good = as_chains(np.isfinite(own).all(-1).reshape(len(own), -1), population)
        mixture = PredictiveMixture(gaussian=recorder.gaussian)
        pooled(mixture, {name: as_chains(a[recorder.lanes], population) for name, a in seen.items()}, good)
        recorder.curve("warmup", int(good.sum()), _seconds(clock), recorder.scores(mixture))


def _seconds(clock: Clock) -> float:
    return clock.seconds.get("warmup", 0.0) + clock.seconds.get("sample", 0.0)


def _num_sampling(schedule: Any) -> int:
    return int(schedule.num_samples * schedule.thinning)


def common(job: Job, clock: Clock, num_jobs: int) -> Record:
    """What every record says, a failed one too."""
    phases = ("setup", "compile", "warmup", "sample", "predict")
    return {
        "labels": dict(job.labels),
        "seed": job.seed,
        "program_hash": configuration.short_hash(job.program.key),
        "seconds": {phase: clock.seconds.get(phase, 0.0) / num_jobs for phase in phases},
        "num_grads": {"warmup": 0.0, "sample": 0.0},
        "lanes": num_jobs * job.num_chains,
        "peak_memory_bytes": peak_memory(),
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "versions": versions(),
        "git_commit": git_commit(),
        "data_checksum": job.dataset.checksum,
        "notes": list(job.dataset.notes),
        "warnings": [],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def peak_memory() -> int:
    """Peak resident bytes of this process. Linux's ``ru_maxrss`` begins with the parent's peak, so it comes second."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that bdlbench runs from, if it is one."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", str(here), "rev-parse", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return None


@functools.cache
def setup_jax() -> None:
    """Devices, precision and the compilation cache, once a process and before JAX is used."""
    lanes.mesh()
    # TF32, the default of recent GPUs, breaks Metropolis acceptance.
    jax.config.update("jax_default_matmul_precision", "float32")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import platformdirs

        jax.config.update("jax_compilation_cache_dir", platformdirs.user_cache_dir("bdlbench") + "/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
