"""A residual multilayer perceptron."""

import jax
from flax import nnx
from jaxtyping import Array, Float


class ResidualMLP(nnx.Module):
    """h_0 = x W_0 + b_0, h_l = h_{l-1} + silu(h_{l-1} W_l + b_l), f = h_depth W + b.

    Parameters
    ----------
    width, depth : int
    """

    def __init__(self, in_features: int, out_features: int, rngs: nnx.Rngs, *, width: int, depth: int) -> None:
        self.first = nnx.Linear(in_features, width, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.last = nnx.Linear(width, out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "rows ..."]) -> Float[Array, "rows out"]:
        """Network outputs (rows, out_features) at inputs (rows, ...)."""
        h = self.first(x.reshape(x.shape[0], -1))
        for block in self.blocks:
            h = h + jax.nn.silu(block(h))
        return self.last(h)
