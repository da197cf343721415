"""The eight schools data: effects of coaching on SAT scores."""

import numpy as np

from bdlbench.data.dataset import Dataset, make_dataset


def eight_schools() -> Dataset:
    """Estimated effects y (points of SAT-V) with their standard errors x in eight schools (Rubin, 1981, table 1).

    Nothing is standardised and there are no test rows. The set is for a hierarchical model of both columns.
    """
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    standard_errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return make_dataset(
        name="eight_schools",
        task="regression",
        train=(standard_errors[:, None], effects),
        standardize=False,
        feature_names=("standard_error",),
        target_name="effect",
        notes=("not standardised", "no test rows"),
    )
