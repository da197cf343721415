"""Shortened versions of all inference presets, and the results of a run that interruptions must not change."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from archives import NAME
from laws import declared, families

from bdlbench.runs.configuration import conf_dir
from bdlbench.store import Store

FILES = sorted((conf_dir() / "inference").glob("*.yaml"))
PRESETS = [path.stem for path in FILES if "\nschedule:" in path.read_text()]
"""The methods that take steps and draws."""
BASELINES = [path.stem for path in FILES if path.stem not in PRESETS]
"""The methods that are fitted once."""


def mostly(names: Iterable[Any], *always: Any) -> list[Any]:
    """Return parameters for a slow test. Those in ``always`` run every time, the others only with the slow tests."""
    names = list(names)
    assert set(always) <= set(names)
    return [
        pytest.param(*(name if isinstance(name, tuple) else (name,)), marks=() if name in always else pytest.mark.slow)
        for name in names
    ]


def by_family(names: Iterable[str], *always: str) -> list[Any]:
    """Return parameters for a test of all presets. Those in ``always`` run every time.

    One preset of each other family runs with the slow tests, and its kin with the long ones.
    """
    names = list(names)
    assert set(always) <= set(names)
    mark = {name: pytest.mark.slow if name in FIRST else pytest.mark.long for name in names}
    return [name if name in always else pytest.param(name, marks=mark[name]) for name in names]


def first_of(cases: list[Any]) -> list[Any]:
    """Return parameters for similar cases. The first runs every time, the others only with the slow tests."""
    return [cases[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in cases[1:])]


def shortened(preset: str, warmup: int, samples: int, before: int, chains: int = 2) -> list[str]:
    """Return overrides that choose a preset with fewer steps and draws. A preset with one draw keeps it."""
    import yaml

    node = yaml.safe_load((conf_dir() / "inference" / f"{preset}.yaml").read_text())
    schedule = node["schedule"]
    out = [f"inference={preset}", f"inference.schedule.num_chains={chains}"]
    if schedule["num_warmup"]:
        out.append(f"inference.schedule.num_warmup={warmup}")
    if schedule["num_samples"] > 1:
        out.append(f"inference.schedule.num_samples={samples}")
    if schedule["thinning"] > 1:
        out.append("inference.schedule.thinning=2")
    if schedule["batch_size"]:
        out.append("inference.schedule.batch_size=8")
    for i, earlier in enumerate(node["before"]):
        out.append(f"inference.before.{i}.schedule.num_warmup={before}")
        if earlier["schedule"].get("batch_size"):
            out.append(f"inference.before.{i}.schedule.batch_size=8")
    return [*out, *(f"inference.{option}" for option in declared("small").get(preset, ()))]


def outcome(store: Store, run_id: str) -> dict[str, Any]:
    """Return the arrays, the curve and the record entries of a run that must not depend on interruptions, bit by bit."""
    record = store.record(run_id)
    found: dict[str, Any] = {
        name: json.dumps(record[name], sort_keys=True)
        for name in (
            "status",
            "reason",
            "metrics",
            "num_grads",
            "num_draws",
            "num_diverging",
            "num_nonfinite",
            "warnings",
        )
    }
    curve = store.curve(run_id)
    if len(curve):
        found["curve"] = curve.drop(columns="seconds").to_json(double_precision=15)
    root = zarr.open_group(zarr.storage.ZipStore(Path(store.path) / run_id / NAME), mode="r")
    for group, parent in root.groups():
        for name, array in parent.arrays():
            found[f"{group}/{name}"] = np.asarray(array[...])
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Assert that two outcomes are equal bit by bit. NaN equals NaN."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype
            np.testing.assert_array_equal(value, other[name], err_msg=name)
        else:
            assert value == other[name], name


# This is the last statement, because it imports the test files of the families, and these import the names above.
FIRST = sorted(next(iter(family.laws)) for family in families().values())
"""One preset of each family: the first of its laws."""
