"""Load the job and the posterior draws of a stored run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdlbench.data.description import without_rows
from bdlbench.runs.configuration import names_baseline
from bdlbench.runs.job import Job, make_job, seen
from bdlbench.runs.trust import refuse_untrusted
from bdlbench.sampling.devices import computing_in, setup_jax
from bdlbench.store import Store
from bdlbench.types import ConfigError


def load_job(
    store: Store, run_id: str, *, trust: bool = False, rows_needed: bool = True, draws_needed: bool = True
) -> Job:
    """The job of a stored run, built again from the configuration in its record.

    Parameters
    ----------
    store, run_id
        The run.
    trust : bool
        Whether factories that are not part of this package may be called, such as that of your own network.
    draws_needed : bool
        Whether a baseline, which has no draws of weights, is refused.
    rows_needed : bool
        If False, a run whose data have changed or are gone gets training rows that hold zeros in the shapes of its own,
        with the scalers, names and classes that its record holds: see :func:`has_rows`.

    Raises
    ------
    ConfigError
        If the data have changed since the run, or the configuration names a factory that is not trusted.
    """
    record = store.record(run_id)
    if not trust:  # before a factory is imported
        refuse_untrusted(record["config"], run_id)
    if draws_needed and names_baseline(record["config"].get("inference")):
        raise ConfigError(
            f"id: run '{run_id}' is a baseline, which has no draws of weights: choose a run of another method."
        )
    setup_jax()
    # The run that it started from may be gone, and what is read here does not depend on it.
    config = {**_found(record["config"], store), "warm_start": None}
    held = None if rows_needed else record.get("dataset")
    try:
        job = make_job(config, record["labels"])
    except ConfigError:
        if held is None:
            raise
    else:
        if job.dataset.checksum == record["data_checksum"]:
            return seen(job)
        if held is None:
            raise ConfigError(f"data: '{job.dataset.name}' has changed since run '{run_id}' was made: run it again.")
    return make_job(config, record["labels"], without_rows(held, record["data_checksum"]))


def _found(config: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """The configuration in which files of a fit that is kept are those beside the store, if the store has moved."""

    def place(path: Any) -> Any:
        beside = Path(store.path).with_name(f"{Path(store.path).name}_rows") / Path(str(path)).name
        return str(beside) if isinstance(path, str) and not Path(path).is_file() and beside.is_file() else path

    out = dict(config)
    for section in ("data", "inference"):
        if not isinstance(out.get(section), Mapping):
            raise ConfigError(f"{section}: the stored configuration has no such group, so this is no run of bdlbench.")
    for section, name in (("data", "path"), ("model", "weights")):
        node = out.get(section) or {}
        if name in node and out["data"]["_target_"] == "bdlbench.data.files.rows":
            out[section] = {**node, name: place(node[name])}
    return out


def has_rows(job: Job) -> bool:
    """Whether a job has its training rows, and not only their description in its record."""
    return bool(job.dataset.rows_checksum)


def load_draws(
    store: Store, run_id: str, job: Job | None = None, *, num_draws: int | None = None, by_draw: bool = False
) -> np.ndarray:
    """Load the posterior draws of a stored run as unconstrained theta, by mapping back its named sites.

    Parameters
    ----------
    store, run_id
        The run.
    job : Job, optional
        The result of :func:`load_job`, if the caller has it.
    num_draws : int, optional
        The largest number of draws to return, evenly spaced over the draws of all chains; None means all.

    Returns
    -------
    array (S, D)
        The draws, one chain after another, or with ``by_draw`` the first draws of all chains, then the second draws, and so
        on, as a run predicts them. Draws that were not finite are left out.

    Raises
    ------
    ConfigError
        If the run has no finite draw, or ``num_draws`` is less than 1.
    """
    job = load_job(store, run_id) if job is None else job
    with computing_in(job.precision):
        return _load_draws(store, run_id, job, num_draws, by_draw)


def _load_draws(store: Store, run_id: str, job: Job, num_draws: int | None, by_draw: bool) -> np.ndarray:
    with store.posterior(run_id) as tree:
        sites = {str(name): _flat(values.to_numpy(), by_draw) for name, values in tree["posterior"].data_vars.items()}
    good = np.logical_and.reduce([np.isfinite(v).reshape(len(v), -1).all(1) for v in sites.values()])
    index = np.flatnonzero(good)
    if not len(index):
        raise ConfigError(f"id: run '{run_id}' has no finite draw: choose a run that is complete.")
    if num_draws is not None:
        if num_draws < 1:
            raise ConfigError(f"num_draws={num_draws} must be at least 1.")
        index = index[np.linspace(0, len(index) - 1, min(num_draws, len(index))).round().astype(int)]
    train = job.dataset.train
    target = job.program.make_target(job.numbers, jnp.asarray(train.x), jnp.asarray(train.y))
    unconstrain = jax.jit(lambda values: jax.lax.map(target.unconstrain, values))
    return np.asarray(unconstrain({name: values[index] for name, values in sites.items()}))


def _flat(values: np.ndarray, by_draw: bool) -> np.ndarray:
    """Reshape (chain, draw, ...) to (chain * draw, ...), or with ``by_draw`` to (draw * chain, ...)."""
    values = np.swapaxes(values, 0, 1) if by_draw else values
    return values.reshape(-1, *values.shape[2:])
