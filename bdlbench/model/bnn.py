"""The Bayesian neural network as a NumPyro model that joins a network, a prior and a likelihood."""

import contextlib
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
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
        If the factory makes no Flax module; the module has state that is not a parameter, needs a random key, has no
        weights or cannot be evaluated on the rows of x; or the prior does not return a distribution.
    """
    module = build_network(network, x, out_features, None if not needs_rngs(network) else numpyro.prng_key())
    shapes = _weights(module, x)
    _refuse_channels_first(shapes, x)
    given = _with_distributions(prior)
    if isinstance(module, linen.Module):
        if hasattr(x, "shape"):
            net = random_flax_module("network", module, given, jnp.ones((1, *x.shape[1:]), x.dtype))
        else:
            net = random_flax_module("network", module, given, jax.tree.map(lambda leaf: leaf[:1], x))
    elif isinstance(module, nnx.Module):
        net = random_nnx_module("network", module, given, scope_divider=".")
    else:
        raise ConfigError(f"network: {network} made a {type(module).__name__}, which is no Flax module (NNX or Linen).")

    def outputs(x: Any) -> Any:
        with _refused(x):
            return net(x)

    return outputs


@contextlib.contextmanager
def _refused(x: Any) -> Iterator[None]:
    """Replace an error of the network by one sentence that it cannot be evaluated on rows of x."""
    try:
        yield
    except errors.InvalidRngError as error:
        raise ConfigError(_STATE.format("a random key of its own")) from error
    except (TypeError, ValueError, AttributeError, IndexError, NotImplementedError, errors.FlaxError) as error:
        if isinstance(error, ConfigError):
            raise
        if "use_running_average" in str(error):
            raise ConfigError(_STATE.format("batch statistics, which are no parameters")) from error
        shapes = ", ".join(str(tuple(leaf.shape[1:])) for leaf in jax.tree.leaves(x))
        said = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split()).rstrip(".")
        raise ConfigError(
            f"network: it cannot be evaluated on rows of shape {shapes} ({said}): let it take its input width from "
            "in_features or from x itself, and give __call__ no parameter but x that has no default."
        ) from error


def _weights(module: Any, x: Any) -> list[tuple[int, ...]]:
    """The shapes of a module's weights.

    Raises
    ------
    ConfigError
        If the module has no weights, or has state that is not a parameter; a density is a function of parameters alone.
    """
    if isinstance(module, nnx.Module):
        _, weights, rest = typing.cast(Any, nnx.split(module, nnx.Param, ...))
        held = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)]
        leaves = jax.tree.leaves(nnx.to_pure_dict(weights))
    elif isinstance(module, linen.Module):
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
        with _refused(x):
            made = jax.eval_shape(module.init, jax.random.key(0), row)
            if set(made) == {"params"}:  # the module is applied without a key, as in a density
                jax.eval_shape(module.apply, made, row)
        held, leaves = sorted(set(made) - {"params"}), jax.tree.leaves(made.get("params", {}))
    else:
        return []
    if held:
        raise ConfigError(_STATE.format(f"the state '{held[0]}', which is no parameter"))
    if not leaves:
        raise ConfigError("network: it has no weights, so there is nothing to infer: give it one layer at least.")
    return [tuple(leaf.shape) for leaf in leaves]


def _refuse_channels_first(shapes: list[tuple[int, ...]], x: Any) -> None:
    """Raise ConfigError if a convolution would take the width of channels-first images for their channels."""
    if not hasattr(x, "shape") or x.ndim < 4 or x.shape[1] > MOST_CHANNELS or min(x.shape[2:]) <= MOST_CHANNELS:
        return
    for shape in shapes:
        if len(shape) == x.ndim and shape[-2] in (x.shape[1], x.shape[-1]):
            raise ConfigError(
                f"data: x has rows of shape {tuple(x.shape[1:])}, which are images with their channels first, and Flax's "
                "convolutions take the channels last: give np.moveaxis(x, 1, -1)."
            )


def _with_distributions(prior: Prior) -> Prior:
    """The prior, with a check that it returns a distribution."""

    def checked(name: str, shape: tuple[int, ...]) -> dist.Distribution:
        given = prior(name, shape)
        if not isinstance(given, dist.Distribution):
            raise ConfigError(
                f"prior: it gives {'None' if given is None else 'a ' + type(given).__name__} for the weight '{name}' of "
                f"shape {shape}: return a NumPyro distribution for every weight, a narrow one where it hardly moves."
            )
        return given

    return checked


MOST_CHANNELS = 4
"""Largest number of channels for which images with the channels first are recognised."""
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
            f"network: it returns a {type(outputs).__name__}: return one array (rows, out_features) instead, whose columns "
            "are the likelihood's parameters."
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
