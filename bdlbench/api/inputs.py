"""Turn a caller's rows into the arrays that a model reads: named columns, trees of arrays, units and classes."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bdlbench.data.dataset import Scaler
from bdlbench.errors import ConfigError
from bdlbench.model import trees
from bdlbench.model.trees import Leaf

INTEGERS = "x is all integers and is left as it is: give x.astype(float) to have it standardised"
"""Note of a fit to an array of integers."""
EXACT_IN_FLOAT32 = 2**24
"""Largest whole number that stays exact when the integer leaves of a tree are packed beside floats."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The form of the inputs, and the scaling that brings them to the units that the model sees.

    Attributes
    ----------
    shape : tuple of int
        Shape of one row as the caller gives it; for trees, the shape of a packed row.
    names : tuple of str
        Column names, where the inputs came as a table.
    keep : bool array (d,) or None
        Columns that the model sees; None for all.
    scaler : Scaler or None
        In float64; None if the model sees the caller's units.
    tree : nested dict, list or tuple of Leaf, or None
        The structure of inputs that are no single array.
    integer : bool
        Whether the inputs are one array of whole numbers (tokens, indices of groups), which the model sees as int32.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    keep: np.ndarray | None = None
    scaler: Scaler | None = None
    tree: Any = None
    integer: bool = False

    def dtype(self, real: Any) -> Any:
        """The type of the array that the model sees, where ``real`` is that of its floats."""
        return np.int32 if self.integer else real

    @property
    def seen_names(self) -> tuple[str, ...]:
        """Names of the columns that the model sees."""
        if self.keep is None:
            return self.names
        return tuple(name for name, kept in zip(self.names, self.keep, strict=bool(self.names)) if kept)

    def rows(self, x: Any) -> np.ndarray:
        """Check that inputs have the form of those of the fit; returns (n, ...) in the caller's units.

        Raises
        ------
        ConfigError
            For another width, a missing column, text, a value that is not finite, or one that is not whole where the
            model was fitted with whole numbers.
        """
        if self.tree is not None:
            rows = self._packed(x)
        elif is_frame(x) and self.names:
            missing = [name for name in self.names if name not in list(map(str, x.columns))]
            if missing:
                raise ConfigError(
                    f"x lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} that the model was fitted "
                    "with: add what is missing."
                )
            extra = [str(name) for name in x.columns if str(name) not in self.names]
            if extra:
                warnings.warn(
                    f"The columns {', '.join(extra)} of x are not used: the model was not fitted with them.",
                    stacklevel=3,
                )
            rows = frame_values(x, self.names)
        else:
            rows = array_of(x)
            if rows.ndim == 1 and self.shape == (1,):
                rows = rows[:, None]
        if rows.shape[1:] != self.shape:
            named = f" ({', '.join(self.names)})" if self.names else ""
            raise ConfigError(
                f"x has rows of shape {rows.shape[1:]}, but the model was fitted with rows of shape {self.shape}"
                f"{named}: give rows of that shape."
            )
        check_finite(rows, self.names, "x")
        return whole_numbers(rows) if self.integer else rows

    def standardised(self, x: Any) -> np.ndarray:
        """Inputs (n, ...) as the model sees them, in float64, or in int64 for whole numbers."""
        rows = self.rows(x)
        rows = rows if self.keep is None else rows[:, self.keep]
        return rows if self.scaler is None else self.scaler.standardise(rows)

    def _packed(self, x: Any) -> np.ndarray:
        leaves = list(walk(self.tree))
        given = dict(walk(x))
        wanted = dict(leaves)
        if set(given) != set(wanted):
            differ = min(set(given) ^ set(wanted), key=str)
            raise ConfigError(
                f"x has another structure than at the fit, see {'.'.join(map(str, differ))}: give that one."
            )
        parts = []
        for path, leaf in leaves:
            name = "x." + ".".join(map(str, path))
            values = array_of(given[path], name)
            if values.shape[1:] != leaf.shape:
                raise ConfigError(
                    f"{name} has rows of shape {values.shape[1:]}, but {leaf.shape} at the fit: give that."
                )
            parts.append(values.reshape(len(values), -1))
        if len({len(part) for part in parts}) != 1:
            raise ConfigError("x has leaves of different numbers of rows: give every leaf the same leading axis.")
        return np.concatenate(parts, 1)

    def unpack(self, x: Any) -> Any:
        """The tree of arrays that a model reads, made from packed rows (n, total) of NumPy or JAX."""
        return x if self.tree is None else trees.unpack(self.tree, x)


def fit_inputs(x: Any, *, standardize: bool, drop_constant: bool) -> tuple[Inputs, np.ndarray, tuple[str, ...]]:
    """Find the form and the scaling of a caller's training inputs.

    Columns of tables and matrices, and of the leaves of floats of a tree, are standardised by mean and standard
    deviation (divisor n). Arrays with more axes (images) stay in the caller's units. An array of an integer type (tokens,
    indices of groups) stays as it is, as on the command line. The columns of a table are amounts, whatever their type. A
    column that is constant is left out with ``drop_constant``, as a run from the command line does; otherwise it is
    shifted to zero and kept.

    Returns
    -------
    tuple (Inputs, array (n, ...), notes)
        The rows are in the caller's units, as float64, or int64 for an array of integers, and packed for trees.
    """
    names: tuple[str, ...] = ()
    integer = False
    if isinstance(x, Mapping | list | tuple) and _is_tree(x):
        tree = _layout(x)
        total = sum(leaf.size for _, leaf in walk(tree))
        inputs = Inputs((total,), tree=tree)
        rows = inputs.rows(x)
        free = np.concatenate([np.full(leaf.size, not leaf.integer and len(leaf.shape) < 2) for _, leaf in walk(tree)])
    else:
        if is_frame(x):
            names = tuple(map(str, x.columns))
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ConfigError(f"x has two columns called {twice[0]}: give each a name of its own.")
            rows = frame_values(x, names)
        else:
            rows = array_of(x)
            integer = np.asarray(x).dtype.kind in "iu"
        if rows.ndim == 1:
            rows = rows[:, None]
        if not rows.size:
            raise ConfigError(f"x has shape {rows.shape}, which holds no number: give rows with features.")
        inputs = Inputs(rows.shape[1:], names, integer=integer)
        check_finite(rows, names, "x")
        rows = whole_numbers(rows) if integer else rows
        free = np.full(rows.shape[1], rows.ndim == 2) if rows.ndim == 2 else np.zeros(1, bool)
    if len(rows) < 2:
        raise ConfigError(f"x has {len(rows)} row{'s' * (len(rows) != 1)}: give at least two to learn from.")
    if integer:
        return inputs, rows, (INTEGERS,) if standardize else ()
    if not standardize or not free.any():
        return inputs, rows, ()
    varies = np.ptp(rows, axis=0) > 0
    keep = None
    notes: tuple[str, ...] = ()
    if not varies.all() and drop_constant and inputs.tree is None:
        if not varies.any():
            raise ConfigError("x is constant in every column, so nothing can be learned from it: check x.")
        keep = varies
        labels = names or tuple(f"x{i}" for i in range(len(varies)))
        dropped = [label for label, kept in zip(labels, varies, strict=True) if not kept]
        notes = (f"dropped {', '.join(dropped)}: constant over the training rows",)
        varies, free, seen = varies[keep], free[keep], rows[:, keep]
    else:
        seen = rows
    loc = np.where(free, seen.mean(axis=0), 0.0)
    scale = np.where(free & varies, seen.std(axis=0), 1.0)
    return dataclasses.replace(inputs, keep=keep, scaler=Scaler(loc, scale)), rows, notes


def is_frame(x: Any) -> bool:
    """Whether x is a table with named columns, of pandas or a library like it."""
    return hasattr(x, "columns") and hasattr(x, "to_numpy")


def frame_values(x: Any, names: Sequence[str]) -> np.ndarray:
    """The columns ``names`` of a table as float64 (n, d)."""
    by_name = {str(name): name for name in x.columns}
    columns = []
    for name in names:
        column = np.asarray(x[by_name[name]])
        if column.dtype.kind not in "fiub":
            try:
                column = column.astype(np.float64)
            except (TypeError, ValueError):
                raise ConfigError(
                    f"x.{name} holds no numbers: encode the column as numbers, or leave it out."
                ) from None
        columns.append(column.astype(np.float64))
    return np.column_stack(columns) if columns else np.empty((len(x), 0))


def array_of(x: Any, name: str = "x") -> np.ndarray:
    """Convert x to a plain float64 array (n, ...). A mask or a unit of an array subclass is dropped."""
    if hasattr(x, "toarray"):
        raise ConfigError(f"{name} is a sparse matrix: give a dense array, as {name}.toarray() is.")
    try:
        values = np.asarray(x)
    except ValueError:
        raise ConfigError(f"{name} has rows of different lengths: give an array.") from None
    if values.dtype.kind == "c":
        raise ConfigError(f"{name} holds complex numbers: give real ones.")
    if values.dtype.kind not in "fiub":
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError):
            raise ConfigError(f"{name} holds no numbers ({values.dtype}): encode it as numbers.") from None
    if values.ndim == 0:
        raise ConfigError(f"{name} is one number: give rows, an array of shape (n, d).")
    return values.astype(np.float64)


def whole_numbers(rows: np.ndarray) -> np.ndarray:
    """Rows of whole numbers as int64.

    Raises
    ------
    ConfigError
        For a number that is not whole, or that int32, in which the model sees it, cannot hold.
    """
    bad = (rows != np.round(rows)) | (np.abs(rows) > np.iinfo(np.int32).max)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ConfigError(
            f"x holds {rows[place]:.17g} in row {place[0]}, but the model takes whole numbers up to "
            f"{np.iinfo(np.int32).max}: give such, or fit with x.astype(float)."
        )
    return rows.astype(np.int64)


def check_finite(rows: np.ndarray, names: Sequence[str], what: str) -> None:
    """Raise ConfigError if a value is NaN or infinite. The message names the row and the column."""
    bad = ~np.isfinite(rows)
    if bad.any():
        row, *rest = (int(i) for i in np.argwhere(bad)[0])
        kind = "NaN" if np.isnan(rows[(row, *rest)]) else "infinity"
        column = f", column {names[rest[0]] if names else rest[0]}" if len(rest) == 1 else ""
        raise ConfigError(f"{what} holds {kind} in row {row}{column}: remove such rows, or fill the value in.")


def walk(tree: Any, path: tuple[Any, ...] = ()) -> Any:
    """Yield the leaves of a nested dict, list or tuple with their paths, in a fixed order."""
    if isinstance(tree, Mapping):
        for key in sorted(tree, key=str):
            yield from walk(tree[key], (*path, key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from walk(value, (*path, i))
    else:
        yield path, tree


def _is_tree(x: Any) -> bool:
    """Whether a list or dict holds arrays of rows, and is not an array written as lists."""
    return isinstance(x, Mapping) or any(hasattr(leaf, "shape") and np.ndim(leaf) > 0 for leaf in x)


def _layout(x: Any) -> Any:
    places = {}
    start = 0
    for path, leaf in walk(x):
        name = "x." + ".".join(map(str, path))
        values = array_of(leaf, name)
        integer = np.asarray(leaf).dtype.kind in "iu"
        if integer and np.abs(values).max(initial=0) > EXACT_IN_FLOAT32:
            raise ConfigError(
                f"{name} holds whole numbers above {EXACT_IN_FLOAT32}: give them as floats, or recode them."
            )
        places[path] = Leaf(start, values.shape[1:], integer)
        start += places[path].size

    def one(node: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(node, Mapping):
            return {key: one(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(one(value, (*path, i)) for i, value in enumerate(node))
        return places[path]

    return one(x, ())


# ---- targets


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """The form of the targets: classes, or real numbers with a scale.

    Attributes
    ----------
    task : "regression" or "classification"
    classes : array (K,) or None
        The caller's labels, sorted. The model sees the index of a label in this array.
    scaler : Scaler or None
        In float64; None if the model sees the caller's units.
    shape : tuple of int
        Shape of the target of one row: (), or (K,) for K targets.
    name : str
    """

    task: Any
    classes: np.ndarray | None = None
    scaler: Scaler | None = None
    shape: tuple[int, ...] = ()
    name: str = "y"

    @property
    def loc_scale(self) -> tuple[Any, Any]:
        """The pair (loc, scale) that gives the caller's units: ``loc + scale * standardised``."""
        return (0.0, 1.0) if self.scaler is None else (self.scaler.loc, self.scaler.scale)

    def standardised(self, y: Any, num_rows: int) -> np.ndarray:
        """Targets as the model sees them: float64, or int32 codes of classes.

        Raises
        ------
        ConfigError
            If the number of rows differs, a class was not seen by the fit, or a value is not finite.
        """
        values = target_array(y)
        if len(values) != num_rows:
            raise ConfigError(f"x has {num_rows} rows but y has {len(values)}: give one target a row.")
        if self.classes is not None:
            return self.codes(values)
        values = numeric_targets(values)
        if values.shape[1:] != self.shape:
            raise ConfigError(f"y has targets of shape {values.shape[1:]}, but {self.shape} at the fit: give that.")
        return values if self.scaler is None else self.scaler.standardise(values)

    def codes(self, labels: np.ndarray) -> np.ndarray:
        """The index of each label in ``classes``."""
        assert self.classes is not None
        place = {label: i for i, label in enumerate(self.classes.tolist())}
        unseen = [label for label in labels.tolist() if label not in place]
        if unseen:
            raise ConfigError(
                f"y holds the class {unseen[0]!r}, which the fit has not seen (it has "
                f"{', '.join(map(str, self.classes[:10]))}): fit again with rows of that class."
            )
        return np.array([place[label] for label in labels.tolist()], np.int32)


def target_array(y: Any) -> np.ndarray:
    """Convert y to an array (n,) or (n, K). A single column becomes (n,), with a warning."""
    if y is None:
        raise ConfigError("y is missing: give the targets, one a row.")
    values = np.asarray(y)
    if values.ndim == 0:
        raise ConfigError("y is a single value: give one target a row.")
    if values.ndim == 2 and values.shape[1] == 1:
        warnings.warn("y has shape (n, 1) and is taken as (n,): give y.ravel() to be without this.", stacklevel=4)
        values = values[:, 0]
    if values.ndim > 2:
        raise ConfigError(f"y has shape {values.shape}: give (n,), or (n, K) for several targets.")
    return values


def numeric_targets(values: np.ndarray) -> np.ndarray:
    """Targets as finite float64."""
    if values.dtype.kind == "c":
        raise ConfigError("y holds complex numbers: give real ones.")
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError):
        raise ConfigError("y holds no numbers: give amounts, or likelihood='categorical' for classes.") from None
    check_finite(values, (), "y")
    return values


def task_of(y: np.ndarray) -> str:
    """The task that the type of the targets implies: text and booleans are classes, floats are a regression.

    Raises
    ------
    ConfigError
        For whole numbers, which can be either.
    """
    if y.dtype.kind in "bUSO" or str(y.dtype).startswith("str"):
        return "classification"
    if y.dtype.kind in "iu":
        raise ConfigError(
            "y holds whole numbers, which may be amounts or classes: say likelihood='gaussian' or "
            "likelihood='categorical'."
        )
    return "regression"


def classes_of(y: np.ndarray) -> np.ndarray:
    """The sorted classes of labels."""
    if y.ndim != 1:
        raise ConfigError(f"y has shape {y.shape}, but classes are one a row: give shape (n,).")
    if y.dtype.kind == "f":
        check_finite(y, (), "y")
    missing = [i for i, label in enumerate(y.tolist()) if label is None or label != label]
    if missing:
        raise ConfigError(f"y has no class in row {missing[0]}: remove such rows, or fill the class in.")
    try:
        classes = np.unique(y)
    except TypeError:
        raise ConfigError("y mixes labels of different types: give all of one type.") from None
    if len(classes) < 2:
        raise ConfigError(
            f"y holds the single class {classes.tolist()[0]!r}: classification needs two classes at least."
        )
    return classes
