"""Find the hidden unit that each weight of a network reads from, and which weights belong to the last layer.

Both are derived from the jaxpr of the network, so this works for any Flax module with dense layers, whatever the names
of its weights are.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from bdlbench.errors import ConfigError

_INPUT = ""
"""The name of x among the leaves. The other leaves are the weights, by the names of their sites."""
_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
)
_LOOPS = ("scan", "while", "cond")
_SAME = ("convert_element_type", "copy", "optimization_barrier")
_MOVES = (*_SAME, "reshape", "broadcast_in_dim", "squeeze", "expand_dims", "transpose", "slice")


@dataclasses.dataclass(frozen=True, eq=False)
class _Value:
    """One array of the computation: the primitive that made it, its inputs, and all leaves that it depends on."""

    primitive: str
    inputs: tuple["_Value", ...]
    params: Mapping[str, Any]
    leaves: frozenset[str]

    @property
    def bare(self) -> "_Value":
        """The value before changes of type, copies and barriers."""
        return self.inputs[0].bare if self.primitive in _SAME and len(self.inputs) == 1 else self

    @property
    def hidden(self) -> bool:
        """Whether it depends on x and on at least one weight."""
        return _INPUT in self.leaves and len(self.leaves) > 1


class Wiring:
    """The computation ``outputs(weights, x)`` as a graph.

    Parameters
    ----------
    outputs : (weights, x) -> (B, K)
        The weights are a dict of arrays by name.
    weights, x
        Arrays or their shapes. No values are computed.
    """

    def __init__(self, outputs: Callable[[dict[str, Any], Any], Any], weights: Mapping[str, Any], x: Any) -> None:
        shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (dict(weights), x))
        closed = jax.make_jaxpr(outputs)(*shaped)
        names = [*sorted(weights), *[_INPUT] * len(jax.tree.leaves(x))]
        self.shapes = {name: tuple(weights[name].shape) for name in weights}
        self.values: list[_Value] = []
        self.output = self._walk(closed.jaxpr, [_leaf(name) for name in names])[0]

    def _walk(self, jaxpr: Any, arguments: Sequence[_Value]) -> list[_Value]:
        env: dict[Any, _Value] = dict(zip(jaxpr.invars, arguments, strict=True))
        constant = _Value("constant", (), {}, frozenset())
        env |= dict.fromkeys(jaxpr.constvars, constant)
        read = lambda var: constant if isinstance(var, Literal) else env[var]  # noqa: E731
        for eqn in jaxpr.eqns:
            inputs = tuple(read(var) for var in eqn.invars)
            name = eqn.primitive.name
            inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params), None)
            if name in _CALLS and inner is not None:
                made = self._walk(getattr(inner, "jaxpr", inner), inputs)
            else:
                leaves = frozenset().union(*(value.leaves for value in inputs))
                made = [_Value(name, inputs, eqn.params, leaves) for _ in eqn.outvars]
                self.values += made[:1]
            env |= dict(zip(eqn.outvars, made, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def units(self) -> dict[str, np.ndarray]:
        """For each weight an integer array of its shape: the number of the hidden unit that an entry reads, or -1.

        Kernels that read the same activations have the same units. Biases and kernels that read x read no hidden unit.

        Raises
        ------
        ConfigError
            If an operation other than a plain dense layer reads hidden units, or there is no hidden unit.
        """
        found = {name: np.full(shape, -1) for name, shape in self.shapes.items()}
        first_unit: dict[_Value, int] = {}
        count = 0
        for value in self.values:
            if value.primitive in (*_LOOPS, "conv_general_dilated") and value.hidden:
                raise ConfigError(
                    f"network: hidden units are read by '{value.primitive}', but dropout knows dense layers only: use "
                    "network=mlp or another method."
                )
            if value.primitive != "dot_general" or not value.hidden:
                continue
            kernel = next((i for i, v in enumerate(value.inputs) if v.leaves and _INPUT not in v.leaves), None)
            if kernel is None or not value.inputs[1 - kernel].hidden:
                continue
            weight, activations = value.inputs[kernel].bare, value.inputs[1 - kernel].bare
            contracted, batched = value.params["dimension_numbers"]
            name = next(iter(weight.leaves))
            plain = weight.primitive == "weight" and len(self.shapes[name]) == 2 and not any(batched)
            if not plain or len(contracted[kernel]) != 1 or (found[name] >= 0).any():
                raise ConfigError(
                    f"network: how '{name}' reads the hidden units cannot be derived (its kernel is shared, reshaped "
                    "or not a matrix): dropout needs plain dense layers."
                )
            axis = contracted[kernel][0]
            size = self.shapes[name][axis]
            if activations not in first_unit:
                first_unit[activations] = count
                count += size
            numbers = first_unit[activations] + np.arange(size)
            found[name] = np.broadcast_to(np.expand_dims(numbers, 1 - axis), self.shapes[name])
        if count == 0:
            raise ConfigError(
                "network: it has no hidden layer whose units dropout could leave out: give it depth >= 1."
            )
        return found

    def last_layer(self) -> dict[str, bool]:
        """For each weight whether it comes after the last hidden layer. The outputs are linear in these weights.

        Raises
        ------
        ConfigError
            If the outputs do not come from a dense layer.
        """
        value = self.output
        while value.primitive != "dot_general":
            onward = [v for v in value.inputs if _INPUT in v.leaves]
            others = [v for v in value.inputs if v.leaves and _INPUT not in v.leaves]
            linear = value.primitive in (*_MOVES, "add", "add_any", "sub", "neg") or (
                value.primitive in ("mul", "div") and not others
            )
            if len(onward) != 1 or not linear:
                raise ConfigError(
                    f"network: its outputs come from '{value.primitive}' and not from a dense layer, so it has no last "
                    "layer to be linear in: use inference=laplace or laplace_diag."
                )
            value = onward[0]
        body = frozenset().union(*(v.leaves for v in value.inputs if _INPUT in v.leaves))
        return {name: name not in body for name in self.shapes}


def _leaf(name: str) -> _Value:
    return _Value("weight" if name != _INPUT else "input", (), {}, frozenset([name]))
