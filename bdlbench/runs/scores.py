"""Compute the metrics of a predictive mixture, in original and in standardised units."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bdlbench.baselines.scoring import ClosedPredictive, closed_forms
from bdlbench.data import Dataset
from bdlbench.metrics.calibration import interval_width, interval_width_mcse
from bdlbench.metrics.evaluate import evaluate, not_existing
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.metrics.predictive import MIN_DRAWS, crps, crps_mcse
from bdlbench.metrics.uncertainty import ood_aupr, ood_auroc, ood_fpr95

Metrics = Mapping[str, Callable[..., Any]]
OOD = "ood/"
"""The prefix of the names of out-of-distribution rows. The names of shifted rows have none."""
STANDARDISED = ("lppd", "lppd_gaussian", "rmse", "crps", "joint_log_loss")
"""Metrics that have units. A record states them in standardised units too."""
MCSE: dict[Any, Callable[..., Any]] = {crps: crps_mcse, interval_width: interval_width_mcse}
"""Metrics that use the components of the draws, with the function that estimates their Monte Carlo error."""
Predictive = PredictiveMixture | ClosedPredictive
DETECTION = {"auroc": ood_auroc, "aupr": ood_aupr, "fpr95": ood_fpr95}


def original(y: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return standardised targets in original units."""
    return y if dataset.y_scaler is None else np.asarray(dataset.y_scaler.original(y), np.float64)


def scores(metrics: Metrics, mixture: Predictive, dataset: Dataset, y: np.ndarray | None = None) -> dict[str, float]:
    """Compute metrics in original units.

    Parameters
    ----------
    metrics : mapping from name to metric
    mixture : PredictiveMixture or ClosedPredictive
        Predictions of the standardised targets at the rows of ``y``.
    dataset : Dataset
        Its scaler converts to original units.
    y : array (n,), optional
        The observed targets, standardised; None means those of the test rows.

    Returns
    -------
    dict
        One float for each metric. It is empty if the mixture has no draws or the data set has no test rows.
    """
    if y is None and dataset.test is not None:
        y = dataset.test.y
    if y is None or mixture.num_draws == 0:
        return {}
    return evaluate(forms_of(metrics, mixture), original(y, dataset), ingredients(mixture, dataset))


def ingredients(mixture: Predictive, dataset: Dataset) -> dict[str, Any]:
    """The ingredients of metrics in original units."""
    scaler = dataset.y_scaler
    return mixture.ingredients() if scaler is None else mixture.to_original(float(scaler.loc), float(scaler.scale))


def forms_of(metrics: Metrics, mixture: Predictive) -> Metrics:
    """The metrics in the form in which they are computed from a predictive."""
    return closed_forms(metrics) if isinstance(mixture, ClosedPredictive) else metrics


def lacking(metrics: Metrics, mixture: Predictive, task: str) -> dict[str, str]:
    """The metrics that do not exist for the likelihood, with the reason; none of a mixture without draws."""
    if isinstance(mixture, ClosedPredictive):
        return mixture.lacking(metrics)
    return {} if mixture.num_draws == 0 else not_existing(metrics, mixture.ingredients(), task)


def detection(inside: Predictive, outside: Predictive, task: str) -> dict[str, float]:
    """Score how well the uncertainty separates out-of-distribution rows from test rows.

    The uncertainty is the entropy of the mean prediction (classification) or the variance of the predicted mean over the draws
    (regression). It should be larger at the out-of-distribution rows.

    Parameters
    ----------
    inside, outside : PredictiveMixture
        Predictions at the test rows and at the out-of-distribution rows.
    task : "regression" or "classification"

    Returns
    -------
    dict
        ``auroc``, ``aupr`` and ``fpr95``; empty if one of the mixtures has no draws.
    """
    if inside.num_draws == 0 or outside.num_draws == 0:
        return {}
    name = "entropy_of_mean" if task == "classification" else "model_variance"
    if name not in inside.ingredients():
        return {}
    known, unknown = inside.ingredients()[name], outside.ingredients()[name]
    return {key: float(score(known, unknown)) for key, score in DETECTION.items()}


def errors_of(metrics: Metrics) -> dict[str, Callable[..., Any]]:
    """The Monte Carlo errors of those metrics that have one, with the options of each."""
    out: dict[str, Callable[..., Any]] = {}
    for name, metric in metrics.items():
        function, options = (metric.func, metric.keywords) if isinstance(metric, functools.partial) else (metric, {})
        if function in MCSE:
            out[name] = functools.partial(MCSE[function], **options)
    return out


def all_scores(
    metrics: Metrics,
    mixtures: Mapping[str, Predictive],
    dataset: Dataset,
    plain: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return all scores of predictions that a record contains.

    Parameters
    ----------
    metrics : mapping from name to metric
    mixtures : mapping
        Predictions by place: ``""`` for the test rows, the names of ``dataset.shifted``, and the names of
        ``dataset.ood`` with the prefix ``OOD``.
    dataset : Dataset
    plain : mapping, optional
        The result of :func:`scores` at the test rows, if the caller has computed it already.

    Returns
    -------
    dict
        Metrics at the test rows. If they exist, also the dicts ``mcse`` (Monte Carlo errors, in original units),
        ``standardized``, ``shifted`` and ``ood``.
    """

    def both_units(plain: Mapping[str, float], mixture: Predictive, y: np.ndarray) -> dict[str, Any]:
        if not plain or dataset.y_scaler is None:
            return dict(plain)
        chosen = {name: metrics[name] for name in STANDARDISED if name in metrics}
        return {**plain, "standardized": evaluate(forms_of(chosen, mixture), y, mixture.ingredients())}

    own = mixtures[""]
    plain = scores(metrics, own, dataset) if plain is None else plain
    out = {} if dataset.test is None else both_units(plain, own, dataset.test.y)
    if plain and own.num_draws >= MIN_DRAWS and (errors := scores(errors_of(metrics), own, dataset)):
        out["mcse"] = errors
    for place, mixture in mixtures.items():
        if place.startswith(OOD):
            out.setdefault("ood", {})[place.removeprefix(OOD)] = detection(own, mixture, dataset.task)
        elif place:
            y = dataset.shifted[place].y
            out.setdefault("shifted", {})[place] = both_units(scores(metrics, mixture, dataset, y), mixture, y)
    return out
