"""A look: the draws of one job between two marks, with their predictions, selected from the draws of its group.

A population of P particles in one lane becomes P chains here. Each chain holds the successive draws of one particle.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.sampling.loop import Block

Arrays = Mapping[str, np.ndarray]
PREDICTED = ("log_lik", "mean", "variance", "cdf", "probs")
"""The quantities that a predictive mixture needs."""
MOMENTS = ("mean", "variance")


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
        True for good draws whose predictions are finite too. Scores use only these.
    moments : bool or None
        Whether y given theta has a mean and a variance; None if there are no test rows.
    sites : mapping of arrays (C, n, ...)
        The named sites of the model.
    stats : mapping of arrays (C / P, n)
        The statistics of the step before each draw, for each lane.
    predictions : mapping from place to mapping of arrays (C, n, T)
        Predictions at the test rows (``""``), the shifted rows and the out-of-distribution rows; see
        :meth:`~bdlbench.sampling.predictions.Predictor.predict`.
    anchor : array (C / P, D) or None
        The weights at which the network is linearised.
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
        """The index of the first draw after this look."""
        return self.first_draw + self.good.shape[1]

    def pool(self, place: str, mixture: PredictiveMixture) -> None:
        """Add the shown draws to a mixture: the first draws of all chains, then the second draws, and so on."""
        mask, values = self.shown.T.reshape(-1), self.predictions[place]
        pooled = {n: np.swapaxes(values[n], 0, 1).reshape(-1, *values[n].shape[2:]) for n in PREDICTED if n in values}
        mixture.update({name: array[mask] for name, array in pooled.items()})


def look_at(
    block: Block, lanes: slice, thinning: int, sites: Arrays, predictions: Mapping[str, Arrays], moments: bool | None
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
        The named sites and, by place, the predictions of all lanes at the draws of the block.
    moments : bool or None
        The value that an earlier look of the job has found; None for its first look.
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
    """Reorder (C, n P, ...), n draws of P particles in each of C lanes, into (C P, n, ...), one chain per particle."""
    if population == 1:
        return values
    split = values.reshape(len(values), -1, population, *values.shape[2:])
    return np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *values.shape[2:])


def has_moments(values: Arrays, good: np.ndarray) -> bool:
    """Whether the distribution of y given theta has a mean and a variance that can be used.

    The answer is False if no good draw of ``values`` (C, n, ...) has finite variances at all rows although the
    likelihood is finite. Student's t distribution with two degrees of freedom is an example: its log likelihood can be
    scored, and the draws are not wrong.
    """
    variance = values.get("variance")
    if variance is None or not good.any() or np.isfinite(variance[good]).all(-1).any():
        return True
    # If the likelihood is not finite either, the draws are wrong, and not the model.
    return not np.isfinite(values["log_lik"][good]).all(-1).any()


def finite_predictions(values: Arrays) -> np.ndarray:
    """Return which draws (C, n) have finite predictions, with positive variances, at all rows of arrays (C, n, ...)."""
    fine = np.ones(values["log_lik"].shape[:2], bool)
    for name in PREDICTED:
        if name in values:
            here = np.isfinite(values[name]) & ((values[name] > 0) if name == "variance" else True)
            fine &= here.all(tuple(range(2, here.ndim)))
    return fine
