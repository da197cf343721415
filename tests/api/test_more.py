"""Fits that are kept in a store, several targets, and tables of scores."""

import functools
import pickle
import signal

import numpy as np
import pandas as pd
import pytest
from from_python import NET, TINY, regression_on_tree, rows
from models_of_users import LinenMLP
from scipy.special import logsumexp
from scipy.stats import norm

import bdlbench as bdl
from bdlbench.errors import ConfigError
from bdlbench.store import Store

MAP = {"inference": "map", "num_warmup": 20, "progress": False}


@pytest.mark.slow
def test_a_stored_fit_has_the_draws_of_one_in_memory(store_path):
    """The run is in the store and its rows are beside the store. The same call finds the run again."""
    x, y = rows()
    network = functools.partial(LinenMLP, width=3)
    kept = bdl.fit(network, x, y, store=store_path, **TINY)
    ids = Store(store_path).finished()
    assert len(ids) == 1
    assert len(list(store_path.with_name("store_rows").glob("*.npz"))) == 1
    memory = bdl.fit(network, x, y, **TINY)
    for name, values in memory.sites.items():
        # Constrained sites are mapped back to the reals and forth again, a rounding each way.
        np.testing.assert_allclose(kept.sites[name], values, rtol=1e-5, err_msg=name)
    again = bdl.fit(network, x, y, store=store_path, **TINY)
    assert Store(store_path).finished() == ids
    # R-hat and ESS are of function values, in the record too; ranks hardly change by a rounding.
    for posterior in (kept, again, bdl.load(ids[0], store=store_path, trust=True)):
        assert set(posterior.warnings) == set(memory.warnings)
        for name in ("rhat_max", "ess_bulk_min", "ess_tail_min"):
            assert posterior.diagnostics[name] == pytest.approx(memory.diagnostics[name], rel=1e-2)
    labels = np.where(y > 100, "high", "low")
    assert set(bdl.fit(NET, x, labels, store=store_path, **MAP).predict(x).labels) <= {"high", "low"}
    with pytest.raises(ConfigError, match="what another process can import"):
        bdl.fit(lambda out_features: LinenMLP(3, out_features), x, y, store=store_path, **MAP)


def test_a_stored_fit_is_opened_by_its_id_and_without_its_rows(store_path):
    """A run of the package's own parts needs no trust. It can be loaded with its names and classes without its rows."""
    x, y = rows()
    table, labels = pd.DataFrame(x, columns=["a", "b", "c"]), np.where(y > 100, "high", "low")
    kept = bdl.fit(NET, table, labels, store=store_path, **MAP)
    (run_id,) = Store(store_path).finished()
    again = bdl.load(run_id, store=store_path)
    np.testing.assert_array_equal(again.predict(table[["c", "a", "b"]]).probs, kept.predict(table).probs)
    assert again.classes.tolist() == ["high", "low"]
    for file in store_path.with_name("store_rows").iterdir():
        file.unlink()
    served = bdl.load(run_id, store=store_path)
    np.testing.assert_array_equal(served.predict(table).probs, kept.predict(table).probs)
    assert served.classes.tolist() == ["high", "low"]
    assert "the data of the run have changed or are gone: it only predicts" in served.notes
    with pytest.raises(ConfigError, match="update needs the training rows, which this posterior lacks"):
        served.update(table, labels)


def _moved(store_path):
    """Move a store and the rows beside it to another folder."""
    place = store_path.with_name("elsewhere")
    store_path.rename(place)
    store_path.with_name("store_rows").rename(place.with_name("elsewhere_rows"))
    return place


@pytest.mark.slow
def test_a_fit_to_a_tree_of_inputs_is_kept(store_path):
    """Its predictions are those of memory; it opens in another place, predicts, is saved, and takes more rows."""
    x, y = rows()
    tree = {"group": np.arange(40) % 3, "dose": x[:, 0]}
    memory = bdl.fit(model=regression_on_tree, x=tree, y=y, **MAP)
    options = {"store.checkpoint_seconds": 5, "limits": {"memory": "off"}}
    kept = bdl.fit(model=regression_on_tree, x=tree, y=y, store=store_path, options=options, **MAP)
    # Constrained sites are mapped back to the reals and forth again, a rounding each way.
    np.testing.assert_allclose(kept.predict(tree).mean, memory.predict(tree).mean, rtol=1e-5)
    place = _moved(store_path)
    (run_id,) = Store(place).finished()
    config = Store(place).record(run_id)["config"]
    assert (config["store"]["checkpoint_seconds"], config["limits"]["memory"]) == (5, "off")
    with pytest.raises(ConfigError, match="not bdlbench's own"):
        bdl.load(run_id, store=place)
    again = bdl.load(run_id, store=place, trust=True)
    saved = bdl.load(again.save(place / "p", rows=True), trust=True)
    for posterior in (again, saved, pickle.loads(pickle.dumps(again))):
        np.testing.assert_array_equal(posterior.predict(tree).mean, kept.predict(tree).mean)
    assert np.isfinite(saved.update(tree, y).predict(tree).mean).all()


@pytest.mark.slow
def test_a_partly_bayesian_network_is_kept_with_its_price(store_path, monkeypatch):
    """The rest is fitted once; the same call finds it and the run, and the record holds what it took."""
    x, y = rows()
    options = {"rest.num_warmup": 30}
    memory = bdl.fit(NET, x, y, bayesian="last_layer", options=options, **MAP)
    kept = bdl.fit(NET, x, y, bayesian="last_layer", options=options, store=store_path, **MAP)
    np.testing.assert_allclose(kept.predict(x).mean, memory.predict(x).mean, rtol=1e-5)
    assert kept.diagnostics["num_grads"] == memory.diagnostics["num_grads"]
    (run_id,) = Store(store_path).finished()
    assert Store(store_path).record(run_id)["num_grads"]["rest"] == 30
    monkeypatch.setattr("bdlbench.api.fitting.sample", None)  # nothing is fitted again
    bdl.fit(NET, x, y, bayesian="last_layer", options=options, store=store_path, **MAP)
    assert Store(store_path).finished() == [run_id]
    place = _moved(store_path)
    again = bdl.load(run_id, store=place)
    assert set(again.sites) == {"network.output.bias", "network.output.kernel", "sigma"}
    np.testing.assert_array_equal(again.predict(x).mean, kept.predict(x).mean)
    np.testing.assert_array_equal(again.params["hidden"][0]["kernel"], memory.params["hidden"][0]["kernel"])
    (file,) = place.with_name("elsewhere_rows").glob("*-weights.npz")
    file.unlink()
    with pytest.raises(ConfigError, match=r"^model.weights=.* is no file: put the folder of rows back"):
        bdl.load(run_id, store=place)


def test_a_fit_leaves_the_folder_and_a_users_hydra_alone(tmp_path, monkeypatch):
    """Without a store nothing is written, and the configuration of a Hydra application around it stays as it was."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    own, work = tmp_path / "conf", tmp_path / "work"
    own.mkdir(), work.mkdir()
    (own / "config.yaml").write_text("steps: 20\n")
    monkeypatch.chdir(work)
    with initialize_config_dir(str(own), version_base="1.3"):
        around = GlobalHydra.instance().hydra
        steps = compose("config").steps
        posterior = bdl.fit(NET, *rows(), inference="map", num_warmup=steps, progress=False)
        posterior.predict(rows()[0])
        assert GlobalHydra.instance().hydra is around
        assert compose("config", ["steps=3"]).steps == 3
    assert not list(work.iterdir()) and [path.name for path in own.iterdir()] == ["config.yaml"]


def test_what_a_store_does_not_keep_is_said_beforehand(store_path):
    """A place that is none, and a fit that needs more memory than there is. Nothing is written or sampled."""
    x, y = rows()
    with pytest.raises(ConfigError, match="store is a int: give the path"):
        bdl.fit(NET, x, y, store=3, **MAP)
    many = {"inference": "sgld", "step_size": 1e-6, "num_warmup": 1, "num_samples": 10**9, "progress": False}
    with pytest.raises(ConfigError, match="out of memory before it started: 4 chains .* or limits.memory=off"):
        bdl.fit(NET, x, y, thinning=1, batch_size=None, num_chains=4, **many)
    with pytest.raises(ConfigError, match=r"limits.memory='maybe'"):
        bdl.fit(NET, x, y, options={"limits.memory": "maybe"}, **MAP)
    assert not list(store_path.parent.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_ctrl_c_leaves_no_part_of_a_stored_fit(known, store_path, monkeypatch, request):
    """An interrupted fit leaves no run, rows or folders. The earlier contents of the store stay."""
    from bdlbench.runs import group
    from bdlbench.runs.progress import Silent

    class Interrupting(Silent):
        def advance(self, *args):
            signal.raise_signal(signal.SIGINT)

    x, y = rows()
    # A shell that starts the tests in the background lets them ignore Ctrl-C.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handler))
    if known:
        bdl.fit(NET, x[:30], y[:30], store=store_path, **MAP)
    before = sorted(store_path.parent.rglob("*"))
    monkeypatch.setattr(group, "make_progress", lambda mode: Interrupting())
    with pytest.raises(KeyboardInterrupt):
        bdl.fit(NET, x, y, store=store_path, **MAP)
    assert sorted(store_path.parent.rglob("*")) == before


@pytest.mark.slow
def test_several_targets_have_noise_of_their_own(store_path):
    """For each draw the joint log density is the sum over the targets. Each has its own prediction, from a store too."""
    x, y = rows()
    targets = np.column_stack([y, 1000 * x[:, 1]])
    for likelihood in ("gaussian", "heteroscedastic"):
        fitted = bdl.fit(NET, x, targets, likelihood=likelihood, **MAP)
        p = fitted.predict(x)
        assert p.mean.shape == p.sd.shape == p.quantile(0.3).shape == targets.shape
        assert p.interval()[0].shape == targets.shape
        each = norm.logpdf(targets, p.means, np.sqrt(p.variances))
        # Float32 densities of order 10, in units up to 1e4: 1e-3.
        np.testing.assert_allclose(p.log_prob(targets), logsumexp(each.sum(-1), 0) - np.log(len(each)), atol=1e-3)
        first = p.output(0)
        np.testing.assert_allclose(first.mean, p.mean[:, 0])
        np.testing.assert_allclose(first.log_prob(y), logsumexp(each[..., 0], 0) - np.log(len(each)), atol=1e-3)
    assert set(bdl.fit(NET, x, targets, **MAP).sites) >= {"sigma"}
    table = bdl.score_table({"map": fitted}, x, targets)
    assert {"lppd", "lppd[0]", "rmse[1]"} <= set(table.columns)
    with pytest.raises(ConfigError, match=r"targets of shape \(\)"):
        p.log_prob(y)
    kept = bdl.fit(NET, x, targets, likelihood="heteroscedastic", store=store_path, **MAP)
    (run_id,) = Store(store_path).finished()
    for posterior in (kept, bdl.load(run_id, store=store_path, trust=True)):
        # Weights are mapped back and forth, with a rounding each way.
        np.testing.assert_allclose(posterior.predict(x).mean, p.mean, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_score_table_compares_posteriors():
    """The table has one row for each posterior, with the RMSE and LPPD of its predictions."""
    x, y = rows()
    two = {"short": bdl.fit(NET, x, y, **MAP), "long": bdl.fit(NET, x, y, **MAP | {"num_warmup": 300})}
    table = bdl.score_table(two, x, y)
    assert list(table.index) == ["short", "long"]
    p = two["long"].predict(x)
    assert table.loc["long", "rmse"] == pytest.approx(np.sqrt(np.mean((p.mean - y) ** 2)))
    assert table.loc["long", "lppd"] == pytest.approx(p.log_prob(y).mean())
    assert table.loc["long", "num_grads"] == 300
    with pytest.raises(ConfigError, match="mapping of names"):
        bdl.score_table({}, x, y)
