"""The one loop that drives every method, over lanes of jobs and chains; :func:`compile` makes a sampler in memory."""

from typing import Any

__all__ = ["Sample", "Sampler", "compile"]


def __getattr__(name: str) -> Any:
    """Import what is in :mod:`bdlbench.sampling.sample` when it is asked for: the package itself costs no JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bdlbench.sampling import sample

    return getattr(sample, name)
