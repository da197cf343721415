"""The rows of a data set as a model sees them: the values that it allows, the rows that it scores, and its notes."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdlbench.data.dataset import Dataset, Rows
from bdlbench.errors import ConfigError
from bdlbench.sampling.programs import Program
from bdlbench.types import Target


class Facts(NamedTuple):
    """The properties of a model that its trace shows.

    Attributes
    ----------
    masked : bool
        Whether y is observed under a mask.
    support : str
        The support of y in words; empty if it is all real numbers.
    rows_interact : bool or None
    notes : tuple of str
    """

    masked: bool
    support: str
    rows_interact: bool | None
    notes: tuple[str, ...]


_FACTS: dict[Any, Facts] = {}  # cached by program and shapes of rows, as the two below
_ALONE: set[Any] = set()
_INSIDE: set[Any] = set()  # cached by numbers and data set too


def remember(program: Program, dataset: Dataset, target: Target) -> None:
    """Keep what a target that has been made of the training rows says."""
    interact = target.rows_interact
    _FACTS[_key(program, dataset)] = Facts(target.scored is not None, target.support, interact, target.notes)


def facts_of(program: Program, numbers: Mapping[str, Any], dataset: Dataset) -> Facts:
    """The properties of the model. It is traced once for each program and shape of rows."""
    key = _key(program, dataset)
    if key not in _FACTS:

        def look() -> None:
            x, y = jnp.asarray(dataset.train.x), jnp.asarray(dataset.train.y)
            remember(program, dataset, program.make_target(numbers, x, y))

        jax.eval_shape(look)
    return _FACTS[key]


def as_seen(program: Program, numbers: Mapping[str, Any], dataset: Dataset) -> Dataset:
    """The data set without the rows that are not scored, and with the model's notes.

    Rows that a mask of the model hides leave the test rows and the shifted rows. They stay among the training rows,
    where their log likelihood is 0.

    Raises
    ------
    ConfigError
        If the mask hides all training rows or all rows of another part, or depends on more than x.
    """
    facts = facts_of(program, numbers, dataset)
    notes = list(facts.notes)
    if facts.rows_interact:
        notes.append(
            "rows_interact is declared: what is predicted for a row depends on the rows that it is predicted with"
        )
    if not notes and not facts.masked:
        return dataset
    parts: dict[str, Rows] = {}
    if facts.masked:
        from bdlbench.model.checks import scored_rows

        train = jnp.asarray(dataset.train.x), jnp.asarray(dataset.train.y)
        given = {"train": dataset.train, "test": dataset.test, **dataset.shifted}
        for name, rows in ((name, rows) for name, rows in given.items() if rows is not None):
            shown = scored_rows(program.make_target, dict(numbers), train, jnp.asarray(rows.x))
            what = {"train": "training", "test": "test"}.get(name, name)
            if not shown.any():
                raise ConfigError(
                    f"model: the mask of its y hides all {len(shown)} {what} rows of {dataset.name}: let it show some."
                )
            parts[name] = Rows(rows.x[shown], rows.y[shown])
            if not shown.all():
                done = "do not enter the likelihood" if name == "train" else "are not scored"
                notes.append(f"the model's mask hides {(~shown).sum()} of {len(shown)} {what} rows, which {done}")
    return dataclasses.replace(
        dataset,
        test=parts.get("test", dataset.test),
        shifted={name: parts.get(name, rows) for name, rows in dataset.shifted.items()},
        notes=tuple(dict.fromkeys((*dataset.notes, *notes))),
    )


def check_values(program: Program, numbers: Mapping[str, Any], dataset: Dataset) -> None:
    """Raise ConfigError if a y is outside the likelihood's support, or a row's likelihood depends on other rows."""
    facts, key = facts_of(program, numbers, dataset), _key(program, dataset)
    values = key, tuple(sorted(numbers.items())), dataset.checksum  # a bound may be a number of the configuration
    if facts.support and facts.support != _labels(dataset) and values not in _INSIDE:
        _check_support(program, numbers, dataset, facts.support)
        _INSIDE.add(values)
    if facts.rows_interact is None and key not in _ALONE:
        from bdlbench.model.checks import check_rows_alone

        check_rows_alone(program.make_target, dict(numbers), dataset.train.x, dataset.train.y)
        _ALONE.add(key)


def _check_support(program: Program, numbers: Mapping[str, Any], dataset: Dataset, words: str) -> None:
    from bdlbench.model.checks import outside

    train = jnp.asarray(dataset.train.x), jnp.asarray(dataset.train.y)
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test, **dataset.shifted}
    for name, rows in parts.items():
        if rows is None:
            continue
        bad = outside(program.make_target, numbers, train, jnp.asarray(rows.x), jnp.asarray(rows.y))
        if not bad.any():
            continue
        row = int(np.flatnonzero(bad)[0])
        value = np.array2string(rows.y[row], precision=6)
        remedy = "choose a likelihood that allows this value, or correct it"
        if dataset.y_scaler is not None:
            y = _whole(dataset.y_scaler.original(rows.y), np.max(dataset.y_scaler.scale)).astype(rows.y.dtype)
            if not outside(program.make_target, numbers, train, jnp.asarray(rows.x), jnp.asarray(y)).any():
                remedy = "use data.standardize=x, which leaves y in its own units (from Python standardize=False)"
        scaled = ", as y is standardised" if dataset.y_scaler is not None else ""
        raise ConfigError(
            f"model: the likelihood of y takes {words}, but y is {value} in {name} row {row}{scaled}: {remedy}."
        )


def _whole(y: np.ndarray, scale: float) -> np.ndarray:
    """Values that are whole numbers up to the rounding of their standardised form, as these numbers."""
    near = np.round(y)
    return np.where(np.abs(y - near) <= 1e-6 * (np.abs(y) + scale), near, y)


def _labels(dataset: Dataset) -> str:
    """The labels that a classification has been checked to have, in the words of a support."""
    if dataset.task != "classification":
        return ""
    return f"whole numbers from 0 to {dataset.num_outputs - 1}"


def _key(program: Program, dataset: Dataset) -> Any:
    """Names the model, whatever the method, and the shape of the training rows."""
    whole, train = json.loads(program.key), dataset.train
    model = {name: part for name, part in whole.items() if name not in ("program", "objects", "stages")}
    model |= {
        name: {k: v for k, v in whole.get(name, {}).items() if k != "inference"} for name in ("program", "objects")
    }
    return json.dumps(model, sort_keys=True), train.x.shape, train.x.dtype.str, train.y.shape, train.y.dtype.str
