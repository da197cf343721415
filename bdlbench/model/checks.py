"""Checks of a target with the values of the rows before sampling: support and mask of y, and independence of rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from bdlbench.errors import ConfigError
from bdlbench.types import Data, Target

MakeTarget = Callable[[Any, Any, Any], Target]
"""``(numbers, x, y) -> Target``."""
ROWS = 8
"""Number of training rows, evenly spaced, that are evaluated alone and together."""
SCALES = (1.0, 0.1)
"""Standard deviations of the random parameters at which the rows are evaluated."""
SHAPES = (TypeError, ValueError, IndexError)
"""Errors that a model raises for arrays of shapes or types for which it is not written."""


def scored_rows(make_target: MakeTarget, numbers: Any, train: Any, x: Any) -> np.ndarray:
    """Which rows of x the model observes, (n,) bool. The target must have ``scored``.

    Raises
    ------
    ConfigError
        If the result depends on a number of the configuration, which may differ between runs that share one program.
    """

    def look(numbers: Any, x: Any) -> Any:
        scored = make_target(numbers, *train).scored
        assert scored is not None
        return scored(x)

    jaxpr = jax.make_jaxpr(look)(numbers, x).jaxpr
    if any(dce_jaxpr(jaxpr, [True])[1][: len(jax.tree.leaves(numbers))]):
        raise ConfigError(
            "model: the mask of its y depends on an option of the model, but which rows are scored must depend on x alone: "
            "write the number into the model, or put the mask into a column of x."
        )
    return np.asarray(jax.jit(look)(numbers, x))


def outside(make_target: MakeTarget, numbers: Any, train: Any, x: Any, y: Any) -> np.ndarray:
    """Which y lie outside the support of the likelihood, (n,) bool. The target must have ``fits``.

    If the support depends on parameters, the result is False for all rows. The posterior then has only parameters for
    which y is possible.
    """

    def look(theta: Any, x: Any, y: Any) -> Any:
        fits = make_target(numbers, *train).fits
        assert fits is not None
        return fits(theta, x, y)

    theta = jax.eval_shape(lambda: jnp.zeros(make_target(numbers, *train).dim))
    jaxpr = jax.make_jaxpr(look)(theta, x, y).jaxpr
    if dce_jaxpr(jaxpr, [True])[1][0]:
        return np.zeros(len(y), bool)
    return ~np.asarray(jax.jit(look)(jnp.zeros(theta.shape), x, y))


def check_rows_alone(make_target: MakeTarget, numbers: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Raise ConfigError if the log likelihood of a row depends on the other rows with which it is evaluated.

    At random parameters theta ~ N(0, s^2), s = 1 and 0.1, f(x)[i] is compared with f(x[i:i+1])[0], where f is the log
    likelihood of each row. Both are computed in double precision. They may differ by sqrt(eps) max_i |f_i|, where eps
    is that of the coarsest floating type in the computation of the model. Rounding errors are smaller than this unless
    they are amplified by 1 / sqrt(eps), 7e7 in double precision. If rows interact, the difference is of the size of f.

    Two kinds of models are not checked: those that cannot be evaluated on one row, such as a model with a latent
    variable for each row, and those whose log likelihood is a random estimate.

    Parameters
    ----------
    x : array (N, ...)
    y : array (N,) or (N, K)
    """
    rows = np.unique(np.linspace(0, len(y) - 1, ROWS).round().astype(int))
    wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in (x[rows], y[rows])]
    try:
        with jax.enable_x64(True):
            found = _together_and_alone(make_target, numbers, *wide)
    except SHAPES:  # the model cannot be evaluated on one row, or is written for one precision
        try:
            found = _together_and_alone(make_target, numbers, x[rows], y[rows])
        except SHAPES:
            return
    if found is None:
        return
    together, alone, eps = found
    both = np.isfinite(together) & np.isfinite(alone)
    scale = np.abs(together, where=both, out=np.zeros_like(together)).max(axis=1, keepdims=True)
    apart = np.abs(np.subtract(together, alone, where=both, out=np.zeros_like(together))) > eps**0.5 * scale
    if apart.any() or (np.isfinite(together) != np.isfinite(alone)).any():
        raise ConfigError(
            "model: it gives a row another likelihood alone than beside other rows, as a network with normalisation over the "
            "batch or attention across rows does: normalise within a row, as LayerNorm does, or declare rows_interact: true "
            "in the network or the model if this is meant."
        )


def _together_and_alone(
    make_target: MakeTarget, numbers: Any, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Log likelihoods (draws, rows) of the rows together and one at a time, and eps; None for random estimates."""
    dims: list[int] = []

    def look(theta: Any, x: Any, y: Any) -> Any:
        target = make_target(numbers, x, y)
        dims.append(target.dim)
        if target.needs_key:
            return None
        theta = theta[: target.dim]
        alone = jax.lax.map(lambda one: target.terms(theta, Data(one[0][None], one[1][None], 1)).log_lik, (x, y))
        return target.terms(theta, Data(x, y, len(y))).log_lik, alone.reshape(len(y), -1)

    real = np.float64 if jax.config.jax_enable_x64 else np.float32
    jax.eval_shape(lambda x, y: dims.append(make_target(numbers, x, y).dim), x, y)
    thetas = [np.random.default_rng(0).normal(0.0, s, dims[0]).astype(real) for s in SCALES]
    traced = jax.jit(look).trace(thetas[0], x, y)
    if traced.out_info is None or traced.out_info[1].shape != (len(y), 1):
        return None
    compiled = traced.lower().compile()
    together, alone = (
        np.stack(part).astype(np.float64) for part in zip(*(compiled(t, x, y) for t in thetas), strict=True)
    )
    eps = max((float(jnp.finfo(kind).eps) for kind in _float_types(traced.jaxpr.jaxpr)), default=0.0)
    return together, alone[..., 0], eps


def _float_types(jaxpr: Any) -> set[Any]:
    """The floating types of all values that a program computes."""
    found = set()
    for eqn in jaxpr.eqns:
        kinds = {getattr(var.aval, "dtype", None) for var in eqn.outvars}
        found |= {kind for kind in kinds if kind is not None and jnp.issubdtype(kind, jnp.floating)}
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found |= _float_types(inner)
    return found
