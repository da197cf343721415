"""Call metrics with the ingredients that their parameters name."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def evaluate(metrics: Mapping[str, Callable[..., Any]], y: Any, ingredients: Mapping[str, Any]) -> dict[str, float]:
    """Call every metric whose ingredients all exist.

    The positional parameters of a metric are names of ingredients, or ``y``. Its keyword-only parameters are options,
    which ``functools.partial`` has bound before. A metric with an ingredient that does not exist is left out of the
    result, for example accuracy in a regression or CRPS in a classification.

    Parameters
    ----------
    metrics : mapping
        Functions, or partials of functions, by the name in the result.
    y : array (n,)
        Observed targets, in the units of the ingredients.
    ingredients : mapping
        As :meth:`bdlbench.metrics.mixture.PredictiveMixture.ingredients` returns them.

    Returns
    -------
    dict
        One float by the name of each metric called, in the order of ``metrics``.

    Raises
    ------
    TypeError
        If an option is not bound, a metric takes ``*args`` or ``**kwargs``, or its value is not one number.
    """
    available = {**ingredients, "y": y}
    out: dict[str, float] = {}
    for name, metric in metrics.items():
        wanted = required_ingredients(name, metric)
        if not set(wanted) <= set(available):
            continue
        value = np.asarray(metric(*(available[key] for key in wanted)))
        if value.ndim != 0 or value.dtype.kind not in "fiub":
            raise TypeError(f"metric {name} must return one number, got {value.dtype} of shape {value.shape}")
        out[name] = float(value)
    return out


_LACKING = {
    "mean": "y given theta has no mean",
    "model_variance": "y given theta has no mean",
    "variance": "y given theta has no finite, positive variance",
    "noise_variance": "y given theta has no finite variance",
    "loc": "its closed form is that of a normal y given theta",
    "scale": "its closed form is that of a normal y given theta",
    "pit": "y given theta is discrete, or its distribution function is not known",
}
"""The reasons why a regression lacks an ingredient, the more informative ones first."""
_ALWAYS = ("y", "num_draws", "lpd")


def not_existing(
    metrics: Mapping[str, Callable[..., Any]], ingredients: Mapping[str, Any], task: str
) -> dict[str, str]:
    """The metrics of a regression that do not exist for its likelihood, each with the reason.

    Metrics of classification are not named.

    Parameters
    ----------
    metrics : mapping
        As :func:`evaluate` takes them.
    ingredients : mapping
        The ingredients that exist.
    task : str
        If it is not "regression", the result is empty.
    """
    if task != "regression":
        return {}
    out = {}
    for name, metric in metrics.items():
        wanted = set(required_ingredients(name, metric))
        if wanted <= {*_LACKING, *_ALWAYS} and not wanted <= {*ingredients, "y"}:
            out[name] = next(why for what, why in _LACKING.items() if what in wanted and what not in ingredients)
    return out


def needs_each_draw(metrics: Mapping[str, Callable[..., Any]]) -> bool:
    """Whether a metric takes ``log_lik``, the density of each draw, which a mixture keeps only on demand."""
    return any("log_lik" in required_ingredients(name, metric) for name, metric in metrics.items())


@functools.lru_cache(maxsize=256)
def required_ingredients(name: str, metric: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a metric's positional parameters without defaults; its options must be bound."""
    wanted = []
    for key, parameter in inspect.signature(metric).parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise TypeError(f"metric {name} must name its parameters, {parameter} names none")
        if parameter.default is not inspect.Parameter.empty:
            continue
        if parameter.kind not in _POSITIONAL:
            raise TypeError(f"metric {name} lacks a value for its option {key}")
        wanted.append(key)
    return tuple(wanted)
