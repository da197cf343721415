"""The multilayer perceptron."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from bdlbench.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "sin": jnp.sin,
}


MOST_LAYERS = 200
"""Largest depth. Layers are not repeated by a loop, so that the time of compilation is proportional to their number."""
NARROW = 32
"""Networks whose first hidden layer has fewer units are computed with the rows as the last axis, which is faster.

XLA's CPU backend multiplies thin matrices in blocks of some 24 rows. With the rows last, a gradient takes 0.62 of the
time for 4 layers of 16 units on 1,000 rows, and 0.8 of the time for a layer of 10 units on 300 to 900 rows."""


class MLP(nnx.Module):
    r"""A fully connected network: ``depth`` hidden layers of ``width`` units, then a linear layer.

    .. math:: h_0 = x, \quad h_l = a(h_{l-1} W_l + b_l), \quad f = h_L W_{L+1} + b_{L+1}

    Inputs with more than one feature axis (images) are flattened. ``depth=0`` is a linear model. With a smooth
    activation (tanh, silu) the posterior density is differentiable, which HMC needs to conserve energy. With ReLU it is
    not.

    Parameters
    ----------
    in_features, out_features : int
        The number of features after flattening and the number of outputs that the likelihood needs. A run sets both.
    width : int
        Units in each hidden layer.
    depth : int
        Number of hidden layers.
    activation : str
        One of ``ACTIVATIONS``.
    """

    def __init__(
        self, in_features: int, out_features: int, rngs: nnx.Rngs, *, width: int, depth: int, activation: str
    ) -> None:
        if width < 1 or depth < 0:
            raise ConfigError(f"network.width={width}, network.depth={depth}: give a width >= 1 and a depth >= 0.")
        if depth > MOST_LAYERS:
            raise ConfigError(f"network.depth={depth} must be at most {MOST_LAYERS}: each layer is compiled by itself.")
        if activation not in ACTIVATIONS:
            raise ConfigError(f"network.activation={activation!r} is unknown: use one of {', '.join(ACTIVATIONS)}.")
        sizes = [in_features, *[width] * depth]
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.output = nnx.Linear(sizes[-1], out_features, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "rows ..."]) -> Float[Array, "rows out"]:
        """Network outputs (rows, out_features) at inputs (rows, ...)."""
        h = x.reshape(x.shape[0], -1)
        act = ACTIVATIONS[self.activation]
        if not self.hidden or self.hidden[0].out_features >= NARROW:
            for layer in self.hidden:
                h = act(layer(h))
            return self.output(h)
        h = h.T
        for layer in self.hidden:
            h = act(_rows_last(layer, h))
        return _rows_last(self.output, h).T


def _rows_last(layer: nnx.Linear, h: Float[Array, "in rows"]) -> Float[Array, "out rows"]:
    """W' h + b, the layer applied to h with the rows as its last axis."""
    assert layer.bias is not None
    return jax.lax.dot_general(layer.kernel[...], h, (((0,), (0,)), ((), ()))) + layer.bias[...][:, None]
