"""From a finished loop to a record. What goes wrong with one run's scores or files here is that run's failure alone."""

import datetime
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from bdlbench.runs import memory, tuned
from bdlbench.runs.job import Job, short_hash
from bdlbench.runs.provenance import device, git_commit, peak_memory, versions
from bdlbench.runs.recorder import OOD, Recorder
from bdlbench.sampling.clock import Clock
from bdlbench.store import NoRoom, RunWriter

Record = dict[str, Any]


def finish_record(recorder: Recorder, clock: Clock, num_jobs: int) -> Record:
    """Score and diagnose a run, and put its record in place; a failed one where that raises.

    Raises
    ------
    NoRoom
        With room, the run goes on from its last checkpoint.
    MemoryError and its kin
        As anywhere in a group: with fewer runs at a time there may be enough.
    """
    job = recorder.job
    try:
        with clock.measure("predict"):
            scores, diagnostics = recorder.scores(), recorder.diagnostics()
            for other, mixture in recorder.apart.items():
                if other.startswith(OOD):
                    scores.setdefault("ood", {})[other.removeprefix(OOD)] = recorder.detection(mixture)
                else:
                    found = recorder.scores(mixture, job.dataset.shifted[other].y)
                    scores.setdefault("shifted", {})[other] = found
        status, reason = recorder.status()
        outcome = {
            "status": status,
            "reason": reason,
            "metrics": {**scores, **diagnostics},
            "num_grads": dict(recorder.num_grads),
            "num_draws": recorder.num_draws,
            "num_diverging": recorder.num_diverging,
            "num_nonfinite": recorder.num_nonfinite,
            "warnings": recorder.warnings(diagnostics),
        }
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise
        outcome = {**failure(error), "num_grads": dict(recorder.num_grads)}
    return put_record(recorder.writer, common_fields(job, recorder.share(clock, num_jobs), num_jobs) | outcome)


def put_record(writer: RunWriter, record: Record) -> Record:
    """Finish a run. If its draws cannot be stored, the record says so without them; if nothing can, it stays unstored."""
    try:
        return writer.finish(record)
    except NoRoom:
        raise
    except Exception as error:
        record = {**record, **failure(error)}
    try:
        writer.drop_draws()
        return writer.finish(record)
    except NoRoom:
        raise
    except Exception:
        return {**record, "id": writer.folder.name, "config": dict(writer.config)}


def failure(error: BaseException, jobs: Sequence[Job] = ()) -> Record:
    """What a record says of an exception; of ``jobs`` that ran out of memory, what they need."""
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    if jobs and memory.is_out_of_memory(error):
        reason = memory.reason(error, jobs)
    trace = "".join(traceback.format_exception(error))
    return {"status": "failed", "reason": reason, "traceback": trace, "metrics": {}}


def common_fields(job: Job, seconds: Mapping[str, float], num_jobs: int) -> Record:
    """What every record says, a failed one too."""
    return {
        "labels": dict(job.labels),
        "seed": job.seed,
        "target_id": job.target_id,
        "program_hash": short_hash(job.program.key),
        "seconds": dict(seconds),
        "num_grads": {"warmup": 0.0, "sample": 0.0},
        "tuning_num_grads": job.config.get("tuning_num_grads"),
        "lanes": num_jobs * job.num_chains,
        "peak_memory_bytes": peak_memory(),
        "device": device(),
        "versions": versions(),
        "git_commit": git_commit(),
        "data_checksum": job.dataset.checksum,
        "notes": [*job.dataset.notes, *(job.parent.notes if job.parent else ())],
        "warm_start": job.parent and job.parent.record(),
        "warnings": tuned.warnings(job.config, job.labels),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
