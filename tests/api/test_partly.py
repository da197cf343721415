"""Partly Bayesian networks: fixed weights stay at the mode, methods of every kind work, and the costs are counted."""

import numpy as np
import pytest
from from_python import NET, rows
from presets import mostly

import bdlbench as bdl
from bdlbench.errors import ConfigError

REST = {"rest.num_warmup": 100}
METHODS = {
    "nuts": {"num_chains": 2, "num_warmup": 20, "num_samples": 10, "before": []},
    "sghmc": {"num_chains": 2, "num_warmup": 20, "num_samples": 10, "thinning": 1, "batch_size": 16},
    "laplace": {"num_samples": 10, "options": {"before.0.schedule.num_warmup": 50}},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", mostly(METHODS, "sghmc", "laplace"))
def test_the_body_stays_at_the_mode(method, tmp_path):
    """In every draw the hidden layer has the weights of the MAP. The last layer varies, and the cost is counted."""
    x, y = rows()
    given = dict(METHODS[method])
    options = REST | given.pop("options", {})
    fitted = bdl.fit(NET, x, y, inference=method, bayesian="last_layer", options=options, progress=False, **given)
    mode = bdl.fit(NET, x, y, inference="map", num_warmup=100, progress=False)
    assert set(fitted.sites) == {"network.output.bias", "network.output.kernel", "sigma"}
    weights = fitted._weights["network.hidden.0.kernel"]
    np.testing.assert_array_equal(weights, np.broadcast_to(mode.params["hidden"][0]["kernel"][0, 0], weights.shape))
    assert np.ptp(fitted.sites["network.output.kernel"], axis=(0, 1)).min() > 0
    assert fitted.diagnostics["num_grads"]["rest"] == 100
    again = bdl.load(fitted.save(tmp_path / "p"))
    np.testing.assert_array_equal(again.predict(x).mean, fitted.predict(x).mean)
    assert np.isfinite(fitted.update(x[:3], y[:3]).predict(x).mean).all()


@pytest.mark.slow
def test_a_predicate_chooses_weights_by_path():
    """A function chooses the weights, also for classification. If it chooses none or all, it is refused."""
    x, y = rows()
    labels = np.where(y > 100, "high", "low")
    kept = {"inference": "svi", "num_warmup": 50, "num_samples": 5, "progress": False,
            "options": REST | {"before": []}}  # fmt: skip
    fitted = bdl.fit(NET, x, labels, bayesian=lambda path: path.endswith("bias"), **kept)
    assert set(fitted.sites) == {"network.hidden.0.bias", "network.output.bias"}
    for choice, words in ((lambda path: False, "none of the network's weights"), (lambda path: True, "no weight to fix"),
                          ("first", "'first' is unknown"), (lambda: True, "fails at the weight 'hidden.0.bias'")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            bdl.fit(NET, x, labels, bayesian=choice, **kept)


@pytest.mark.slow
def test_the_last_layer_of_a_gaussian_network_has_its_closed_form():
    """Given the body, y is linear in the last layer: NUTS agrees with the exact posterior mean.

    z-scores by the Monte Carlo error at the reported ESS stay below 5, which each exceeds with probability 6e-7.
    """
    import arviz as az

    x, y = rows()
    fitted = bdl.fit(NET, x, y, bayesian="last_layer", num_chains=2, num_warmup=300, num_samples=500,
                     prior={"_target_": "bdlbench.model.priors.iid", "scale": 1.0},
                     likelihood={"_target_": "bdlbench.model.likelihoods.gaussian_fixed", "sigma": 0.5},
                     options=REST | {"before": []}, progress=False)  # fmt: skip
    hidden = fitted.apply(lambda net, x: net.hidden[0](x), fitted.standardize(x))[0, 0]
    design = np.column_stack([np.ones(len(y)), np.tanh(hidden.astype(float))])
    target = (y - y.mean()) / y.std()
    precision = np.eye(4) + design.T @ design / 0.25
    mean = np.linalg.solve(precision, design.T @ target / 0.25)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    draws = np.concatenate([fitted.sites["network.output.bias"], fitted.sites["network.output.kernel"][..., 0]], -1)
    for i in range(4):
        ess = float(az.ess(draws[..., i]))
        assert abs(draws[..., i].mean() - mean[i]) / (sd[i] / np.sqrt(ess)) < 5
