"""Tuned settings and experiments compose as a user expects: chosen by name, and the command line has the last word."""

import pytest

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
