"""The user's own rows, from a CSV file or a NumPy archive."""

import dataclasses
import os
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bdlbench.data.dataset import Dataset, Scaler, make_dataset, split_table
from bdlbench.data.splits import Split, cut, random_split
from bdlbench.data.table import Table, make_table
from bdlbench.errors import ConfigError
from bdlbench.types import Task


def csv(
    *,
    path: str,
    target: str,
    task: str,
    split: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
) -> Dataset:
    """Rows of a CSV file with a header line; every column but ``target`` is a feature and must be numeric.

    Parameters
    ----------
    path : str
        Relative to the working directory.
    target : str
        Name of the target column.
    task : {"auto", "regression", "classification"}
        ``auto`` is classification for a target of text or booleans and regression for numbers, however few their
        values: a score from 1 to 5 is not silently made five classes. Classes are sorted.
    split, test_fraction, validation_fraction, n_train
        As :func:`bdlbench.data.splits.random_split`.

    Raises
    ------
    ConfigError
        The file is missing or no table, ``target`` is no column, a feature holds text, a value is missing or infinite;
        with ``auto``, a text target most of whose cells are numbers: one typing error is not made a class a value.
    """
    _check_task(task)
    file = _existing(path)
    stat = file.stat()
    table, found = _read_csv(str(file), target, task, stat.st_mtime_ns, stat.st_size)
    rows = random_split(
        len(table.y), split=split, test_fraction=test_fraction, validation_fraction=validation_fraction, n_train=n_train
    )
    counters = [name for name, column in zip(table.feature_names, table.x.T, strict=True) if _counts_rows(column)]
    notes = tuple(f"feature {name} is the row number: leave it out unless order matters" for name in counters)
    return split_table(file.stem, found, table, rows, notes=notes)


def npz(
    *, path: str, task: str, split: int, test_fraction: float, validation_fraction: float, n_train: int | None
) -> Dataset:
    """Arrays ``x`` (n, ...) and ``y`` (n,) of a NumPy archive, with its own test rows if it has ``x_test``, ``y_test``.

    With its own test rows ``test_fraction`` must be 0, and ``split`` picks only the order from which validation rows
    and ``n_train`` are taken. Inputs (n, d) are standardised feature by feature; images are left as they are stored.
    ``task`` as in :func:`csv`: integer labels need ``task=classification``.

    Raises
    ------
    ConfigError
        The file is missing or no archive, an array is missing, shapes do not fit, a value is missing or infinite.
    """
    _check_task(task)
    file = _existing(path)
    stat = file.stat()
    table, test, found = _read_npz(str(file), task, stat.st_mtime_ns, stat.st_size)
    options: dict[str, Any] = {} if table.x.ndim == 2 else {"scale_x": None}
    if test is None:
        rows = random_split(
            len(table.y), split=split, test_fraction=test_fraction, validation_fraction=validation_fraction,
            n_train=n_train,
        )  # fmt: skip
        return split_table(file.stem, found, table, rows, **options)
    if test_fraction != 0:
        raise ConfigError(f"data.test_fraction={test_fraction} but {path} brings x_test and y_test: set it to 0.")
    order = random_split(len(table.y), split=split, test_fraction=0, validation_fraction=0, n_train=None).train
    train, validation = cut(np.asarray(order), validation_fraction=validation_fraction, n_train=n_train)
    rows = Split(train, validation, np.array([], dtype=int))
    return split_table(file.stem, found, table, rows, test=(test.x, test.y), **options)


@lru_cache(maxsize=4)
def _read_csv(path: str, target: str, task: str, mtime: int, size: int) -> tuple[Table, Task]:
    import pandas as pd

    try:
        frame = pd.read_csv(path, skipinitialspace=True, encoding="utf-8")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(f"data.path={path} cannot be read as a table ({reason}): give a CSV file.") from None
    frame.columns = [str(c).strip() for c in frame.columns]
    names = tuple(frame.columns)
    if target not in names:
        near = get_close_matches(target, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of them."
        raise ConfigError(f"data.target={target} is no column of {path}, which has {', '.join(names)}: {hint}")
    features = tuple(c for c in names if c != target)
    if not features or not len(frame):
        raise ConfigError(f"data.path={path} has no {'features' if len(frame) else 'rows'}: give it some.")
    x = np.column_stack([_numbers(frame[c], c, "remove the column or encode it as numbers") for c in features])
    labels = frame[target]
    text = pd.api.types.is_bool_dtype(labels) or not pd.api.types.is_numeric_dtype(labels)
    if task == "auto" and text:
        _refuse_broken_numbers(labels, target)
    if task == "classification" or (task == "auto" and text):
        if labels.isna().any():
            line = int(np.flatnonzero(labels.isna())[0]) + 2
            raise ConfigError(f"data.{target} is empty in line {line} of {path}: remove the row or fill the label in.")
        y, classes = _encode(labels.to_numpy(dtype=object if text else None))
        return _checked(x, y, features, target, classes), "classification"
    y = _numbers(labels, target, "set data.task=classification if it is a label")
    return _checked(x, y, features, target, ()), "regression"


def _numbers(column: Any, name: str, remedy: str) -> np.ndarray:
    """The column as float64; text is an error that names its first line (the header is line 1)."""
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(np.isnan(values) & column.notna().to_numpy())
    if len(bad):
        raise ConfigError(f"data.{name} is text ({column.iloc[bad[0]]!r}) in line {bad[0] + 2}: {remedy}.")
    return values


def _refuse_broken_numbers(labels: Any, name: str) -> None:
    """Raise where more than half of a text column are numbers: it was meant to be one of numbers."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(labels):
        return
    read = pd.to_numeric(labels, errors="coerce").notna().to_numpy()
    if 2 * read.sum() > len(read):
        _numbers(labels, name, "mend it, or set data.task=classification")


def _checked(x: np.ndarray, y: np.ndarray, features: tuple[str, ...], target: str, classes: tuple[str, ...]) -> Table:
    # line numbers as an editor shows them: the header is line 1
    return make_table(x, y, feature_names=features, target_name=target, class_names=classes, first_row=2, unit="line")


@lru_cache(maxsize=4)
def _read_npz(path: str, task: str, mtime: int, size: int) -> tuple[Table, Table | None, Task]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError) as error:
        raise ConfigError(f"data.path={path} is no NumPy archive of plain arrays ({error}): use np.savez.") from None
    own_test = {"x_test", "y_test"} & set(arrays)
    needed = {"x", "y"} | ({"x_test", "y_test"} if own_test else set())
    if needed - set(arrays):
        raise ConfigError(
            f"data.path={path} lacks {', '.join(sorted(needed - set(arrays)))} (it has {', '.join(sorted(arrays))}): "
            "name the arrays x, y and, both or neither, x_test, y_test."
        )
    for key in sorted(needed):
        if key.startswith("y") and arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
            arrays[key] = arrays[key][:, 0]
        if key.startswith("x") and arrays[key].ndim == 1:
            arrays[key] = arrays[key][:, None]
        if key.startswith("x") and arrays[key].dtype.kind not in "fiub":
            raise ConfigError(f"data.{key} of {path} has dtype {arrays[key].dtype}: give numbers.")
        if key.startswith("y") and arrays[key].ndim != 1:
            raise ConfigError(f"data.{key} of {path} has shape {arrays[key].shape}: give one target a row, shape (n,).")
    kind = arrays["y"].dtype.kind
    found: Task = "regression" if task == "regression" or (task == "auto" and kind not in "bUS") else "classification"
    ys = [arrays[key] for key in ("y", "y_test") if key in needed]
    if found == "regression" and any(y.dtype.kind not in "fiub" for y in ys):
        raise ConfigError(f"data.y of {path} has dtype {arrays['y'].dtype}: set data.task=classification for labels.")
    classes: tuple[str, ...] = ()
    if found == "classification":
        if any(y.dtype.kind == "f" and not np.isfinite(y).all() for y in ys):
            raise ConfigError(f"data.y of {path} holds labels that are NaN or infinite: remove these rows first.")
        codes, classes = _encode(np.concatenate(ys))
        ys = np.split(codes, [len(ys[0])])[: len(ys)]
    names = tuple(f"x{i}" for i in range(arrays["x"].shape[1])) if arrays["x"].ndim == 2 else ()
    xs = [np.asarray(arrays[key], dtype=np.float64) for key in ("x", "x_test") if key in needed]
    ys = [y if found == "classification" else np.asarray(y, dtype=np.float64) for y in ys]
    tables = [make_table(x, y, feature_names=names, class_names=classes) for x, y in zip(xs, ys, strict=True)]
    return tables[0], tables[1] if own_test else None, found


def _counts_rows(column: np.ndarray) -> bool:
    return len(column) > 2 and bool((np.diff(column) == 1).all()) and column[0] in (0.0, 1.0)


def _encode(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int32 codes 0..K-1 of the sorted classes, and the classes' names."""
    classes, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.int32), tuple(str(c) for c in classes)


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"data.path={path} is no file: give a path relative to {Path.cwd()}, or an absolute one.")
    return file


def _check_task(task: str) -> None:
    if task not in ("auto", "regression", "classification"):
        raise ConfigError(f"data.task={task} is unknown: choose auto, regression or classification.")


# ---- rows that were fitted from Python


def save_rows(folder: Path, dataset: Dataset) -> Path:
    """Write the training rows of a data set, as the model sees them, with their units; the file is named by them."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{dataset.rows_checksum[:16]}-{dataset.train.x.dtype}.npz"
    arrays = {"x": dataset.train.x, "y": dataset.train.y, "names": np.array(dataset.feature_names, dtype=np.str_)}
    for name, scaler in (("x", dataset.x_scaler), ("y", dataset.y_scaler)):
        if scaler is not None:
            arrays |= {f"{name}_loc": scaler.loc, f"{name}_scale": scaler.scale}
    about = [dataset.task, dataset.target_name, str(dataset.num_outputs), *dataset.notes]
    part = file.with_name(f".{file.name}.{os.getpid()}.npz")
    np.savez(part, allow_pickle=False, about=np.array(about), **arrays)
    part.replace(file)
    return file


def rows(*, path: str) -> Dataset:
    """Training rows that :func:`bdlbench.fit` was given with ``store=``, in their order; there are no test rows.

    Parameters
    ----------
    path : str
        What :func:`save_rows` wrote.
    """
    with np.load(_existing(path), allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files}
    task, target, outputs, *notes = map(str, held["about"])
    x, y = (Scaler(held[f"{n}_loc"], held[f"{n}_scale"]) if f"{n}_loc" in held else None for n in ("x", "y"))
    made = make_dataset(
        name="rows",
        task="classification" if task == "classification" else "regression",
        train=(held["x"], held["y"]),
        scale_x=x,
        scale_y=None,
        num_classes=int(outputs) if task == "classification" else None,
        feature_names=tuple(map(str, held["names"])),
        target_name=target,
        notes=tuple(notes),
        dtype=held["x"].dtype,
    )
    return dataclasses.replace(made, y_scaler=y)
