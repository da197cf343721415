"""Sample a reference problem in float64 by NUTS chains and independent SMC runs. Finished parts are kept in files."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdlbench.data.dataset import Dataset, units_of
from bdlbench.errors import ConfigError
from bdlbench.references.problems import MAX_QUANTITIES, Problem, sampler_options
from bdlbench.runs import configuration
from bdlbench.runs.job import Job, check_job, make_job
from bdlbench.sampling.predictions import class_probabilities
from bdlbench.sampling.sample import Sampler
from bdlbench.types import Array, Target

TOGETHER = 2
"""Number of chains or runs that are sampled together and kept as one part; a small machine has two cores."""
FAR = 3.0
"""Probe points far from the data are test rows whose standardised inputs are multiplied by this."""


class Points(NamedTuple):
    """The points at which the draws of a reference evaluate the function.

    Attributes
    ----------
    inputs : array (P, ...)
        Inputs in the units of the model.
    original : array (P, ...)
        Inputs in the units of the data's source.
    kind : array (P,) of str
        ``test`` for points near the data, ``probe`` for points in gaps and far from the data.
    """

    inputs: np.ndarray
    original: np.ndarray
    kind: np.ndarray


class Part(NamedTuple):
    """The results of one call of a sampler, with C chains or runs, S draws and M quantities.

    Attributes
    ----------
    values : array (C, S, M), float64
        The quantities of each draw, in original units.
    energy : array (C, S), empty for SMC
        The Hamiltonian at each draw.
    num_diverging : array (C,)
        Divergent transitions: after warm-up for NUTS, of all stages for SMC.
    num_capped : array (C,)
        Number of draws whose tree reached the largest depth.
    num_grads : array (C,)
        Gradient evaluations.
    theta : array (C, K, D)
        A few draws of the weights, evenly spaced.
    seconds : float
        Duration of the call.
    """

    values: np.ndarray
    energy: np.ndarray
    num_diverging: np.ndarray
    num_capped: np.ndarray
    num_grads: np.ndarray
    theta: np.ndarray
    seconds: float


def job_of(problem: Problem, inference: str = "nuts", plan: Mapping[str, Any] | None = None) -> Job:
    """Make and check the job of one sampler of a plan (None: of the first plan). It computes in float64."""
    plan = problem.plans[0] if plan is None else plan
    job = make_job(*configuration.compose(list(sampler_options(problem, inference, plan))))
    check_job(job)
    return job


def points_of(problem: Problem, dataset: Dataset) -> Points:
    """Test and probe points; see :class:`Problem`.

    Raises
    ------
    ConfigError
        If an entry is unknown, or the data set cannot provide its points.
    """
    wanted = dict(problem.points)
    scaler = dataset.x_scaler
    inputs: list[np.ndarray] = []
    kinds: list[str] = []

    def add(rows: np.ndarray, kind: str) -> None:
        inputs.append(np.asarray(rows, np.float64))
        kinds.extend([kind] * len(rows))

    def spaced(num: int) -> np.ndarray:
        if dataset.test is None or len(dataset.test.x) < num:
            raise ConfigError(
                f"reference '{problem.name}': {num} test points are wanted, and the data have fewer rows."
            )
        return dataset.test.x[np.linspace(0, len(dataset.test.x) - 1, num).round().astype(int)]

    if wanted.pop("rows", False):
        add(dataset.train.x, "test")
    if num := wanted.pop("test", 0):
        add(spaced(num), "test")
    if num := wanted.pop("far", 0):
        add(FAR * spaced(num), "probe")
    if grid := wanted.pop("grid", None):
        low, high, num = grid
        rows = np.linspace(low, high, num)[:, None]
        add(rows if scaler is None else scaler.standardise(rows), "probe")
    if wanted or not inputs:
        raise ConfigError(f"reference '{problem.name}': points={problem.points} has an unknown entry, or none.")
    x = np.concatenate(inputs)
    original = x if scaler is None else scaler.original(x)
    return Points(x.astype(dataset.train.x.dtype), original, np.array(kinds))


class Quantities:
    """A compiled function that computes the quantities (S, M) of a reference from draws of theta."""

    def __init__(self, problem: Problem, job: Job) -> None:
        self.problem, self.dataset = problem, job.dataset
        self.points = points_of(problem, job.dataset)
        train = job.dataset.train
        self.target = job.program.make_target(job.numbers, jnp.asarray(train.x), jnp.asarray(train.y))
        at = jnp.asarray(self.points.inputs)
        self._of = jax.jit(
            lambda draws: jax.lax.map(lambda theta: self._one(self.target, theta, at), draws, batch_size=32)
        )
        labels = self.labels()
        if len(labels) > MAX_QUANTITIES:
            raise ConfigError(
                f"reference '{problem.name}': {len(labels)} numbers a draw are more than {MAX_QUANTITIES}: use fewer points."
            )

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        """Quantities (S, M) of draws (S, D), in original units."""
        return np.asarray(self._of(jnp.asarray(draws)), np.float64)

    def _one(self, target: Target, theta: Array, x: Array) -> Array:
        parts = []
        p = target.predictive(theta, x)
        loc, scale = units_of(self.dataset.y_scaler)
        for quantity in self.problem.quantities:
            if quantity == "probs":
                parts.append(class_probabilities(p).reshape(-1))
            elif quantity == "mean":
                parts.append((loc + scale * p.mean).reshape(-1))
            else:
                parts.append((jnp.log(scale) + 0.5 * jnp.log(p.variance)).reshape(-1))
        sites = target.constrain(theta) if self.problem.sites else {}
        return jnp.concatenate([*parts, *(jnp.reshape(sites[name], 1) for name in self.problem.sites)])

    def labels(self) -> list[dict[str, Any]]:
        """What each of the M numbers is: ``quantity``, ``kind`` and ``point`` (its index), and ``class`` or ``site``."""
        out: list[dict[str, Any]] = []
        each = list(enumerate(self.points.kind.tolist()))
        for quantity in self.problem.quantities:
            for point, kind in each:
                if quantity == "probs":
                    classes = range(self.dataset.num_outputs)
                    out += [{"quantity": "probs", "kind": kind, "point": point, "class": k} for k in classes]
                else:
                    out.append({"quantity": quantity, "kind": kind, "point": point})
        return out + [{"quantity": "site", "kind": "test", "site": name} for name in self.problem.sites]


def sample(
    problem: Problem, inference: str, attempt: int, work: Path, kept_weights: int = 8, say: Any = lambda text: None
) -> Part:
    """Sample all chains (``nuts``) or runs (``smc``) of a plan, two at a time. Parts in the folder ``work`` are read.

    It must be called while JAX computes in float64. Each part has its own key, so that it does not depend on which
    parts were in ``work``.
    """
    plan = problem.plans[attempt]
    job = job_of(problem, inference, plan)
    wanted = plan[inference]["num_chains" if inference == "nuts" else "num_runs"]
    quantities = Quantities(problem, job)
    sampler = Sampler(job.program, TOGETHER, 1)
    data = job.dataset.train.x, job.dataset.train.y
    parts = []
    for index in range(-(-wanted // TOGETHER)):
        path = work / f"{problem.name}-{problem.sha256[:10]}" / f"plan{attempt}-{inference}-{index}.npz"
        if not path.exists():
            began = time.perf_counter()
            key = jax.random.fold_in(jax.random.key(plan["seed"]), index)
            found = sampler(data, key, numbers=job.numbers)
            if not found.ok.all():
                raise ConfigError(f"reference '{problem.name}': a chain of {inference} is not finite.")
            draws = found.draws.reshape(TOGETHER, -1, found.draws.shape[-1])  # a population's particles are its draws
            every = np.linspace(0, draws.shape[1] - 1, min(kept_weights, draws.shape[1])).round().astype(int)
            part = Part(
                np.stack([quantities(chain) for chain in draws]),
                found.stats.get("energy", np.empty((TOGETHER, 0))),
                found.stats["diverging"].sum(1) if inference == "nuts" else found.num_diverging,
                found.stats["reached_max_treedepth"].sum(1) if inference == "nuts" else np.zeros(TOGETHER),
                found.num_grads,
                draws[:, every],
                time.perf_counter() - began,
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(".part.npz")
            np.savez(scratch, **part._asdict())
            scratch.rename(path)
            say(f"{problem.name}: plan {attempt + 1}, {inference}, part {index + 1}: {part.seconds:.0f} s")
        with np.load(path, allow_pickle=False) as kept:
            parts.append(Part(**{name: kept[name] for name in Part._fields}))
    joined = {name: np.concatenate([getattr(part, name) for part in parts])[:wanted] for name in Part._fields[:-1]}
    return Part(**joined, seconds=float(sum(part.seconds for part in parts)))
