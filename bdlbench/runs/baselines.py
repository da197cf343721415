"""Fit a baseline and store its run: the predictions, the scores and the price in seconds, without draws of weights."""

from typing import Any, NamedTuple

import numpy as np

from bdlbench.baselines.base import Fitted, Network, Problem, fitted_with_warnings
from bdlbench.baselines.scoring import ClosedPredictive, scored
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.runs.job import Job
from bdlbench.runs.look import Look
from bdlbench.runs.member import PHASES
from bdlbench.runs.progress import Progress
from bdlbench.runs.record import Record, common_fields, failed_record, put_record
from bdlbench.runs.scores import OOD, all_scores, lacking
from bdlbench.runs.storage import Storage
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.devices import computing_in
from bdlbench.store import NoRoom, RunWriter


class Result(NamedTuple):
    """A fitted baseline: its predictions by place, as those of a run, and the warnings of the library."""

    fitted: Fitted
    mixtures: dict[str, PredictiveMixture | ClosedPredictive]
    warnings: list[str]


def fitted(job: Job, clock: Clock | None = None) -> Result:
    """Fit the baseline of a job and predict all its places. The same job gives the same result."""
    assert job.baseline is not None
    clock, data = Clock() if clock is None else clock, job.dataset
    assert data.task != "density"  # make_program refuses it
    network = Network(job.program.make_target, job.numbers) if job.baseline.uses_network else None
    problem = Problem(
        data.train.x,
        data.train.y,
        data.task,
        data.num_outputs if data.task == "classification" else 1,
        job.seed,
        network,
    )
    with computing_in(job.precision):
        with clock.measure("warmup"):
            found, warnings = fitted_with_warnings(job.baseline, problem)
        places = {} if data.test is None else {"": data.test}
        # The labels of out-of-distribution rows may be classes that the training rows do not have.
        places |= data.shifted | {OOD + name: rows._replace(y=np.zeros_like(rows.y)) for name, rows in data.ood.items()}
        with clock.measure("predict"):
            mixtures = {place: scored(found.predict(rows.x), rows.y) for place, rows in places.items()}
    return Result(found, {"": PredictiveMixture(), **mixtures}, warnings)


def run(job: Job, writer: RunWriter, progress: Progress, setup_seconds: float) -> Record:
    """Fit the baseline of a job, and store its record, also that of a fit that fails."""
    clock = Clock()
    clock.seconds["setup"] = setup_seconds
    progress.start(job.id, 1)
    try:
        result = fitted(job, clock)
        with clock.measure("predict"):
            _store(job, writer, result)
            record = _record(job, result)
        record["seconds"] = {phase: clock.seconds.get(phase, 0.0) for phase in PHASES}
    except NoRoom:
        raise
    except Exception as error:
        record = failed_record(job, error, clock.seconds)
    record = put_record(writer, record)
    said = record["status"] if record["status"] == "complete" else f"failed: {record['reason']}"
    progress.finish(f"{job.id}: {said}")
    return record


def _record(job: Job, result: Result) -> Record:
    assert job.baseline is not None
    own = result.mixtures[""]
    price = result.fitted.num_grads
    not_assessed = ["R-hat and ESS: a baseline has no draws"]
    if price is None:
        not_assessed.append(
            "gradients: the library that fits the baseline takes none of this model, so its price is seconds"
        )
    scores: dict[str, Any] = all_scores(job.metrics, result.mixtures, job.dataset)
    common = common_fields(job, {}, 1)
    return common | {
        "status": "complete",
        "reason": None,
        "metrics": scores,
        "not_existing": lacking(job.metrics, own, job.dataset.task),
        "num_grads": {"warmup": price, "sample": None if price is None else 0.0},
        "num_draws": 0,
        "num_diverging": 0,
        "num_nonfinite": 0,
        "warnings": [*common["warnings"], *result.warnings],
        "not_assessed": not_assessed,
        "notes": [*common["notes"], *([job.baseline.remark] if job.baseline.remark else [])],
    }


def _store(job: Job, writer: RunWriter, result: Result) -> None:
    """Store the predictions at the test rows as those of one draw of one chain."""
    own = result.mixtures[""]
    if own.num_draws == 0:
        return
    rows = job.config["store"]["predictive_rows"]
    storage = Storage(writer, job.dataset, 1, rows, {})
    storage.observed()
    found, dtype = own.ingredients(), job.dataset.train.x.dtype
    dtype = dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float32)
    names = {"log_lik": "lpd", "mean": "mean", "probs": "probs"}
    one = {name: found[key][None, None].astype(dtype) for name, key in names.items() if key in found}
    yes = np.ones((1, 1), bool)
    storage.write(Look(0, 1, yes, yes, frozenset(), {}, {}, {"": one}))
