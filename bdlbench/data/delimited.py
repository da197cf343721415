"""Read a CSV file into a table. All faults of the file are found first and named in one message, with their lines."""

import bz2
import csv
import gzip
import itertools
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from bdlbench.data.table import LARGEST, Table, joined, make_table
from bdlbench.errors import ConfigError
from bdlbench.types import Task

MOST_COLUMNS = 100_000
"""A table with more columns is refused, because its rows and columns are probably exchanged."""
CHUNK = 10_000
"""Number of rows that are held as text at the same time."""
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
BOOLEANS = {"true": 1.0, "false": 0.0}
MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "null")
"""Words for a missing value, in lower case. The word ``none`` is left out because classes often have this name."""
DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([ T].*)?")
REMEDIES = {
    "cells": "give every line as many cells as the header has, without a comma at its end",
    "header": "give every column a name of its own",
    "empty": "fill such cells in or remove their rows",
    "large": "give such columns in other units",
    "date": "give dates as numbers, such as days since a day of your choice",
    "decorated": "write plain numbers, with a decimal point and without units",
    "text": "remove such columns or encode them as numbers",
    "label": "mend such cells, or set data.task=classification",
    "mixed": "write 1 and 0 in the place of true and false",
    "classes": "write plain numbers for a regression, or set data.task=classification if these are labels",
}


@dataclass
class Faults:
    """The faults of a file. For each (kind, column): the line and text of the first fault, and the number of faults."""

    found: dict[tuple[str, str], tuple[int, str, int]] = field(default_factory=dict)

    def add(self, kind: str, column: str, line: int, text: str) -> None:
        """Add one fault. The message tells the first fault of each kind in a column and counts the others."""
        first, told, count = self.found.get((kind, column), (line, text, 0))
        self.found[kind, column] = first, told, count + 1

    def refuse(self, path: str) -> None:
        """Raise one ConfigError that names all faults, if there are any."""
        if not self.found:
            return
        told = [
            text + (f" (and in {count - 1:,} more lines)" if count > 1 else "")
            for _, text, count in sorted(self.found.values())
        ]
        remedies = list(dict.fromkeys(REMEDIES[kind] for kind, _ in self.found))
        raise ConfigError(f"data.path={path}: {joined(told)}: {'; '.join(remedies)}.")


def read_csv(path: str, target: str, task: str) -> tuple[Table, Task, tuple[str, ...]]:
    """Read a CSV file with a header line.

    Returns
    -------
    table : Table
    task : {"regression", "classification"}
        ``task``, or what ``auto`` stands for with this target.
    notes : tuple of str
        Notes for the record.

    Raises
    ------
    ConfigError
        If the file is not a CSV file in UTF-8, ``target`` is not one of its columns, or its rows have faults.
    """
    rows = _rows(path)
    _, cells = next(rows, (0, []))
    header = [cell.strip() for cell in cells]
    _check_header(path, header, target)
    faults = Faults()
    numbered = {name: [i + 1 for i, other in enumerate(header) if other == name] for name in dict.fromkeys(header)}
    for name, places in numbered.items():
        if not name:
            faults.add("header", "", 1, f"column {' and column '.join(map(str, places))} of line 1 has no name")
        elif len(places) > 1:
            faults.add("header", name, 1, f"columns {' and '.join(map(str, places))} of line 1 are both named {name}")
    features = [i for i, name in enumerate(header) if name and name != target]
    place = header.index(target)
    blocks: list[np.ndarray] = []
    labels: list[str] = []
    lines: list[int] = []
    words: set[int] = set()
    for chunk in itertools.batched(rows, CHUNK):
        whole = []
        for line, row in chunk:
            if len(row) == len(header):
                whole.append((line, row))
            else:
                faults.add("cells", "", line, f"line {line} has {len(row)} cells and the header {len(header)}")
        if not whole:
            continue
        here = [line for line, _ in whole]
        columns = list(zip(*(row for _, row in whole), strict=True))
        blocks.append(np.empty((len(here), len(features))))
        for j, i in enumerate(features):
            blocks[-1][:, j], booleans = _numbers(columns[i], here, header[i], faults, "text")
            words |= {j} if booleans else set()
        labels += [cell.strip() for cell in columns[place]]
        lines += here
    if not lines and not faults.found:
        raise ConfigError(f"data.path={path} has no rows: give it some.")
    x = np.concatenate(blocks) if blocks else np.empty((0, len(features)))
    for j in sorted(words):
        if not np.isin(x[np.isfinite(x[:, j]), j], (0.0, 1.0)).all():
            name = header[features[j]]
            faults.add("mixed", name, 1, f"{name} mixes true and false with numbers")
    y, classes, notes = _target(labels, lines, target, task, faults)
    faults.refuse(path)
    names = tuple(header[i] for i in features)
    table = make_table(x, y, feature_names=names, target_name=target, class_names=classes)
    return table, "classification" if classes else "regression", notes


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """The rows as lists of cells, each with the number of its line. Blank lines are left out."""
    opener = OPENERS.get(Path(path).suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:  # type: ignore[operator]
            reader = csv.reader(stream, skipinitialspace=True, strict=True)
            start = 1
            for row in reader:
                if row and "\0" in row[0]:
                    raise UnicodeDecodeError("utf-8", b"\0", 0, 1, "a zero byte")
                if row and row != [""]:
                    yield start, row
                start = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"data.path={path} is not UTF-8 text (byte 0x{error.object[error.start]:02x}"
            f"{_place(path, opener)}): save it as UTF-8."
        ) from None
    except csv.Error as error:
        raise ConfigError(
            f"data.path={path} cannot be read as a table ({error}, line {reader.line_num}): check the quotes there."
        ) from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ConfigError(f"data.path={path} cannot be read ({error}): check the file.") from None


def _place(path: str, opener: object) -> str:
    with opener(path, "rb") as stream:  # type: ignore[operator]
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f" in line {number}"
    return ""


def _check_header(path: str, header: list[str], target: str) -> None:
    if not header:
        raise ConfigError(f"data.path={path} is empty: give a CSV file with a header line.")
    if len(header) == 1:
        used = next((mark for mark in (";", "\t", "|") if mark in header[0]), " " if " " in header[0] else None)
        if used is not None:
            raise ConfigError(f"data.path={path} is separated by {used!r} (line 1): separate its columns by commas.")
        raise ConfigError(f"data.path={path} has a single column ({header[0]}) and so no features: give it some.")
    if len(header) > MOST_COLUMNS:
        raise ConfigError(
            f"data.path={path} has {len(header):,} columns, more than {MOST_COLUMNS:,}: give a row a line, or fewer "
            "features."
        )
    if all(_is_number(name) for name in header):
        raise ConfigError(f"data.path={path} has numbers in line 1: give it a header line with the columns' names.")
    if target not in header:
        near = get_close_matches(target, [name for name in header if name], n=1)
        hint = f"did you mean {near[0]}?" if near else "choose one of them."
        raise ConfigError(f"data.target={target} is no column of {path}, which has {joined(header, ', ', 20)}: {hint}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python alone reads "_" as a digit separator


def _numbers(
    cells: Sequence[str], lines: Sequence[int], name: str, faults: Faults, kind: str
) -> tuple[np.ndarray, bool]:
    """The cells as float64, and whether some are true or false. Any other cell that is no finite number is a fault."""
    booleans = False
    try:
        values = np.fromiter(map(float, cells), np.float64, len(cells))
        plain = "_" not in "".join(cells)
    except ValueError:
        plain = False
    if not plain:
        values = np.full(len(cells), np.nan)
        for i, cell in enumerate(cells):
            if _is_number(cell):
                values[i] = float(cell)
            elif cell.strip().lower() in BOOLEANS:
                values[i], booleans = BOOLEANS[cell.strip().lower()], True
    for i in np.flatnonzero(~(np.abs(values) <= LARGEST)).tolist():
        cell, line = cells[i].strip(), lines[i]
        if not cell:
            faults.add("empty", name, line, f"{name} is empty in line {line}")
        elif _is_number(cell) and np.isfinite(values[i]):
            faults.add("large", name, line, f"{name} is {cell} in line {line}, beyond {LARGEST:g}")
        elif _is_number(cell) or cell.lower() in MISSING:
            faults.add("empty", name, line, f"{name} is {cell} in line {line}")
        elif DATE.fullmatch(cell):
            faults.add("date", name, line, f"{name} is a date ({cell!r}) in line {line}")
        elif re.search(r"\d", cell):
            faults.add("decorated", name, line, f"{name} is no plain number ({cell!r}) in line {line}")
        else:
            faults.add(kind, name, line, f"{name} is text ({cell!r}) in line {line}")
    return values, booleans


def _target(
    labels: list[str], lines: list[int], name: str, task: str, faults: Faults
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """The targets and the names of their classes, and notes. Labels become codes; numbers have no class names."""
    filled = [label for label in labels if label and label.lower() not in MISSING]
    read = sum(map(_is_number, filled))
    booleans = all(label.lower() in BOOLEANS for label in filled)
    text = bool(filled) and (booleans or read < len(filled))
    if task == "regression" or (task == "auto" and (not text or 2 * read > len(filled))):
        values, some = _numbers(labels, lines, name, faults, "label")
        if some and not booleans:
            faults.add("mixed", name, 1, f"{name} mixes true and false with numbers")
        return values, (), ()
    for label, line in zip(labels, lines, strict=True):
        if not label or label.lower() in MISSING:
            faults.add("empty", name, line, f"{name} is {label or 'empty'} in line {line}")
    if len(filled) < len(labels):
        return np.zeros(len(labels), np.int32), (), ()  # the caller refuses the file
    if booleans:
        labels = [label.capitalize() for label in labels]
    # Whole numbers of more than 53 bits are treated as text, because different ones may be the same float.
    numeric = not text and all(abs(float(label)) < 2**53 for label in filled)
    codes, classes = encoded(np.array([float(label) for label in labels] if numeric else labels))
    if numeric:
        classes = tuple(str(int(float(c))) if float(c).is_integer() else c for c in classes)
    if task == "auto" and too_many(classes, len(labels)):
        faults.add(
            "classes", name, lines[0], f"{name} has {len(classes):,} different texts in {len(labels):,} rows, as "
            f"{labels[0]!r} in line {lines[0]}"
        )  # fmt: skip
    return codes, classes, class_notes(name, classes, len(labels))


def encoded(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels as int32 codes 0..K-1, in the sorted order of the classes, and the names of the classes."""
    classes, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.int32), tuple(str(c) for c in classes)


def too_many(classes: Sequence[str], num_rows: int) -> bool:
    """Whether the number of classes exceeds half the number of rows, which suggests that the target is no label."""
    return 2 * len(classes) > num_rows


def class_notes(name: str, classes: Sequence[str], num_rows: int) -> tuple[str, ...]:
    """A note for the record if a target of a classification has too many classes (:func:`too_many`), else none."""
    if not too_many(classes, num_rows):
        return ()
    return (f"target {name} has {len(classes):,} classes in {num_rows:,} rows: a regression may be meant",)
