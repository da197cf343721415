"""The draws of a run beside those of the reference posterior that it samples: kept at its points, and compared.

A run is compared without being asked where its ``target_id`` is that of a shipped reference.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bdlbench.data.dataset import Dataset, Scaler, units_of
from bdlbench.errors import ConfigError
from bdlbench.metrics import fidelity
from bdlbench.references import artefacts
from bdlbench.runs.job import Job
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.predictions import Predictor
from bdlbench.sampling.programs import Lane, Shared
from bdlbench.types import Task

MOST_DRAWS = 10_000
"""Draws of all chains that are kept for the comparison, at most. Of more, every second draw is left out, again and again:
more than there are in the reference always stay."""
KINDS = ("test", "probe")


def reference_of(target_id: str) -> tuple[str | None, str | None]:
    """Return the name of a posterior's reference, and a sentence about its damage. Each is None if there is none."""
    name = artefacts.by_target(target_id)
    if name is None:
        return None, None
    try:
        artefacts.load(name)
    except ConfigError as error:
        return name, str(error)
    return name, None


class Group(NamedTuple):
    """Lanes of a group that sample the posterior of one reference, what predicts them, and the scaler of their y."""

    name: str
    lanes: np.ndarray
    predictor: Predictor
    scaler: Scaler | None


class Beside:
    """Predicts the draws of those jobs of a group whose posterior is a reference's.

    Parameters
    ----------
    jobs : sequence of Job
        Of one program, each with the same number of lanes.
    task, shared, lane, clock
        As :class:`~bdlbench.sampling.predictions.Predictor` takes them.
    """

    def __init__(self, jobs: Sequence[Job], task: Task, shared: Shared, lane: Lane, clock: Clock) -> None:
        found = [reference_of(job.target_id) for job in jobs]
        self.names = [None if fault else name for name, fault in found]
        self.faults = [fault for _, fault in found]
        self.groups = []
        for name in dict.fromkeys(name for name in self.names if name is not None):
            own = [index for index, other in enumerate(self.names) if other == name]
            chains = jobs[0].num_chains
            lanes = np.concatenate([np.arange(index * chains, (index + 1) * chains) for index in own])
            some = jax.tree.map(lambda leaf, lanes=lanes: leaf[lanes], lane)
            predictor = predictor_at(artefacts.load(name), jobs[own[0]], task, shared, some, clock)
            self.groups.append(Group(name, lanes, predictor, jobs[own[0]].dataset.y_scaler))

    def values(
        self, draws: np.ndarray, anchor: np.ndarray | None, sites: Mapping[str, np.ndarray] | None = None
    ) -> dict[int, np.ndarray]:
        """What the references keep of draws (L, n, D) or (L, n, P, D): for each lane that has one (n P, M)."""
        out: dict[int, np.ndarray] = {}
        for name, lanes, predictor, scaler in self.groups:
            held = None if anchor is None else anchor[lanes]
            own = None if sites is None else {key: value[lanes] for key, value in sites.items()}
            found = values_at(artefacts.load(name), predictor, scaler, draws[lanes], held, own)
            out |= dict(zip(lanes.tolist(), found, strict=True))
        return out


def values_at(
    reference: artefacts.Reference,
    predictor: Predictor,
    scaler: Scaler | None,
    draws: np.ndarray,
    anchor: np.ndarray | None = None,
    sites: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """What a reference keeps of draws (L, n, D) or (L, n, P, D), as (L, n P, M) in original units.

    Parameters
    ----------
    reference : Reference
    predictor : Predictor
        At its points.
    scaler : Scaler or None
        Of y.
    draws, anchor
        As the predictor takes them.
    sites : mapping, optional
        Named sites of the draws, if the caller has them.
    """
    predictions = predictor.function(draws, anchor)
    if reference.sites and sites is None:
        sites = predictor.sites(draws)
    shape = len(draws), int(np.prod(draws.shape[1:-1]))
    kept = {name: sites[name].reshape(shape) for name in reference.sites} if sites is not None else {}
    return reference.quantities(predictions, kept, units_of(scaler))


def predictor_at(
    reference: artefacts.Reference, job: Job, task: Task, shared: Shared, lane: Lane, clock: Clock
) -> Predictor:
    """What predicts some lanes at the points of a reference, for a job whose data the reference has."""
    x = inputs(reference, job.dataset)
    num_sets = len(shared.x)
    y = np.zeros((num_sets, len(x), *job.dataset.train.y.shape[1:]), job.dataset.train.y.dtype)
    rows = Shared(np.broadcast_to(x, (num_sets, *x.shape)), y)
    return Predictor(job.program, task, shared, lane, rows, clock)


def inputs(reference: artefacts.Reference, dataset: Dataset) -> np.ndarray:
    """The points of a reference as the model of a data set takes them."""
    scaler = dataset.x_scaler
    x = reference.points if scaler is None else scaler.standardise(reference.points)
    return x.astype(dataset.train.x.dtype)


class Draws:
    """Function draws of one run at the points of a reference (C, n, M), thinned so that they stay few.

    Attributes
    ----------
    values : array (C, n, M)
        NaN where a draw or its predictions are not finite.
    stride : int
        Every so many draws one is kept.
    """

    def __init__(self) -> None:
        self.values: np.ndarray | None = None
        self.stride, self.seen = 1, 0

    def add(self, values: np.ndarray, shown: np.ndarray) -> None:
        """Add the next draws (C, n, M); ``shown`` (C, n) says which of them are finite."""
        values = np.where(shown[..., None], values, np.nan)
        new = values[:, -self.seen % self.stride :: self.stride]
        self.seen += values.shape[1]
        self.values = new if self.values is None else np.concatenate([self.values, new], 1)
        while self.values.shape[0] * self.values.shape[1] > MOST_DRAWS and self.values.shape[1] > 1:
            self.values, self.stride = self.values[:, ::2], 2 * self.stride

    def state(self) -> dict[str, np.ndarray]:
        """Everything as arrays by name, from which :meth:`restore` can continue."""
        if self.values is None:
            return {}
        return {"function/values": self.values, "function/counts": np.array([self.stride, self.seen])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from what :meth:`state` returned."""
        if "function/values" in state:
            self.values = state["function/values"]
            self.stride, self.seen = (int(count) for count in state["function/counts"])


@functools.lru_cache(maxsize=8)
def prepared(name: str) -> dict[str, tuple[np.ndarray, fidelity.Reference]]:
    """For each kind of points, which of the M numbers are of it, and the reference's draws of them."""
    found = artefacts.load(name)
    return {
        kind: (chosen, fidelity.Reference(found.draws[..., chosen]))
        for kind in KINDS
        if (chosen := found.kinds == kind).any()
    }


def at_look(name: str, values: np.ndarray | None, *, independent: bool) -> dict[str, float]:
    """``worth`` and ``bias`` of draws (C, n, M) so far at test points, with ``_probe`` at probe points; for a curve."""
    chains = finite(values)
    if chains is None:
        return {}
    out: dict[str, float] = {}
    for kind, (chosen, reference) in prepared(name).items():
        end = "" if kind == "test" else f"_{kind}"
        alone = independent and len(chains) == 1
        worth, bias = fidelity.worth_and_bias(chains[..., chosen], reference, independent=alone)
        out |= {f"worth{end}": worth, f"bias{end}": bias}
    return out


def finite(values: np.ndarray | None) -> np.ndarray | None:
    """The chains all of whose draws (C, n, M) are finite, or None without one."""
    if values is None:
        return None
    chains = values[np.isfinite(values).all((1, 2))]
    return chains if chains.size else None


def compared(
    name: str, values: np.ndarray | None, num_grads: float, *, independent: bool, population: int = 1
) -> dict[str, Any]:
    """The entry ``fidelity`` of a record.

    Parameters
    ----------
    name : str
        Of the reference.
    values : array (C, n, M)
        Function draws in original units. Only chains all of whose draws are finite are compared.
    num_grads : float
        All gradients of the run.
    independent : bool
        Whether the draws of a chain are independent, as those of a guide are.
    population : int
        Particles of a chain. They are no chains: what resampling or repulsion does to them is seen between chains alone.

    Raises
    ------
    ConfigError
        If no chain has finite draws throughout.
    """
    found = artefacts.load(name)
    chains = finite(values)
    if chains is None:
        raise ConfigError("no chain has finite draws and predictions at its points throughout")
    out: dict[str, Any] = {
        "reference": name,
        "certified": found.certified,
        "resolution": found.problem.tau,
        "draws_sha256": found.certificate["draws_sha256"],
        "num_chains": len(chains),
    }
    for kind, (chosen, reference) in prepared(name).items():
        alone = (independent or population > 1) and len(chains) == 1
        one = fidelity.fidelity(chains[..., chosen], reference, independent=alone)
        out[kind] = {
            **one.scalars(),
            "gradients_per_exact_draw": one.gradients_per_exact_draw(num_grads),
            "worth_at_min": float(one.worth_at.min()),
            "worth_at_median": float(np.median(one.worth_at)),
            "shift_at_max": float(np.abs(one.shift_at).max()),
            "log_sd_at_max": float(np.abs(one.log_sd_at).max()),
        }
        out[kind]["weak"] |= population > 1 and alone
        if found.problem.quantities == ("probs",):
            p, q = (
                draws[..., chosen].reshape(-1, chosen.sum()).mean(0, dtype=np.float64)
                for draws in (chains, found.draws)
            )
            classes = 1 + max(label["class"] for label in found.certificate["quantities"])
            p, q = p.reshape(-1, classes), q.reshape(-1, classes)
            out[kind] |= {"agreement": fidelity.agreement(p, q), "total_variation": fidelity.total_variation(p, q)}
    return out
