"""The position of a run: all that the loop needs, in addition to the configuration, to continue it.

Draws are functions of the seed and of the step, and do not depend on where blocks end. Therefore a run that continues
from the end of any block gives the same bits as one that was never interrupted.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bdlbench.sampling import lanes
from bdlbench.sampling.programs import Phase


class Position(NamedTuple):
    """The position at the end of a block, as host arrays whose first axis is the lane.

    Attributes
    ----------
    stage, cycle : int
    phase : "warmup" or "sample"
        It is "sample" as soon as ``finalize``, which comes between the phases, is done.
    done : int
        The number of warm-up steps or draws of this cycle that are done.
    leaves : tuple of array (L, ...)
        The leaves of the method's state; keys are stored as integers. The structure of the tree is not stored, because
        tracing gives it.
    bad_step : int array (L,)
        The first bad step of each lane, see :class:`bdlbench.sampling.loop.Block`.
    anchor : array (L, D) or None
        The weights at which predictions are linearised.
    """

    stage: int
    cycle: int
    phase: Phase
    done: int
    leaves: tuple[np.ndarray, ...]
    bad_step: np.ndarray
    anchor: np.ndarray | None

    @property
    def place(self) -> tuple[Any, ...]:
        """A value that is equal for two runs of one program if they can continue together as its lanes."""
        return self[:4]

    def of(self, some: slice) -> "Position":
        """Return the position of some of the lanes."""
        anchor = None if self.anchor is None else self.anchor[some]
        return self._replace(leaves=tuple(a[some] for a in self.leaves), bad_step=self.bad_step[some], anchor=anchor)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the position as arrays by name, for :func:`from_arrays`."""
        text = json.dumps([*self.place, len(self.leaves)])
        named = {f"leaf{i}": leaf for i, leaf in enumerate(self.leaves)}
        anchor = {} if self.anchor is None else {"anchor": self.anchor}
        return {"place": np.array(text), "bad_step": self.bad_step, **anchor, **named}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Position:
    """Return the position that :meth:`Position.arrays` was called on."""
    stage, cycle, phase, done, count = json.loads(str(arrays["place"]))
    leaves = tuple(arrays[f"leaf{i}"] for i in range(count))
    return Position(stage, cycle, phase, done, leaves, arrays["bad_step"], arrays.get("anchor"))


def together(positions: Sequence[Position]) -> Position:
    """Join positions at the same place into one, with their lanes in this order."""
    first = positions[0]
    anchor = None
    if first.anchor is not None:
        anchor = np.concatenate([p.anchor for p in positions if p.anchor is not None])
    leaves = tuple(np.concatenate(parts) for parts in zip(*(p.leaves for p in positions), strict=True))
    return first._replace(leaves=leaves, bad_step=np.concatenate([p.bad_step for p in positions]), anchor=anchor)


def is_key(leaf: Any) -> bool:
    """Whether an array holds typed keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_host(state: Any, num_lanes: int) -> tuple[np.ndarray, ...]:
    """Copy the leaves of a state to the host, without padding lanes."""
    words = [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(state)]
    return tuple(np.array(leaf) for leaf in lanes.fetch(words, num_lanes))


def to_devices(leaves: Sequence[np.ndarray], shapes: Any) -> Any:
    """Put the leaves that :func:`to_host` returned on the devices, and return them as a state.

    Parameters
    ----------
    leaves : sequence of array (L, ...)
    shapes : pytree
        The shapes of the state of one lane.

    Raises
    ------
    ValueError
        If the leaves do not fit the shapes.
    """
    check(leaves, shapes)
    wanted, tree = jax.tree.flatten(shapes)
    placed = [lanes.place(leaf) for leaf in leaves]
    typed = [jax.random.wrap_key_data(a) if is_key(want) else a for a, want in zip(placed, wanted, strict=True)]
    return jax.tree.unflatten(tree, typed)


def check(leaves: Sequence[np.ndarray], shapes: Any) -> None:
    """Raise ValueError unless the number, the shapes and the types of the leaves fit ``shapes``."""
    wanted = jax.tree.leaves(shapes)
    if len(wanted) != len(leaves):
        raise ValueError(f"the state has {len(leaves)} arrays, not {len(wanted)}")
    for leaf, want in zip(leaves, wanted, strict=True):
        words = jax.eval_shape(jax.random.key_data, want) if is_key(want) else want
        if (leaf.shape[1:], leaf.dtype) != (words.shape, words.dtype):
            raise ValueError(f"an array of the state is {leaf.shape[1:]} {leaf.dtype}, not {words.shape} {words.dtype}")
