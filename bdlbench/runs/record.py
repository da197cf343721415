"""The two ways in which a run becomes a record: it has been finished, or it has failed.

What goes wrong with the scores or the files of one run here is a failure of that run alone.
"""

import datetime
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bdlbench.data import Dataset
from bdlbench.data.description import describe
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


def finish_record(member: Member, clock: Clock, num_jobs: int, *, markov: bool) -> Record:
    """Score and diagnose a run, and put its record in place; a failed one where that raises.

    Parameters
    ----------
    member : Member
    clock : Clock
        The group's, of this attempt.
    num_jobs : int
        Jobs of the group, which share its seconds.
    markov : bool
        Whether the draws of one chain are a Markov chain, so that ESS and R-hat mean something.

    Raises
    ------
    NoRoom
        With room, the run goes on from its last checkpoint.
    MemoryError and its kin
        As anywhere in a group: with fewer runs at a time there may be enough.
    """
    job, tally = member.job, member.tally
    try:
        member.storage.writer.check_there()
        with clock.measure("predict"):
            scores = all_scores(job.metrics, tally.mixtures, job.dataset, tally.scores(job.metrics, job.dataset))
            mixing = member.storage.mixing(tally.sound_chains() if markov else [], tally.drawn, tally.absent)
            found = diagnosis(job, tally, mixing, markov=markov)
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
            "not_assessed": found.not_assessed,
        }
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
    """The record of a run that an exception ended.

    Parameters
    ----------
    job : Job
    error : exception
    seconds : mapping, optional
        By phase, as far as they are known.
    num_jobs : int
        Jobs of the group in which the run was computed.
    in_memory : sequence of Job
        Jobs that were in memory together: the reason says what they need where memory was what lacked.
    """
    taken = {phase: (seconds or {}).get(phase, 0.0) for phase in PHASES}
    return common_fields(job, taken, num_jobs) | failure(error, in_memory)


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
        return record


def failure(error: BaseException, in_memory: Sequence[Job] = ()) -> Record:
    """What a record says of an exception; of jobs that ran out of memory, what they need."""
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
    """What every record says, a failed one too."""
    return {
        "id": job.id,
        "config": dict(job.config),
        "labels": dict(job.labels),
        "seed": job.seed,
        "target_id": job.target_id,
        "program_hash": short_hash(job.program.key),
        "seconds": dict(seconds),
        "num_grads": {"warmup": 0.0, "sample": 0.0},
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
        "start": start.described(job.program, job.parent),
        "warm_start": job.parent and job.parent.record(),
        "warnings": tuned.warnings(job.config, job.labels),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
