"""Priors over the weights of a network.

A prior is a function that receives the dotted name and the shape of a weight and returns a NumPyro distribution. This
is what ``numpyro.contrib.module.random_nnx_module`` accepts.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bdlbench.options import positive

Prior = Callable[[str, tuple[int, ...]], dist.Distribution]


def is_bias(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a bias: it has at most one axis, or the last part of its name is ``bias``."""
    return len(shape) < 2 or name.rsplit(".", 1)[-1] == "bias"


def iid(*, scale: float) -> Prior:
    """Every weight and every bias ~ N(0, scale^2), independently (Neal 1996)."""
    positive("prior", scale=scale)
    return lambda name, shape: dist.Normal(0.0, scale)


def normal(*, weight_scale: float, bias_scale: float) -> Prior:
    """Weights ~ N(0, weight_scale^2), biases ~ N(0, bias_scale^2). The scales do not depend on the layer's width."""
    positive("prior", weight_scale=weight_scale, bias_scale=bias_scale)
    return lambda name, shape: dist.Normal(0.0, bias_scale if is_bias(name, shape) else weight_scale)


def fan_in(*, weight_scale: float, bias_scale: float) -> Prior:
    """Weights ~ N(0, weight_scale^2 / fan_in), biases ~ N(0, bias_scale^2).

    With this scaling the prior over functions has a limit as the network becomes wider (Neal 1996; Matthews et al.
    2018). The fan-in of a kernel is the product of the sizes of all its axes except the last.
    """
    positive("prior", weight_scale=weight_scale, bias_scale=bias_scale)

    def prior(name: str, shape: tuple[int, ...]) -> dist.Distribution:
        if is_bias(name, shape):
            return dist.Normal(0.0, bias_scale)
        return dist.Normal(0.0, weight_scale / _fan_in(shape) ** 0.5)

    return prior


def hierarchical(*, median: float, log_sd: float, bias_scale: float) -> Prior:
    """Weights of layer l ~ N(0, s_l^2 / fan_in) with a scale of its own, log s_l ~ N(log ``median``, ``log_sd``^2).

    The scales are latent sites ``scale.<weight>`` and are inferred with the weights; biases ~ N(0, bias_scale^2). Source:
    Neal (1996), Bayesian Learning for Neural Networks, section 3.3, with a log-normal law of the scales in place of a
    gamma law of the precisions.
    """
    positive("prior", median=median, log_sd=log_sd, bias_scale=bias_scale)

    def prior(name: str, shape: tuple[int, ...]) -> dist.Distribution:
        if is_bias(name, shape):
            return dist.Normal(0.0, bias_scale)
        scale = numpyro.sample(f"scale.{name}", dist.LogNormal(jnp.log(median), log_sd))
        return dist.Normal(0.0, scale / _fan_in(shape) ** 0.5)

    return prior


def _fan_in(shape: tuple[int, ...]) -> int:
    """The product of the sizes of all axes of a kernel except the last."""
    return math.prod(shape[:-1])
