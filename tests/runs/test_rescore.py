"""Further metrics of stored runs are computed from the draws, equal those of the run, and need no new sampling."""

import json

import numpy as np
import pytest

from bdlbench.cli.results import main
from bdlbench.errors import ConfigError
from bdlbench.runs import group, rescore
from bdlbench.runs.group import run
from bdlbench.store import RunBusy, Store

SMALL = ["data=cosine_gap", "data.n_cluster=10", "data.n_test=8", "network.width=4", "progress=off", "~tuned"]
SHORT = {
    "nuts": ["inference.schedule={num_chains: 2, num_warmup: 20, num_samples: 30}"],
    "svgd": ["inference.schedule={num_chains: 2, num_warmup: 20, num_samples: 1}", "inference.num_particles=5"],
    "laplace": ["inference.before.0.schedule.num_warmup=50", "inference.schedule={num_chains: 1, num_samples: 20}"],
}


def options(method, store, *more):
    return [*SMALL, f"inference={method}", *SHORT[method], f"store.path={store}", *more]


def leaves(node, path=""):
    """The numbers in nested dictionaries by their paths."""
    if not isinstance(node, dict):
        return {path: node}
    return {p: v for key, value in node.items() for p, v in leaves(value, f"{path}/{key}").items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nuts", pytest.param("svgd", marks=pytest.mark.slow)])
def test_the_values_are_those_of_the_run_itself(method, store_path):
    """Every metric that a run has, shifted rows included, computed again from what is stored.

    Sites are stored in float32 and mapped back to theta: an error of some 1e-7 of each weight, which a network of four
    units and weights of size 1 passes on as some 1e-6 of a prediction, and a score as 1e-5 of itself at most.
    """
    joint = "metrics=[lppd,lppd_gaussian,rmse,crps,coverage_50,interval_width_90,joint_log_loss]"
    record = run(options(method, store_path, joint))
    again = rescore.rescore(Store(store_path), record["id"], record["config"]["metrics"])
    before, after = leaves(record["metrics"]), leaves(again["metrics"])
    assert before.keys() == after.keys()
    assert {"/lppd", "/crps", "/rmse", "/joint_log_loss"} <= before.keys()
    for path, value in before.items():
        if value is not None:
            np.testing.assert_allclose(after[path], value, rtol=1e-4, atol=1e-6, err_msg=path)
    assert Store(store_path).verify(record["id"]) == []


def test_a_found_run_gets_what_it_lacks_and_is_not_run_again(store_path, monkeypatch):
    """The same metric with other options is computed too, and the record has the options of each."""
    first = run(options("nuts", store_path, "metrics=[lppd]"))
    monkeypatch.setattr(group, "run_group", None)  # sampling again would call it
    more = run(options("nuts", store_path, "metrics=[lppd,rmse,coverage_90]"))
    assert more["id"] == first["id"]
    assert {"lppd", "rmse", "coverage_90"} <= set(more["metrics"])
    assert more["metrics"]["lppd"] == first["metrics"]["lppd"]
    other = run(options("nuts", store_path, "metrics=[coverage_90]", "metrics.coverage_90.level=0.5"))
    assert other["metric_options"]["coverage_90"]["level"] == 0.5
    assert other["metrics"]["coverage_90"] != more["metrics"]["coverage_90"]
    assert set(other["metric_options"]) == {"lppd", "rmse", "coverage_90"}


@pytest.mark.slow
def test_what_cannot_be_rescored_is_refused_by_name_and_kept(store_path):
    """A linearised run is refused, since its draws do not contain its anchor. Its record does not change."""
    record = run(options("laplace", store_path, "metrics=[lppd]"))
    store = Store(store_path)
    with pytest.raises(ConfigError, match=rf"{record['id']}.*linearised"):
        rescore.rescore(store, record["id"], rescore.metric_options(["rmse"]))
    assert run(options("laplace", store_path, "metrics=[lppd,rmse]")) == store.record(record["id"])


def test_damaged_draws_are_not_scored(store_path, capsys):
    """Files that do not match their checksums are refused by name, and the record does not change."""
    record = run(options("nuts", store_path, "metrics=[lppd]"))
    folder = Store(store_path).path / record["id"]
    before = (folder / "run.json").read_bytes()
    draws = folder / "posterior.zarr.zip"
    draws.write_bytes(bytes(draws.stat().st_size))
    assert main(["rescore", record["id"], "--store", str(store_path), "--metric", "rmse"]) == 1
    assert f"run '{record['id']}' is damaged" in capsys.readouterr().out
    assert (folder / "run.json").read_bytes() == before


def test_a_run_that_is_made_again_meanwhile_gets_no_values_of_its_old_draws(store_path, monkeypatch):
    """The files in the changed record are those that were scored."""
    record = run(options("nuts", store_path, "metrics=[lppd]"))
    store, scores = Store(store_path), rescore.all_scores

    def made_again(*arguments):
        files = {name: {**file, "sha256": "0" * 64} for name, file in record["files"].items()}
        store.amend(record["id"], lambda now: {**now, "files": files})
        return scores(*arguments)

    monkeypatch.setattr(rescore, "all_scores", made_again)
    with pytest.raises(ConfigError, match="made again"):
        rescore.rescore(store, record["id"], rescore.metric_options(["rmse"]))
    assert "rmse" not in store.record(record["id"])["metrics"]


def test_the_command_adds_metrics(store_path, capsys):
    """The command takes names of conf/metrics and reports metrics that the record has already."""
    record = run(options("nuts", store_path, "metrics=[lppd]"))
    where = ["--store", str(store_path)]
    assert main(["rescore", *where, "--metric", "rmse", "joint_log_loss"]) == 0
    assert f"{record['id']}: rmse, joint_log_loss" in capsys.readouterr().out
    assert main(["rescore", *where]) == 0
    assert main(["rescore", *where]) == 0
    assert "has all these metrics already" in capsys.readouterr().out
    assert main(["rescore", *where, "--metric", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert Store(store_path).verify(record["id"]) == []


def test_a_record_is_changed_whole_and_by_one_process(store_path):
    """An error in the change keeps the old record, and a run that is being written is not changed."""
    record = run(options("nuts", store_path, "metrics=[lppd]"))
    store = Store(store_path)
    path = store.path / record["id"] / "run.json"
    before = path.read_bytes()

    def broken(old):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.amend(record["id"], broken)
    assert path.read_bytes() == before
    with store.writer(record["id"], record["config"], overwrite=True), pytest.raises((RunBusy, ConfigError)):
        store.amend(record["id"], lambda old: old)
    with pytest.raises(ConfigError, match="no finished run"):
        store.amend("absent", lambda old: old)


def test_records_of_the_layout_before_are_read_and_rescored(store_path):
    """Old records have no target_id and metric_options. Their configuration has the options."""
    record = run(options("nuts", store_path, "metrics=[lppd]"))
    store = Store(store_path)

    def older(now):
        return {
            key: value for key, value in now.items() if key not in ("target_id", "metric_options", "tuning_num_grads")
        }

    store.amend(record["id"], older)
    assert "target_id" not in json.loads((store.path / record["id"] / "run.json").read_text())
    assert [row["id"] for row in store.rows(config=True)] == [record["id"]]
    assert main(["list", "--store", str(store_path)]) == main(["show", record["id"], "--store", str(store_path)]) == 0
    assert main(["table", "--store", str(store_path)]) == 0
    assert rescore.lacking(store.record(record["id"]), rescore.metric_options(["lppd"])) == {}
    again = rescore.rescore(store, record["id"], rescore.metric_options(["rmse"]))
    assert set(again["metric_options"]) == {"lppd", "rmse"}
    assert np.isfinite(again["metrics"]["rmse"])
