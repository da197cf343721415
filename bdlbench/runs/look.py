"""A look: the draws of one job between two marks, with their predictions, selected from the draws of its group.

A population of P particles in one lane becomes P chains here. Each chain holds the successive draws of one particle.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.sampling.loop import Block

Arrays = Mapping[str, np.ndarray]
PREDICTED = ("log_lik", "mean", "variance", "cdf", "probs")
"""The quantities that a predictive mixture needs."""
MOMENTS = ("mean", "variance")
"""The quantities that some likelihoods do not have."""


class Look(NamedTuple):
    """The draws of one job between two marks: C chains of n draws, where each particle of a population is a chain.

    Attributes
    ----------
    first_draw : int
        The index of the first draw in its chain.
    population : int
        P, the number of particles in a lane.
    good : bool array (C, n)
        True for draws that are finite and come before the first bad step of their chain.
    shown : bool array (C, n)
        Good draws whose predictions are finite too. Only these enter scores.
    absent : frozenset of str
        The moments that y given theta does not have; see :func:`absent_moments`. They are stored unchanged and are not
        used in scores.
    sites : mapping of arrays (C, n, ...)
        The named sites of the model.
    stats : mapping of arrays (C / P, n)
        The statistics of the step before each draw, for each lane.
    predictions : mapping from place to mapping of arrays (C, n, T)
        Predictions at the test rows (``""``), the shifted rows and the out-of-distribution rows; see
        :meth:`~bdlbench.sampling.predictions.Predictor.predict`.
    anchor : array (C / P, D) or None
        The weights at which the network is linearised.
    function : array (C / P, n P, M) or None
        What a reference posterior keeps of each draw, where the run has one.
    """

    first_draw: int
    population: int
    good: np.ndarray
    shown: np.ndarray
    absent: frozenset[str]
    sites: Arrays
    stats: Arrays
    predictions: Mapping[str, Arrays]
    anchor: np.ndarray | None = None
    function: np.ndarray | None = None

    @property
    def stop(self) -> int:
        """The index of the first draw after this look."""
        return self.first_draw + self.good.shape[1]

    @property
    def shown_in_lanes(self) -> np.ndarray:
        """``shown`` in the order of ``function``: bool (C / P, n P), all particles of a draw beside each other."""
        split = self.shown.reshape(-1, self.population, self.shown.shape[1])
        return np.swapaxes(split, 1, 2).reshape(len(split), -1)

    def pool(self, place: str, mixture: PredictiveMixture) -> None:
        """Add the shown draws to a mixture: the first draws of all chains, then the second draws, and so on."""
        mask, values = self.shown.T.reshape(-1), self.predictions[place]
        names = [name for name in PREDICTED if name in values and name not in self.absent]
        pooled = {name: np.swapaxes(values[name], 0, 1).reshape(-1, *values[name].shape[2:]) for name in names}
        mixture.update({name: array[mask] for name, array in pooled.items()})


def look_at(
    block: Block,
    lanes: slice,
    thinning: int,
    sites: Arrays,
    predictions: Mapping[str, Arrays],
    absent: Collection[str] = (),
    function: Mapping[int, np.ndarray] | None = None,
    *,
    gaussian: bool = True,
) -> Look:
    """Make the look of one job from a block of draws of its group.

    Parameters
    ----------
    block : Block
        The draws of all lanes of the group.
    lanes : slice
        The lanes of the job.
    thinning : int
        The number of steps between two draws.
    sites, predictions
        Named sites and predictions (by place) of all lanes at the draws of the block.
    absent : collection of str
        Moments that earlier looks of the job have found not to exist.
    function : mapping, optional
        By lane what a reference posterior keeps of its draws.
    gaussian : bool
        Whether y given theta is normal, and so has all moments.
    """
    own = block.of(lanes)
    assert own.draws is not None
    population = own.draws.shape[2] if own.draws.ndim == 4 else 1
    ends = own.steps_done - thinning * np.arange(own.draws.shape[1])[::-1] - 1
    finite = as_chains(np.isfinite(own.draws).all(-1).reshape(len(own.draws), -1), population)
    good = finite & (ends[None] < np.repeat(own.bad_step, population)[:, None])
    kept = {name: as_chains(values[lanes], population) for name, values in sites.items()}
    seen = {
        place: {name: as_chains(values[lanes], population) for name, values in arrays.items()}
        for place, arrays in predictions.items()
    }
    absent, shown = usable(seen, good, absent, gaussian=gaussian)
    beside = [function[lane] for lane in range(lanes.start, lanes.stop) if lane in function] if function else []
    values = np.stack(beside) if beside else None
    return Look(own.first_draw, population, good, shown, absent, kept, own.stats, seen, own.anchor, values)


def usable(
    seen: Mapping[str, Arrays], good: np.ndarray, absent: Collection[str], *, gaussian: bool
) -> tuple[frozenset[str], np.ndarray]:
    """Return the moments that do not exist, and the draws (C, n) whose other predictions are finite at all places.

    Parameters
    ----------
    seen : mapping
        Predictions (C, n, ...) by place.
    good : bool array (C, n)
        The draws that are considered.
    absent : collection of str
        Moments that earlier draws have shown not to exist.
    gaussian : bool
        Whether y given theta is normal, and so has all moments.
    """
    absent = frozenset(absent)
    if not gaussian:
        absent = absent.union(*(absent_moments(arrays, good) for arrays in seen.values()))
    used = ({n: a for n, a in arrays.items() if n not in absent} for arrays in seen.values())
    return absent, np.logical_and.reduce([good, *(finite_predictions(arrays, gaussian=gaussian) for arrays in used)])


def as_chains(values: np.ndarray, population: int) -> np.ndarray:
    """Reorder (C, n P, ...), n draws of P particles in each of C lanes, into (C P, n, ...), one chain per particle."""
    if population == 1:
        return values
    split = values.reshape(len(values), -1, population, *values.shape[2:])
    return np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *values.shape[2:])


def absent_moments(values: Arrays, good: np.ndarray) -> frozenset[str]:
    """Moments of y given theta that are not finite at good draws of (C, n, ...) whose log likelihoods are finite.

    At such a draw the likelihood is a score like any other, and the draw is not at fault: Student's t distribution with
    two degrees of freedom has no variance, Cauchy's no mean. A mixture with one such component does not have it either.
    Where the log likelihood is not finite either, the draw is at fault, and not the model.
    """
    sound = good & _finite(values["log_lik"])
    found = {name for name in MOMENTS if name in values and not _finite(values[name])[sound].all()}
    return frozenset({*found, *(["variance"] if "mean" in found else [])})


def finite_predictions(values: Arrays, *, gaussian: bool = True) -> np.ndarray:
    """Which draws of (C, n, ...) arrays predict finite numbers, and of a normal y positive variances, at all rows."""
    fine = np.ones(values["log_lik"].shape[:2], bool)
    for name in PREDICTED:
        if name in values:
            fine &= _finite(values[name])
        if name == "variance" and name in values and gaussian:
            fine &= (values[name] > 0).all(tuple(range(2, values[name].ndim)))
    return fine


def _finite(values: np.ndarray) -> np.ndarray:
    return np.isfinite(values).all(tuple(range(2, values.ndim)))
