"""Every yaml of conf/data is the whole record of its factory, and every set obeys the rules of a Dataset."""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bdlbench.data import Dataset, catalogue
from bdlbench.data.fetch import files_at
from bdlbench.data.listing import folder
from bdlbench.types import ConfigError

NAMES = [entry.name for entry in catalogue()]
EXPECTED = [
    "concrete",
    "energy",
    "kin8nm",
    "naval",
    "power",
    "protein",
    "wine",
    "yacht",
    "boston",
    "airfoil",
    "bikesharing",
    "diabetes",
    "breast_cancer",
    "wine_cultivars",
    "digits",
    "two_moons",
    "mnist_5k",
    "mnist",
    "mnist1d",
    "co2",
    "nab",
    "mitbih",
    "cosine_gap",
    "two_clusters",
    "heteroscedastic_sine",
    "braking",
    "pendulum",
    "gaussians_25",
    "csv",
    "npz",
    "rows",
    "linear_regression",
    "eight_schools",
]


def config(name: str) -> dict[str, Any]:
    """Return the yaml of a set as a dict."""
    loaded: dict[str, Any] = yaml.safe_load((folder() / f"{name}.yaml").read_text())
    return loaded


def factory(name: str) -> Callable[..., Dataset]:
    """Return the factory that a yaml names."""
    module, function = config(name)["_target_"].rsplit(".", 1)
    found: Callable[..., Dataset] = getattr(importlib.import_module(module), function)
    return found


def load(name: str, **changes: Any) -> Dataset:
    """Build a set as its yaml says, with changes."""
    options = {key: value for key, value in config(name).items() if key != "_target_"} | changes
    make = factory(name)
    return make(**options, files=files_at()) if "files" in inspect.signature(make).parameters else make(**options)


# MNIST has its own test rows: there a split only orders the rows that n_train and validation are taken from
SPLIT_NAMES = [n for n in NAMES if {"split", "n_train"} <= set(config(n)) and "path" not in config(n)]


def test_all_sets_are_listed() -> None:
    """The field's sets are there by name."""
    assert set(EXPECTED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_yaml_is_the_whole_record(name: str) -> None:
    """Keys of the yaml equal the factory's parameters, all keyword-only and without defaults.

    ``files`` is no option: the run hands it over. ``standardize`` has a default, so that stored configurations which
    are older than the option still load.
    """
    parameters = inspect.signature(factory(name)).parameters.values()
    assert {p.name for p in parameters} - {"files"} == set(config(name)) - {"_target_"}
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    assert {p.name: p.default for p in parameters if p.default is not p.empty} in ({}, {"standardize": True})


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("csv", "npz", "rows", "gaussians_25")])
def test_every_set_is_finite_typed_and_repeats(name: str) -> None:
    """Types, shapes and labels are as promised, twice the same checksum, and the arrays cannot be written to.

    Training features have mean 0 and sd 1 to 1e-3: float32 holds 24 bits, a mean over n <= 50,000 standardised values
    is off by at most 6e-8 n^0.5 plus the float32 rounding of values up to about 1e3, both far below.
    """
    one, two = load(name), load(name)
    assert one.checksum == two.checksum and len(one.checksum) == 64
    parts = [one.train, one.validation, one.test, *one.shifted.values(), *one.ood.values()]
    for rows in (p for p in parts if p is not None):
        assert rows.x.dtype == np.float32 and rows.x.shape[1:] == one.feature_shape and len(rows.x) == len(rows.y)
        assert rows.y.dtype == (np.float32 if one.task == "regression" else np.int32) and rows.y.ndim == 1
        assert np.isfinite(rows.x).all() and np.isfinite(rows.y).all()
        assert not rows.x.flags.writeable and not rows.y.flags.writeable
    if one.task == "classification":
        assert one.train.y.min() >= 0 and one.train.y.max() < one.num_outputs == len(one.class_names)
        assert one.y_scaler is None
    else:
        assert one.num_outputs == 1
    if one.x_scaler is not None and one.x_scaler.loc.ndim == 1:
        np.testing.assert_allclose(one.train.x.mean(axis=0, dtype=np.float64), 0.0, atol=1e-3)
        np.testing.assert_allclose(one.train.x.std(axis=0, dtype=np.float64), 1.0, atol=1e-3)
    if one.feature_names:
        assert one.train.x.shape[1] == len(one.feature_names)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if {"split", "n_train"} <= set(config(n)) and n not in ("csv", "npz")]
)
def test_split_bounds_and_nesting(name: str) -> None:
    """A split out of range is refused by name; the first n rows are the same for every n; another split differs."""
    whole = load(name)
    with pytest.raises(ConfigError, match=r"data\.split=-1 is out of range"):
        load(name, split=-1)
    with pytest.raises(ConfigError, match=r"data\.n_train=\d+ is out of range"):
        load(name, n_train=10**7)
    small, large = load(name, n_train=40), load(name, n_train=60)
    np.testing.assert_array_equal(small.train.y.shape, (40,))
    for scaler in ("x_scaler", "y_scaler"):  # compared in the source's units: each subset has its own scalers
        a, b = getattr(small, scaler), getattr(large, scaler)
        field = scaler[0]
        left, right = getattr(small.train, field), getattr(large.train, field)[:40]
        if a is not None and left.shape == right.shape:
            left, right = a.original(left), b.original(right)
            scale = float(np.max(np.abs(right))) or 1.0
            np.testing.assert_allclose(left / scale, right / scale, atol=1e-5)
    small_two = load(name, split=1, n_train=40)
    assert small_two.checksum != small.checksum
    assert whole.checksum != small.checksum


def test_catalogue_needs_its_lines(tmp_path: Path) -> None:
    """A yaml without its head is refused with what it lacks."""
    (tmp_path / "new.yaml").write_text("# n: 3\n# d: 1\n_target_: some.factory\n")
    with pytest.raises(ConfigError, match="task, licence, source"):
        catalogue(tmp_path)


def test_importing_the_package_imports_no_data_library() -> None:
    """Start-up stays light: none of these is imported before a set needs it."""
    heavy = ["sklearn", "pandas", "statsmodels", "mlxtend", "mnist1d", "pooch", "requests", "scipy.ndimage"]
    code = (
        "import sys; before = set(sys.modules); import bdlbench.types; types = set(sys.modules); import bdlbench.data;"
        f"print([m for m in {heavy!r} if m in set(sys.modules) - types])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_nested_sets_are_handed_the_places_of_files(tmp_path: Path) -> None:
    """A set that is made of another one, as the tuning's, reads its files from ``paths`` too; no option names them."""
    from bdlbench.runs.job import load_data

    of = {**config("yacht"), "validation_fraction": 0.1}
    node = {"_target_": "experiments.tuning.rows.held_out", "of": of}
    places = {"data": str(tmp_path), "mirror": files_at().mirror}
    data = load_data({"data": node, "paths": places})
    assert len(data.train.y) == 249 and data.test is not None and len(data.test.y) == 28
    with pytest.raises(ConfigError, match="which is no folder"):
        load_data({"data": node, "paths": {"data": str(tmp_path), "mirror": str(tmp_path / "nowhere")}})
