"""The lists of problems for tuning and for judging."""

import csv
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from bdlbench.data.listing import folder
from bdlbench.data.problems import problems
from bdlbench.errors import ConfigError


def test_the_lists_are_disjoint_and_of_data_sets_whose_factories_exist():
    found = problems()
    assert not set(found.tuning) & set(found.judging)
    assert min(map(len, found)) > 1
    for name in (*found.tuning, *found.judging):
        node = yaml.safe_load((folder() / f"{name}.yaml").read_text())
        module, factory = node["_target_"].rsplit(".", 1)
        assert callable(getattr(import_module(module), factory))


def test_tuned_settings_come_from_the_list_for_tuning():
    """A file of conf/tuned is named after its data set and its method, and a run on a set for judging finds none."""
    found = problems()
    tuned = sorted(path.stem for path in (folder().parent / "tuned").glob("*.yaml"))
    assert tuned
    methods = {path.stem for path in (folder().parent / "inference").glob("*.yaml")}
    for name in tuned:
        assert any(name == f"{data}_{method}" for data in found.tuning for method in methods), name
        assert not any(name == f"{data}_{method}" for data in found.judging for method in methods), name


def test_the_search_for_settings_uses_the_list_for_tuning_alone():
    """Its spaces, and the trials that have been made."""
    search = Path(__file__).parents[2] / "experiments" / "tuning"
    spaces = set(yaml.safe_load((search / "spaces.yaml").read_text())["data"])
    with (search / "trials.csv").open(newline="") as file:
        tried = {row["data"] for row in csv.DictReader(file)}
    assert spaces
    assert spaces | tried <= set(problems().tuning)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tuning: [yacht]\njudging: [wine, yacht]", "has 'yacht' twice"),
        ("tuning: [yacht, yacht]\njudging: [wine]", "has 'yacht' twice"),
        ("tuning: [yacht]\njudging: [vine]", "has 'vine', which conf/data does not have"),
        ("tuning: [yacht]\njudging: []", "must hold the lists"),
        ("tuning: [yacht]", "must hold the lists"),
        ("", "must hold the lists"),
    ],
)
def test_unfit_lists_are_refused(tmp_path, text, message):
    path = tmp_path / "problems.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        problems(path)
