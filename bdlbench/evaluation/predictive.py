"""Predictions of a finished run at new inputs, from the draws in the store."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bdlbench.data.dataset import units_of
from bdlbench.data.inputs import new_inputs
from bdlbench.metrics.calibration import mixture_quantile
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.job import Job
from bdlbench.runs.stored_draws import load_draws, load_job
from bdlbench.sampling import lanes, loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.devices import computing_in
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
        The id of a finished run. :meth:`Store.find` finds the id that begins with a prefix.
    x : array (n, d) or (n,) where there is one feature, or table
        Inputs in original units. The columns of an array have the order of ``feature_names`` of the data set; those of
        a table are found by name.
    num_draws : int, optional
        Largest number of draws, which are evenly spaced. None takes all draws.
    quantiles : sequence of float
        Levels of the quantiles, each in (0, 1).
    trust : bool
        Whether the run may call factories that are not part of bdlbench, such as that of your own network. They execute
        code.

    Returns
    -------
    dict of arrays
        Classification: ``probs`` (S, n, K). Regression: ``mean`` (S, n) and ``variance`` (S, n) of y given each draw;
        ``levels`` (Q,); ``mean_quantiles`` (Q, n), the quantiles of ``mean`` over the draws, which show the uncertainty
        of the function without noise. If y given theta is normal, also ``quantiles`` (Q, n) of the predictive
        distribution of y, which includes the noise.

    Raises
    ------
    ConfigError
        If the inputs do not fit the data set, the run has no draws, its factories are not trusted, or its predictions
        need more than theta (a linearised network, whose predictions :func:`bdlbench.load` makes).

    Examples
    --------
    >>> found = predictive(Store("results/store"), run_id, np.linspace(-1, 1, 50))  # doctest: +SKIP
    >>> found["mean"].mean(0)  # doctest: +SKIP
    """
    job = load_job(store, run_id, trust=trust, rows_needed=False)
    with computing_in(job.precision):
        return _predictive(store, run_id, job, x, num_draws, quantiles)


def _predictive(
    store: Store, run_id: str, job: Job, x: Any, num_draws: int | None, quantiles: Sequence[float]
) -> dict[str, np.ndarray]:
    dataset = job.dataset
    task: Task = "classification" if dataset.task == "classification" else "regression"
    rows = new_inputs(x, dataset)
    draws = load_draws(store, run_id, job, num_draws=num_draws)

    shared, lane, _, _ = arrange([job])
    method = loop.stage_programs(job.program, len(job.program.stages) - 1, shared, lanes.first_of(lane)).method
    if method is not None and method.anchor is not None:
        raise ConfigError(
            f"id: run '{run_id}' predicts by a linearised network: use bdlbench.load('{run_id}', store=...).predict(x)."
        )
    # The predictor also scores targets. New inputs have none, so it receives zeros, and their scores are not used.
    at = Shared(rows[None], np.zeros((1, len(rows)), dataset.train.y.dtype))
    predictor = Predictor(job.program, task, shared, lanes.first_of(lane), at, Clock())
    found = {name: values[0] for name, values in predictor.predict(draws[None]).items()}
    if task == "classification":
        return {"probs": found["probs"]}

    loc, scale = units_of(dataset.y_scaler)
    if any(name not in found or not np.isfinite(found[name]).all() for name in ("mean", "variance")):
        raise ConfigError(
            f"id: y given theta has no finite mean and variance in run '{run_id}': use "
            f"bdlbench.load('{run_id}', store=...).predict(x).quantile(...)."
        )
    mean = found["mean"].astype(np.float64) * scale + loc
    variance = found["variance"].astype(np.float64) * scale**2
    out = {"mean": mean, "variance": variance, "levels": np.asarray(quantiles, np.float64)}
    out["mean_quantiles"] = np.quantile(mean, out["levels"], axis=0)
    if is_gaussian(job.program, job.numbers, dataset.train.x, dataset.train.y):
        out["quantiles"] = np.stack([mixture_quantile(mean, np.sqrt(variance), float(q)) for q in out["levels"]])
    return out
