"""The data set after it is split and scaled.

Where rows are standardised, the moments are those of the training rows alone. Every :class:`Dataset` has the scalers
that map its rows back to the units of its source.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bdlbench.data.splits import Split
from bdlbench.data.table import Table
from bdlbench.errors import ConfigError

DataTask = Literal["regression", "classification", "density"]


class Rows(NamedTuple):
    """Inputs and targets, row by row.

    Attributes
    ----------
    x : array (n, ...)
        Inputs, standardised unless the set has another scaling; int32 if the source holds only integers and they are
        not scaled.
    y : array (n,), or (n, K) for K targets of a regression
        For regression, floats, standardised unless the set has another scaling. For classification, int32 labels
        0..K-1. For a density, the log densities of the points x.
    """

    x: np.ndarray
    y: np.ndarray


class Scaler(NamedTuple):
    """The affine map back to the source's units: ``original = loc + scale * standardised``.

    ``loc`` and ``scale`` are (d,) for d features and () for one target, or (K,) for K targets; constants of all pixels
    are (). They are float64, and both directions are computed in float64. In single precision the digits that vary
    would be lost where ``loc`` is much larger than ``scale``, as for years or for temperatures in kelvin.
    """

    loc: np.ndarray
    scale: np.ndarray

    def standardise(self, original: Any) -> np.ndarray:
        """``(original - loc) / scale``."""
        return np.asarray((np.asarray(original, np.float64) - self.loc) / self.scale)

    def original(self, standardised: Any) -> np.ndarray:
        """``loc + scale * standardised``."""
        return np.asarray(self.loc + self.scale * np.asarray(standardised, np.float64))


def units_of(scaler: Scaler | None) -> tuple[float, float]:
    """``loc`` and ``scale`` of one target, (0, 1) if it was not standardised."""
    return (0.0, 1.0) if scaler is None else (float(scaler.loc), float(scaler.scale))


@dataclass(frozen=True, eq=False)  # arrays cannot be compared by ==, so checksums are compared instead
class Dataset:
    """A data set that is split and scaled, as NumPy arrays in the memory of the host.

    Attributes
    ----------
    name : str
    task : {"regression", "classification", "density"}
        ``density`` means that the set is a known density to sample from, without training rows.
    train, validation, test : Rows or None
        ``validation`` is cut from the training rows and used for tuning and early stopping.
    shifted : dict of Rows
        Labelled rows from a shifted distribution, such as a gap in the inputs, rotated images or higher speeds.
    ood : dict of Rows
        Out-of-distribution rows. A model is not scored on their labels.
    num_outputs : int
        The number of targets for regression, of classes for classification; 0 for a density.
    x_scaler, y_scaler : Scaler or None
        Fitted on ``train`` alone, or fixed constants (pixels). None if the rows are in the source's units.
    feature_names : tuple of str
        Empty for images and signals.
    target_name : str
    notes : tuple of str
        Facts about the rows that a reader of the results must know, such as that a constant feature was dropped.
    checksum : str
        SHA-256 over the names of the parts and the dtypes, shapes and bytes of all arrays and scalers. A scaler enters
        in the precision of the rows, unless this would move a value by more than 1e-6 of the spread.
    class_names : tuple of str
    rows_checksum : str
        SHA-256 of the training rows and scalers before they are rounded to the run's precision.
    """

    name: str
    task: DataTask
    train: Rows
    validation: Rows | None
    test: Rows | None
    shifted: dict[str, Rows]
    ood: dict[str, Rows]
    num_outputs: int
    x_scaler: Scaler | None
    y_scaler: Scaler | None
    feature_names: tuple[str, ...]
    target_name: str
    notes: tuple[str, ...]
    checksum: str = field(repr=False)
    class_names: tuple[str, ...] = ()
    rows_checksum: str = field(default="", repr=False)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train.x.shape[1:]


def default_dtype() -> np.dtype:
    """float64 if JAX is imported and ``jax_enable_x64`` is on, as in a run with ``precision=float64``, else float32."""
    jax = sys.modules.get("jax")  # a process that has not imported JAX cannot have switched x64 on
    return np.dtype(np.float64 if jax is not None and jax.config.jax_enable_x64 else np.float32)


def make_dataset(
    *,
    name: str,
    task: DataTask,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    shifted: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ood: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    standardize: bool | str = True,
    x_scaler: Scaler | None = None,
    num_classes: int | None = None,
    feature_names: tuple[str, ...] = (),
    target_name: str = "y",
    class_names: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    dtype: Any = None,
) -> Dataset:
    """Check the parts of a data set, scale them by the training rows, freeze them, and compute their checksums.

    Parameters
    ----------
    train, validation, test : (x, y)
        In the source's units.
    shifted, ood : dict of (x, y)
    standardize : bool, "x" or "y"
        True standardises each feature, and the target of a regression, by the mean and standard deviation (divisor n)
        of the training rows. Features that are constant in the training rows are dropped. Inputs of an integer type
        (tokens, indices of groups) are left as they are and stay integers. ``x`` standardises the inputs alone, also
        those of an integer type. ``y`` standardises the target alone. False leaves both in the source's units.
    x_scaler : Scaler or None
        The scaler of inputs that are scaled already (pixels, for example). It is kept but not applied, and the inputs
        are not standardised again.
    num_classes : int or None
        K, for classification. If None, it is the length of ``class_names``.
    dtype : dtype or None
        Floating type of the arrays; None is :func:`default_dtype`.

    Raises
    ------
    ConfigError
        For fewer than two training rows, parts whose shapes do not agree, a constant target, inputs of which no feature
        varies, training rows of a single class, labels outside 0..K-1, values that cannot be standardised or that the
        dtype cannot hold, or an unknown ``standardize``.
    """
    if not isinstance(standardize, bool) and standardize not in ("x", "y"):
        raise ConfigError(f"data.standardize={standardize} is unknown: choose true, false, x or y.")
    if standardize == "y" and task != "regression":
        raise ConfigError(f"data.standardize=y, but the target of {name} is a label: choose true, false or x.")
    dtype = default_dtype() if dtype is None else np.dtype(dtype)
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {"train": train}
    parts |= {key: part for key, part in (("validation", validation), ("test", test)) if part is not None}
    parts |= {f"shifted/{key}": part for key, part in (shifted or {}).items()}
    parts |= {f"ood/{key}": part for key, part in (ood or {}).items()}
    if task != "density":
        _check_rows(name, parts)

    whole = all(np.issubdtype(x.dtype, np.integer) for x, _ in parts.values())
    if whole and standardize is True:
        notes = (*notes, "x is all integers and is left as it is: data.standardize=x has it scaled")
    fitted_x = x_scaler
    if x_scaler is None and (standardize == "x" or (standardize is True and not whole)):
        whole = False
        parts, feature_names, notes = _drop_constant(parts, feature_names, notes)
        fitted_x = _fit(parts["train"][0], feature_names)
        parts = {key: (fitted_x.standardise(x), y) for key, (x, y) in parts.items()}
    fitted_y = None
    if task == "regression":
        y = np.asarray(train[1], dtype=np.float64)
        if np.ptp(y) == 0:
            raise ConfigError(f"data.{target_name} is constant over the training rows of {name}: take another target.")
        if standardize is True or standardize == "y":
            fitted_y = _fit(y, (target_name,))
            parts = {key: (x, fitted_y.standardise(y)) for key, (x, y) in parts.items()}
    several = train[1].shape[1] if task == "regression" and np.ndim(train[1]) > 1 else 1
    num_outputs = {"regression": several, "classification": num_classes or len(class_names), "density": 0}[task]
    if task == "classification":
        _check_labels(name, parts, num_outputs)

    exact = {"train": parts["train"], "scaler/x": fitted_x, "scaler/y": fitted_y}
    y_dtype = np.dtype(np.int32) if task == "classification" else dtype
    x_dtype = np.dtype(np.int32) if whole else dtype
    _check_range(name, parts, x_dtype, y_dtype)
    rows = {key: Rows(_freeze(x, x_dtype), _freeze(y, y_dtype)) for key, (x, y) in parts.items()}
    unscaled = {name: v for name, v, s in (("x", train[0], fitted_x), (target_name, train[1], fitted_y)) if s is None}
    notes = (*notes, *(_digits_note(name, values, dtype) for name, values in unscaled.items()))
    notes = tuple(note for note in notes if note)
    double = np.dtype(np.float64)
    kept_x, kept_y = (
        None if s is None else Scaler(_freeze(s.loc, double), _freeze(s.scale, double)) for s in (fitted_x, fitted_y)
    )
    return Dataset(
        name=name,
        task=task,
        train=rows["train"],
        validation=rows.get("validation"),
        test=rows.get("test"),
        shifted={key.removeprefix("shifted/"): part for key, part in rows.items() if key.startswith("shifted/")},
        ood={key.removeprefix("ood/"): part for key, part in rows.items() if key.startswith("ood/")},
        num_outputs=num_outputs,
        x_scaler=kept_x,
        y_scaler=kept_y,
        feature_names=feature_names,
        target_name=target_name,
        notes=notes,
        checksum=checksum(rows | {"scaler/x": _sealed(kept_x, dtype), "scaler/y": _sealed(kept_y, dtype)}),
        class_names=class_names,
        rows_checksum=checksum(
            {
                key: part if part is None else tuple(np.asarray(a, np.float64) for a in part)
                for key, part in exact.items()
            }
        ),
    )


def split_table(name: str, task: DataTask, table: Table, split: Split, **options: Any) -> Dataset:
    """Call :func:`make_dataset` with the rows of ``table`` that ``split`` selects, and with ``options``."""

    def take(index: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray] | None:
        part = table.x[index], table.y[index]
        return part if len(part[1]) else None

    train = take(split.train)
    if train is None:
        raise ConfigError(f"data.test_fraction leaves {name} no training rows: make it smaller.")
    options = {"test": take(split.test), "validation": take(split.validation)} | options
    return make_dataset(
        name=name,
        task=task,
        train=train,
        feature_names=table.feature_names,
        target_name=table.target_name,
        class_names=table.class_names,
        **options,
    )


def checksum(parts: Mapping[str, tuple[np.ndarray, ...] | None]) -> str:
    """SHA-256 (hexadecimal) over the name of every part and the dtype, shape and bytes of its arrays."""
    digest = hashlib.sha256()
    for key in sorted(parts):
        for i, array in enumerate(parts[key] or ()):
            digest.update(f"{key}[{i}] {array.dtype.str} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _sealed(scaler: Scaler | None, dtype: np.dtype) -> Scaler | None:
    """The scaler as it enters the checksum: in the precision of the rows, so that older checksums stay valid.

    If rounding ``loc`` to this precision would move a value by more than 1e-6 of the spread, it enters in float64.
    """
    if scaler is None or (np.abs(scaler.loc - scaler.loc.astype(dtype)) > 1e-6 * scaler.scale).any():
        return scaler
    return Scaler(*(array.astype(dtype) for array in scaler))


def _fit(values: np.ndarray, names: tuple[str, ...]) -> Scaler:
    # Moments are computed in float64, because float32 sums of 45,000 rows are wrong in the fourth digit.
    values = np.asarray(values, dtype=np.float64)
    found = Scaler(values.mean(axis=0), values.std(axis=0))
    bad = np.flatnonzero(~np.ravel(np.isfinite(found.scale) & (found.scale > 0)))  # their squares overflow or underflow
    if len(bad):
        named = names[bad[0]] if len(names) == found.scale.size else f"x{bad[0]}"
        raise ConfigError(f"data.{named} is too small or too large to be standardised: give it in other units.")
    return found


def _check_range(
    name: str, parts: Mapping[str, tuple[np.ndarray, np.ndarray]], x_dtype: np.dtype, y_dtype: np.dtype
) -> None:
    for key, part in parts.items():
        for field_name, values, dtype in zip(("inputs", "targets"), part, (x_dtype, y_dtype), strict=True):
            most = float(np.finfo(dtype).max) if dtype.kind == "f" else np.iinfo(dtype).max
            if values.size and not max(abs(float(values.min())), abs(float(values.max()))) <= most:
                raise ConfigError(
                    f"data: {field_name} of the {key} rows of {name} reach beyond {most:.3g}, which {dtype} cannot "
                    "hold: give them in other units."
                )


def _digits_note(name: str, values: np.ndarray, dtype: np.dtype) -> str:
    """A note if values that are not standardised have fewer than three digits of their spread in ``dtype``, else ''."""
    if values.ndim > 2 or not np.issubdtype(values.dtype, np.floating) or len(values) < 2:
        return ""
    step = np.finfo(dtype).eps * np.abs(values).max(axis=0)
    spread = values.std(axis=0)
    if not np.any((spread > 0) & (step > 1e-3 * spread)):
        return ""
    return f"{name} is not standardised, and {dtype} keeps few digits of its spread beside its size: shift it"


def _freeze(array: ArrayLike, dtype: np.dtype) -> np.ndarray:
    out = np.ascontiguousarray(array, dtype=dtype).reshape(np.shape(array))  # ascontiguousarray turns () into (1,)
    out.flags.writeable = False
    return out


def _check_rows(name: str, parts: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    shape = parts["train"][0].shape[1:]
    if len(parts["train"][1]) < 2:
        raise ConfigError(f"data.n_train leaves {name} fewer than 2 training rows: raise it, or lower test_fraction.")
    for key, (x, y) in parts.items():
        if x.shape[1:] != shape or len(x) != len(y) or not len(y):
            raise ConfigError(
                f"data: the {key} rows of {name} have inputs {x.shape} and targets {np.shape(y)}, "
                f"but training inputs have shape {shape}: give every part the same features and one target a row."
            )


def _drop_constant(
    parts: dict[str, tuple[np.ndarray, np.ndarray]], names: tuple[str, ...], notes: tuple[str, ...]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], tuple[str, ...], tuple[str, ...]]:
    x = parts["train"][0]
    keep = np.ptp(x, axis=0) > 0  # the range is exactly 0 where a sd may be rounded to 1e-17
    if keep.all():
        return parts, names, notes
    if x.ndim != 2 or not keep.any():
        raise ConfigError("data: no feature varies over the training rows, so none can be standardised: check x.")
    labels = names or tuple(f"x{i}" for i in range(x.shape[1]))
    dropped = [label for label, kept in zip(labels, keep, strict=True) if not kept]
    note = f"dropped {', '.join(dropped)}: constant over the training rows"
    names = tuple(label for label, kept in zip(labels, keep, strict=True) if kept)
    return {key: (x[:, keep], y) for key, (x, y) in parts.items()}, names, (*notes, note)


def _check_labels(name: str, parts: Mapping[str, tuple[np.ndarray, np.ndarray]], num_classes: int) -> None:
    if len(np.unique(parts["train"][1])) < 2:
        raise ConfigError(f"data: the training rows of {name} hold a single class: raise n_train or change split.")
    for key, (_, y) in parts.items():
        if not key.startswith("ood/") and (y.min() < 0 or y.max() >= num_classes):
            raise ConfigError(f"data: the {key} labels of {name} leave 0..{num_classes - 1}: recode them.")
