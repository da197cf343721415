"""The draws of one job between two marks with all that is predicted from them, cut out of those of its group.

The P particles of a population, which one lane carries, become P chains here: a particle is followed through the draws.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.sampling.loop import Block

Arrays = Mapping[str, np.ndarray]
PREDICTED = ("log_lik", "mean", "variance", "cdf", "probs")
"""What a predictive mixture is made of."""
MOMENTS = ("mean", "variance")


class Look(NamedTuple):
    """Draws of one job between two marks: C chains of n draws, where each particle of a population is a chain.

    Attributes
    ----------
    first_draw : int
    population : int
        P, the particles that a lane carries.
    good : bool array (C, n)
        Draws that are finite and come before their chain's first bad step.
    shown : bool array (C, n)
        Good draws whose predictions are finite too. Only these enter scores.
    moments : bool or None
        Whether y given theta has a mean and a variance; None where there are no test rows.
    sites : mapping of arrays (C, n, ...)
    stats : mapping of arrays (C / P, n)
        Of the step before each draw, a row a lane.
    predictions : mapping from place to mapping of arrays (C, n, T)
        At the test rows (``""``), shifted and out-of-distribution rows; see
        :meth:`~bdlbench.sampling.predictions.Predictor.predict`.
    anchor : array (C / P, D) or None
        Where the network is linearised.
    """

    first_draw: int
    population: int
    good: np.ndarray
    shown: np.ndarray
    moments: bool | None
    sites: Arrays
    stats: Arrays
    predictions: Mapping[str, Arrays]
    anchor: np.ndarray | None = None

    @property
    def stop(self) -> int:
        """Number of the draw after the last one."""
        return self.first_draw + self.good.shape[1]

    def pool(self, place: str, mixture: PredictiveMixture) -> None:
        """Add the shown draws to a mixture, in the order of the draws, chains side by side."""
        mask, values = self.shown.T.reshape(-1), self.predictions[place]
        pooled = {n: np.swapaxes(values[n], 0, 1).reshape(-1, *values[n].shape[2:]) for n in PREDICTED if n in values}
        mixture.update({name: array[mask] for name, array in pooled.items()})


def look_at(
    block: Block, lanes: slice, thinning: int, sites: Arrays, predictions: Mapping[str, Arrays], moments: bool | None
) -> Look:
    """The look of one job at a block of draws.

    Parameters
    ----------
    block : Block
        With the draws of all lanes.
    lanes : slice
        The job's.
    thinning : int
        Steps a draw.
    sites, predictions
        Of all lanes at the draws of the block; predictions by place.
    moments : bool or None
        What earlier looks of the job have found; None before the first.
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
    if moments is None and "" in seen:
        moments = has_moments(seen[""], good)
    if moments is False:
        seen = {place: {n: a for n, a in arrays.items() if n not in MOMENTS} for place, arrays in seen.items()}
    shown = np.logical_and.reduce([good, *map(finite_predictions, seen.values())])
    return Look(own.first_draw, population, good, shown, moments, kept, own.stats, seen, own.anchor)


def as_chains(values: np.ndarray, population: int) -> np.ndarray:
    """Rows (C, n P, ...) of draws of P particles each as (C P, n, ...)."""
    if population == 1:
        return values
    split = values.reshape(len(values), -1, population, *values.shape[2:])
    return np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *values.shape[2:])


def has_moments(values: Arrays, good: np.ndarray) -> bool:
    """Whether mean and variance are used: not where no good draw of (C, n, ...) has a finite variance at all rows.

    Student's t distribution with two degrees of freedom is such a case. Its likelihood is a score like any other, and
    no draw is at fault.
    """
    variance = values.get("variance")
    if variance is None or not good.any() or np.isfinite(variance[good]).all(-1).any():
        return True
    # Where the likelihood is not finite either, the draws are at fault, and not the model.
    return not np.isfinite(values["log_lik"][good]).all(-1).any()


def finite_predictions(values: Arrays) -> np.ndarray:
    """Which draws of (C, n, ...) arrays predict finite numbers, and positive variances, at all rows: (C, n)."""
    fine = np.ones(values["log_lik"].shape[:2], bool)
    for name in PREDICTED:
        if name in values:
            here = np.isfinite(values[name]) & ((values[name] > 0) if name == "variance" else True)
            fine &= here.all(tuple(range(2, here.ndim)))
    return fine
