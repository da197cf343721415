"""The ingredients of metrics, and the closed forms of metrics, of predictives that are no mixture over draws."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bdlbench.baselines.predictives import Normal, Probabilities, RealPredictive
from bdlbench.metrics.calibration import interval_score, interval_width, winkler_score
from bdlbench.metrics.checks import fraction
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.metrics.predictive import crps


class ClosedPredictive:
    """One predictive distribution for each row and the observed targets, with the interface of a predictive mixture.

    It counts as one draw, whose density is that of the predictive itself: the rows are independent given it.

    Parameters
    ----------
    predictive : RealPredictive
    y : array (n,)
        The observed targets, in the units of the predictive.
    """

    each = True
    num_draws = 1

    def __init__(self, predictive: RealPredictive, y: np.ndarray) -> None:
        self.predictive, self.y = predictive, np.asarray(y, np.float64)

    def ingredients(self) -> dict[str, Any]:
        """The arrays from which metrics are computed, by name, as those of a mixture.

        Also ``distribution``, the predictive itself, from which :data:`CLOSED_FORMS` compute intervals and CRPS.
        """
        found, y = self.predictive, self.y
        out: dict[str, Any] = {
            "num_draws": np.asarray(1),
            "distribution": found,
            "mean": found.mean,
            "pit": found.cdf(y),
        }
        if "lpd" not in found.lacks:
            out["lpd"] = found.log_density(y)
            out["log_lik"] = out["lpd"][None]
        if "variance" not in found.lacks:
            out["variance"] = found.variance()
        if isinstance(found, Normal):
            out |= {"loc": found.mean[None], "scale": found.sd[None]}
        if "crps" not in found.lacks:
            out["crps_of_rows"] = found.crps(y)
        return out

    def to_original(self, loc: float, scale: float) -> dict[str, Any]:
        """The ingredients in original units y = loc + scale * y_standardised."""
        return ClosedPredictive(self.predictive.scaled(loc, scale), loc + scale * self.y).ingredients()

    def lacking(self, metrics: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
        """The metrics that do not exist for the predictive, with the reason."""
        from bdlbench.metrics.evaluate import required_ingredients

        have, out = {*self.ingredients(), "y"}, {}
        names = {"lpd": "lpd", "log_lik": "lpd", "variance": "variance", "crps_of_rows": "crps"}
        for name, metric in closed_forms(metrics).items():
            for what in required_ingredients(name, metric):
                if what not in have and what in names:
                    out[name] = self.predictive.lacks[names[what]]
        return out


def scored(predictive: RealPredictive | Probabilities, y: np.ndarray) -> ClosedPredictive | PredictiveMixture:
    """Return a predictive with its targets, in the form in which the metrics of a run are computed.

    Raises
    ------
    FloatingPointError
        If a mean, a probability or a log density is not finite.
    """
    if isinstance(predictive, Probabilities):
        out = PredictiveMixture(each=True)
        with np.errstate(divide="ignore"):
            log_lik = np.log(predictive.probs[np.arange(len(y)), np.asarray(y, int)])
        out.update({"log_lik": log_lik[None], "probs": predictive.probs[None]})
        return out
    closed = ClosedPredictive(predictive, y)
    for name in ("mean", "lpd", "variance"):
        values = closed.ingredients().get(name)
        if values is not None and not np.isfinite(values).all():
            raise FloatingPointError(
                f"{name} of the predictive is not finite in row {int(np.argmin(np.isfinite(values)))}"
            )
    return closed


def crps_closed(crps_of_rows: np.ndarray) -> float:
    """The mean over rows of the predictive's own CRPS in closed form."""
    return float(np.mean(crps_of_rows))


def interval_width_closed(distribution: RealPredictive, *, level: float) -> float:
    """The mean width of the predictive's central interval; infinite where it is the whole line."""
    lower, upper = distribution.interval(fraction("level", level))
    return float(np.mean(upper - lower))


def interval_score_closed(y: np.ndarray, distribution: RealPredictive, *, level: float) -> float:
    """Winkler's score of the predictive's central interval; infinite where it is the whole line."""
    return winkler_score(y, *distribution.interval(fraction("level", level)), level)


CLOSED_FORMS: dict[Any, Callable[..., Any]] = {
    crps: crps_closed, interval_width: interval_width_closed, interval_score: interval_score_closed,
}  # fmt: skip
"""For each metric that is written for a mixture of normals the function of a predictive that is none."""


def closed_forms(metrics: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The metrics, with those of :data:`CLOSED_FORMS` replaced and their options kept."""
    out: dict[str, Callable[..., Any]] = {}
    for name, metric in metrics.items():
        function, options = (metric.func, metric.keywords) if isinstance(metric, functools.partial) else (metric, {})
        out[name] = functools.partial(CLOSED_FORMS[function], **options) if function in CLOSED_FORMS else metric
    return out
