"""Make and store the record of a run, whether it has finished or failed.

An error in the scores or the files of one run makes only that run a failed run.
"""

import datetime
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bdlbench.data import Dataset
from bdlbench.data.description import describe
from bdlbench.errors import ConfigError
from bdlbench.runs import memory, start, tuned
from bdlbench.runs.diagnosis import diagnosis
from bdlbench.runs.job import Job, short_hash
from bdlbench.runs.member import PHASES, Member
from bdlbench.runs.provenance import device, git_commit, peak_memory, versions
from bdlbench.runs.scores import all_scores, lacking, original
from bdlbench.sampling.clock import Clock
from bdlbench.store import NoRoom, RunWriter
from bdlbench.store.errors import FolderGone

Record = dict[str, Any]


def finish_record(member: Member, clock: Clock, num_jobs: int, *, markov: bool, fault: str | None = None) -> Record:
    """Score and diagnose a run, and store its record. If that raises an error, store a failed record.

    Parameters
    ----------
    member : Member
    clock : Clock
        The clock of the group in this attempt.
    num_jobs : int
        The number of jobs in the group. Each is charged an equal share of the group's seconds.
    markov : bool
        Whether the draws of one chain are a Markov chain. ESS and R-hat are computed only then.
    fault : str, optional
        Why the run cannot be compared with the reference posterior that it samples.

    Raises
    ------
    NoRoom
        If the disk is full. With free space the run continues from its last checkpoint.
    Exception
        If memory ran out. The caller can then try again with fewer runs at a time.
    """
    job, tally = member.job, member.tally
    try:
        member.storage.writer.check_there()
        with clock.measure("predict"):
            scores = all_scores(job.metrics, tally.mixtures, job.dataset, tally.scores(job.metrics, job.dataset))
            mixing = member.storage.mixing(tally.sound_chains() if markov else [], tally.drawn, tally.absent)
            found = diagnosis(job, tally, mixing, markov=markov)
            try:
                near = member.fidelity()
            except ConfigError as error:
                near, fault = None, f"reference '{member.reference}': {error}"
        record = common_fields(job, member.share(clock, num_jobs), num_jobs) | {
            "status": found.status,
            "reason": found.reason,
            "metrics": {**scores, **found.diagnostics},
            "not_existing": lacking(job.metrics, tally.mixtures[""], job.dataset.task),
            "num_grads": member.num_grads(),
            "num_draws": tally.num_draws,
            "num_diverging": tally.num_diverging,
            "num_nonfinite": tally.num_nonfinite,
            "warnings": found.warnings,
            "not_assessed": [*found.not_assessed, *([] if fault is None else [f"fidelity: {fault}"])],
        }
        if near is not None:
            record["fidelity"] = near
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise
        record = failed_record(job, error, member.share(clock, num_jobs), num_jobs)
        record["num_grads"] = member.num_grads()
    return put_record(member.storage.writer, record)


def failed_record(
    job: Job,
    error: BaseException,
    seconds: Mapping[str, float] | None = None,
    num_jobs: int = 1,
    in_memory: Sequence[Job] = (),
) -> Record:
    """Return the record of a run that an exception ended.

    Parameters
    ----------
    job : Job
    error : exception
    seconds : mapping, optional
        The seconds by phase, as far as they are known.
    num_jobs : int
        The number of jobs in the run's group.
    in_memory : sequence of Job
        The jobs that were in memory together. If memory ran out, the reason in the record says how much they need.
    """
    taken = {phase: (seconds or {}).get(phase, 0.0) for phase in PHASES}
    return common_fields(job, taken, num_jobs) | failure(error, in_memory)


def put_record(writer: RunWriter, record: Record) -> Record:
    """Store the record of a run and return it.

    If that fails, a failed record is stored without the draws. If that fails too, the failed record is only returned.

    Raises
    ------
    NoRoom
        If the disk is full.
    """
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
        return record


def failure(error: BaseException, in_memory: Sequence[Job] = ()) -> Record:
    """Return the entries of a record that describe an exception.

    If memory ran out and ``in_memory`` is given, the reason says how much memory a job needs.
    """
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    if isinstance(error, FolderGone):
        reason = str(error)
    if in_memory and memory.is_out_of_memory(error):
        reason = memory.reason(error, in_memory)
    trace = "".join(traceback.format_exception(error))
    return {"status": "failed", "reason": reason, "traceback": trace, "metrics": {}}


def rows(dataset: Dataset) -> Record:
    """The numbers of training and test rows, and a hash of the targets that are scored, in original units."""
    test = dataset.test
    if test is None:
        return {"num_rows": {"train": len(dataset.train.y), "test": 0}, "test_checksum": None}
    # Single precision, in which targets that were scaled by other moments come back equal.
    targets = np.asarray(original(test.y, dataset), np.float32)
    checksum = short_hash(targets.tobytes().hex())
    return {"num_rows": {"train": len(dataset.train.y), "test": len(test.y)}, "test_checksum": checksum}


def common_fields(job: Job, seconds: Mapping[str, float], num_jobs: int) -> Record:
    """Return the entries that every record has, including a failed one."""
    return {
        "id": job.id,
        "config": dict(job.config),
        "labels": dict(job.labels),
        "seed": job.seed,
        "target_id": job.target_id or None,
        "program_hash": short_hash(job.program.key),
        "seconds": dict(seconds),
        "num_grads": dict.fromkeys(("warmup", "sample"), None if job.baseline else 0.0),
        "metric_options": dict(job.config["metrics"]),
        "tuning_num_grads": job.config.get("tuning_num_grads"),
        "lanes": num_jobs * job.num_chains,
        "peak_memory_bytes": peak_memory(),
        "device": device(),
        "versions": versions(),
        "git_commit": git_commit(),
        "data_checksum": job.dataset.checksum,
        **rows(job.dataset),
        "num_scored_rows": 0 if job.dataset.test is None else len(job.dataset.test.y),
        "dataset": describe(job.dataset),
        "notes": [*job.dataset.notes, *(job.parent.notes if job.parent else ())],
        "start": None if job.baseline else start.described(job.program, job.parent),
        "warm_start": job.parent and job.parent.record(),
        "warnings": tuned.warnings(job.config, job.labels, job.dataset.task),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
