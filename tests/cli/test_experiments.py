"""Tuned settings and experiments compose as a user expects: chosen by name, and the command line has the last word."""

import pytest
import yaml

from bdlbench.references import problems
from bdlbench.runs.configuration import compose, conf_dir

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_and_can_be_overridden(name):
    config, labels = compose([f"experiment={name}", "inference=nuts", "inference.schedule.num_samples=11"])
    assert labels["inference"] == "nuts"
    assert config["inference"]["schedule"]["num_samples"] == 11


def test_tuned_settings_reach_an_experiment():
    config, _ = compose(["experiment=cosine_gap", "inference=sgld"])
    assert config["inference"]["step_size"] == 7e-6


def test_a_reference_is_chosen_by_its_name():
    """Its group gives the options that its problem was sampled with; each problem has one."""
    paths = sorted((conf_dir() / "reference").glob("*.yaml"))
    assert [path.stem for path in paths] == problems.names()
    for path in paths:
        content = yaml.safe_load(path.read_text())
        groups = [next(iter(entry.items())) for entry in content.pop("defaults")]
        given = {name.removeprefix("override /").split("@")[0]: choice for name, choice in groups}
        given |= {f"{section}.{name}": value for section, own in content.items() for name, value in own.items()}
        wanted = dict(option.split("=") for option in problems.problem(path.stem).options)
        assert given == {name: yaml.safe_load(value) for name, value in wanted.items()}, path.stem
    config, labels = compose(["reference=two_moons", "inference=sgld", "network.width=3"])
    assert (labels["data"], labels["inference"], config["network"]["width"]) == ("two_moons", "sgld", 3)
