"""Compute further metrics of a stored run from its draws, without sampling again.

The stored draws are mapped back to theta, and the test rows are predicted again with the same functions that a run
uses. Therefore the values are those that the run itself would have recorded, up to rounding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.metrics.evaluate import needs_each_draw
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.references import artefacts
from bdlbench.runs import against, baselines, scores
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.configuration import compose
from bdlbench.runs.job import Job, make_metrics, seen
from bdlbench.runs.look import PREDICTED, usable
from bdlbench.runs.scores import all_scores
from bdlbench.runs.stored_draws import load_draws, load_job
from bdlbench.sampling import lanes, loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.devices import computing_in
from bdlbench.sampling.marks import DRAWS_AT_ONCE
from bdlbench.sampling.predictions import Predictor, is_gaussian
from bdlbench.store import Store

Record = dict[str, Any]
Options = Mapping[str, Mapping[str, Any]]
"""The configuration of each metric by name."""


def metric_options(names: list[str] | None = None, overrides: list[str] | None = None) -> dict[str, Any]:
    """Return the configurations of metrics by name, read from ``conf/metrics``.

    Parameters
    ----------
    names : list of str, optional
        The metrics; None means those that every run has by default.
    overrides : list of str, optional
        Overrides as on the command line, such as ``metrics.ece.num_bins=10``.
    """
    chosen = [] if names is None else [f"metrics=[{','.join(names)}]"]
    return dict(compose([*chosen, *(overrides or [])])[0]["metrics"])


def recorded_options(record: Mapping[str, Any]) -> Options:
    """Return the configurations of the metrics that a record contains.

    Older records do not have the entry ``metric_options``. For them the metrics of the run's configuration are
    returned.
    """
    return record.get("metric_options", record["config"].get("metrics", {}))


def lacking(record: Mapping[str, Any], wanted: Options) -> dict[str, Any]:
    """Return the wanted metrics that a record does not contain, or contains with other options."""
    known = recorded_options(record)
    return {name: node for name, node in wanted.items() if known.get(name) != node}


def rescore(store: Store, run_id: str, wanted: Options, *, job: Job | None = None, trust: bool = False) -> Record:
    """Compute metrics of a stored run from its draws at all test rows, and add them to its record.

    Parameters
    ----------
    store, run_id
        A finished run.
    wanted : mapping
        The configuration of each metric by name; see :func:`metric_options`. If the record has values under these
        names, they are replaced.
    job : Job, optional
        The job of the run, if the caller has it.
    trust : bool
        See :func:`~bdlbench.runs.stored_draws.load_job`.

    Returns
    -------
    dict
        The record as it is stored now.

    Raises
    ------
    ConfigError
        If the run failed, has no finite draw or no test rows; if its data have changed; if one of its files does not
        match its checksum or was replaced during the call; or if the run predicts with a linearised network, because
        each chain linearises it at a different point.
    RunBusy
        If another process is writing the run.
    """
    record = store.record(run_id)
    if record["status"] == "failed":
        raise ConfigError(f"id: run '{run_id}' failed and has no draws to score: run it again.")
    _refuse_damaged(store, run_id)
    job = load_job(store, run_id, trust=trust, draws_needed=False) if job is None else seen(job)
    metrics = make_metrics(wanted)
    with computing_in(job.precision):
        mixtures = _mixtures(store, run_id, job, each=needs_each_draw(metrics))
        found, none = (
            all_scores(metrics, mixtures, job.dataset),
            scores.lacking(metrics, mixtures[""], job.dataset.task),
        )

    def amended(now: Record) -> Record:
        if now["files"] != record["files"]:
            raise ConfigError(f"id: run '{run_id}' was made again while it was scored: score it again.")
        options = {**recorded_options(now), **wanted}
        rest = {name: why for name, why in now.get("not_existing", {}).items() if name not in wanted}
        merged = {"metrics": _merged(now["metrics"], found), "not_existing": rest | none}
        return {**now, **merged, "metric_options": options}

    return store.amend(run_id, amended)


def lacks_fidelity(record: Mapping[str, Any]) -> str | None:
    """The reference that a run could be compared with, and is not, or not with the draws that it has now; or None."""
    name, fault = against.reference_of(str(record.get("target_id")))
    if name is None or fault is not None or record["status"] == "failed":
        return None
    now = artefacts.load(name).certificate["draws_sha256"]
    return None if record.get("fidelity", {}).get("draws_sha256") == now else name


def compare(store: Store, run_id: str, name: str, *, job: Job | None = None, trust: bool = False) -> Record:
    """Compare a stored run with the reference posterior that it samples, and add that to its record.

    Parameters
    ----------
    store, run_id, job, trust
        As :func:`rescore` takes them.
    name : str
        Of the reference.

    Raises
    ------
    ConfigError
        As :func:`rescore`, and if a draw is not finite.
    RunBusy
        If another process is writing the run.
    """
    record = store.record(run_id)
    _refuse_damaged(store, run_id)
    job = load_job(store, run_id, trust=trust) if job is None else seen(job)
    with computing_in(job.precision):
        values, population = _stored_values(store, run_id, job, artefacts.load(name))
        price = sum(record["num_grads"].values())
        found = against.compared(name, values, price, independent=job.independent, population=population)
    return store.amend(run_id, lambda now: {**now, "fidelity": found})


def ingredients(store: Store, run_id: str, *, trust: bool = False) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the targets of all test rows and the ingredients of metrics there, in original units.

    Raises
    ------
    ConfigError
        As :func:`rescore`.
    """
    _refuse_damaged(store, run_id)
    job = load_job(store, run_id, trust=trust, draws_needed=False)
    with computing_in(job.precision):
        mixture = _mixtures(store, run_id, job, each=True)[""]
        if job.dataset.test is None:
            raise _no_test_rows(run_id)
        return scores.original(job.dataset.test.y, job.dataset), scores.ingredients(mixture, job.dataset)


def values_at_reference(store: Store, run_id: str, name: str, *, trust: bool = False) -> np.ndarray:
    """Return what a reference keeps, for the draws of a run of its posterior: (C, n, M), in original units.

    Raises
    ------
    ConfigError
        As :func:`compare`.
    """
    _refuse_damaged(store, run_id)
    job = load_job(store, run_id, trust=trust)
    with computing_in(job.precision):
        return _stored_values(store, run_id, job, artefacts.load(name))[0]


def _refuse_damaged(store: Store, run_id: str) -> None:
    if faults := store.verify(run_id):  # changed draws would give wrong values
        raise ConfigError(f"id: run '{run_id}' is damaged and is not scored: {faults[0]}")


def _no_test_rows(run_id: str) -> ConfigError:
    return ConfigError(f"id: run '{run_id}' has no test rows to be scored at.")


def _stored_values(store: Store, run_id: str, job: Job, reference: artefacts.Reference) -> tuple[np.ndarray, int]:
    """What a reference keeps of all stored draws, (C, n, M), and the number of particles of a chain."""
    with store.posterior(run_id) as tree:
        num_stored = int(tree["posterior"].sizes["chain"])
    draws = load_draws(store, run_id, job)
    if len(draws) != num_stored * job.program.stages[-1].schedule.num_samples:
        raise ConfigError(f"id: run '{run_id}' has draws that are not finite, and is not compared with a reference.")
    draws = draws.reshape(job.num_chains, -1, draws.shape[-1])
    every = -(-draws.shape[0] * draws.shape[1] // against.MOST_DRAWS)
    shared, lane, _, _ = arrange([job])
    _refuse_linearised(run_id, job, shared, lane)
    task = job.dataset.task
    assert task != "density"  # make_program refuses it
    predictor = against.predictor_at(reference, job, task, lanes.replicate(shared), lane, Clock())
    values = against.values_at(reference, predictor, job.dataset.y_scaler, draws[:, ::every])
    return values, num_stored // job.num_chains


def _refuse_linearised(run_id: str, job: Job, shared: Any, lane: Any) -> None:
    method = loop.stage_programs(job.program, len(job.program.stages) - 1, shared, lane).method
    if method.anchor is not None:
        raise ConfigError(
            f"id: run '{run_id}' predicts by a linearised network, which is not scored again: use rerun=true."
        )


def _mixtures(store: Store, run_id: str, job: Job, *, each: bool) -> Mapping[str, scores.Predictive]:
    """Return the predictive mixture of all finite draws for each place, computed as in a run."""
    if job.baseline:
        return baselines.fitted(job).mixtures
    shared, lane, test, apart = arrange([job])
    if test is None:
        raise _no_test_rows(run_id)
    _refuse_linearised(run_id, job, shared, lane)
    shared, first = lanes.replicate(shared), lanes.first_of(lane)
    rows = {"": test, **apart}
    clock = Clock()
    task = job.dataset.task
    assert task != "density"  # make_program refuses it
    at = {place: Predictor(job.program, task, shared, first, some, clock) for place, some in rows.items()}
    gaussian = is_gaussian(job.program, job.numbers, job.dataset.train.x, job.dataset.train.y)
    mixtures = {place: PredictiveMixture(gaussian=gaussian, each=each) for place in rows}
    draws = load_draws(store, run_id, job, by_draw=True)
    absent: frozenset[str] = frozenset()
    for start in range(0, len(draws), DRAWS_AT_ONCE):
        part = draws[None, start : start + DRAWS_AT_ONCE]
        seen = {place: predictor.predict(part, start) for place, predictor in at.items()}
        now, shown = usable(seen, np.ones(part.shape[:2], bool), absent, gaussian=gaussian)
        for place, some in seen.items():
            mixtures[place].forget(now - absent)
            names = [name for name in PREDICTED if name in some and name not in now]
            mixtures[place].update({name: some[name][0][shown[0]] for name in names})
        absent = now
    return mixtures


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested mapping ``old`` with the values of ``new`` added or replaced."""
    out = dict(old)
    for key, value in new.items():
        out[key] = _merged(out.get(key, {}), value) if isinstance(value, Mapping) else value
    return out
