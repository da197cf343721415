"""Make a posterior from a saved folder or from a stored run."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bdlbench.api import networks, saved
from bdlbench.api.inputs import Inputs, Targets
from bdlbench.api.posterior import Origin, Posterior
from bdlbench.api.problem import BNN, Parts, Rows, make_program
from bdlbench.api.serving import Server
from bdlbench.data.dataset import Dataset, Scaler
from bdlbench.errors import ConfigError
from bdlbench.metrics.diagnostics import CHAIN_DIAGNOSTICS, TEMPERATURE
from bdlbench.model.kept import read_weights
from bdlbench.model.trees import from_plain
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.configuration import PROGRAM_SECTIONS, split
from bdlbench.runs.job import Job
from bdlbench.runs.stored_draws import has_rows, load_job
from bdlbench.sampling import loop
from bdlbench.sampling.devices import computing_in, settings
from bdlbench.store import Store

PARTLY, ON_TREE = "bdlbench.model.kept.partly", "bdlbench.model.kept.on_tree"
"""Models of fits that are kept."""


def load(
    source: str | Path,
    *,
    store: str | Path | Store | None = None,
    network: Any = None,
    model: Any = None,
    prior: Any = None,
    likelihood: Any = None,
    trust: bool = False,
) -> Posterior:
    """Load the posterior that :meth:`bdlbench.Posterior.save` wrote to a folder, or the posterior of a stored run.

    A folder needs no training rows, no Hydra and no store. It holds data only, no code. Give a network, model, prior
    or likelihood of your own again; or set ``trust``, and it is imported from the module in which it was defined.

    Parameters
    ----------
    source : path, or with ``store`` the id of a run or its beginning
    store : path or Store, optional
    network, model, prior, likelihood : as at the fit
        Needed for those that are not part of bdlbench.
    trust : bool
        Whether to import the objects that the folder, or the configuration of the run, names.

    Raises
    ------
    ConfigError
        If the folder is damaged or has another format, the model is not the one that was fitted, or the run has no
        draws.
    """
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(
            f"source is a {type(source).__name__}: give the path of a folder, or the id of a run and store=."
        )
    if store is None:
        return saved.load(Path(source), network=network, model=model, prior=prior, likelihood=likelihood, trust=trust)
    if any(part is not None for part in (network, model, prior, likelihood)):
        raise ConfigError(
            "network and the like are handed in for a folder; a stored run names its own: leave them out."
        )
    with settings():  # the run's own precision is set where its record is known
        return load_run(store if isinstance(store, Store) else Store(store), str(source), trust=trust)


def load_run(store: Store, prefix: str, *, trust: bool = False) -> Posterior:
    """The posterior of a stored run."""
    run_id = store.find(prefix)
    record = store.record(run_id)
    if record["status"] == "failed":
        raise ConfigError(f"id: run '{run_id}' failed and has no draws: choose a complete run.")
    job = load_job(store, run_id, trust=trust, rows_needed=False)
    with computing_in(job.precision):
        return _loaded(store, run_id, record, job)


def _loaded(store: Store, run_id: str, record: Mapping[str, Any], job: Job) -> Posterior:
    inputs, targets = _units(job.dataset)
    parts, inputs, price = _as_fitted(job, inputs)
    program, numbers = job.program, dict(job.numbers)
    if job.config["model"]["_target_"] in (PARTLY, ON_TREE):
        nodes, numbers = split(parts.nodes)
        numbers["temperature"] = parts.temperature
        program = make_program(parts, nodes, numbers, inputs, targets)
    shared, lane, _, _ = arrange([job])
    last = len(job.program.stages) - 1
    method = loop.stage_programs(job.program, last, shared, _active(lane)).method
    theta, good, stats, anchor = _draws(store, run_id, job, linearised=method.anchor is not None)
    server = Server(
        program=program,
        numbers=numbers,
        inputs=inputs,
        targets=targets,
        seed=job.seed,
        feature_shape=job.dataset.feature_shape,
        rows=networks.rows_needed(job.program, job.numbers, job.dataset, theta.shape[-1]),
        theta=theta,
        good=good,
        anchor=anchor,
        gaussian=networks.is_normal(job.program, job.numbers, job.dataset),
    )
    found = {name: record["metrics"].get(name) for name in (*CHAIN_DIAGNOSTICS, "psis_khat")}
    found |= {name: record["metrics"][name] for name in TEMPERATURE if name in record["metrics"]}
    counts = {name: record[name] for name in ("num_diverging", "num_nonfinite", "num_grads")}
    if price:
        counts["num_grads"] = {**counts["num_grads"], "rest": price["num_grads"]}
    report = {
        "status": record["status"],
        "reason": record["reason"],
        "diagnostics": found | counts,
        "warnings": [*([record["reason"]] if record["reason"] else []), *record["warnings"]],
        "not_assessed": record.get("not_assessed", []),
    }
    facts = {
        "schedule": dict(job.program.stages[-1].schedule._asdict()),
        "num_train": len(job.dataset.train.y),
        "seconds": {**record["seconds"], **({"rest": price["seconds"]} if price else {})},
        "rest_grads": price.get("num_grads", 0.0),
        "notes": record["notes"],
    }
    origin = None
    if has_rows(job):
        rows = _rows(job.dataset, inputs, targets)
        own = job if program is job.program else dataclasses.replace(job, program=program, numbers=numbers)
        origin = Origin(rows, dataclasses.replace(own, parent=None), method.start)
    else:
        facts["notes"] = [*facts["notes"], "the data of the run have changed or are gone: it only predicts"]
    return Posterior(server, parts, facts, stats, origin=origin, report=report)


def _as_fitted(job: Job, inputs: Inputs) -> tuple[Parts, Inputs, dict[str, float]]:
    """The model as it was given to a fit that is kept: over a tree of inputs, and with the price of fixed weights."""
    nodes = {name: job.config[name] for name in PROGRAM_SECTIONS if job.config.get(name) is not None}
    parts = Parts(nodes, {}, job.numbers["temperature"], dict(job.labels), job.precision)
    node = nodes["model"]
    if node["_target_"] == ON_TREE:
        own = {key: value for key, value in node["of"].items() if key != "_partial_"}
        parts = dataclasses.replace(parts, nodes={**nodes, "model": own})
    elif node["_target_"] == PARTLY:
        fixed, price = ({}, {}) if node["weights"] is None else read_weights(node["weights"])
        parts = dataclasses.replace(parts, nodes={**nodes, "model": {"_target_": BNN}}, fixed=fixed)
        return parts, dataclasses.replace(inputs, tree=from_plain(node["layout"])), price
    else:
        return parts, inputs, {}
    return parts, dataclasses.replace(inputs, tree=from_plain(node["layout"])), {}


def _active(lane: Any) -> Any:
    return lane._replace(active=np.ones(np.shape(lane.dataset), bool))


def _units(dataset: Dataset) -> tuple[Inputs, Targets]:
    """The scaling of inputs and targets from the units of the data set's source to those of the model."""

    def wide(scaler: Scaler | None) -> Scaler | None:
        return None if scaler is None else Scaler(*(np.asarray(part, np.float64) for part in scaler))

    integer = dataset.train.x.dtype.kind in "iu"
    inputs = Inputs(dataset.feature_shape, dataset.feature_names, None, wide(dataset.x_scaler), integer=integer)
    if dataset.task == "classification":
        names = dataset.class_names or range(dataset.num_outputs)
        return inputs, Targets("classification", np.array(list(names)), name=dataset.target_name)
    return inputs, Targets("regression", None, wide(dataset.y_scaler), dataset.train.y.shape[1:], dataset.target_name)


def _rows(dataset: Dataset, inputs: Inputs, targets: Targets) -> Rows:
    """The training rows in the units of their source."""
    x = np.asarray(dataset.train.x, np.int64 if inputs.integer else np.float64)
    y = np.asarray(dataset.train.y, np.float64)
    x = x if inputs.scaler is None else inputs.scaler.original(x)
    if targets.classes is not None:
        return Rows(x, np.asarray(dataset.train.y), inputs, targets, dataset.notes)
    return Rows(x, y if targets.scaler is None else targets.scaler.original(y), inputs, targets, dataset.notes)


def _draws(
    store: Store, run_id: str, job: Job, *, linearised: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], np.ndarray | None]:
    """The draws theta (C, S, D) of a stored run, a mask of finite draws, their statistics and the anchors (C, D)."""
    import jax
    import jax.numpy as jnp

    with store.posterior(run_id) as tree:
        sites = {str(name): values.to_numpy() for name, values in tree["posterior"].data_vars.items()}
        group = tree.children.get("sample_stats")
        stats = {} if group is None else {str(name): values.to_numpy() for name, values in group.data_vars.items()}
        constant = tree.children.get("constant_data")
        anchor = None if constant is None or "anchor" not in constant else constant["anchor"].to_numpy()
    if linearised and anchor is None:
        raise ConfigError(
            f"id: run '{run_id}' predicts by a linearised network and was made before its anchor was stored: run it "
            "again with rerun=true."
        )
    shape = next(iter(sites.values())).shape[:2]
    good = np.logical_and.reduce([np.isfinite(v).reshape(*shape, -1).all(-1) for v in sites.values()])
    if not good.any():
        raise ConfigError(f"id: run '{run_id}' has no finite draw: choose a run that is complete.")
    train = job.dataset.train
    target = job.program.make_target(job.numbers, jnp.asarray(train.x), jnp.asarray(train.y))
    first = np.argwhere(good)[0]
    flat = {
        name: np.where(good.reshape(-1, *[1] * (v.ndim - 2)), v.reshape(-1, *v.shape[2:]), v[tuple(first)])
        for name, v in sites.items()
    }
    unconstrain = jax.jit(lambda values: jax.lax.map(target.unconstrain, values))
    theta = np.asarray(unconstrain(flat)).reshape(*shape, -1)
    return theta, good, stats, anchor
