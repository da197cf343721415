"""Arrays of whole numbers (tokens, indices of groups) reach the model as integers, wherever they come from."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from models_of_users import groups

import bdlbench as bdl
from bdlbench.cli.results import main
from bdlbench.errors import ConfigError
from bdlbench.runs.group import run

MAP = {"inference": "map", "num_warmup": 20, "progress": False}
X = np.random.default_rng(0).integers(0, 5, (40, 2))
Y = X[:, 0] + 0.1 * np.random.default_rng(1).normal(size=40)


@pytest.fixture(scope="module")
def fitted():
    """Of a model that takes integers alone."""
    return bdl.fit(model=groups, x=X, y=Y, **MAP | {"num_warmup": 500})


@pytest.mark.slow
def test_an_array_of_integers_stays_as_it_is(fitted, tmp_path):
    """At the fit, at a prediction, in an update, saved and loaded; the notes say that it was not scaled."""
    predicted = fitted.predict(X).mean
    assert np.corrcoef(predicted, Y)[0, 1] > 0.5
    assert fitted.standardize(X).dtype == np.int32
    assert any("all integers and is left as it is" in note for note in fitted.notes)
    again = bdl.load(fitted.save(tmp_path / "p", rows=True), model=groups)
    for values in (X, X.astype(float), X.astype(np.uint8)):
        np.testing.assert_array_equal(again.predict(values).mean, predicted)
    assert again.data_tree["log_likelihood"]["y"].shape == (1, 1, 40)
    assert np.isfinite(again.update(X[:3], Y[:3]).predict(X).mean).all()


def test_what_is_no_whole_number_is_refused(fitted):
    """And what int32 cannot hold, each in one sentence."""
    with pytest.raises(ConfigError, match=r"x holds 0.5 in row 1, but the model takes whole numbers .*: give such"):
        fitted.predict(np.where(np.arange(40)[:, None] == 1, 0.5, X))
    with pytest.raises(ConfigError, match=r"x holds 10995116277.. in row 0.*fit with x.astype\(float\)"):
        bdl.fit(model=groups, x=X + 2**40, y=Y, **MAP)


def amounts(x, y=None):
    """A line through columns that must be floats."""
    assert jnp.issubdtype(x.dtype, jnp.floating)
    w = numpyro.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def test_floats_and_tables_are_amounts():
    """Whole numbers of a float type or in a table are standardised."""
    for x in (X.astype(float), pd.DataFrame(X, columns=["a", "b"])):
        fitted = bdl.fit(model=amounts, x=x, y=Y, **MAP)
        np.testing.assert_allclose(np.asarray(fitted.standardize(x)).mean(0), 0, atol=1e-6)


@pytest.mark.slow
def test_a_stored_run_is_served_with_integers(store_path, tmp_path):
    """From Python and from the shell, with its data and without them."""
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    target = f"{groups.__module__}.{groups.__qualname__}"
    record = run(["data=npz", f"data.path={tmp_path}/a.npz", f"model._target_={target}", "~network", "~prior",
                  "~likelihood", "inference=map", "inference.schedule.num_warmup=20", "~tuned", "progress=off",
                  f"store.path={store_path}"])  # fmt: skip
    predicted = bdl.load(record["id"], store=store_path, trust=True).predict(X).mean
    (tmp_path / "a.npz").unlink()
    served = bdl.load(record["id"], store=store_path, trust=True)
    assert served.standardize(X).dtype == np.int32
    np.testing.assert_array_equal(served.predict(X).mean, predicted)
    pd.DataFrame(X, columns=["x0", "x1"]).to_csv(tmp_path / "new.csv", index=False)
    command = ["predict", record["id"], str(tmp_path / "new.csv"), "-o", str(tmp_path / "out.csv"), "--trust"]
    assert main([*command, "--store", str(store_path)]) == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")["mean"], predicted, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_kept_fit_has_integers(precision, store_path):
    """In both precisions, whose rows are two files although the integers are the same."""
    given = {"model": groups, "x": X, "y": Y, "precision": precision, **MAP}
    kept, memory = bdl.fit(store=store_path, **given), bdl.fit(**given)
    assert kept.standardize(X).dtype == np.int32
    assert kept.precision == precision
    # Stored sites are mapped back to the reals and forth again, a rounding each way.
    np.testing.assert_allclose(kept.predict(X).mean, memory.predict(X).mean, rtol=1e-5)
    assert [file.stem.split("-")[-1] for file in store_path.with_name("store_rows").glob("*.npz")] == [precision]
