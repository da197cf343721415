"""The Bayesian neural network: network x prior x likelihood as a NumPyro model."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
from flax import linen, nnx
from jaxtyping import Array
from numpyro.contrib.module import random_flax_module, random_nnx_module

from bdlbench.errors import ConfigError
from bdlbench.model.likelihoods import Likelihood
from bdlbench.model.priors import Prior
from bdlbench.options import parameters

NetworkFactory = Callable[..., Any]


def random_network(network: NetworkFactory, prior: Prior, x: Array, out_features: int) -> Callable[[Array], Array]:
    """Put ``prior`` on the weights of a Flax module, NNX or Linen, as sample sites ``network.<weight>``.

    ``network`` is called with those of ``in_features``, ``out_features`` and ``rngs`` that its signature names. Within
    a trace without a random key the module is built abstractly, so that evaluating a density draws no weights.
    """
    names = parameters(network)
    known = {"in_features": math.prod(x.shape[1:]), "out_features": out_features}
    given = {name: value for name, value in known.items() if name in names}
    if "rngs" in names:
        key = numpyro.prng_key()
        if key is None:
            module = nnx.eval_shape(lambda: network(**given, rngs=nnx.Rngs(0)))
        else:
            module = network(**given, rngs=nnx.Rngs(key))
    else:
        module = network(**given)
    if isinstance(module, linen.Module):
        return random_flax_module("network", module, prior, jnp.ones((1, *x.shape[1:]), x.dtype))
    if isinstance(module, nnx.Module):
        return random_nnx_module("network", module, prior, scope_divider=".")
    raise ConfigError(f"network: {network} made a {type(module).__name__}, which is no Flax module (NNX or Linen).")


def bnn(x: Array, y: Array | None = None, *, network: NetworkFactory, prior: Prior, likelihood: Likelihood) -> None:
    """Theta ~ prior, f = network(x; theta), y ~ likelihood(f). Sites ``network.*``, ``f`` (rows, out), ``y`` (rows,)."""
    net = random_network(network, prior, x, likelihood.out_features)
    outputs = net(x)
    if outputs.shape != (x.shape[0], likelihood.out_features):
        raise ConfigError(
            f"network: outputs of shape {outputs.shape} do not fit the likelihood, which needs "
            f"{(x.shape[0], likelihood.out_features)}: let the network take out_features as a parameter."
        )
    f = numpyro.deterministic("f", outputs)
    observation = likelihood.observe(f)
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", observation, obs=y)
