"""UCI regression sets with their published splits, and the two data sets that the bde package uses."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bdlbench.data.dataset import Dataset, split_table
from bdlbench.data.fetch import Files
from bdlbench.data.splits import MAX_SPLITS, Split, check_split, cut, permutation, random_split
from bdlbench.data.table import Table, make_table
from bdlbench.errors import ConfigError

REPOSITORY = "cambridge-mlg/DUN"
FOLDER = "experiments/data/UCI_for_sharing"


class Columns(NamedTuple):
    """The names of the features and the target, in the order of the columns of the file, and the number of splits."""

    features: tuple[str, ...]
    target: str
    num_splits: int = 20


SETS = {
    "boston": Columns(
        ("crim", "zn", "indus", "chas", "nox", "rm", "age", "dis", "rad", "tax", "ptratio", "b", "lstat"), "medv"
    ),
    "concrete": Columns(
        ("cement", "slag", "fly_ash", "water", "superplasticizer", "coarse_aggregate", "fine_aggregate", "age"),
        "strength",
    ),
    "energy": Columns(
        (
            "compactness", "surface_area", "wall_area", "roof_area", "height", "orientation", "glazing_area",
            "glazing_distribution",
        ),
        "heating_load",
    ),
    "kin8nm": Columns(tuple(f"theta{i}" for i in range(1, 9)), "distance"),
    "naval": Columns(
        ("lp", "v", "gtt", "gtn", "ggn", "ts", "tp", "t48", "t1", "t2", "p48", "p1", "p2", "pexh", "tic", "mf"), "kmc"
    ),
    "power": Columns(("temperature", "vacuum", "pressure", "humidity"), "energy_output"),
    "protein": Columns(tuple(f"f{i}" for i in range(1, 10)), "rmsd", num_splits=5),
    "wine": Columns(
        (
            "fixed_acidity", "volatile_acidity", "citric_acid", "residual_sugar", "chlorides", "free_sulfur_dioxide",
            "total_sulfur_dioxide", "density", "ph", "sulphates", "alcohol",
        ),
        "quality",
    ),
    "yacht": Columns(
        (
            "buoyancy_position", "prismatic_coefficient", "length_displacement", "beam_draught", "length_beam",
            "froude",
        ),
        "resistance",
    ),
}  # fmt: skip


@lru_cache(maxsize=16)
def _table(files: Files, name: str, deduplicate: bool) -> Table:
    features, target, _ = SETS[name]
    values = np.loadtxt(files.fetch(REPOSITORY, f"{FOLDER}/standard/{name}/data/data.txt"))
    d = len(features)
    if deduplicate:
        _, first = np.unique(values[:, : d + 1], axis=0, return_index=True)
        values = values[np.sort(first)]
    return make_table(values[:, :d].copy(), values[:, d].copy(), feature_names=features, target_name=target)


@lru_cache(maxsize=64)
def _gap(files: Files, name: str, split: int) -> tuple[np.ndarray, np.ndarray]:
    train, test = (
        np.loadtxt(files.fetch(REPOSITORY, f"{FOLDER}/gap/{name}/data/index_{part}_{split}.txt"), dtype=float).astype(
            int
        )
        for part in ("train", "test")
    )
    return train, test


def uci(
    *,
    files: Files,
    name: str,
    split: int,
    split_kind: str,
    deduplicate: bool,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """One of nine UCI regression sets with its published splits.

    Parameters
    ----------
    files : Files
        The cache and the mirror of the files.
    name : str
        A key of :data:`SETS`.
    split : int
        For standard splits 0..19 (0..4 for protein). For gap splits 0..d-1, one for each feature.
    split_kind : {"standard", "gap"}
        ``standard`` gives the random 90/10 splits of Hernandez-Lobato & Adams (2015). ``gap`` sorts the rows by one
        feature and tests on the middle third (Foong et al., 2019, arXiv 1906.11537), with the published indices.
    deduplicate : bool
        Whether to keep only one of several identical rows. This removes 240 rows of wine, 1,711 of protein and 25 of
        concrete. The rule of the standard splits is then applied to fewer rows, so the splits are not the published
        ones. Gap splits cannot be deduplicated.
    validation_fraction, n_train
        As in :func:`bdlbench.data.splits.cut`.
    standardize : bool, "x" or "y"
        As in :func:`bdlbench.data.dataset.make_dataset`.
    """
    if name not in SETS:
        raise ConfigError(f"data.name={name} is no UCI set: choose from {', '.join(SETS)}.")
    if split_kind not in ("standard", "gap"):
        raise ConfigError(f"data.split_kind={split_kind} is unknown: choose standard or gap.")
    if split_kind == "gap" and deduplicate:
        raise ConfigError("data.deduplicate=true has no gap splits, whose indices count all rows: set it false.")
    check_split(split, SETS[name].num_splits if split_kind == "standard" else len(SETS[name].features))
    table = _table(files, name, deduplicate)
    if split_kind == "standard":
        rows = random_split(
            len(table.y), split=split, test_fraction=0.1, validation_fraction=validation_fraction, n_train=n_train,
            num_splits=SETS[name].num_splits,
        )  # fmt: skip
    else:
        train, test = _gap(files, name, split)
        train = train[permutation(len(train), 0)]
        rows = Split(*cut(train, validation_fraction=validation_fraction, n_train=n_train), test)
    whole = len(_table(files, name, False).y) if deduplicate else len(table.y)
    removed = (f"{whole - len(table.y):,} duplicate rows removed: not the published splits",)
    notes = (*(removed if whole > len(table.y) else ()), *_traps(files, name, deduplicate, split_kind))
    return split_table(name, "regression", table, rows, notes=notes, standardize=standardize)


@lru_cache(maxsize=32)
def _traps(files: Files, name: str, deduplicate: bool, split_kind: str) -> tuple[str, ...]:
    """Notes on rows that make a score misleading: many exact duplicates, or few distinct values of the target."""
    table = _table(files, name, deduplicate)
    n = len(table.y)
    notes = []
    duplicates = n - len(np.unique(np.column_stack([table.x, table.y]), axis=0))
    if duplicates > 0.01 * n:
        remedy = ": data.deduplicate=true removes them" if split_kind == "standard" else ""
        notes.append(f"{name}: {duplicates:,} of {n:,} rows are exact duplicates{remedy}")
    values = len(np.unique(table.y))
    if values < min(0.05 * n, 100):
        notes.append(f"the target takes {values} values, so a density score can be gamed: read CRPS")
    return tuple(notes)


@lru_cache(maxsize=2)
def _mile(files: Files, name: str) -> Table:
    values = np.loadtxt(files.fetch("EmanuelSommer/MILE", f"data/{name}.data"))
    if name == "airfoil":
        names: tuple[str, ...] = ("frequency", "angle", "chord", "velocity", "thickness")
        return make_table(values[:, :-1], values[:, -1], feature_names=names, target_name="sound_pressure")
    names = (
        "year", "month", "hour", "holiday", "weekday", "workingday", "weather", "temperature", "apparent_temperature",
        "humidity", "windspeed",
    )  # fmt: skip
    # Column 0 is the row number. Rows are in order of time, so as a feature it would tell the date.
    return make_table(values[:, 1:-1], values[:, -1], feature_names=names, target_name="count")


def _bde(
    files: Files,
    name: str,
    split: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str,
) -> Dataset:
    table = _mile(files, name)
    n = len(table.y)
    check_split(split, MAX_SPLITS)
    if not 0 < test_fraction < 1:
        raise ConfigError(f"data.test_fraction={test_fraction} is out of range: choose one between 0 and 1.")
    # As train_test_split(test_size=test_fraction, random_state=split) of scikit-learn: test rows come first.
    order = np.random.RandomState(split).permutation(n)
    num_test = int(np.ceil(test_fraction * n))
    rows = Split(*cut(order[num_test:], validation_fraction=validation_fraction, n_train=n_train), order[:num_test])
    return split_table(name, "regression", table, rows, standardize=standardize)


def airfoil(
    *,
    files: Files,
    split: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """Sound pressure level of an airfoil section, dB (Brooks, Pope & Marcolini, 1989), in the bde protocol.

    The bde package and MILE (Sommer et al., 2025) split by ``train_test_split(test_size=0.2, random_state=0)`` and
    standardise by the training rows. This is ``test_fraction=0.2`` and ``split=0``; ``split=k`` is ``random_state=k``.
    """
    return _bde(files, "airfoil", split, test_fraction, validation_fraction, n_train, standardize)


def bikesharing(
    *,
    files: Files,
    split: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """Number of bicycles rented in an hour (Fanaee-T & Gama, 2014), in the bde protocol; see :func:`airfoil`.

    The first column of the source is the row number. It is dropped here, but published results may have used it.
    """
    return _bde(files, "bikesharing", split, test_fraction, validation_fraction, n_train, standardize)
