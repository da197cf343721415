"""From the store back to a model: predictions of a finished run at inputs it has never seen."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bdlbench.data.inputs import new_inputs
from bdlbench.metrics.calibration import mixture_quantile
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.stored_draws import load_draws, load_job
from bdlbench.sampling import lanes, loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.predictions import Predictor, is_gaussian
from bdlbench.sampling.programs import Shared
from bdlbench.store import Store
from bdlbench.types import ConfigError, Task

QUANTILES = (0.025, 0.25, 0.5, 0.75, 0.975)


def predictive(
    store: Store,
    run_id: str,
    x: Any,
    *,
    num_draws: int | None = None,
    quantiles: Sequence[float] = QUANTILES,
    trust: bool = False,
) -> dict[str, np.ndarray]:
    r"""Posterior predictive distribution of a stored run at new inputs, in original units.

    .. math:: p(y | x, \mathcal D) \approx \frac1S \sum_s p(y | x, \theta_s)

    Parameters
    ----------
    store : Store
    run_id : str
        A finished run; :meth:`Store.find` completes the beginning of an id.
    x : array (n, d) or (n,) where there is one feature, or table
        Inputs in original units: columns of an array in the order of the data set's ``feature_names``, those of a table
        by name.
    num_draws : int, optional
        At most so many draws, evenly spaced; all where None.
    quantiles : sequence of float
        Levels in (0, 1).
    trust : bool
        Whether factories that this package does not ship may be called, as a network of one's own is one.

    Returns
    -------
    dict of arrays
        Classification: ``probs`` (S, n, K). Regression: ``mean`` (S, n) and ``variance`` (S, n) of y given each draw;
        ``levels`` (Q,); ``mean_quantiles`` (Q, n), quantiles over the draws of the mean, the model's uncertainty
        without noise; and, where y given theta is normal, ``quantiles`` (Q, n) of the predictive mixture, noise
        included.

    Raises
    ------
    ConfigError
        For inputs that do not fit the data set, a run without draws, or a run whose predictions need more than theta.

    Examples
    --------
    >>> found = predictive(Store("results/store"), run_id, np.linspace(-1, 1, 50))  # doctest: +SKIP
    >>> found["mean"].mean(0)  # doctest: +SKIP
    """
    job = load_job(store, run_id, trust=trust)
    dataset = job.dataset
    task: Task = "classification" if dataset.task == "classification" else "regression"
    rows = new_inputs(x, dataset)
    draws = load_draws(store, run_id, job, num_draws=num_draws)

    shared, lane, _, _ = arrange([job])
    method = loop.stage_programs(job.program, len(job.program.stages) - 1, shared, lanes.first_of(lane)).method
    if method is not None and method.anchor is not None:
        raise ConfigError(f"id: run '{run_id}' predicts by a linearised network, whose anchor is not stored.")
    # The predictor also scores targets; there are none at new inputs, so it is handed zeros and their score dropped.
    at = Shared(rows[None], np.zeros((1, len(rows)), dataset.train.y.dtype))
    predictor = Predictor(job.program, task, shared, lanes.first_of(lane), at, Clock())
    found = {name: values[0] for name, values in predictor.predict(draws[None]).items()}
    if task == "classification":
        return {"probs": found["probs"]}

    scaler = dataset.y_scaler
    loc, scale = (0.0, 1.0) if scaler is None else (float(scaler.loc), float(scaler.scale))
    mean = found["mean"].astype(np.float64) * scale + loc
    variance = found["variance"].astype(np.float64) * scale**2
    out = {"mean": mean, "variance": variance, "levels": np.asarray(quantiles, np.float64)}
    out["mean_quantiles"] = np.quantile(mean, out["levels"], axis=0)
    if is_gaussian(job.program, job.numbers, dataset.train.x, dataset.train.y):
        out["quantiles"] = np.stack([mixture_quantile(mean, np.sqrt(variance), float(q)) for q in out["levels"]])
    return out
