"""Data sets that the scikit-learn package contains.

Their files are read directly, which takes milliseconds, whereas importing scikit-learn takes seconds. A test compares
the rows with those that scikit-learn's own loaders return.
"""

from functools import lru_cache

import numpy as np

from bdlbench.data.dataset import Dataset, Scaler, split_table
from bdlbench.data.splits import Split, random_split
from bdlbench.data.table import Table, make_table
from bdlbench.data.wheels import wheel_file

_NUCLEUS = (
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave_points", "symmetry",
    "fractal_dimension",
)  # fmt: skip
_CANCER_FEATURES = tuple(f"{kind}_{name}" for kind in ("mean", "error", "worst") for name in _NUCLEUS)
_WINE_FEATURES = (
    "alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids",
    "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue", "od280/od315_of_diluted_wines", "proline",
)  # fmt: skip


def _read(name: str, skip: int = 0, delimiter: str | None = ",") -> np.ndarray:
    file = wheel_file("sklearn", "scikit-learn", f"datasets/data/{name}")
    return np.loadtxt(file, delimiter=delimiter, skiprows=skip, ndmin=2)


def _rows(table: Table, split: int, test_fraction: float, validation_fraction: float, n_train: int | None) -> Split:
    return random_split(
        len(table.y), split=split, test_fraction=test_fraction, validation_fraction=validation_fraction, n_train=n_train
    )


@lru_cache(maxsize=1)
def _diabetes() -> Table:
    # The raw file is read, because the loader by default standardises features over all rows, also the test rows.
    x, y = _read("diabetes_data_raw.csv.gz", delimiter=None), _read("diabetes_target.csv.gz")[:, 0]
    names = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
    return make_table(x, y, feature_names=names, target_name="progression")


def diabetes(
    *, split: int, test_fraction: float, validation_fraction: float, n_train: int | None, standardize: bool | str = True
) -> Dataset:
    """Predict the disease progression after a year from ten measurements of 442 patients (Efron et al., 2004)."""
    table = _diabetes()
    rows = _rows(table, split, test_fraction, validation_fraction, n_train)
    return split_table("diabetes", "regression", table, rows, standardize=standardize)


@lru_cache(maxsize=1)
def _breast_cancer() -> Table:
    values = _read("breast_cancer.csv", skip=1)
    return make_table(
        values[:, :-1], values[:, -1].astype(np.int32), feature_names=_CANCER_FEATURES, target_name="diagnosis",
        class_names=("malignant", "benign"),
    )  # fmt: skip


def breast_cancer(
    *, split: int, test_fraction: float, validation_fraction: float, n_train: int | None, standardize: bool | str = True
) -> Dataset:
    """Malignant (0) or benign (1) from 30 features of 569 cell nuclei images (Street, Wolberg & Mangasarian, 1993)."""
    table = _breast_cancer()
    rows = _rows(table, split, test_fraction, validation_fraction, n_train)
    return split_table("breast_cancer", "classification", table, rows, standardize=standardize)


@lru_cache(maxsize=1)
def _wine_cultivars() -> Table:
    values = _read("wine_data.csv", skip=1)
    return make_table(
        values[:, :-1], values[:, -1].astype(np.int32), feature_names=_WINE_FEATURES, target_name="cultivar",
        class_names=("class_0", "class_1", "class_2"),
    )  # fmt: skip


def wine_cultivars(
    *, split: int, test_fraction: float, validation_fraction: float, n_train: int | None, standardize: bool | str = True
) -> Dataset:
    """Predict the cultivar, of three, of a wine from 13 chemical measurements of 178 wines (Forina et al., 1988)."""
    table = _wine_cultivars()
    rows = _rows(table, split, test_fraction, validation_fraction, n_train)
    return split_table("wine_cultivars", "classification", table, rows, standardize=standardize)


@lru_cache(maxsize=1)
def _digits() -> Table:
    values = _read("digits.csv.gz")
    return make_table(
        values[:, :-1] / 16.0, values[:, -1].astype(np.int32), target_name="digit",
        class_names=tuple(str(i) for i in range(10)),
    )  # fmt: skip


def digits(
    *, split: int, test_fraction: float, validation_fraction: float, n_train: int | None, flatten: bool
) -> Dataset:
    """Handwritten digits as 1,797 images of 8 x 8 pixels (Alpaydin & Kaynak, 1998).

    Pixels 0..16 are divided by 16. They are not standardised as features, because corner pixels are nearly constant and
    would have very large standardised values. An input is a row (64,) with ``flatten``, for an MLP, else an image
    (8, 8, 1).
    """
    table = _digits()
    rows = _rows(table, split, test_fraction, validation_fraction, n_train)
    table = table if flatten else table._replace(x=table.x.reshape(-1, 8, 8, 1))
    return split_table("digits", "classification", table, rows, x_scaler=Scaler(np.array(0.0), np.array(16.0)))
