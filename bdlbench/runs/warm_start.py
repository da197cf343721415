"""A run that begins where a stored run ended: its start points, its price and what it has in common with its parent."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.store import Store

MODEL = ("model", "network", "prior", "likelihood", "temperature")
"""Sections of a configuration that make the posterior."""


class Parent(NamedTuple):
    """The stored run that another starts from.

    Attributes
    ----------
    id : str
    num_grads : float
        Gradient evaluations on its full data, those of its own parents included.
    seconds : float
        Of its warm-up and sampling, its own parents' included.
    notes : tuple of str
        In what the two runs differ beside the method.
    """

    id: str
    num_grads: float
    seconds: float
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """What the record of the run that starts here says."""
        return {"id": self.id, "num_grads": self.num_grads, "seconds": self.seconds}

    def warning(self) -> str:
        """What a reader of a table must know."""
        return f"warm start: {self.num_grads:,.0f} of the gradients are those of run {self.id}"


def resolve(config: Mapping[str, Any], data_checksum: str) -> tuple[Mapping[str, Any], Parent | None]:
    """The configuration with ``warm_start`` as a whole id and without earlier stages, and the run of that id.

    The stages ``inference.before`` prepare a start. The stored draws take their place, so they are left out.

    Raises
    ------
    ConfigError
        For an id that the store does not have, or that of a failed run.
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
    """Start points of the jobs' chains (jobs x chains, D); None where jobs start by themselves.

    Chain c begins at a draw of the stored run's chain c modulo the number C of its chains that stayed finite: at the
    last one, and where there are more chains to start than C, at draws evenly spaced back from it, so that as few
    chains as possible start alike. Jobs (:class:`bdlbench.runs.job.Job`) are of one program. A draw is stored as named
    sites and mapped back by the new run's own transforms.

    Raises
    ------
    ConfigError
        Where the stored run has no draws, none that is finite, other sites or shapes than the new run's model, or
        values outside of what the new model allows.
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
    """Theta's sites, and draws of sites (n, ...) to theta (n, D), traced once for all jobs of a program."""
    import jax
    import jax.numpy as jnp

    def sites(numbers: Any, x: Any, y: Any) -> Any:
        target = program.make_target(numbers, x, y)
        return target.constrain(jnp.zeros(target.dim))

    def inverse(numbers: Any, x: Any, y: Any, draws: Any) -> Any:
        return jax.lax.map(program.make_target(numbers, x, y).unconstrain, draws)

    return jax.jit(sites), jax.jit(inverse)


def _draws(store: Store, run_id: str, wanted: Mapping[str, tuple[int, ...]], num: int) -> dict[str, np.ndarray]:
    """``num`` of a run's draws, (num, ...) a site, after a look at names and shapes."""
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
        # Whole draws are read once each, however many chains start there.
        each, place = np.unique(draws, return_inverse=True)
        return {name: values[:, each].to_numpy()[chains, place] for name, values in stored.items()}


def _shaped(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"has shape {shape}"
