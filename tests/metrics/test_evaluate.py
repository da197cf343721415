"""Matching of metrics with ingredients, and the yamls that offer them."""

import inspect
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import norm

from bdlbench.metrics.calibration import coverage, reliability
from bdlbench.metrics.evaluate import evaluate, needs_each_draw
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.metrics.predictive import accuracy, brier, lppd, rmse

CONF = Path(__file__).parents[2] / "conf" / "metrics"
YAMLS = sorted(CONF.glob("*.yaml"))
NAMES = {
    "lppd", "lppd_gaussian", "rmse", "crps", "coverage_50", "coverage_80", "coverage_90", "coverage_95",
    "interval_width_90", "interval_score_90", "accuracy", "brier", "ece", "joint_log_loss", "referral_cost",
}  # fmt: skip
CLASSIFICATION = {"accuracy", "brier", "ece", "referral_cost"}


def offered():
    """Return each yaml's metric with its options bound, by name."""
    out = {}
    for path in YAMLS:
        for name, options in yaml.safe_load(path.read_text()).items():
            module, function = options.pop("_target_").rsplit(".", 1)
            out[name] = partial(getattr(import_module(module), function), **options)
    return out


def test_the_metrics_on_offer():
    """One file a metric, named as its only key."""
    assert {path.stem for path in YAMLS} == NAMES
    for path in YAMLS:
        assert list(yaml.safe_load(path.read_text())) == [path.stem]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yaml_keys_are_the_keyword_only_parameters(path):
    """And none of them has a default, so that the yaml is the whole record."""
    (options,) = yaml.safe_load(path.read_text()).values()
    module, function = options.pop("_target_").rsplit(".", 1)
    parameters = inspect.signature(getattr(import_module(module), function)).parameters.values()
    keyword_only = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert set(options) == {parameter.name for parameter in keyword_only}
    assert all(parameter.default is parameter.empty for parameter in keyword_only)


def test_level_in_the_name_is_the_level_in_the_file():
    """coverage_90 is coverage at .9."""
    for name, metric in offered().items():
        if "level" in metric.keywords:
            assert metric.keywords["level"] == int(name.rsplit("_", 1)[1]) / 100


def test_regression_gets_what_a_regression_has():
    """All but the classification scores, each a finite float."""
    rng = np.random.default_rng(0)
    y, mean = rng.normal(size=20), rng.normal(size=(5, 20))
    mixture = PredictiveMixture(each=True)
    block = {"log_lik": norm.logpdf(y, mean), "mean": mean, "variance": np.ones((5, 20)), "cdf": norm.cdf(y, mean)}
    mixture.update(block)
    got = evaluate(offered(), y, mixture.ingredients())
    assert set(got) == NAMES - CLASSIFICATION
    assert all(type(value) is float and np.isfinite(value) for value in got.values())
    assert got["lppd"] == lppd(mixture.ingredients()["lpd"])


def test_classification_gets_what_a_classification_has():
    """LPPD, its joint form and the classification scores. Without the densities of single draws there is no joint form."""
    assert needs_each_draw(offered())
    assert not needs_each_draw({"lppd": lppd})
    mixture = PredictiveMixture(each=True)
    mixture.update({"log_lik": np.log(np.full((3, 20), 0.5)), "probs": np.full((3, 20, 2), 0.5)})
    got = evaluate(offered(), np.zeros(20, int), mixture.ingredients())
    assert set(got) == CLASSIFICATION | {"lppd", "joint_log_loss"}
    assert got["joint_log_loss"] == pytest.approx(np.log(2))


def test_matching_is_by_name_and_keeps_order():
    """Bound options are no ingredients; what lacks an ingredient is left out."""
    metrics = {"b": partial(coverage, level=0.5), "a": rmse, "c": accuracy, "d": brier}
    got = evaluate(metrics, [1.0, 2.0], {"mean": [1.0, 4.0], "pit": [0.5, 0.9]})
    assert list(got) == ["b", "a"]
    assert got == {"b": 0.5, "a": pytest.approx(np.sqrt(2))}


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (coverage, "lacks a value for its option level"),
        (lambda *args: 0.0, "must name its parameters"),
        (lambda **kwargs: 0.0, "must name its parameters"),
        (lambda pit: np.asarray(pit), "must return one number"),
        (lambda pit: "good", "must return one number"),
    ],
)
def test_metrics_that_do_not_fit_are_named(metric, message):
    """Before or after the call, by the name they were given."""
    with pytest.raises(TypeError, match=f"metric mine {message}"):
        evaluate({"mine": metric}, [0.0], {"pit": [0.5]})


def test_a_diagram_is_no_metric():
    """A tuple of arrays is not one number."""
    with pytest.raises((TypeError, ValueError)):
        evaluate({"mine": partial(reliability, num_bins=2)}, np.array([0, 1]), {"probs": [[0.6, 0.4], [0.3, 0.7]]})


def test_import_is_light():
    """Neither JAX nor a library of seconds is loaded by reading these modules."""
    modules = ["calibration", "diagnostics", "evaluate", "mixture", "predictive", "uncertainty"]
    heavy = ["jax", "sklearn", "arviz_stats", "scoringrules", "pandas", "xarray", "hydra", "omegaconf", "scipy.stats"]
    code = f"import sys\nfor m in {modules}: __import__('bdlbench.metrics.' + m)\n"
    code += f"print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
