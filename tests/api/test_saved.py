"""Saved folders give the posterior's predictions and contain only data. Damaged folders are refused in one sentence."""

import functools
import json

import jax
import numpy as np
import pytest
from from_python import NET, TINY, regression_on_tree, rows
from models_of_users import LinenMLP
from presets import mostly

import bdlbench as bdl
from bdlbench.api import saved
from bdlbench.errors import ConfigError
from bdlbench.runs.group import run
from bdlbench.store import Store

MAP = {"inference": "map", "num_warmup": 20, "progress": False}


@pytest.fixture(scope="module")
def posterior():
    """The posterior of a preset's network."""
    return bdl.fit(NET, *rows(), **TINY)


@pytest.mark.slow
def test_a_folder_serves_equal_predictions(posterior, tmp_path):
    """A loaded posterior has the same bits, diagnostics and warnings, without the training rows."""
    x, y = rows()
    folder = posterior.save(tmp_path / "p")
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.npz", "posterior.json"]
    again = bdl.load(folder)
    for name in ("mean", "sd"):
        np.testing.assert_array_equal(getattr(again.predict(x), name), getattr(posterior.predict(x), name))
    np.testing.assert_array_equal(again.predict(x).log_prob(y), posterior.predict(x).log_prob(y))
    np.testing.assert_array_equal(again.predict(x).sample(), posterior.predict(x).sample())
    assert again.diagnostics == posterior.diagnostics
    assert repr(again) == repr(posterior)
    assert "log_likelihood" not in again.data_tree.children
    with pytest.raises(ConfigError, match="update needs the training rows"):
        again.update(x, y)
    again.save(folder)  # over itself
    assert not list(tmp_path.glob(".p*"))


@pytest.mark.slow
def test_double_precision_goes_all_the_way(tmp_path):
    """Draws, predictions, parameters and log likelihoods stay in float64 when saved, loaded and updated."""
    x, y = rows()
    assert jax.config.jax_enable_x64 is False
    fitted = bdl.fit(NET, x, y, precision="float64", **MAP)
    again = bdl.load(fitted.save(tmp_path / "p", rows=True))
    for posterior in (fitted, again, again.update(x[:3], y[:3])):
        assert posterior.precision == "float64"
        found = posterior.predict(x)
        for values in (posterior._server.theta, posterior.params["hidden"][0]["kernel"], found._arrays["mean"],
                       posterior.data_tree["log_likelihood"]["y"].to_numpy()):  # fmt: skip
            assert values.dtype == np.float64
            assert not (values.astype(np.float32) == values).any()
    np.testing.assert_array_equal(again.predict(x).mean, fitted.predict(x).mean)
    assert jax.config.jax_enable_x64 is False
    for bad in ("float16", 64, None):
        with pytest.raises(ConfigError, match="^precision=.* is unknown: use float32 or float64.$"):
            bdl.fit(NET, x, y, precision=bad, **MAP)


def test_pickles_and_copies_are_the_same_posterior(posterior):
    """A posterior can be pickled and copied, for example for the processes of a grid search."""
    import copy
    import pickle

    x, _ = rows()
    for other in (pickle.loads(pickle.dumps(posterior)), copy.deepcopy(posterior)):
        np.testing.assert_array_equal(other.predict(x).mean, posterior.predict(x).mean)
        assert repr(other) == repr(posterior)


def test_rows_may_be_saved_too(posterior, tmp_path):
    """With saved rows, a loaded posterior has the log likelihood of the training rows."""
    again = bdl.load(posterior.save(tmp_path / "p", rows=True))
    np.testing.assert_array_equal(again.data_tree["log_likelihood"]["y"], posterior.data_tree["log_likelihood"]["y"])


@pytest.mark.slow
def test_names_of_classes_and_trees_come_back(tmp_path):
    """Text labels, booleans, and a model on a tree of inputs are saved and loaded."""
    x, y = rows()
    for labels in (np.where(y > 100, "high", "low"), y > 100, np.where(y > 100, "a", "b").astype(object)):
        fitted = bdl.fit(NET, x, labels, **MAP)
        again = bdl.load(fitted.save(tmp_path / "p"))
        np.testing.assert_array_equal(again.predict(x).labels, fitted.predict(x).labels)
        assert again.classes.dtype == fitted.classes.dtype
    tree = {"group": np.arange(40) % 3, "dose": x[:, 0]}
    fitted = bdl.fit(model=regression_on_tree, x=tree, y=y, **MAP)
    again = bdl.load(fitted.save(tmp_path / "p"), model=regression_on_tree)
    np.testing.assert_array_equal(again.predict(tree).mean, fitted.predict(tree).mean)


@pytest.mark.slow
def test_a_network_is_handed_in_again_or_imported_with_trust(tmp_path):
    """A network is never imported without trust, and a network other than the fitted one is refused."""
    x, y = rows()
    network = functools.partial(LinenMLP, width=3)
    fitted = bdl.fit(network, x, y, **MAP)
    folder = fitted.save(tmp_path / "p")
    with pytest.raises(ConfigError, match="hand it in with network=.*trust=True"):
        bdl.load(folder)
    for again in (bdl.load(folder, network=network), bdl.load(folder, trust=True)):
        np.testing.assert_array_equal(again.predict(x).mean, fitted.predict(x).mean)
    with pytest.raises(ConfigError, match=r"'network.Dense_0.bias' has shape \(3,\).*has shape \(4,\)"):
        bdl.load(folder, network=functools.partial(LinenMLP, width=4))
    local = bdl.fit(lambda out_features: LinenMLP(3, out_features), x, y, **MAP)
    with pytest.raises(ConfigError, match="cannot be imported"):
        bdl.load(local.save(tmp_path / "q"), trust=True)


def _edit(folder, change):
    """Change a saved folder and make its checksum fit, as an attacker could do."""
    about = json.loads((folder / "posterior.json").read_text().split("\n", 1)[1])
    change(about)
    text = json.dumps(about)
    (folder / "posterior.json").write_text(json.dumps({"sha256": saved._text_sha256(text)}) + "\n" + text)


@pytest.mark.parametrize("target", ["os.system", "bdlbench.networks.mlp.jax.numpy.save", "subprocess.Popen"])
def test_a_folder_runs_no_code(posterior, tmp_path, target):
    """A factory outside of bdlbench is refused, even if a path through a module of bdlbench leads to it."""
    folder = posterior.save(tmp_path / "p")
    _edit(folder, lambda about: about["nodes"]["network"].update(_target_=target))
    with pytest.raises(ConfigError, match="not bdlbench's own"):
        bdl.load(folder)


def test_damage_and_other_versions_are_named(posterior, tmp_path):
    """A damaged folder or one of another version is refused in one sentence."""
    folder = posterior.save(tmp_path / "p")
    text = (folder / "posterior.json").read_text()
    (folder / "posterior.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ConfigError, match=r"posterior.json' is damaged \(its checksum"):
        bdl.load(folder)
    (folder / "posterior.json").write_text(text[:100])
    with pytest.raises(ConfigError, match="is damaged"):
        bdl.load(folder)
    posterior.save(tmp_path / "q")
    with (tmp_path / "q" / "arrays.npz").open("r+b") as file:
        file.seek(200)
        file.write(b"x")
    with pytest.raises(ConfigError, match=r"arrays.npz' is missing or damaged"):
        bdl.load(tmp_path / "q")
    (folder / "posterior.json").write_text(text)
    _edit(folder, lambda about: about.update(format=99, bdlbench="9.9"))
    with pytest.raises(ConfigError, match=r"format 99 by bdlbench 9.9"):
        bdl.load(folder)
    with pytest.raises(ConfigError, match="holds no saved posterior"):
        bdl.load(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="choose another one"):
        posterior.save(tmp_path / "mine")


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly(["nuts", "laplace", "svgd"], "laplace"))
def test_a_stored_run_is_the_same_posterior(method, store_path):
    """Its scores at the test rows are those of its record, Laplace's linearised ones and those of particles too.

    Draws are stored as constrained float32 sites and mapped back, which moves them by a rounding: 1e-4 of a score.
    """
    short = {"nuts": ["inference.schedule.num_warmup=20", "inference.schedule.num_samples=10"],
             "laplace": ["inference.schedule.num_samples=20"],
             "svgd": ["inference.schedule.num_warmup=20"]}[method]  # fmt: skip
    before = [] if method == "svgd" else ["inference.before.0.schedule.num_warmup=100"]
    record = run(["data=diabetes", f"inference={method}", "~tuned", "network.width=3", "progress=off",
                  f"store.path={store_path}", *short, *before])  # fmt: skip
    posterior = bdl.load(record["id"], store=store_path)
    job = posterior._origin.job
    test, scaler = job.dataset.test, job.dataset
    x, y = scaler.x_scaler.original(test.x), scaler.y_scaler.original(test.y)
    table = bdl.score_table({method: posterior}, x, y)
    for name in ("lppd", "rmse", "crps", "coverage_90"):
        assert table.loc[method, name] == pytest.approx(record["metrics"][name], rel=1e-4), name
    assert posterior.warnings == record["warnings"]
    with pytest.raises(ConfigError, match="no finished run"):
        bdl.load("nothing", store=Store(store_path))
