"""Keep a fit in a store, as a run of a command is kept. Its rows lie beside the store, and its record names them."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bdlbench.api import fitting, saved
from bdlbench.api.loading import ON_TREE, PARTLY, load_run
from bdlbench.api.posterior import Posterior
from bdlbench.api.problem import Parts, Rows, plain
from bdlbench.data.files import save_rows
from bdlbench.errors import ConfigError
from bdlbench.metrics.diagnostics import CHAIN_DIAGNOSTICS
from bdlbench.model import trees
from bdlbench.runs import configuration
from bdlbench.runs.diagnosis import mixing_warnings
from bdlbench.runs.group import run_config
from bdlbench.runs.job import RESULT_VERSION, Job, make_job
from bdlbench.store import Store

DIAGNOSED = "diagnosed_at"
"""Entry of a record that says where its chains were compared, if not at test rows."""


def fit_stored(
    parts: Parts,
    rows: Rows,
    job: Job,
    store: Any,
    progress: Any,
    options: Mapping[str, Any],
    rest: Callable[..., Any] | None = None,
) -> Posterior:
    """Run a fit as a command would, or find it in the store.

    Parameters
    ----------
    job : Job
        That of the same fit in memory.
    store : path or Store
    options : mapping
        Of the run, by their path, such as ``store.checkpoint_seconds``.
    rest : function, optional
        Fixes the weights that have no posterior, see :func:`bdlbench.api.partly.fix_the_rest`. They are kept beside the
        rows, and found again as the run is.

    Raises
    ------
    ConfigError
        For a network or model that another process could not import.
    """
    if not isinstance(store, str | os.PathLike | Store):
        raise ConfigError(f"store is a {type(store).__name__}: give the path of a folder, as results/store.")
    path = Path(store.path if isinstance(store, Store) else store)
    folder = path.with_name(f"{path.name}_rows")
    nodes = _importable(parts)
    there = [place for place in (path, folder) if place.exists()]
    before = set(folder.glob("*"))
    run_id: str | None = None
    price: Mapping[str, float] | None = None
    weights: list[Path] = []
    try:
        if rest is not None:
            model = {name: node for name, node in nodes.items() if name != "inference"}
            kept = [RESULT_VERSION, model, parts.temperature, parts.precision, job.seed, job.dataset.checksum]

            def place(what: Any) -> Path:
                digest = hashlib.sha256(json.dumps([kept, what], sort_keys=True).encode()).hexdigest()[:16]
                weights.append(folder / f"{digest}-weights.npz")
                return weights[0]

            parts, price = rest(parts, place=place)
        nodes = _with_model(nodes, parts, rows, weights[0] if weights else None)
        file = save_rows(folder, rows.dataset())
        config = _config(parts, nodes, job.seed, path, file, progress, options)
        labels = {"data": "rows", **parts.labels}
        run_id = make_job(config, labels).id
        record = run_config(config, labels)
    except KeyboardInterrupt:
        _leave_nothing(path, run_id, before, there)
        raise
    if record["status"] == "failed":
        raise FloatingPointError(f"The fit failed: {record['reason']}.")
    # The caller gave the parts of the run, and so trusts them.
    found = load_run(Store(path), record["id"], trust=True)
    if DIAGNOSED not in record:
        _amend(Store(path), record["id"], _mixing(found, record), job.num_chains, price)
        found = load_run(Store(path), record["id"], trust=True)
    server = dataclasses.replace(found._server, inputs=rows.inputs, targets=rows.targets)
    origin = None if found._origin is None else dataclasses.replace(found._origin, rows=rows)
    return Posterior(server, found._parts, found._facts, found._stats, origin=origin, report=found._report)


def _importable(parts: Parts) -> dict[str, Any]:
    """The sections of a configuration, in which what the caller handed in is named by where it is imported from."""
    nodes = dict(parts.nodes)
    for name, thing in parts.objects.items():
        described = saved._described(thing if name != "inference" else thing[0])
        if described["import"] is None or name == "inference":
            raise ConfigError(
                f"store keeps what another process can import, but {name} '{described['name']}' is none such: define it "
                "at the top of a module, hand in its class with options bound by functools.partial, or leave store out."
            )
        nodes[name] = {"_target_": described["import"].replace(":", "."), **described["options"]}
    return nodes


def _with_model(nodes: Mapping[str, Any], parts: Parts, rows: Rows, weights: Path | None) -> dict[str, Any]:
    """The sections with a model that unpacks a tree of inputs and fixes weights, where the fit does so."""
    tree = rows.inputs.tree
    if tree is None and weights is None:
        return dict(nodes)
    layout = trees.to_plain(tree)
    if not parts.has_network:
        return {**nodes, "model": {"_target_": ON_TREE, "of": {**nodes["model"], "_partial_": True}, "layout": layout}}
    file = None if weights is None else str(weights)
    return {**nodes, "model": {"_target_": PARTLY, "layout": layout, "weights": file}}


def _mixing(found: Posterior, record: Mapping[str, Any]) -> dict[str, Any]:
    """R-hat and ESS of function values at training rows; empty if the draws are no Markov chains.

    The run has no test rows, so that its record has those of its sites, which mean little for the weights of a network.
    """
    origin, server = found._origin, found._server
    if origin is None or all(record["metrics"].get(name) is None for name in CHAIN_DIAGNOSTICS):
        return {}
    return fitting.mixing_of(origin.job, server.theta, server.good, server.anchor, gaussian=server.gaussian)


def _amend(
    store: Store, run_id: str, mixing: Mapping[str, Any], num_chains: int, price: Mapping[str, float] | None
) -> None:
    """Put into a record the mixing of function values, and what the weights took that stay at a mode."""

    def amended(now: Mapping[str, Any]) -> dict[str, Any]:
        out = {**now, DIAGNOSED: "training rows"}
        if mixing:
            stale = mixing_warnings(now["metrics"], num_chains)
            kept = [text for text in now["warnings"] if text not in stale]
            out["metrics"] = {**now["metrics"], **mixing}
            out["warnings"] = [*kept, *mixing_warnings(mixing, num_chains)]
        if price is not None:
            out["num_grads"] = {**now["num_grads"], "rest": price["num_grads"]}
            out["seconds"] = {**now["seconds"], "rest": price["seconds"]}
        return out

    store.amend(run_id, amended)


def _leave_nothing(path: Path, run_id: str | None, before: Collection[Path], there: Collection[Path]) -> None:
    """Remove what an interrupted fit has written: its run if that is not finished, its rows, and empty folders."""
    if run_id is not None and (path / run_id).is_dir():
        store = Store(path)
        if store.has(run_id):
            return
        store.delete(run_id)
        with contextlib.suppress(OSError):  # the folder is kept if other commands have written there
            (path / ".deleted").rmdir()
    folder = path.with_name(f"{path.name}_rows")
    for file in set(folder.glob("*")) - set(before):
        file.unlink(missing_ok=True)
    for place in (path, folder):
        if place not in there and place.is_dir():
            with contextlib.suppress(OSError):  # the folder is kept if another fit has written there
                place.rmdir()


def _config(
    parts: Parts,
    nodes: Mapping[str, Any],
    seed: int,
    path: Path,
    file: Path,
    progress: Any,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The configuration of the run, as a command would compose it, with options by their path."""
    shown = {True: "auto", False: "off"}
    config: dict[str, Any] = {
        **nodes,
        "data": {"_target_": "bdlbench.data.files.rows", "path": str(file)},
        "metrics": configuration.default_metric_nodes(),
        "seed": seed,
        "temperature": parts.temperature,
        "precision": parts.precision,
        "warm_start": None,
        "tuned_for": None,
        "tuning_num_grads": None,
        "rerun": False,
        "progress": shown.get(progress, progress),
        "store": {"path": str(path), "predictive_rows": 500, "checkpoint_seconds": 30},
        "limits": {"memory": "on", "attempts": 3},
        "paths": {"data": None, "mirror": None},
    }
    for name, value in options.items():
        section, _, inner = name.partition(".")
        if inner:
            config[section][inner] = plain(name, value)
        else:
            config[section] = plain(name, value)
    return config
