"""The way back from the store: named sites to theta, theta to predictions at new inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bdlbench.evaluation.predictive import predictive
from bdlbench.model.target import make_target
from bdlbench.runs.configuration import compose
from bdlbench.runs.group import run
from bdlbench.runs.job import make_job
from bdlbench.runs.stored_draws import load_draws, load_job
from bdlbench.store import Store
from bdlbench.types import ConfigError

SHORT = [
    "network.width=3",
    "inference.schedule.num_chains=2",
    "inference.schedule.num_warmup=30",
    "inference.schedule.num_samples=20",
    "progress=off",
]


def dependent(x, y=None):
    """Supports of several kinds, one of which depends on the site before it."""
    low = numpyro.sample("low", dist.Normal(0, 1))
    width = numpyro.sample("width", dist.LogNormal(0, 1))
    inside = numpyro.sample("inside", dist.Uniform(low, low + width))
    with numpyro.plate("weights", 3):
        weights = numpyro.sample("group/weights", dist.Beta(2, 2))
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(4)))
    factor = numpyro.sample("factor", dist.LKJCholesky(3, 1.0))
    mean = numpyro.deterministic("mean", inside + weights.sum() + shares[0] + factor[1, 0])
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.slow
def test_unconstrain_is_the_inverse_of_constrain():
    """To 1e-3: theta within +-3 is at worst 1e-2 of a support's width away from its edge, where the float32 rounding of
    the constrained value, 6e-8, comes back as 6e-6; the LKJ factor's chain of square roots loses two more digits."""
    x, y = jnp.zeros((5, 1)), jnp.zeros(5)
    target = make_target(dependent, x, y)
    theta = jnp.clip(jax.random.normal(jax.random.key(1), (50, target.dim)), -3, 3)
    back = jax.vmap(lambda t: target.unconstrain(target.constrain(t)))(theta)
    np.testing.assert_allclose(back, theta, atol=1e-3)


def test_unconstrain_names_a_missing_site():
    target = make_target(dependent, jnp.zeros((5, 1)), jnp.zeros(5))
    sites = target.constrain(jnp.zeros(target.dim))
    del sites["group.weights"]
    with pytest.raises(ConfigError, match=r"'group\.weights'"):
        target.unconstrain(sites)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A regression with scaled inputs and targets, and a classification."""
    path = tmp_path_factory.mktemp("store")
    ids = {
        data: run([f"data={data}", "inference=nuts", "inference.max_tree_depth=3", f"store.path={path}", *SHORT])["id"]
        for data in ("diabetes", "breast_cancer")
    }
    return Store(path), ids


def original_test_rows(job):
    return job.dataset.x_scaler.original(job.dataset.test.x)


@pytest.mark.slow
def test_predictions_at_the_test_rows_are_those_the_run_stored(stored):
    """Through named sites and original units and back: float32 rounding of theta and x, and no more."""
    store, ids = stored
    job = load_job(store, ids["diabetes"])
    found = predictive(store, ids["diabetes"], original_test_rows(job))
    tree = store.posterior(ids["diabetes"])
    rows = tree["predictions"]["mean"].shape[-1]
    expected = tree["predictions"]["mean"].to_numpy().reshape(-1, rows)
    scale = float(job.dataset.y_scaler.scale)
    np.testing.assert_allclose(found["mean"], expected, atol=1e-4 * scale)

    sigma = tree["posterior"]["sigma"].to_numpy().reshape(-1)
    noise = np.broadcast_to((sigma[:, None] * scale) ** 2, expected.shape)
    np.testing.assert_allclose(found["variance"], noise, rtol=1e-4)


def test_class_probabilities_are_those_the_run_stored(stored):
    store, ids = stored
    job = load_job(store, ids["breast_cancer"])
    found = predictive(store, ids["breast_cancer"], original_test_rows(job))
    expected = store.posterior(ids["breast_cancer"])["predictions"]["probs"].to_numpy()
    np.testing.assert_allclose(found["probs"], expected.reshape(found["probs"].shape), atol=1e-4)
    assert set(found) == {"probs"}


def test_quantiles_bound_the_probability_they_name(stored):
    """Of the mixture with noise exactly; of the draws' means by their order."""
    store, ids = stored
    job = load_job(store, ids["diabetes"])
    found = predictive(store, ids["diabetes"], original_test_rows(job)[:7], quantiles=(0.1, 0.9))
    assert found["quantiles"].shape == found["mean_quantiles"].shape == (2, 7)
    for level, quantile in zip(found["levels"], found["quantiles"], strict=True):
        below = dist.Normal(found["mean"], np.sqrt(found["variance"])).cdf(quantile).mean(0)
        np.testing.assert_allclose(below, level, atol=1e-5)
    inside = (found["mean"] >= found["mean_quantiles"][0]) & (found["mean"] <= found["mean_quantiles"][1])
    np.testing.assert_allclose(inside.mean(0), 0.8, atol=2 / len(found["mean"]))
    assert (np.diff(found["quantiles"], axis=0) > np.diff(found["mean_quantiles"], axis=0)).all()


def test_fewer_draws_are_spread_over_all_chains(stored):
    store, ids = stored
    every = load_draws(store, ids["diabetes"])
    some = load_draws(store, ids["diabetes"], num_draws=4)
    assert every.shape[0] == 40
    np.testing.assert_array_equal(some, every[[0, 13, 26, 39]])


def test_inputs_that_do_not_fit_are_refused(stored):
    store, ids = stored
    with pytest.raises(ConfigError, match=r"shape \(10,\) \(age"):
        predictive(store, ids["diabetes"], np.zeros((5, 3)))
    with pytest.raises(ConfigError, match="not finite"):
        predictive(store, ids["diabetes"], np.full((5, 10), np.nan))
    with pytest.raises(ConfigError, match="num_draws"):
        load_draws(store, ids["diabetes"], num_draws=0)


def test_changed_data_are_refused(stored, monkeypatch):
    store, ids = stored
    record = store.record(ids["diabetes"])
    monkeypatch.setattr(Store, "record", lambda self, run_id: {**record, "data_checksum": "another"})
    with pytest.raises(ConfigError, match="has changed"):
        load_job(store, ids["diabetes"])


def test_the_uniform_noise_prior_takes_its_bounds_as_numbers():
    """NumPyro's Uniform with traced bounds: the density is finite and theta comes back from its sites."""
    chosen = ["data=linear_regression", "network=linear", "likelihood=gaussian_uniform_noise"]
    job = make_job(*compose(chosen))
    assert job.numbers["likelihood.noise.high"] == 10.0
    data = job.dataset.train

    @jax.jit
    def round_trip(numbers, theta):
        target = job.program.make_target(numbers, jnp.asarray(data.x), jnp.asarray(data.y))
        return target.unconstrain(target.constrain(theta)), target.constrain(theta)["sigma"]

    theta = jnp.array([0.5, -1.0, 0.3])
    back, sigma = round_trip(job.numbers, theta)
    np.testing.assert_allclose(back, theta, atol=1e-5)
    assert 0 < sigma < 10
