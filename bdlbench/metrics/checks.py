"""Checks of the inputs of metrics, so that broadcasting or a wrong label does not give a wrong number."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def per_point(**arrays: Any) -> tuple[Floats, ...]:
    """Return float64 vectors of one common length n.

    Parameters
    ----------
    **arrays : array (n,)
        The vectors. Error messages use their names.

    Raises
    ------
    ValueError
        If an array is not a non-empty vector, or lengths differ. (n,) and (n, 1) would be broadcast to (n, n).
    FloatingPointError
        If a value is not finite.
    """
    out = tuple(np.asarray(value, np.float64) for value in arrays.values())
    shapes = {name: value.shape for name, value in zip(arrays, out, strict=True)}
    if len(set(shapes.values())) != 1 or out[0].ndim != 1 or out[0].size == 0:
        raise ValueError(f"expected non-empty vectors with one value a point, got shapes {shapes}")
    for name, value in zip(arrays, out, strict=True):
        if not np.isfinite(value).all():
            raise FloatingPointError(f"{name} is not finite at point {int(np.flatnonzero(~np.isfinite(value))[0])}")
    return out


def components(loc: Any, scale: Any) -> tuple[Floats, Floats]:
    """Return means and standard deviations (S, n) of an equally weighted Gaussian mixture at n points, checked."""
    loc, scale = np.asarray(loc, np.float64), np.asarray(scale, np.float64)
    if loc.ndim != 2 or loc.shape != scale.shape or loc.size == 0:
        raise ValueError(f"loc and scale must both be (S, n), got {loc.shape} and {scale.shape}")
    if not (np.isfinite(loc).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise FloatingPointError("loc and scale must be finite and scale positive")
    return loc, scale


def probabilities(probs: Any, name: str = "probs") -> Floats:
    """Return class probabilities (n, K), checked to be finite, in [0, 1] and to sum to one within 1e-4 (float32)."""
    out = np.asarray(probs, np.float64)
    if out.ndim != 2 or out.shape[1] < 2 or out.size == 0:
        raise ValueError(f"{name} must be (n, K) with K of at least 2, got {out.shape}")
    if not np.isfinite(out).all():
        raise FloatingPointError(f"{name} is not finite")
    if (out < 0).any() or (np.abs(out.sum(axis=1) - 1) > 1e-4).any():
        raise ValueError(f"{name} must be non-negative and sum to one over classes")
    return out


def labels(y: Any, num_classes: int, num_points: int) -> Ints:
    """Return integer labels (n,) in [0, K), checked."""
    out = np.asarray(y)
    if out.shape != (num_points,) or out.dtype.kind not in "iub":
        raise ValueError(f"y must hold {num_points} integer labels, got {out.dtype} of shape {out.shape}")
    if (out < 0).any() or (out >= num_classes).any():
        raise ValueError(f"y must hold labels from 0 to {num_classes - 1}, got {out.min()} to {out.max()}")
    return out.astype(np.intp)


def fraction(name: str, value: float) -> float:
    """Return ``value``, an option of a metric, if it lies strictly between 0 and 1."""
    if not 0 < value < 1:
        from bdlbench.types import ConfigError

        raise ConfigError(f"{name} is {value}, but must lie between 0 and 1: write 90 % as 0.9.")
    return float(value)


def at_least(name: str, value: int, least: int) -> int:
    """Return ``value``, an integer option of a metric, if it is ``least`` or more."""
    if int(value) != value or value < least:
        from bdlbench.types import ConfigError

        raise ConfigError(f"{name} is {value}, but must be a whole number of at least {least}: raise it.")
    return int(value)
