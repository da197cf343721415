"""Keep a fit in a store, as a run of a command is kept. Its rows lie beside the store, and its record names them."""

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bdlbench.api import saved
from bdlbench.api.loading import load_run
from bdlbench.api.posterior import Posterior
from bdlbench.api.problem import Parts, Rows
from bdlbench.data.files import save_rows
from bdlbench.errors import ConfigError
from bdlbench.runs import configuration
from bdlbench.runs.group import run_config
from bdlbench.runs.job import make_job
from bdlbench.store import Store


def fit_stored(parts: Parts, rows: Rows, seed: int, store: str | Path | Store, progress: Any) -> Posterior:
    """Run a fit as a command does, or find it in the store.

    Raises
    ------
    ConfigError
        If another process could not import the network or the model, or the inputs are not a single array.
    """
    if rows.inputs.tree is not None:
        raise ConfigError("store keeps inputs that are one array: leave store out, or give a table or an array.")
    path = Path(store.path if isinstance(store, Store) else store)
    nodes = dict(parts.nodes)
    for name, thing in parts.objects.items():
        described = saved._described(thing if name != "inference" else thing[0])
        if described["import"] is None or name == "inference":
            raise ConfigError(
                f"store keeps what another process can import, but {name} '{described['name']}' is none such: define it "
                "at the top of a module, hand in its class with options bound by functools.partial, or leave store out."
            )
        nodes[name] = {"_target_": described["import"].replace(":", "."), **described["options"]}
    there = [place for place in (path, path.with_name(f"{path.name}_rows")) if place.exists()]
    before = set(path.with_name(f"{path.name}_rows").glob("*"))
    run_id: str | None = None
    try:
        file = save_rows(path.with_name(f"{path.name}_rows"), rows.dataset())
        config = _config(parts, nodes, seed, path, file, progress)
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
    server = dataclasses.replace(found._server, inputs=rows.inputs, targets=rows.targets)
    origin = None if found._origin is None else dataclasses.replace(found._origin, rows=rows)
    return Posterior(server, found._parts, found._facts, found._stats, origin=origin, report=found._report)


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


def _config(parts: Parts, nodes: Mapping[str, Any], seed: int, path: Path, file: Path, progress: Any) -> dict[str, Any]:
    """The configuration of the run, as a command would compose it."""
    shown = {True: "auto", False: "off"}
    return {
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
