"""Every option of a group makes a job with the other groups at their defaults."""

import pytest
from presets import BASELINES, FIRST, PRESETS, mostly

from bdlbench.errors import ConfigError
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


@pytest.mark.slow
@pytest.mark.parametrize("option", mostly(OPTIONS, *[option for option in OPTIONS if option not in KIN]))
def test_a_group_option_makes_a_job(option):
    """Each option, with the other groups at their defaults and fitting data, gives a program that can be traced."""
    group, name = option.split("=")
    labelled = option == "likelihood=categorical"
    if name in BASELINES:
        made = configuration.call(configuration.preset("inference", name), "inference", partial=False)
        labelled = "regression" not in made.tasks
    overrides = [*(LABELLED if labelled else SMALL), option]
    job = make_job(*configuration.compose(overrides))
    assert job.labels[group] == name
    assert set(job.numbers) >= {"temperature"}
    check_job(job)


def test_the_model_option_without_a_network_makes_a_job():
    """The model eight_schools has no network, prior or likelihood."""
    job = make_job(*configuration.compose(["model=eight_schools", "data=eight_schools"]))
    assert not {"network", "prior", "likelihood"} & set(job.config)
    check_job(job)


def test_every_metric_is_found_by_its_name():
    """Each yaml of a metric has one entry with the name of the file."""
    names = sorted(path.stem for path in (conf_dir() / "metrics").glob("*.yaml"))
    composed, _ = configuration.compose([*SMALL, f"metrics=[{','.join(names)}]"])
    assert sorted(composed["metrics"]) == names
    assert sorted(make_job(composed, {}).metrics) == names


def test_init_writes_out_where_chains_start(tmp_path):
    """Each value has the id of a run that sets the same start directly.

    Null has that of the preset. The record describes it.
    """
    from bdlbench.runs import start

    small = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=4", f"store.path={tmp_path}"]
    ascent = "{_target_: bdlbench.inference.point.maximum_a_posteriori, optimizer: {_target_: optax.adam, learning_rate: 0.01}"
    written = {
        "null": ([], "draws from the prior, then 200 steps of maximum_a_posteriori"),
        "prior": (["inference.before=[]"], "draws from the prior"),
        "adam": ([], "draws from the prior, then 200 steps of maximum_a_posteriori"),
        "map": (
            [f"inference.before=[{ascent}, schedule: {{num_warmup: 3000, num_samples: 0, thinning: 0}}}}]"],
            "draws from the prior, then 3,000 steps of maximum_a_posteriori",
        ),
    }
    for init, (options, words) in written.items():
        one, other = (
            make_job(*configuration.compose([*small, "inference=nuts", *more]))
            for more in ([f"inference.init={init}"], options)
        )
        assert one.id == other.id
        assert start.described(one.program, None) == words
        assert "init" not in one.config["inference"]
    network = make_job(*configuration.compose([*small, "inference=sgld", "inference.init=adam"]))
    assert network.program.start == "prior" and len(network.program.stages) == 2
    with pytest.raises(ConfigError, match="inference.init='mode' is unknown: use prior, map, adam or null"):
        make_job(*configuration.compose([*small, "inference=nuts", "inference.init=mode"]))
    with pytest.raises(ConfigError, match="give one of them"):
        make_job(*configuration.compose([*small, "inference=nuts", "inference.init=prior", "warm_start=x"]))
