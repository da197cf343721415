"""A fit that is kept in a store as a command's run is: its rows lie beside the store, and its record names them."""

import dataclasses
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
from bdlbench.store import Store


def fit_stored(parts: Parts, rows: Rows, seed: int, store: str | Path | Store, progress: Any) -> Posterior:
    """Run a fit as a command would, or find it in the store.

    Raises
    ------
    ConfigError
        For a network or model that another process could not import, and inputs that are no single array.
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
    file = save_rows(path.with_name(f"{path.name}_rows"), rows.dataset())
    shown = {True: "auto", False: "off"}
    config = {
        **nodes,
        "data": {"_target_": "bdlbench.data.files.rows", "path": str(file)},
        "metrics": configuration.default_metric_nodes(),
        "seed": seed,
        "temperature": parts.temperature,
        "precision": parts.precision,
        "warm_start": None,
        "rerun": False,
        "progress": shown.get(progress, progress),
        "store": {"path": str(path), "predictive_rows": 500, "checkpoint_seconds": 30},
        "paths": {"data": None, "mirror": None},
    }
    record = run_config(config, {"data": "rows", **parts.labels})
    if record["status"] == "failed":
        raise FloatingPointError(f"The fit failed: {record['reason']}.")
    found = load_run(Store(path), record["id"], trust=True)
    server = dataclasses.replace(found._server, inputs=rows.inputs, targets=rows.targets)
    origin = None if found._origin is None else dataclasses.replace(found._origin, rows=rows)
    return Posterior(server, found._parts, found._facts, found._stats, origin=origin, report=found._report)
