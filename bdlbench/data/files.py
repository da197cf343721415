"""Data sets of the user, from a CSV file or a NumPy archive."""

import dataclasses
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bdlbench.data.dataset import Dataset, Scaler, default_dtype, make_dataset, split_table
from bdlbench.data.delimited import MOST_COLUMNS, class_notes, encoded, read_csv, too_many
from bdlbench.data.splits import Split, cut, random_split
from bdlbench.data.table import Table, joined, make_table
from bdlbench.errors import ConfigError
from bdlbench.types import Task

OTHER_KINDS = (
    "feather", "h5", "hdf5", "ipynb", "json", "mat", "npy", "npz", "ods", "parquet", "pickle", "pkl", "pt", "py", "tar",
    "toml", "xls", "xlsx", "yaml", "yml", "zip",
)  # fmt: skip
"""File name extensions of other formats, which are refused as CSV files."""


def csv(
    *,
    path: str,
    target: str,
    task: str,
    split: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """Rows of a CSV file with a header line. Every column except ``target`` is a feature.

    A feature holds numbers, or true and false, which are read as 1 and 0.

    Parameters
    ----------
    path : str
        The file. A relative path starts at the working directory.
    target : str
        Name of the target column.
    task : {"auto", "regression", "classification"}
        ``auto`` means classification if the target is text or booleans, and regression if it is numbers, even if they
        take few values: a score from 1 to 5 is not treated as five classes. Classes are sorted.
    split, test_fraction, validation_fraction, n_train
        As in :func:`bdlbench.data.splits.random_split`.
    standardize : bool, "x" or "y"
        As in :func:`bdlbench.data.dataset.make_dataset`. Columns are read as floats, so True also scales columns of
        whole numbers. The notes of the data set say which columns were scaled.

    Raises
    ------
    ConfigError
        If the file is missing or is not a table, ``target`` is not a column, two columns have the same name, a feature
        holds text, or a value is missing or infinite. With ``auto`` also if the target is text but more than half of
        its cells are numbers, or if it has more different texts than half of the rows. One message names all faults.
    """
    _check_task(task)
    file = _existing(path)
    kind = file.suffix.removeprefix(".").lower()
    if kind in OTHER_KINDS:
        remedy = "use data=npz with an archive of np.savez(path, x=x, y=y)" if kind[:2] == "np" else "save it as CSV"
        raise ConfigError(f"data.path={path} ends in .{kind} and is no CSV file: {remedy}.")
    stat = file.stat()
    table, found, notes = _read_csv(str(file), target, task, stat.st_mtime_ns, stat.st_size)
    rows = random_split(
        len(table.y), split=split, test_fraction=test_fraction, validation_fraction=validation_fraction, n_train=n_train
    )
    counters = [name for name, column in zip(table.feature_names, table.x.T, strict=True) if _counts_rows(column)]
    notes += tuple(f"feature {name} is the row number: leave it out unless order matters" for name in counters)
    return _scaling_noted(split_table(file.stem, found, table, rows, notes=notes, standardize=standardize))


def npz(
    *,
    path: str,
    task: str,
    split: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """Arrays ``x`` (n, ...) and ``y`` (n,) of a NumPy archive, and its test rows ``x_test``, ``y_test`` if it has them.

    If the archive has test rows, ``test_fraction`` must be 0, and ``split`` only sets the order in which validation
    rows and ``n_train`` rows are taken. Each feature of inputs (n, d) is standardised, unless the inputs are all
    integers. Images are not standardised. ``standardize`` is that of :func:`bdlbench.data.dataset.make_dataset`, and
    ``task`` that of :func:`csv`, so integer labels need ``task=classification``.

    Raises
    ------
    ConfigError
        If the file is missing or is no archive, an array is missing, shapes do not agree, or a value is NaN or
        infinite. With ``task=auto`` also if the target is text with more different texts than half of the rows.
    """
    _check_task(task)
    file = _existing(path)
    stat = file.stat()
    table, test, found, notes = _read_npz(str(file), task, stat.st_mtime_ns, stat.st_size)
    if table.x.ndim > 2:  # images
        if standardize == "x":
            raise ConfigError(f"data.standardize=x, but x of {path} holds images: choose true, false or y.")
        fit_y = standardize is not False and found == "regression"
        standardize = "y" if fit_y else False
    options: dict[str, Any] = {"standardize": standardize, "notes": notes}
    if test is None:
        rows = random_split(
            len(table.y), split=split, test_fraction=test_fraction, validation_fraction=validation_fraction,
            n_train=n_train,
        )  # fmt: skip
        return _scaling_noted(split_table(file.stem, found, table, rows, **options))
    if test_fraction != 0:
        raise ConfigError(f"data.test_fraction={test_fraction} but {path} brings x_test and y_test: set it to 0.")
    order = random_split(len(table.y), split=split, test_fraction=0, validation_fraction=0, n_train=None).train
    train, validation = cut(np.asarray(order), validation_fraction=validation_fraction, n_train=n_train)
    rows = Split(train, validation, np.array([], dtype=int))
    return _scaling_noted(split_table(file.stem, found, table, rows, test=(test.x, test.y), **options))


_read_csv = lru_cache(maxsize=4)(lambda path, target, task, mtime, size: read_csv(path, target, task))


def _scaling_noted(data: Dataset) -> Dataset:
    """The data set with one more note, which says which of its columns were standardised."""
    features, target = list(data.feature_names) or ["x"], [data.target_name] if data.task == "regression" else []
    scaled = [*(features if data.x_scaler else []), *(target if data.y_scaler else [])]
    left = [name for name in [*features, *target] if name not in scaled]
    notes = [f"{what}: {joined(names, ', ', 20)}" for what, names in (("standardised", scaled), ("not", left)) if names]
    return dataclasses.replace(data, notes=(*data.notes, "; ".join(notes)))


@lru_cache(maxsize=4)
def _read_npz(path: str, task: str, mtime: int, size: int) -> tuple[Table, Table | None, Task, tuple[str, ...]]:
    arrays = _arrays(path)
    own_test = "x_test" in arrays
    parts = ("", "_test") if own_test else ("",)
    ys = [arrays[f"y{part}"] for part in parts]
    kind = arrays["y"].dtype.kind
    found: Task = "regression" if task == "regression" or (task == "auto" and kind not in "bUS") else "classification"
    if found == "regression" and any(y.dtype.kind not in "fiub" for y in ys):
        raise ConfigError(f"data.y of {path} has dtype {arrays['y'].dtype}: set data.task=classification for labels.")
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if found == "classification":
        if any(y.dtype.kind == "f" and not np.isfinite(y).all() for y in ys):
            raise ConfigError(f"data.y of {path} holds labels that are NaN or infinite: remove these rows first.")
        labels = np.concatenate(ys)
        codes, classes = encoded(labels)
        if task == "auto" and kind != "b" and too_many(classes, len(labels)):
            raise ConfigError(
                f"data.y of {path} has {len(classes):,} different texts in {len(labels):,} rows, as {str(labels[0])!r}: "
                "store numbers for a regression, or set data.task=classification if these are labels."
            )
        notes = class_notes("y", classes, len(labels))
        ys = np.split(codes, [len(ys[0])])[: len(ys)]
    else:
        ys = [np.asarray(y, dtype=np.float64) for y in ys]
    names = tuple(f"x{i}" for i in range(arrays["x"].shape[1])) if arrays["x"].ndim == 2 else ()
    whole = all(arrays[f"x{part}"].dtype.kind in "iu" for part in parts)
    xs = [arrays[f"x{part}"] if whole else np.asarray(arrays[f"x{part}"], np.float64) for part in parts]
    tables = [
        make_table(x, y, feature_names=names, class_names=classes, source=f"data.path={path}", part=part)
        for x, y, part in zip(xs, ys, parts, strict=True)
    ]
    return tables[0], tables[1] if own_test else None, found, notes


def _arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays x and y, and x_test and y_test if the archive has one of them, with checked types and shapes."""
    if Path(path).suffix == ".npy":
        raise ConfigError(f"data.path={path} is a single array: give an archive of np.savez(path, x=x, y=y).")
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # the error for a file of another kind depends on its first bytes
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ConfigError(f"data.path={path} is no NumPy archive of plain arrays ({reason}): use np.savez.") from None
    needed = ["x", "y", "x_test", "y_test"] if {"x_test", "y_test"} & set(arrays) else ["x", "y"]
    faults = [f"it lacks {key} (it has {joined(sorted(arrays), ', ')})" for key in needed if key not in arrays]
    for key in (key for key in needed if key in arrays):
        array = arrays[key]
        if key[0] == "x" and array.ndim == 1:
            arrays[key] = array = array[:, None]
        if key[0] == "y" and array.ndim == 2 and array.shape[1] == 1:
            arrays[key] = array = array[:, 0]
        if key[0] == "x" and array.dtype.kind not in "fiub":
            faults.append(f"{key} has dtype {array.dtype} and must hold numbers")
        if key[0] == "x" and array.ndim == 2 and array.shape[1] > MOST_COLUMNS:
            faults.append(f"{key} has {array.shape[1]:,} columns, more than {MOST_COLUMNS:,}")
        if key[0] == "y" and array.ndim != 1:
            faults.append(f"{key} has shape {array.shape} and must have one target a row, (n,)")
    if faults:
        raise ConfigError(
            f"data.path={path}: {joined(faults)}: store arrays x, y and, both or neither, x_test, y_test."
        )
    return {key: arrays[key] for key in needed}


def _counts_rows(column: np.ndarray) -> bool:
    return len(column) > 2 and bool((np.diff(column) == 1).all()) and column[0] in (0.0, 1.0)


def _existing(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"data.path={path} is no file: give a path relative to {Path.cwd()}, or an absolute one.")
    return file


def _check_task(task: str) -> None:
    if task not in ("auto", "regression", "classification"):
        raise ConfigError(f"data.task={task} is unknown: choose auto, regression or classification.")


# ---- rows that bdlbench.fit received


def save_rows(folder: Path, dataset: Dataset) -> Path:
    """Write the training rows as the model sees them, with their scalers, names and classes.

    The name of the file is the checksum of its contents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"x": dataset.train.x, "y": dataset.train.y}
    for name, words in (("names", dataset.feature_names), ("classes", dataset.class_names)):
        arrays[name] = np.array(words, dtype=np.str_)
    for name, scaler in (("x", dataset.x_scaler), ("y", dataset.y_scaler)):
        if scaler is not None:
            arrays |= {f"{name}_loc": scaler.loc, f"{name}_scale": scaler.scale}
    about = [dataset.task, dataset.target_name, str(dataset.num_outputs), *dataset.notes]
    sealed = json.dumps([dataset.rows_checksum, about, dataset.feature_names, dataset.class_names])
    kind = _floating(dataset.train.x, dataset.train.y) or default_dtype()
    file = folder / f"{hashlib.sha256(sealed.encode()).hexdigest()[:16]}-{kind}.npz"
    part = file.with_name(f".{file.name}.{os.getpid()}.npz")
    try:
        np.savez(part, allow_pickle=False, about=np.array(about), **arrays)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def rows(*, path: str) -> Dataset:
    """Training rows that :func:`bdlbench.fit` received with ``store=``, in the same order. There are no test rows.

    Parameters
    ----------
    path : str
        The file that :func:`save_rows` wrote.
    """
    with np.load(_existing(path), allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files}
    task, target, outputs, *notes = map(str, held["about"])
    x, y = (Scaler(held[f"{n}_loc"], held[f"{n}_scale"]) if f"{n}_loc" in held else None for n in ("x", "y"))
    made = make_dataset(
        name="rows",
        task="classification" if task == "classification" else "regression",
        train=(held["x"], held["y"]),
        standardize=False,
        x_scaler=x,
        num_classes=int(outputs) if task == "classification" else None,
        feature_names=tuple(map(str, held["names"])),
        class_names=tuple(map(str, held["classes"])) if "classes" in held else (),
        target_name=target,
        notes=tuple(notes),
        dtype=_floating(held["x"], held["y"]),
    )
    return dataclasses.replace(made, y_scaler=y)


def _floating(*arrays: np.ndarray) -> np.dtype | None:
    """The type of the first array of floats; None if there is none, as of tokens and classes."""
    return next((array.dtype for array in arrays if array.dtype.kind == "f"), None)
