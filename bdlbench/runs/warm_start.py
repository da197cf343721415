"""Warm starts: a run starts from the draws of a stored run, its parent. Its record names the parent and its cost."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.store import Store

MODEL = ("model", "network", "prior", "likelihood", "temperature")
"""The sections of a configuration that define the posterior."""


class Parent(NamedTuple):
    """The stored run from which another run starts.

    Attributes
    ----------
    id : str
    num_grads : float
        Gradient evaluations of the parent on its full data, including those of its own parents.
    seconds : float
        Seconds of warm-up and sampling of the parent, including those of its own parents.
    notes : tuple of str
        Sentences on how the two runs differ, apart from the method.
    """

    id: str
    num_grads: float
    seconds: float
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return the entry ``warm_start`` of the record of the new run."""
        return {"id": self.id, "num_grads": self.num_grads, "seconds": self.seconds}

    def warning(self) -> str:
        """Return the warning for the record of the new run: which part of its gradients the parent took."""
        return f"warm start: {self.num_grads:,.0f} of the gradients are those of run {self.id}"


def resolve(config: Mapping[str, Any], data_checksum: str) -> tuple[Mapping[str, Any], Parent | None]:
    """Find the parent of a run, and return the configuration and the parent; None if ``warm_start`` is null.

    In the returned configuration ``warm_start`` is the full id, and ``inference.before`` is empty: the stored draws
    replace the stages that would find a start point.

    Raises
    ------
    ConfigError
        If the store has no run of this id, or that run failed.
    """
    asked = config.get("warm_start")
    if asked is None:
        return config, None
    if not isinstance(asked, str):
        raise ConfigError(f"warm_start={asked!r} must be the id of a stored run, or its beginning, or null.")
    store = Store(config["store"]["path"])
    try:
        run_id = store.find(asked)
        record = store.record(run_id)
    except ConfigError as error:
        raise ConfigError(f"warm_start: {str(error).removeprefix('id: ')}") from error
    if record["status"] == "failed":
        raise ConfigError(f"warm_start: run '{run_id}' failed and has no draws to start from: choose a complete run.")
    earlier = record.get("warm_start") or {"seconds": 0.0}
    own = record["seconds"].get("warmup", 0.0) + record["seconds"].get("sample", 0.0)
    differ = [f"another {name}" for name in MODEL if record["config"].get(name) != config.get(name)]
    if record.get("data_checksum") != data_checksum:
        differ.insert(0, "other data")
    notes = [f"warm start: run {run_id} had {', '.join(differ)}"] if differ else []
    if record["status"] != "complete":
        notes.append(f"warm start: run {run_id} is {record['status']}, and its finite chains are used")
    inference = {**config["inference"], "before": []} if "before" in config["inference"] else config["inference"]
    parent = Parent(run_id, float(sum(record["num_grads"].values())), own + earlier["seconds"], tuple(notes))
    return {**config, "warm_start": run_id, "inference": inference}, parent


def thetas(jobs: Sequence[Any]) -> np.ndarray | None:
    """Return the start points of the jobs' chains (jobs x chains, D), or None if the jobs have no parent.

    Let C be the number of chains of the stored run that stayed finite. Chain c starts at a draw of the finite chain c
    mod C. The first C chains start at the last draws. Further chains start at earlier draws, evenly spaced over the
    stored chain, so that as few chains as possible have the same start. A draw is stored as named sites and is mapped
    to theta by the transforms of the new model.

    Parameters
    ----------
    jobs : sequence of bdlbench.runs.job.Job
        Jobs of one program.

    Raises
    ------
    ConfigError
        If the stored run has no draws or no finite chain, if its sites or their shapes differ from those of the new
        model, or if a value is outside of the support in the new model.
    """
    if jobs[0].parent is None:
        return None
    return np.concatenate([_of_job(job) for job in jobs])


def _of_job(job: Any) -> np.ndarray:
    import jax

    assert job.parent is not None
    shapes, inverse = _maps(job.program)
    rows = job.dataset.train.x, job.dataset.train.y
    wanted = {name: site.shape for name, site in jax.eval_shape(shapes, job.numbers, *rows).items()}
    sites = _draws(Store(job.config["store"]["path"]), job.parent.id, wanted, job.num_chains)
    theta = np.asarray(inverse(job.numbers, *rows, sites))
    if not np.isfinite(theta).all():
        raise ConfigError(
            f"warm_start: a draw of run '{job.parent.id}' lies outside of what this model allows: choose a run of the "
            "same prior and likelihood."
        )
    return theta


@functools.lru_cache(maxsize=8)
def _maps(program: Any) -> tuple[Any, Any]:
    """Return two compiled functions: the sites of theta = 0, and the map from draws of sites (n, ...) to theta (n, D).

    They are traced once for all jobs of a program.
    """
    import jax
    import jax.numpy as jnp

    def sites(numbers: Any, x: Any, y: Any) -> Any:
        target = program.make_target(numbers, x, y)
        return target.constrain(jnp.zeros(target.dim))

    def inverse(numbers: Any, x: Any, y: Any, draws: Any) -> Any:
        return jax.lax.map(program.make_target(numbers, x, y).unconstrain, draws)

    return jax.jit(sites), jax.jit(inverse)


def _draws(store: Store, run_id: str, wanted: Mapping[str, tuple[int, ...]], num: int) -> dict[str, np.ndarray]:
    """Read ``num`` draws of a run, an array (num, ...) for each site. Raise ConfigError if names or shapes differ."""
    try:
        tree = store.posterior(run_id)
    except ConfigError as error:
        raise ConfigError(f"warm_start: {str(error).removeprefix('id: ')}") from error
    with tree:
        group = tree.children.get("posterior")
        stored = {} if group is None else {str(name): values for name, values in group.data_vars.items()}
        if not stored:
            raise ConfigError(f"warm_start: run '{run_id}' stored no draws: choose a run that is complete.")
        for name in sorted({*stored, *wanted}):
            has = tuple(stored[name].shape[2:]) if name in stored else None
            if has != wanted.get(name):
                raise ConfigError(
                    f"warm_start: site '{name}' {_shaped(has)} in run '{run_id}' but {_shaped(wanted.get(name))} here: "
                    "choose a run of the same network, prior and likelihood."
                )
        ends = np.stack([np.isfinite(v[:, -1].to_numpy()).reshape(v.shape[0], -1).all(1) for v in stored.values()])
        finite = np.flatnonzero(ends.all(0))
        if not len(finite):
            raise ConfigError(f"warm_start: no chain of run '{run_id}' ends in a finite draw: choose a complete run.")
        length = next(iter(stored.values())).shape[1]
        chains, rounds = finite[np.arange(num) % len(finite)], np.arange(num) // len(finite)
        draws = length - 1 - rounds * length // (rounds[-1] + 1)
        # Each draw is read only once, also if several chains start there.
        each, place = np.unique(draws, return_inverse=True)
        return {name: values[:, each].to_numpy()[chains, place] for name, values in stored.items()}


def _shaped(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"has shape {shape}"
