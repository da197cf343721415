"""A staircase: a function that no smooth network fits exactly."""

import numpy as np

from bdlbench.data.dataset import Dataset, make_dataset
from bdlbench.data.splits import cut


def steps(*, n: int, noise: float, seed: int, validation_fraction: float, n_train: int | None) -> Dataset:
    """Staircase y = floor(4 x) / 4 + noise e, e ~ N(0, 1), x uniform on [-1, 1]; as many test rows."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.0, 1.0, (2 * n, 1))
    y = np.floor(4.0 * x[:, 0]) / 4.0 + noise * rng.standard_normal(2 * n)
    train, validation = cut(np.arange(n), validation_fraction=validation_fraction, n_train=n_train)
    return make_dataset(
        name="steps",
        task="regression",
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]) if len(validation) else None,
        test=(x[n:], y[n:]),
        feature_names=("x",),
    )
