"""An update with more rows has the posterior given all rows as its target, and starts from the earlier fit."""

import numpy as np
import pytest
from from_python import NET, rows

import bdlbench as bdl
from bdlbench.api import fitting
from bdlbench.errors import ConfigError

SHORT = {
    "nuts": {"num_chains": 2, "num_warmup": 20, "num_samples": 10, "options": {"before.0.schedule.num_warmup": 20}},
    "sghmc": {"num_chains": 2, "num_warmup": 40, "num_samples": 10, "thinning": 2, "batch_size": 16},
    "svi": {"num_warmup": 50, "num_samples": 20, "options": {"before.0.schedule.num_warmup": 20}},
    "laplace": {"num_samples": 20, "options": {"before.0.schedule.num_warmup": 100}},
    "map": {"num_warmup": 50},
    "smc": {"num_particles": 8, "num_warmup": 5, "num_samples": 2},
}


SPEED = {
    "nuts": [pytest.mark.slow],
    "svi": [pytest.mark.slow],
    "laplace": [pytest.mark.slow],
    "smc": [pytest.mark.long],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param(name, marks=SPEED.get(name, [])) for name in SHORT])
def test_an_update_begins_where_the_method_says(method, monkeypatch):
    """Chains begin at their last draws without the earlier stages, guides at their state, and modes at the anchor."""
    x, y = rows()
    first = bdl.fit(NET, x[:30], y[:30], inference=method, progress=False, **SHORT[method])
    seen = {}
    original = fitting.sample

    def spy(job, progress, *, theta=None, position=None):
        seen.update(job=job, theta=theta, position=position)
        return original(job, progress, theta=theta, position=position)

    monkeypatch.setattr(fitting, "sample", spy)
    second = first.update(x[30:], y[30:])
    job, theta = seen["job"], seen["theta"]
    assert len(job.dataset.train.y) == 40
    # The first fit's scaling, not that of all rows.
    np.testing.assert_allclose(job.dataset.y_scaler.loc, y[:30].mean(), rtol=1e-12)
    np.testing.assert_allclose(job.dataset.train.x, (x - x[:30].mean(0)) / x[:30].std(0), rtol=1e-4, atol=1e-5)
    draws = first._server.theta
    if method in ("nuts", "sghmc"):
        np.testing.assert_array_equal(theta, draws[:, -1])
        assert len(job.program.stages) == 1
    elif method == "svi":
        assert theta is None
        assert seen["position"].done == 0
    elif method == "laplace":
        np.testing.assert_array_equal(theta, first._server.anchor)
        assert len(job.program.stages) == 2
    elif method == "map":
        np.testing.assert_array_equal(theta, draws[:, 0])
    else:
        assert theta is None
    assert np.isfinite(second.predict(x).mean).all()
    assert repr(second).startswith(repr(first).split(",")[0])
    assert second.num_draws == first.num_draws


@pytest.mark.slow
def test_an_updated_linear_model_has_the_posterior_of_all_rows():
    """Of y ~ N(a + b x, sigma^2) with known sigma and normal priors, NUTS before and after agrees with the closed form.

    The z-scores of the intercept's and slope's means, by their Monte Carlo error at the reported ESS, stay below 5: each
    exceeds that with probability 6e-7.
    """
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 1))
    y = 0.5 + x[:, 0] + 0.3 * rng.normal(size=60)
    line = {"_target_": "bdlbench.networks.mlp.MLP", "width": 1, "depth": 0, "activation": "tanh"}
    first = bdl.fit(line, x[:20], y[:20], prior={"_target_": "bdlbench.model.priors.iid", "scale": 1.0},
                    likelihood={"_target_": "bdlbench.model.likelihoods.gaussian_fixed", "sigma": 0.5},
                    num_chains=2, num_warmup=200, num_samples=400, progress=False)  # fmt: skip
    second = first.update(x[20:], y[20:])
    loc, scale = x[:20].mean(), x[:20].std()
    design = np.column_stack([np.ones(60), (x[:, 0] - loc) / scale])
    target = (y - y[:20].mean()) / y[:20].std()
    precision = np.eye(2) + design.T @ design / 0.25
    mean = np.linalg.solve(precision, design.T @ target / 0.25)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    draws = np.stack([second.params["output"]["bias"][..., 0], second.params["output"]["kernel"][..., 0, 0]], -1)
    import arviz as az

    for i in range(2):
        ess = float(az.ess(draws[..., i]))
        assert abs(draws[..., i].mean() - mean[i]) / (sd[i] / np.sqrt(ess)) < 5


def test_an_update_refuses_what_does_not_fit():
    """Classes that the fit has not seen and rows with another number of columns are refused."""
    x, y = rows()
    labels = np.where(y > 100, "high", "low")
    fitted = bdl.fit(NET, x, labels, inference="map", num_warmup=5, progress=False)
    with pytest.raises(ConfigError, match="'mid', which the fit has not seen"):
        fitted.update(x[:1], ["mid"])
    with pytest.raises(ConfigError, match="rows of shape"):
        fitted.update(x[:1, :2], ["low"])
