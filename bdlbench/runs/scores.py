"""The metrics of a predictive mixture, in the units that a record states them in."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bdlbench.data import Dataset
from bdlbench.metrics.calibration import interval_width, interval_width_mcse
from bdlbench.metrics.evaluate import evaluate, not_existing
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.metrics.predictive import MIN_DRAWS, crps, crps_mcse
from bdlbench.metrics.uncertainty import ood_aupr, ood_auroc, ood_fpr95

Metrics = Mapping[str, Callable[..., Any]]
OOD = "ood/"
"""Prefix that tells the name of out-of-distribution rows from that of shifted rows."""
STANDARDISED = ("lppd", "lppd_gaussian", "rmse", "crps")
"""Metrics that have units. A record states them in standardised units too."""
MCSE: dict[Any, Callable[..., Any]] = {crps: crps_mcse, interval_width: interval_width_mcse}
"""Metrics of the components of the draws, with the Monte Carlo error that having so many of them leaves."""
DETECTION = {"auroc": ood_auroc, "aupr": ood_aupr, "fpr95": ood_fpr95}


def original(y: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Targets in original units."""
    return y if dataset.y_scaler is None else np.asarray(dataset.y_scaler.original(y), np.float64)


def scores(
    metrics: Metrics, mixture: PredictiveMixture, dataset: Dataset, y: np.ndarray | None = None
) -> dict[str, float]:
    """Compute metrics in original units.

    Parameters
    ----------
    metrics : mapping from name to metric
    mixture : PredictiveMixture
        Predictions of standardised targets at the rows of ``y``.
    dataset : Dataset
        Gives the units.
    y : array (n,), optional
        Observed targets, standardised; those of the data set's test rows where None.

    Returns
    -------
    dict
        One float a metric; nothing for a mixture without draws and for a data set without test rows.
    """
    if y is None and dataset.test is not None:
        y = dataset.test.y
    if y is None or mixture.num_draws == 0:
        return {}
    scaler = dataset.y_scaler
    here = mixture.ingredients() if scaler is None else mixture.to_original(float(scaler.loc), float(scaler.scale))
    return evaluate(metrics, original(y, dataset), here)


def lacking(metrics: Metrics, mixture: PredictiveMixture, task: str) -> dict[str, str]:
    """The metrics that do not exist for the likelihood, with the reason; none of a mixture without draws."""
    return {} if mixture.num_draws == 0 else not_existing(metrics, mixture.ingredients(), task)


def detection(inside: PredictiveMixture, outside: PredictiveMixture, task: str) -> dict[str, float]:
    """How well uncertainty tells rows out of distribution from test rows, which it should score lower.

    The uncertainty is the entropy of the mean prediction (classification) or the variance between draws (regression).
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
    mixtures: Mapping[str, PredictiveMixture],
    dataset: Dataset,
    plain: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that a record states of predictions.

    Parameters
    ----------
    metrics : mapping from name to metric
    mixtures : mapping
        Predictions by place: ``""`` for the test rows, the names of ``dataset.shifted``, and those of ``dataset.ood``
        after ``OOD``.
    dataset : Dataset
    plain : mapping, optional
        What :func:`scores` gives at the test rows, where it has been computed already.

    Returns
    -------
    dict
        Metrics at the test rows, with ``mcse`` (Monte Carlo errors, in original units), ``standardized``, ``shifted`` and
        ``ood`` as dicts where there are any.
    """

    def both_units(plain: Mapping[str, float], mixture: PredictiveMixture, y: np.ndarray) -> dict[str, Any]:
        if not plain or dataset.y_scaler is None:
            return dict(plain)
        chosen = {name: metrics[name] for name in STANDARDISED if name in metrics}
        return {**plain, "standardized": evaluate(chosen, y, mixture.ingredients())}

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
