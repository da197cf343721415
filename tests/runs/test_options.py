"""Every option of a group makes a job with the other groups at their defaults."""

import pytest
from presets import FIRST, PRESETS, mostly

from bdlbench.runs import configuration
from bdlbench.runs.configuration import conf_dir
from bdlbench.runs.job import check_job, make_job

SMALL = ["data=cosine_gap", "data.n_cluster=25", "data.n_test=4"]  # 50 rows: the largest default batch
LABELLED = ["data=breast_cancer", "data.n_train=20"]


OPTIONS = [
    f"{group}={path.stem}"
    for group in ("network", "prior", "likelihood", "inference")
    for path in sorted((conf_dir() / group).glob("*.yaml"))
]
KIN = {f"inference={preset}" for preset in PRESETS} - {f"inference={preset}" for preset in FIRST}


@pytest.mark.parametrize("option", mostly(OPTIONS, *[option for option in OPTIONS if option not in KIN]))
def test_a_group_option_makes_a_job(option):
    """With every other group at its default, on data that fit it: its program is built and traced, as before a run."""
    overrides = [*(LABELLED if option == "likelihood=categorical" else SMALL), option]
    job = make_job(*configuration.compose(overrides))
    group, name = option.split("=")
    assert job.labels[group] == name
    assert set(job.numbers) >= {"temperature"}
    check_job(job)


def test_the_model_option_without_a_network_makes_a_job():
    """Eight schools carries no network, prior or likelihood."""
    job = make_job(*configuration.compose(["model=eight_schools", "data=eight_schools"]))
    assert not {"network", "prior", "likelihood"} & set(job.config)
    check_job(job)


def test_every_metric_is_found_by_its_name():
    """Each metrics yaml adds one entry of its own name."""
    names = sorted(path.stem for path in (conf_dir() / "metrics").glob("*.yaml"))
    composed, _ = configuration.compose([*SMALL, f"metrics=[{','.join(names)}]"])
    assert sorted(composed["metrics"]) == names
    assert sorted(make_job(composed, {}).metrics) == names
