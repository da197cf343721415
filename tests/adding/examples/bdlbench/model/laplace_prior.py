"""A sparse prior."""

import numpyro.distributions as dist

from bdlbench.model.priors import Prior
from bdlbench.options import positive


def laplace(*, scale: float) -> Prior:
    """Every weight and bias ~ Laplace(0, scale), density exp(-|w| / scale) / (2 scale) (Williams 1995)."""
    positive("prior", scale=scale)
    return lambda name, shape: dist.Laplace(0.0, scale)
