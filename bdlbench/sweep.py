"""Many jobs: what the store has is found, equal programs run as lanes of one, and nothing stops the rest."""

import gc
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from bdlbench import config as configuration
from bdlbench import memory, run
from bdlbench.config import Job
from bdlbench.errors import ConfigError
from bdlbench.outcome import Outcome, sentence
from bdlbench.progress import Progress, make_progress
from bdlbench.store import Store

Composed = tuple[Mapping[str, Any], Mapping[str, str], str]
"""Resolved configuration, labels, and the overrides that the user would recognise the job by."""


def run_sweep(composed: Sequence[Composed], outcome: Outcome, *, max_lanes: int) -> list[dict[str, Any] | None]:
    """Run or find every job.

    Parameters
    ----------
    composed : sequence of (config, labels, overrides)
    outcome : Outcome
        Gets the records, in the jobs' order, and a sentence for each job that cannot be done.
    max_lanes : int
        Jobs x chains in one program at most.

    Returns
    -------
    list
        A record a job; None where it cannot be done.
    """
    run.setup_jax()
    records: list[dict[str, Any] | None] = [None] * len(composed)
    groups: dict[Any, list[tuple[int, Job]]] = {}
    first: dict[tuple[str, str], int] = {}
    same: dict[int, int] = {}
    if not composed:
        return records
    progress = make_progress(composed[0][0]["progress"])
    outcome.report = dict(composed[0][0]["report"])
    started = time.perf_counter()
    stores: dict[str, Store] = {}
    found = 0
    for index, (config, labels, overrides) in enumerate(composed):
        try:
            store = stores.setdefault(config["store"]["path"], Store(config["store"]["path"]))
            job = configuration.make_job(config, labels)
            records[index] = None if config["rerun"] else run.finished(store, job.id)
            if records[index] is not None:
                found += 1
                if len(composed) <= 20:
                    progress.note(f"{job.id}: found in the store")
                continue
            key = (config["store"]["path"], job.id)
            if key in first:  # options that come to the same run, such as n_train=null and n_train=277 of 277 rows
                same[index] = first[key]
                continue
            configuration.check(job)
            store.check_writable()
            first[key] = index
            groups.setdefault((group_key(job), config["store"]["path"]), []).append((index, job))
        except Exception as error:
            outcome.errors.append(f"{explain(error)} ({overrides})")
    if found and len(composed) > 20:
        progress.note(f"{found} of {len(composed)} runs found in the store")
    waiting = sum(len(members) for members in groups.values())
    setup = (time.perf_counter() - started) / max(1, waiting)
    work = [(path, batch) for (_, path), members in groups.items() for batch in batches(members, max_lanes)]
    progress.sweep_begin(len(work), waiting)
    for path, batch in work:
        progress.group_begin(len(batch))
        made = run_together([job for _, job in batch], stores[path], progress, setup)
        progress.group_end(made)
        for (index, _), record in zip(batch, made, strict=True):
            records[index] = record
    progress.sweep_end()
    for index, other in same.items():
        records[index] = records[other]
    outcome.records.extend(record for record in records if record is not None)
    if len(composed) > 1:
        summarise(outcome, records, progress)
    return records


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
    return job.program.key, job.dataset.task, shapes, tuple(job.metrics), job.config["store"]["predictive_rows"]


def batches(members: Sequence[tuple[int, Job]], max_lanes: int) -> list[list[tuple[int, Job]]]:
    """Cut a group into batches of nearly equal size, each of at most ``max_lanes`` lanes (one job at least)."""
    most = max(1, min(max_lanes // members[0][1].num_chains, memory.jobs_that_fit([job for _, job in members])))
    count = -(-len(members) // most)
    size = -(-len(members) // count)
    return [list(members[i : i + size]) for i in range(0, len(members), size)]


def run_together(jobs: Sequence[Job], store: Store, progress: Progress, setup: float) -> list[dict[str, Any]]:
    """Run jobs as one group; if that fails, as halves, so that only what is at fault fails."""
    try:
        return run.run_group(jobs, store, progress, setup, alone=len(jobs) == 1)
    except Exception as error:
        if len(jobs) == 1:
            raise
        why = "out of memory" if memory.is_out_of_memory(error) else type(error).__name__
    # Out of the except block: while an error is being handled its frames live, and with them the group's arrays.
    gc.collect()
    progress.note(f"{len(jobs)} runs together failed ({why}): trying halves")
    half = len(jobs) // 2
    return [*run_together(jobs[:half], store, progress, setup), *run_together(jobs[half:], store, progress, setup)]


def summarise(outcome: Outcome, records: Sequence[Any], progress: Progress) -> None:
    """One closing line, and one for each run that is not complete."""
    bad = [record for record in records if record is not None and record["status"] != "complete"]
    refused = sum(record is None for record in records)
    complete = len(records) - len(bad) - refused
    progress.note(f"{complete} complete, {len(bad)} failed or diverged, {refused} refused")
    for record in bad[:20]:
        progress.note(f"  {record['id']}: {record['status']}: {record['reason']}")
