"""Tuned settings and experiments compose as a user expects: chosen by name, and the command line has the last word."""

import pytest

from bdlbench.config import compose, conf_dir

TUNED = sorted(path.stem for path in (conf_dir() / "tuned").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


def pair(name):
    """Data set and method of a tuned file: a data set's name may hold underscores."""
    methods = [path.stem for path in (conf_dir() / "inference").glob("*.yaml")]
    method = max((m for m in methods if name.endswith(f"_{m}")), key=len)
    return name.removesuffix(f"_{method}"), method


@pytest.mark.parametrize("name", TUNED)
def test_tuned_settings_are_those_of_their_pair_alone(name):
    data, method = pair(name)
    tuned = compose([f"data={data}", f"inference={method}"])[0]["inference"]
    plain = compose([f"data={data}", f"inference={method}", "~tuned"])[0]["inference"]
    assert tuned != plain
    assert tuned["_target_"] == plain["_target_"]
    assert set(tuned) == set(plain)  # overrides options, invents none
    other = compose(["data=heteroscedastic_sine", f"inference={method}"])[0]["inference"]
    assert other == compose([f"inference={method}", "~tuned"])[0]["inference"]


@pytest.mark.parametrize("name", TUNED)
def test_the_command_line_wins_over_tuned_settings(name):
    data, method = pair(name)
    config, _ = compose([f"data={data}", f"inference={method}", "inference.schedule.num_warmup=7"])
    assert config["inference"]["schedule"]["num_warmup"] == 7


@pytest.mark.parametrize("name", TUNED)
def test_tuned_settings_say_how_they_were_found(name):
    text = (conf_dir() / "tuned" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    comments = [line for line in text.splitlines()[1:] if line.startswith("#")]
    assert "R-hat" in " ".join(comments)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_and_can_be_overridden(name):
    config, labels = compose([f"experiment={name}", "inference=nuts", "inference.schedule.num_samples=11"])
    assert labels["inference"] == "nuts"
    assert config["inference"]["schedule"]["num_samples"] == 11


def test_tuned_settings_reach_an_experiment():
    config, _ = compose(["experiment=cosine_gap", "inference=sgld"])
    assert config["inference"]["step_size"] == 7e-6
