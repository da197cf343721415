"""Populations: the P particles that one lane carries are stored and scored as P chains."""

from collections.abc import Mapping

import numpy as np

from bdlbench.metrics.mixture import PredictiveMixture

PREDICTED = ("log_lik", "mean", "variance", "cdf", "probs")
"""What a predictive mixture is made of."""
MOMENTS = ("mean", "variance")


def num_particles(draws: np.ndarray) -> int:
    """P of draws (C, n, P, D); 1 for (C, n, D)."""
    return draws.shape[2] if draws.ndim == 4 else 1


def as_chains(values: np.ndarray, population: int) -> np.ndarray:
    """Rows (C, n P, ...) of draws of P particles each as (C P, n, ...): a particle is followed through the draws."""
    if population == 1:
        return values
    split = values.reshape(len(values), -1, population, *values.shape[2:])
    return np.swapaxes(split, 1, 2).reshape(-1, split.shape[1], *values.shape[2:])


def pooled(mixture: PredictiveMixture, values: Mapping[str, np.ndarray], good: np.ndarray) -> None:
    """Add the good draws of (C, n, ...) arrays to a mixture, in the order of the draws, chains side by side."""
    mask = good.T.reshape(-1)
    mixture.update(
        {
            name: np.swapaxes(values[name], 0, 1).reshape(-1, *values[name].shape[2:])[mask]
            for name in PREDICTED
            if name in values
        }
    )


def moments_kept(values: Mapping[str, np.ndarray], good: np.ndarray) -> dict[str, np.ndarray]:
    """The predictions without mean and variance where no good draw of (C, n, ...) has a finite variance at all rows.

    Such is Student's t of two degrees of freedom. Its likelihood is a score as good as any, and no draw is at fault.
    """
    variance = values.get("variance")
    if variance is None or not good.any() or np.isfinite(variance[good]).all(-1).any():
        return dict(values)
    if not np.isfinite(values["log_lik"][good]).all(-1).any():
        return dict(values)  # draws that predict nothing: not the model's nature
    return {name: array for name, array in values.items() if name not in MOMENTS}


def finite_predictions(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which draws of (C, n, ...) arrays predict finite numbers, and positive variances, at all rows: (C, n)."""
    fine = np.ones(values["log_lik"].shape[:2], bool)
    for name in PREDICTED:
        if name in values:
            here = np.isfinite(values[name]) & ((values[name] > 0) if name == "variance" else True)
            fine &= here.all(tuple(range(2, here.ndim)))
    return fine
