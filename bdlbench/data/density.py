"""Known densities to sample from, without training data."""

import numpy as np

from bdlbench.data.dataset import Dataset, make_dataset
from bdlbench.data.generated import check_positive
from bdlbench.data.splits import generator


def means(spacing: float) -> np.ndarray:
    """Centres (25, 2) of the mixture: a 5 x 5 grid around the origin with distance ``spacing``."""
    side = spacing * np.arange(-2.0, 3.0)
    return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(25, 2)


def log_density(points: np.ndarray, *, spacing: float, variance: float) -> np.ndarray:
    """Log of ``(1/25) sum_k N(x | mu_k, variance I)`` at points (n, 2)."""
    squares = ((points[:, None, :] - means(spacing)) ** 2).sum(axis=-1)
    exponents = -0.5 * squares / variance
    top = exponents.max(axis=1)
    return top + np.log(np.exp(exponents - top[:, None]).mean(axis=1)) - np.log(2.0 * np.pi * variance)


def gaussians_25(*, spacing: float, variance: float, n_test: int, seed: int) -> Dataset:
    """A mixture of 25 Gaussians on a grid (Zhang et al., 2020, arXiv 1902.03932, with spacing 2 and variance 0.03).

    There are no training rows, so ``train`` has shapes (0, 2) and (0,). ``test.x`` (n_test, 2) holds exact independent
    draws, which are the reference for a sampler. ``test.y`` (n_test,) is the normalised log density at these draws.
    """
    check_positive(spacing=spacing, variance=variance, n_test=n_test)
    rng = generator(seed)
    x = means(spacing)[rng.integers(25, size=n_test)] + np.sqrt(variance) * rng.standard_normal((n_test, 2))
    return make_dataset(
        name="gaussians_25",
        task="density",
        train=(np.empty((0, 2)), np.empty(0)),
        test=(x, log_density(x, spacing=spacing, variance=variance)),
        standardize=False,
        feature_names=("x1", "x2"),
        target_name="log_density",
        notes=("no training rows: a density to sample from",),
    )
