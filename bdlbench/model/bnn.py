"""The Bayesian neural network as a NumPyro model that joins a network, a prior and a likelihood."""

import math
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from flax import errors, linen, nnx
from jaxtyping import Array
from numpyro.contrib.module import random_flax_module, random_nnx_module

from bdlbench.errors import ConfigError
from bdlbench.model.likelihoods import Likelihood
from bdlbench.model.priors import Prior
from bdlbench.options import parameters

NetworkFactory = Callable[..., Any]


def needs_rngs(network: NetworkFactory) -> bool:
    """Whether the factory of a network has a parameter ``rngs``."""
    return "rngs" in parameters(network)


def build_network(network: NetworkFactory, x: Any, out_features: int, key: Any) -> Any:
    """Make the module for inputs x by calling its factory.

    The factory receives ``in_features``, ``out_features`` and ``rngs`` as far as its signature names them. If it names
    ``rngs`` and ``key`` is None, the module is built abstractly, without values for its weights.

    Raises
    ------
    ConfigError
        If the factory names ``in_features`` but x is not one array.
    """
    names = parameters(network)
    if "in_features" in names and not hasattr(x, "shape"):
        raise ConfigError("network: it asks for in_features, but x is a tree of arrays: let it know its sizes itself.")
    given = {"in_features": math.prod(x.shape[1:])} if "in_features" in names else {}
    if "out_features" in names:
        given["out_features"] = out_features
    if "rngs" not in names:
        return network(**given)
    if key is None:
        return nnx.eval_shape(lambda: network(**given, rngs=nnx.Rngs(0)))
    return network(**given, rngs=nnx.Rngs(key))


def random_network(network: NetworkFactory, prior: Prior, x: Any, out_features: int) -> Callable[[Any], Array]:
    """Give the weights of a Flax module (NNX or Linen) the prior, as sample sites ``network.<weight>``.

    ``network`` is called as in :func:`build_network`. Inside a trace without a random key the module is built
    abstractly, so that no weights are drawn when a density is evaluated.

    Returns
    -------
    callable (x) -> array (rows, out_features)
        The network with its sampled weights.

    Raises
    ------
    ConfigError
        If the factory makes no Flax module, or the module has state beside its parameters or needs a random key.
    """
    module = build_network(network, x, out_features, None if not needs_rngs(network) else numpyro.prng_key())
    _refuse_state(module, x)
    if isinstance(module, linen.Module):
        if hasattr(x, "shape"):
            return random_flax_module("network", module, prior, jnp.ones((1, *x.shape[1:]), x.dtype))
        return random_flax_module("network", module, prior, jax.tree.map(lambda leaf: leaf[:1], x))
    if isinstance(module, nnx.Module):
        return random_nnx_module("network", module, prior, scope_divider=".")
    raise ConfigError(f"network: {network} made a {type(module).__name__}, which is no Flax module (NNX or Linen).")


def _refuse_state(module: Any, x: Any) -> None:
    """Raise ConfigError if a module has state that is no parameter: a density is a function of parameters alone."""
    if isinstance(module, nnx.Module):
        rest = typing.cast(Any, nnx.split(module, nnx.Param, ...))[2]
        held = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)]
    elif isinstance(module, linen.Module):
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
        try:
            made = jax.eval_shape(module.init, jax.random.key(0), row)
            if set(made) == {"params"}:  # the module is applied without a key, as in a density
                jax.eval_shape(module.apply, made, row)
        except errors.InvalidRngError as error:
            raise ConfigError(_STATE.format("a random key of its own")) from error
        held = sorted(set(made) - {"params"})
    else:
        return
    if held:
        raise ConfigError(_STATE.format(f"the state '{held[0]}', which is no parameter"))


_STATE = (
    "network: it needs {}, so that one row would be computed by what other rows or draws left: use LayerNorm in place of "
    "BatchNorm, and inference=mc_dropout in place of Dropout."
)


def bnn(x: Any, y: Array | None = None, *, network: NetworkFactory, prior: Prior, likelihood: Likelihood) -> None:
    """Theta ~ prior, f = network(x; theta), y ~ likelihood(f).

    The sites are ``network.*`` (the weights), ``f`` (rows, out_features), ``y`` (rows,) or (rows, targets), and the
    parameters of the likelihood.

    Raises
    ------
    ConfigError
        If the network does not return one array (rows, out_features).
    """
    net = random_network(network, prior, x, likelihood.out_features)
    outputs = net(x)
    if not hasattr(outputs, "shape"):
        raise ConfigError(
            f"network: it returns a {type(outputs).__name__}: return one array (rows, out_features) instead."
        )
    rows = jax.tree.leaves(x)[0].shape[0]
    if outputs.shape != (rows, likelihood.out_features):
        raise ConfigError(
            f"network: outputs of shape {outputs.shape} do not fit the likelihood, which needs "
            f"{(rows, likelihood.out_features)}: let the network take out_features as a parameter."
        )
    f = numpyro.deterministic("f", outputs)
    observation = likelihood.observe(f)
    with numpyro.plate("rows", rows):
        numpyro.sample("y", observation, obs=y)
