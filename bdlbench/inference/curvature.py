"""The curvature of a log density at a point, in two parts: the likelihood's Fisher information and the prior's Hessian.

These functions belong to :mod:`bdlbench.inference.laplace`. The module has no method of its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from bdlbench.errors import ConfigError
from bdlbench.types import Array, Data

BLOCK_BYTES = 2**24
"""Bytes of Jacobian rows that are in memory at one time."""
Predictive = Callable[[Array, Any], dist.Distribution]


def parameters(p: dist.Distribution) -> Array:
    """The parameters (B, K) for which the Fisher information is known: mean and scale of a normal, or class logits."""
    base = p.base_dist if isinstance(p, dist.ExpandedDistribution) else p
    if isinstance(base, dist.Normal) and len(p.batch_shape) == 1:
        return jnp.stack([jnp.broadcast_to(base.loc, p.batch_shape), jnp.broadcast_to(base.scale, p.batch_shape)], -1)
    if isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
        return base.logits
    if isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        return base.logits[:, None]
    raise ConfigError(
        f"inference: Laplace knows the curvature of Normal, Categorical and Bernoulli rows, and this model's y is "
        f"{type(base).__name__}: use another method."
    )


def fisher_root(p: dist.Distribution, eta: Array) -> Array:
    """A (K, K) such that A A' is the Fisher information of one row in its parameters ``eta`` (K,).

    The parameters are those of :func:`parameters`. For a normal the information is diag(1 / s^2, 2 / s^2). For a
    categorical it is diag(p) - p p', whose root is
    diag(sqrt p) - p sqrt(p)'. In these parameters, except the normal's scale, the Fisher information is the Hessian of
    -log p(y | eta) for every y, so that the generalised Gauss-Newton matrix is the Fisher information (Martens 2020).
    """
    base = p.base_dist if isinstance(p, dist.ExpandedDistribution) else p
    if isinstance(base, dist.Normal):
        return jnp.diag(jnp.array([1.0, 2.0**0.5], eta.dtype) / eta[1])
    if isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        prob = jax.nn.sigmoid(eta)
        return jnp.sqrt(prob * (1 - prob))[:, None]
    probs = jax.nn.softmax(eta)
    return jnp.diag(jnp.sqrt(probs)) - probs[:, None] * jnp.sqrt(probs)[None]


def row_factor(predictive: Predictive, theta: Array, x: Any) -> Array:
    """A' J (K, d) of one row, where J is the Jacobian of its parameters. The row's information is J' A A' J."""

    def eta(theta: Array) -> Array:
        return parameters(predictive(theta, x[None]))[0]

    value, pull = jax.vjp(eta, theta)
    root = fisher_root(predictive(theta, x[None]), value)
    return jax.vmap(lambda column: pull(column)[0])(root.T)


def fisher_information(predictive: Predictive, theta: Array, data: Data, diagonal: bool) -> Array:
    """The sum over the rows of J' F J at ``theta`` (d,): (d, d), or its diagonal (d,).

    It takes K backward passes over the rows. If ``data`` has weights, each row is multiplied by its weight.
    """
    factor = lambda x: row_factor(predictive, theta, x)  # noqa: E731
    num_params, dim = jax.eval_shape(factor, data.x[0]).shape
    num_rows = data.x.shape[0]
    block = min(num_rows, max(1, BLOCK_BYTES // (4 * num_params * dim)))

    def add(i: Array, total: Array) -> Array:
        first = jnp.minimum(i * block, num_rows - block)
        rows = jax.lax.dynamic_slice_in_dim(data.x, first, block)
        fresh = first + jnp.arange(block) >= i * block  # the last block may overlap the one before
        factors = jax.vmap(factor)(rows) * fresh[:, None, None]
        if data.weights is not None:
            factors *= jnp.sqrt(jax.lax.dynamic_slice_in_dim(data.weights, first, block))[:, None, None]
        factors = jax.lax.optimization_barrier(factors.reshape(-1, dim))
        return total + ((factors**2).sum(0) if diagonal else factors.T @ factors)

    return jax.lax.fori_loop(0, -(-num_rows // block), add, jnp.zeros((dim,) if diagonal else (dim, dim), theta.dtype))


def hessian(function: Callable[[Array], Array], theta: Array, diagonal: bool) -> Array:
    """The Hessian (d, d) of a cheap scalar function, or its diagonal (d,), from d Hessian-vector products."""
    dim = theta.shape[0]
    grad = jax.grad(function)

    def column(i: Array) -> Array:
        out = jax.jvp(grad, (theta,), (jax.nn.one_hot(i, dim, dtype=theta.dtype),))[1]
        return out[i] if diagonal else out

    return jax.lax.map(column, jnp.arange(dim), batch_size=min(dim, 64))
