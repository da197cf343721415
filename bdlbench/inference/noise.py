"""Standard normal noise of one step, which two steps of half the size can share."""

import jax
import jax.numpy as jnp

from bdlbench.types import Array


def standard_normal(key: Array, like: Array) -> Array:
    r"""Standard normal noise of the shape and type of ``like``.

    Two keys (2,) in place of one give :math:`(\xi_1 + \xi_2) / \sqrt 2`, standard normal too. A chain of steps h with this
    noise and a chain of two steps h / 2 with :math:`\xi_1` and :math:`\xi_2` follow the same Brownian path, so that their
    difference is that of the step size.
    """
    if key.ndim == 1 and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        both = jax.vmap(lambda one: jax.random.normal(one, like.shape, like.dtype))(key)
        return both.sum(0) / jnp.sqrt(jnp.asarray(2, like.dtype))
    return jax.random.normal(key, like.shape, like.dtype)
