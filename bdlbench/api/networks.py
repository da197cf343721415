"""Convert between the named sites of a draw and a caller's Flax module with its own tree of parameters."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bdlbench.api.inputs import Inputs, Targets
from bdlbench.api.problem import Parts
from bdlbench.data.dataset import Dataset
from bdlbench.errors import ConfigError
from bdlbench.model.bnn import build_network
from bdlbench.runs import configuration
from bdlbench.runs.job import declared
from bdlbench.sampling.programs import Program

FEW = 2
"""Number of rows on which a model is built if it has no latent variable for each row."""
TOGETHER = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A module without weights. ``template`` is the tree of its parameters; ``bind`` makes a module with weights."""

    template: Any
    bind: Callable[[Any], Any]


def module_of(
    parts: Parts,
    numbers: Mapping[str, Any],
    inputs: Inputs,
    targets: Targets,
    feature_shape: tuple[int, ...],
    outputs: int,
) -> Module:
    """The module that the caller's network makes for these rows."""
    from flax import linen, nnx

    nodes, _ = configuration.split(parts.nodes)
    network = parts.objects.get("network")
    if network is None:
        network = declared(configuration.fill(nodes["network"], numbers), "network")
    if "likelihood" in parts.objects:
        likelihood = parts.objects["likelihood"](targets.task, outputs)
    else:
        node = configuration.fill(nodes["likelihood"], numbers)
        likelihood = configuration.call(node, "likelihood")(targets.task, outputs)
    x = inputs.unpack(jnp.zeros((1, *feature_shape), inputs.dtype(float)))
    module = build_network(network, x, likelihood.out_features, jax.random.key(0))
    if isinstance(module, linen.Module):
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        return Module(variables["params"], lambda params: module.bind({"params": params}))
    graph, weights, rest = typing.cast(Any, nnx.split(module, nnx.Param, ...))

    def bind(params: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf, weights)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state, rest, copy=True)

    return Module(nnx.to_pure_dict(weights), bind)


def params_of(module: Module, sites: Mapping[str, np.ndarray]) -> Any:
    """Arrange the sites ``network.<path>`` in the tree of the module."""

    def fill(node: Any, path: str) -> Any:
        if isinstance(node, Mapping):
            return {key: fill(value, f"{path}.{key}") for key, value in node.items()}
        return sites[path]

    return fill(module.template, "network")


def map_over(function: Callable[[Any], Any], trees: Any) -> Any:
    """Apply ``function`` to the tree of each draw. The leaves of argument and result are (chain, draw, ...)."""
    chains, draws = jax.tree.leaves(trees)[0].shape[:2]
    flat = jax.tree.map(lambda a: jnp.asarray(a).reshape(chains * draws, *a.shape[2:]), trees)
    out = jax.jit(lambda flat: jax.lax.map(function, flat, batch_size=TOGETHER))(flat)
    return jax.tree.map(lambda a: np.asarray(a).reshape(chains, draws, *a.shape[1:]), out)


def rows_needed(program: Program, numbers: Mapping[str, Any], dataset: Dataset, dim: int) -> int:
    """Number of rows on which the model has ``dim`` parameters: few, unless it has a latent variable for each row."""
    total = len(dataset.train.y)
    if total <= FEW:
        return total
    try:
        return FEW if _target(program, numbers, dataset, FEW).dim == dim else total
    except (TypeError, ValueError, ConfigError):
        return total  # the model works for this number of rows only


def is_normal(program: Program, numbers: Mapping[str, Any], dataset: Dataset) -> bool:
    """Whether y given theta is normal at each row, independently for each of several targets."""
    found: list[Any] = []

    def look() -> None:
        x, y = jnp.asarray(dataset.train.x), jnp.asarray(dataset.train.y)
        target = program.make_target(numbers, x, y)
        p = target.predictive(jnp.zeros(target.dim), x)
        while isinstance(p, dist.ExpandedDistribution | dist.Independent):
            p = p.base_dist
        found.append(isinstance(p, dist.Normal))

    jax.eval_shape(look)
    return found[0]


def _target(program: Program, numbers: Mapping[str, Any], dataset: Dataset, rows: int) -> Any:
    made: list[Any] = []

    def look() -> None:
        x, y = jnp.asarray(dataset.train.x[:rows]), jnp.asarray(dataset.train.y[:rows])
        made.append(program.make_target(numbers, x, y))

    jax.eval_shape(look)
    return made[0]
