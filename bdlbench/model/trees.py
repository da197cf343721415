"""Inputs that are a tree of arrays, packed into the rows of one array of floats."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where one leaf of a tree of inputs lies in a packed row."""

    start: int
    shape: tuple[int, ...]
    integer: bool

    @property
    def size(self) -> int:
        """Numbers that it has in a row."""
        return int(np.prod(self.shape, dtype=int))


def unpack(tree: Any, x: Any) -> Any:
    """The tree of arrays that a model reads, from packed rows (n, total) of an array library.

    Parameters
    ----------
    tree : nested dict, list or tuple of Leaf
    """
    if isinstance(tree, Leaf):
        part = x[:, tree.start : tree.start + tree.size].reshape(x.shape[0], *tree.shape)
        return part.round().astype("int32") if tree.integer else part
    if isinstance(tree, Mapping):
        return {key: unpack(value, x) for key, value in tree.items()}
    return type(tree)(unpack(value, x) for value in tree)


class Unpacked:
    """A NumPyro model over packed rows; ``fn`` is the one over a tree of arrays."""

    def __init__(self, model: Callable[..., None], tree: Any) -> None:
        self.fn, self.tree = model, tree

    def __call__(self, x: Any, y: Any = None) -> None:
        """Call ``fn`` with the tree."""
        self.fn(unpack(self.tree, x), y)


def to_plain(tree: Any) -> Any:
    """A tree of leaves as plain data, for JSON and configurations; None for None."""
    if isinstance(tree, Leaf):
        return {"leaf": [tree.start, list(tree.shape), tree.integer]}
    if isinstance(tree, Mapping):
        return {"dict": [[key, to_plain(value)] for key, value in tree.items()]}
    if tree is None:
        return None
    return {type(tree).__name__: [to_plain(value) for value in tree]}


def from_plain(node: Any) -> Any:
    """What :func:`to_plain` was given."""
    if node is None:
        return None
    kind, value = next(iter(node.items()))
    if kind == "leaf":
        return Leaf(value[0], tuple(value[1]), value[2])
    if kind == "dict":
        return {key: from_plain(item) for key, item in value}
    items = [from_plain(item) for item in value]
    return items if kind == "list" else tuple(items)
