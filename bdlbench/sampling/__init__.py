"""The loop that runs every method over lanes (jobs x chains). :func:`compile` makes a sampler that needs no store."""

from typing import Any

__all__ = ["Sample", "Sampler", "compile"]


def __getattr__(name: str) -> Any:
    """Import a name from :mod:`bdlbench.sampling.sample` when it is first used, so that the package imports no JAX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bdlbench.sampling import sample

    return getattr(sample, name)
