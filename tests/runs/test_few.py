"""Records of runs with few draws or with predictions that overflow."""

import numpy as np
import pytest
from presets import mostly

from bdlbench.runs import configuration
from bdlbench.runs.group import run, run_config
from bdlbench.store import Store

QUIET = ["progress=off"]
SMALL = [*QUIET, "data=cosine_gap", "data.n_cluster=10", "data.n_test=4", "network.width=3", "metrics=[lppd,rmse,crps]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "draws"),
    mostly(
        [("nuts", 1), ("nuts", 3), ("hmc", 2), ("chees", 1), ("adjusted_mclmc", 3), ("mclmc", 1)],
        ("mclmc", 1),
    ),
)
def test_few_draws_leave_a_record(method, draws, store_path):
    """Values that need four draws in each chain are null."""
    schedule = f"{{num_chains: 2, num_warmup: 10, num_samples: {draws}, thinning: 1}}"
    record = run([*SMALL, f"store.path={store_path}", f"inference={method}", f"inference.schedule={schedule}"])
    assert record["status"] == "complete", record["reason"]
    assert record["metrics"]["ess_bulk_min"] is None
    assert record["metrics"]["rhat_max"] is None
    assert np.isfinite(record["metrics"]["lppd"])


WIDE = {
    "nuts": ["inference.schedule={num_chains: 2, num_warmup: 20, num_samples: 40, thinning: 1}"],
    "svi": [
        "inference.schedule={num_chains: 1, num_warmup: 20, num_samples: 80, thinning: 0, batch_size: null}",
        "inference.init_scale=1.0",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly(WIDE, "svi"))
def test_predictions_that_overflow_are_a_divergence(method, store_path):
    """Finite draws, about half of which give a test row a log likelihood beyond single precision.

    The residual squared, exp(160 u), passes 3.4e38 at u = 0.5545: all draws below are scored, none above. Of 80
    draws of u, uniform or logistic-normal, all on one side are 0.6^40 = 1e-9 if half as many are independent.
    """
    composed, labels = configuration.compose(
        [*QUIET, "model=eight_schools", "data=eight_schools", f"inference={method}", "metrics=[lppd,rmse,crps]",
         *WIDE[method], f"store.path={store_path}"]
    )  # fmt: skip
    composed["model"], composed["data"] = (
        {"_target_": "models_of_users.steep"},
        {"_target_": "models_of_users.far_test"},
    )
    record = run_config(composed, labels)
    posterior = Store(store_path).posterior(record["id"])
    u = posterior["posterior"]["u"].values
    over = 160 * u.astype(np.float64) > np.log(np.finfo(np.float32).max)
    assert record["status"] == "diverged", record["reason"]
    assert f"the predictions of {over.sum()} finite draws are not finite" in record["reason"]
    assert 0 < over.sum() < over.size
    assert np.isfinite(u).all()
    assert record["num_nonfinite"] == over.sum()
    assert record["num_draws"] == (~over).sum()
    assert np.isfinite(record["metrics"]["lppd"])
    np.testing.assert_array_equal(np.isnan(posterior["log_likelihood_test"]["y"].values).all(-1), over)
    assert record["metrics"]["rhat_max"] is None


@pytest.mark.slow
@pytest.mark.parametrize("df", mostly([1.0, 2.0, 3.0], 2.0, 3.0))
@pytest.mark.parametrize("method", mostly(WIDE, "svi"))
def test_a_model_without_a_variance_is_scored_by_its_likelihood(method, df, store_path):
    """Student's t has a mean for df > 1 and no closed form of the CRPS.

    Missing scores are named, and no draw is lost.
    """
    options = [option for option in SMALL if not option.startswith(("network", "metrics"))]
    wanted = ["metrics=[lppd,rmse,crps,coverage_90]", "model=eight_schools", f"store.path={store_path}"]
    composed, labels = configuration.compose([*options, f"inference={method}", *WIDE[method], *wanted])
    composed["model"] = {"_target_": "models_of_users.heavy", "df": df}
    record = run_config(composed, labels)
    assert record["status"] == "complete", record["reason"]
    assert record["num_nonfinite"] == 0 and np.isfinite(record["metrics"]["lppd"])
    assert ("rmse" in record["metrics"]) == (df > 1)
    assert record["not_existing"].keys() == {"crps"} | ({"rmse"} if df <= 1 else set())
