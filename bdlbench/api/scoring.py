"""Scores of several posteriors at the same test rows."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bdlbench.api.prediction import Prediction
from bdlbench.errors import ConfigError
from bdlbench.metrics.evaluate import evaluate
from bdlbench.runs.configuration import default_metrics


def score_table(
    posteriors: Mapping[str, Any], x: Any, y: Any, *, metrics: Mapping[str, Callable[..., float]] | None = None
) -> Any:
    """Scores of several posteriors at the same rows, in the caller's units.

    Parameters
    ----------
    posteriors : mapping of Posterior by name
    x, y : as at the fit
    metrics : mapping of functions, optional
        Metrics in the form that :func:`bdlbench.metrics.evaluate.evaluate` takes; None uses those of a run. A metric
        that does not apply to a posterior (accuracy in a regression) is left out. For several targets ``lppd`` is the
        joint density, and each target has its own column of every metric, such as ``rmse[0]``.

    Returns
    -------
    pandas.DataFrame
        One row for each posterior, in the given order, with the metrics, R-hat, bulk ESS, gradient evaluations and
        seconds.
    """
    import pandas as pd

    if not isinstance(posteriors, Mapping) or not posteriors:
        raise ConfigError("posteriors must be a mapping of names to posteriors, with one at least.")
    for name, posterior in posteriors.items():
        if not hasattr(posterior, "predict") or not hasattr(posterior, "diagnostics"):
            raise ConfigError(f"posteriors['{name}'] is a {type(posterior).__name__}: give what fit or load returned.")
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ConfigError(
            f"metrics={metrics!r} must be a mapping of functions by name: leave it out for those of a run."
        )
    wanted = default_metrics() if metrics is None else metrics
    rows = {}
    for name, posterior in posteriors.items():
        prediction = posterior.predict(x)
        found = posterior.diagnostics
        rows[name] = {
            **_scores(prediction, y, wanted),
            "rhat_max": found.get("rhat_max"),
            "ess_bulk_min": found.get("ess_bulk_min"),
            "num_grads": sum(found["num_grads"].values()),
            "seconds": sum(posterior.seconds.get(phase, 0.0) for phase in ("rest", "warmup", "sample")),
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype(float)


def _scores(prediction: Prediction, y: Any, metrics: Mapping[str, Callable[..., float]]) -> dict[str, float]:
    if prediction.num_targets == 1:
        return evaluate(metrics, *prediction.ingredients(y))
    joint = {"lppd": float(prediction.log_prob(y).mean())}
    columns = np.asarray(y)
    for k in range(prediction.num_targets):
        found = evaluate(metrics, *prediction.output(k).ingredients(columns[:, k]))
        joint |= {f"{name}[{k}]": value for name, value in found.items()}
    return joint
