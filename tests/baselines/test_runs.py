"""Runs of baselines: what a record holds, that a network's sections are no part of it, refusals, tables and rescoring."""

import math

import numpy as np
import pytest
from presets import BASELINES, mostly

from bdlbench.api.options import sorted_options
from bdlbench.api.problem import make_parts
from bdlbench.errors import ConfigError
from bdlbench.report.tables import comparison_markdown
from bdlbench.runs import rescore
from bdlbench.runs.configuration import call, compose, preset
from bdlbench.runs.group import run
from bdlbench.runs.job import check_job, make_job
from bdlbench.runs.stored_draws import load_job
from bdlbench.store import Store

SMALL = {
    "regression": ["data=cosine_gap", "data.n_cluster=12", "data.n_test=5"],
    "classification": ["data=two_moons", "data.n=40"],
}
SHORT = {
    "gradient_boosting": ["inference.max_iter=3"],
    "random_forest": ["inference.num_trees=20"],
    "split_conformal": ["inference.base=ridge"],
    "temperature_scaling": ["inference.num_steps=20"],
}
CASES = [
    (name, task) for name in BASELINES for task in call(preset("inference", name), "inference", partial=False).tasks
]


def of(name, task, path, *more):
    return ["progress=off", f"store.path={path}", f"inference={name}", *SMALL[task], *SHORT.get(name, ()), *more]


@pytest.mark.parametrize(
    ("name", "task"),
    mostly(
        CASES,
        ("least_squares", "regression"),
        ("split_conformal", "regression"),
        ("logistic_regression", "classification"),
    ),
)
def test_a_run_is_stored_scored_and_found(name, task, store_path):
    record = run(of(name, task, store_path))
    store = Store(store_path)
    assert record["status"] == "complete", record.get("traceback")
    assert record["target_id"] is None
    assert record["num_draws"] == 0
    trained = name == "temperature_scaling"
    grads = record["num_grads"]["warmup"]
    if trained:  # 20 steps on the 26 of 32 rows that are fitted
        assert grads == pytest.approx(20 * 26 / 32)
    else:
        assert grads is None
    assert len(store.curve(record["id"])) == 0
    assert all(math.isfinite(value) for value in record["seconds"].values())
    headline = "accuracy" if task == "classification" else "rmse"
    assert math.isfinite(record["metrics"][headline])
    assert ("lppd" in record["metrics"]) != ("lppd" in record["not_existing"])
    again = () if trained else ("network.width=7",)
    assert run(of(name, task, store_path, *again))["created"] == record["created"]  # found
    assert len(store.finished()) == 1
    assert store.verify(record["id"]) == []
    assert headline.upper() in comparison_markdown([record]).upper()


def test_the_scores_are_those_of_the_stored_predictions(store_path):
    """RMSE, LPPD and coverage again from the arrays that are stored, in single precision: 1e-4."""
    record = run(of("least_squares", "regression", store_path))
    with Store(store_path).posterior(record["id"]) as tree:
        y = tree["predictions_constant_data"]["y"].to_numpy()
        mean = tree["predictions"]["mean"].to_numpy()[0, 0]
        log_lik = tree["log_likelihood_test"]["y"].to_numpy()[0, 0]
    assert record["metrics"]["rmse"] == pytest.approx(np.sqrt(np.mean((y - mean) ** 2)), rel=1e-4)
    assert record["metrics"]["lppd"] == pytest.approx(log_lik.mean(), rel=1e-4)


def test_a_metric_can_be_added_later(store_path):
    record = run(of("k_nearest_neighbours", "classification", store_path))
    found = rescore.rescore(Store(store_path), record["id"], rescore.metric_options(["ece"]))
    assert 0 <= found["metrics"]["ece"] <= 1
    assert found["metrics"]["accuracy"] == record["metrics"]["accuracy"]
    with pytest.raises(ConfigError, match="is a baseline, which has no draws"):
        load_job(Store(store_path), record["id"])


def test_the_model_is_part_of_a_run_only_if_it_is_used():
    """Another network gives the same run of ridge, and another run of temperature scaling."""
    ids = {}
    for name, task in (("ridge", "regression"), ("temperature_scaling", "classification")):
        ids[name] = {make_job(*compose(of(name, task, "x", f"network.width={width}"))).id for width in (3, 4)}
    assert [len(found) for found in ids.values()] == [1, 2]
    job = make_job(*compose(of("ridge", "regression", "x")))
    assert not {"network", "prior", "likelihood", "model"} & {*job.config, *job.labels}


@pytest.mark.parametrize(
    ("name", "task", "more", "said"),
    [
        ("ridge", "classification", (), "inference=ridge is for regression"),
        ("logistic_regression", "regression", (), "is for classification"),
        ("ridge", "regression", ("+inference.schedule={num_chains: 1}",), r"inference\.schedule is unknown"),
        ("ridge", "regression", ("+inference.init=map",), r"inference\.init is unknown"),
        ("ridge", "regression", ("temperature=0.5",), "no posterior to be tempered"),
        ("ridge", "regression", ("warm_start=nuts",), "starts from no draws"),
        ("ridge", "regression", ("inference.max_iter=0",), r"inference\.max_iter=0"),
        ("split_conformal", "regression", ("inference.base=trees",), "choose one of network, ridge"),
        ("exact_gp", "regression", ("inference.max_rows=5",), r"inference\.max_rows=5"),
    ],
)
def test_options_that_a_baseline_does_not_have_are_refused(name, task, more, said):
    with pytest.raises(ConfigError, match=said):
        check_job(make_job(*compose(of(name, task, "x", *more))))


def test_a_fit_from_python_names_the_way_out():
    with pytest.raises(ConfigError, match="'ridge' is a baseline"):
        make_parts(network="mlp", model=None, prior=None, likelihood=None, temperature=1.0, inference="ridge",
                   options=sorted_options({}, {}))  # fmt: skip


def test_a_fit_that_fails_leaves_a_record(store_path, monkeypatch):
    from sklearn.linear_model import BayesianRidge

    monkeypatch.setattr(BayesianRidge, "fit", lambda *_: 1 / 0)
    record = run(of("ridge", "regression", store_path))
    assert (record["status"], record["reason"]) == ("failed", "ZeroDivisionError: division by zero")
    assert record["num_grads"] == {"warmup": None, "sample": None}
