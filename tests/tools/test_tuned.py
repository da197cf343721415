"""Tuned settings compose for their pair alone, and their methods accept them."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from presets import mostly

from bdlbench.runs.configuration import compose, conf_dir
from bdlbench.runs.job import check_job, make_job
from bdlbench.runs.outcome import shipped_options

FOLDER = conf_dir() / "tuned"
TUNED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
METHODS = shipped_options("inference")


def pair(name):
    """Data set and method of a tuned file: a data set's name may hold underscores."""
    method = max((m for m in METHODS if name.endswith(f"_{m}")), key=len)
    return name.removesuffix(f"_{method}"), method


def leaves(node, path=""):
    """Dotted paths of a nested dictionary's values; a list is one value."""
    if not isinstance(node, dict):
        return {path}
    return {leaf for key, value in node.items() for leaf in leaves(value, f"{path}.{key}" if path else key)}


@pytest.mark.parametrize("name", TUNED)
def test_a_tuned_file_is_of_a_pair_that_exists(name):
    data, method = pair(name)
    assert data in shipped_options("data")
    assert method in METHODS


@functools.cache
def plain(method):
    """The preset: inference has nothing of the data set."""
    return compose([f"inference={method}", "~tuned"])[0]["inference"]


@functools.cache
def tuned(name):
    """What a user's command composes, the number of chains given on the command line."""
    data, method = pair(name)
    return compose([f"data={data}", f"inference={method}", "inference.schedule.num_chains=7"])


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNED)
def test_tuned_settings_override_options_and_the_command_line_overrides_them(name):
    body = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert set(body) == {"tuned_for", "tuning_num_grads", "inference"}
    preset, found = plain(pair(name)[1]), tuned(name)[0]["inference"]
    assert leaves(body["inference"]) <= leaves(preset)  # overrides options, invents none
    assert leaves(found) == leaves(preset)
    assert found["_target_"] == preset["_target_"]
    assert found["schedule"]["num_chains"] == 7
    untuned = {**preset, "schedule": {**preset["schedule"], "num_chains": 7}}
    assert found != untuned  # where the preset was best there is no file


def test_tuned_settings_are_those_of_their_pair_alone():
    assert compose(["data=heteroscedastic_sine", "inference=sgld"])[0]["inference"] == plain("sgld")
    assert compose(["data=diabetes", "inference=sgld"])[0]["inference"] != plain("sgld")


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly(TUNED, *[name for name in TUNED if name.startswith("diabetes_")]))
def test_tuned_settings_are_accepted_by_their_method(name):
    """Factories check ranges and schedules against the rows; nothing is compiled."""
    composed, labels = tuned(name)
    check_job(make_job({**composed, "data": made_up(*SHAPES[pair(name)[0]])}, labels))


SHAPES = {
    "yacht": (6, 277, 0),
    "concrete": (8, 927, 0),
    "digits": (64, 1438, 10),
    "diabetes": (10, 354, 0),
    "breast_cancer": (30, 455, 2),
    "cosine_gap": (1, 100, 0),
}
"""Features, training rows and classes of the data sets that have tuned files."""


@functools.cache
def made_up(features, num_rows, classes):
    """The configuration of a CSV file with so many features and training rows: UCI files are not where tests run."""
    rng = np.random.default_rng(0)
    y = np.arange(num_rows) % classes if classes else rng.normal(size=num_rows)
    table = np.column_stack([rng.normal(size=(num_rows, features)), y])
    file = Path(tempfile.mkdtemp()) / "rows.csv"
    np.savetxt(file, table, delimiter=",", header=",".join([*(f"x{i}" for i in range(features)), "y"]), comments="")
    task = "classification" if classes else "regression"
    wanted = ["data=csv", f"data.path={file}", "data.target=y", f"data.task={task}", "data.test_fraction=0"]
    return compose(wanted)[0]["data"]
