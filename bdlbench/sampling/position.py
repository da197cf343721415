"""Where a run is: what the loop needs, beside the configuration, to go on as if it had never stopped.

Draws are functions of the seed and the step, never of where a block ended, so a run that goes on from the end of any
block leaves the same bits as one that was never interrupted.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bdlbench.sampling import lanes
from bdlbench.sampling.programs import Phase


class Position(NamedTuple):
    """The end of a block, on the host, a row a lane.

    Attributes
    ----------
    stage, cycle : int
    phase : "warmup" or "sample"
        ``sample`` from the moment that what comes between warm-up and sampling is done.
    done : int
        Units of this phase that are done: of the cycle's warm-up steps or draws.
    leaves : tuple of array (L, ...)
        The method's state, its tree flattened; keys as their words. The tree itself is traced again.
    bad_step : int array (L,)
    anchor : array (L, D) or None
        Where predictions are linearised.
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
        """Equal for runs of one program that may go on together as lanes of it."""
        return self[:4]

    def of(self, some: slice) -> "Position":
        """The position of some of the lanes."""
        anchor = None if self.anchor is None else self.anchor[some]
        return self._replace(leaves=tuple(a[some] for a in self.leaves), bad_step=self.bad_step[some], anchor=anchor)

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays by name, for :meth:`from_arrays`."""
        text = json.dumps([*self.place, len(self.leaves)])
        named = {f"leaf{i}": leaf for i, leaf in enumerate(self.leaves)}
        anchor = {} if self.anchor is None else {"anchor": self.anchor}
        return {"place": np.array(text), "bad_step": self.bad_step, **anchor, **named}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Position:
    """The position that :meth:`Position.arrays` wrote down."""
    stage, cycle, phase, done, count = json.loads(str(arrays["place"]))
    leaves = tuple(arrays[f"leaf{i}"] for i in range(count))
    return Position(stage, cycle, phase, done, leaves, arrays["bad_step"], arrays.get("anchor"))


def together(positions: Sequence[Position]) -> Position:
    """Positions at the same place as one, lanes in this order."""
    first = positions[0]
    anchor = None
    if first.anchor is not None:
        anchor = np.concatenate([p.anchor for p in positions if p.anchor is not None])
    leaves = tuple(np.concatenate(parts) for parts in zip(*(p.leaves for p in positions), strict=True))
    return first._replace(leaves=leaves, bad_step=np.concatenate([p.bad_step for p in positions]), anchor=anchor)


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds typed keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_host(state: Any, num_lanes: int) -> tuple[np.ndarray, ...]:
    """A state's leaves on the host, without padding lanes."""
    words = [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(state)]
    return tuple(np.array(leaf) for leaf in lanes.fetch(words, num_lanes))


def to_devices(leaves: Sequence[np.ndarray], shapes: Any) -> Any:
    """The state whose leaves :func:`to_host` gave, in the tree ``shapes`` of one lane.

    Raises
    ------
    ValueError
        If they are not leaves of such a tree.
    """
    check(leaves, shapes)
    wanted, tree = jax.tree.flatten(shapes)
    placed = [lanes.place(leaf) for leaf in leaves]
    typed = [jax.random.wrap_key_data(a) if is_key(want) else a for a, want in zip(placed, wanted, strict=True)]
    return jax.tree.unflatten(tree, typed)


def check(leaves: Sequence[np.ndarray], shapes: Any) -> None:
    """Raise ValueError unless :func:`to_devices` can take them."""
    wanted = jax.tree.leaves(shapes)
    if len(wanted) != len(leaves):
        raise ValueError(f"the state has {len(leaves)} arrays, not {len(wanted)}")
    for leaf, want in zip(leaves, wanted, strict=True):
        words = jax.eval_shape(jax.random.key_data, want) if is_key(want) else want
        if (leaf.shape[1:], leaf.dtype) != (words.shape, words.dtype):
            raise ValueError(f"an array of the state is {leaf.shape[1:]} {leaf.dtype}, not {words.shape} {words.dtype}")
