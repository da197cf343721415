"""The UCI sets: published splits, units and traps. Skipped where neither mirror nor cache has the files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdlbench.data import checksum, fetch, permutation, random_split, uci
from bdlbench.types import ConfigError

SHAPES = {  # rows, features, and the first 16 digits of the SHA-256 of the parsed table
    "boston": (506, 13, "5a370cff72145213"),
    "concrete": (1030, 8, "cb1c3e48cd3bb894"),
    "energy": (768, 8, "5517b7a78e390b35"),
    "kin8nm": (8192, 8, "0531dc0d947e1ba2"),
    "naval": (11934, 16, "60ba685f6e732d9d"),
    "power": (9568, 4, "3fc4269aa64c5aa0"),
    "protein": (45730, 9, "6d1be76bfdbfcfcd"),
    "wine": (1599, 11, "c1c149beb7ab9344"),
    "yacht": (308, 6, "dc0be67d1bc99a25"),
    "airfoil": (1503, 5, "688fb67e6271ef3c"),
    "bikesharing": (17379, 11, "a81cf1f990b24d79"),
}
PLAIN: dict[str, Any] = {"deduplicate": False, "validation_fraction": 0.0, "n_train": None}
BDE: dict[str, Any] = {"split": 0, "test_fraction": 0.2, "validation_fraction": 0.0, "n_train": None}


def table_of(name: str) -> Any:
    """Return the raw table of a set."""
    return uci._table(fetch.files_at(), name, False) if name in uci.SETS else uci._mile(fetch.files_at(), name)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_content(name: str) -> None:
    """Rows, features and the parsed values are the known ones. Parsing decimals is exact, so the digest is portable."""
    n, d, digest = SHAPES[name]
    table = table_of(name)
    assert table.x.shape == (n, d) and table.y.shape == (n,) and len(table.feature_names) == d
    assert checksum({"table": (table.x, table.y)})[:16] == digest
    assert not table.x.flags.writeable


@pytest.mark.parametrize("name", uci.SETS)
def test_published_standard_splits_are_regenerated(name: str) -> None:
    """The test rows of every published index file, in its order: 165 files over the nine sets (boston included)."""
    n = SHAPES[name][0]
    for k in range(uci.SETS[name].num_splits):
        path = fetch.files_at().fetch(uci.REPOSITORY, f"{uci.FOLDER}/standard/{name}/data/index_test_{k}.txt")
        published = np.loadtxt(path).astype(int)
        cut = random_split(n, split=k, test_fraction=0.1, validation_fraction=0.0, n_train=None)
        np.testing.assert_array_equal(cut.test, published)
        train = np.asarray(cut.train)
        assert len(np.union1d(train, published)) == n == len(train) + len(published)


def test_number_of_published_splits() -> None:
    """Eight sets of 20 and protein's five are 165."""
    assert sum(columns.num_splits for columns in uci.SETS.values()) == 165


@pytest.mark.parametrize("name", uci.SETS)
def test_gap_splits(name: str) -> None:
    """Every feature has a gap split: its parts are disjoint and cover all rows, and the test part is the middle third.

    Measured in ranks of the k-th feature: no training value lies strictly within the test part's range.
    """
    table = table_of(name)
    for k in range(len(uci.SETS[name].features)):
        train, test = uci._gap(fetch.files_at(), name, k)
        assert not set(train) & set(test) and len(train) + len(test) == len(table.y)
        column = table.x[:, k]
        inside = (column[train] > column[test].min()) & (column[train] < column[test].max())
        assert not inside.any()
        assert abs(len(test) - len(table.y) / 3) <= 1
    data = uci.uci(files=fetch.files_at(), name=name, split=0, split_kind="gap", **PLAIN)
    assert data.test is not None and len(data.test.y) == len(uci._gap(fetch.files_at(), name, 0)[1])


@pytest.mark.parametrize(("name", "rmse"), [("concrete", 10.31), ("energy", 3.06), ("yacht", 8.97), ("protein", 5.21)])
def test_least_squares_rmse(name: str, rmse: float) -> None:
    """Least squares, averaged over all splits and in the target's units, gives the known RMSE within 1 %.

    This ties rows, splits, scalers and units together; the reference was computed on the same splits. In energy the
    surface is the walls plus twice the roof: that null direction holds nothing but float32 rounding (1e-7 of the
    largest singular value) and is cut at 1e-5, where the smallest real one is 3e-2.
    """
    errors = []
    for k in range(uci.SETS[name].num_splits):
        data = uci.uci(files=fetch.files_at(), name=name, split=k, split_kind="standard", **PLAIN)
        assert data.test is not None and data.y_scaler is not None
        design, design_test = (np.column_stack([r.x.astype(float), np.ones(len(r.y))]) for r in (data.train, data.test))
        weights = np.linalg.lstsq(design, data.train.y.astype(float), rcond=1e-5)[0]
        residual = data.y_scaler.original(design_test @ weights) - data.y_scaler.original(data.test.y)
        errors.append(np.sqrt(np.mean(residual**2)))
    assert np.mean(errors) == pytest.approx(rmse, rel=0.01)


@pytest.mark.parametrize(("name", "duplicates"), [("wine", 240), ("protein", 1711), ("concrete", 25)])
def test_deduplicated_variant(name: str, duplicates: int) -> None:
    """As many rows fewer as the set has exact duplicates, with a note; gap splits are refused there."""
    data = uci.uci(files=fetch.files_at(), name=name, split=0, split_kind="standard", **(PLAIN | {"deduplicate": True}))
    assert data.test is not None and len(data.train.y) + len(data.test.y) == SHAPES[name][0] - duplicates
    assert data.notes[0] == f"{duplicates:,} duplicate rows removed: not the published splits"
    assert not any("exact duplicates" in note for note in data.notes)
    with pytest.raises(ConfigError, match=r"data\.deduplicate=true"):
        uci.uci(files=fetch.files_at(), name=name, split=0, split_kind="gap", **(PLAIN | {"deduplicate": True}))


def test_nothing_removed_is_said_of_a_set_without_duplicates() -> None:
    """Where no row is removed the splits are the published ones: same rows, same notes."""
    plain, without = (
        uci.uci(files=fetch.files_at(), name="yacht", split=0, split_kind="standard", **(PLAIN | {"deduplicate": d}))
        for d in (False, True)
    )
    assert plain.notes == without.notes and plain.checksum == without.checksum


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        (
            "wine",
            (
                "wine: 240 of 1,599 rows are exact duplicates: data.deduplicate=true removes them",
                "the target takes 6 values, so a density score can be gamed: read CRPS",
            ),
        ),
        ("protein", ("protein: 1,711 of 45,730 rows are exact duplicates: data.deduplicate=true removes them",)),
        ("concrete", ("concrete: 25 of 1,030 rows are exact duplicates: data.deduplicate=true removes them",)),
        ("kin8nm", ()),
        ("yacht", ()),
    ],
)
def test_traps_are_noted(name: str, notes: tuple[str, ...]) -> None:
    """Duplicates over 1 % and few target values are counted in the rows; gap splits, which keep all, offer no remedy."""
    assert uci.uci(files=fetch.files_at(), name=name, split=0, split_kind="standard", **PLAIN).notes == notes
    gap = uci.uci(files=fetch.files_at(), name=name, split=0, split_kind="gap", **PLAIN).notes
    assert gap == tuple(note.removesuffix(": data.deduplicate=true removes them") for note in notes)


def test_naval_drops_its_two_constants() -> None:
    """T1 and P1 never change; the notes say so, and that the target has 51 values."""
    data = uci.uci(files=fetch.files_at(), name="naval", split=0, split_kind="standard", **PLAIN)
    assert data.train.x.shape[1] == 14 and data.notes == (
        "the target takes 51 values, so a density score can be gamed: read CRPS",
        "dropped t1, p1: constant over the training rows",
    )
    assert len(np.unique(table_of("naval").y)) == 51


def test_bikesharing_trap() -> None:
    """No feature is the row number (in the file, column 0 is), and every feature has a plausible range."""
    table = table_of("bikesharing")
    raw = np.loadtxt(fetch.files_at().fetch("EmanuelSommer/MILE", "data/bikesharing.data"))
    np.testing.assert_array_equal(raw[:, 0], np.arange(1, 17380))
    np.testing.assert_array_equal(table.x, raw[:, 1:12])
    assert all(len(np.unique(column)) < 100 for column in table.x.T)
    ranges = dict(zip(table.feature_names, zip(table.x.min(0), table.x.max(0), strict=True), strict=True))
    assert ranges["year"] == (0, 1) and ranges["month"] == (1, 12) and ranges["hour"] == (0, 23)
    assert ranges["weather"] == (1, 4) and ranges["weekday"] == (0, 6) and table.y.min() == 1 and table.y.max() == 977


@pytest.mark.parametrize("name", ["airfoil", "bikesharing"])
@pytest.mark.parametrize("split", [0, 3])
def test_bde_protocol_is_train_test_split(name: str, split: int) -> None:
    """Rows are scikit-learn's ``train_test_split(test_size=0.2, random_state=split)``, scaled on train alone.

    Standardised values differ from scikit-learn's in float64 by the rounding to float32 at most: 1e-6 relative.
    """
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    table = table_of(name)
    data = getattr(uci, name)(files=fetch.files_at(), **(BDE | {"split": split}))
    x_train, x_test, y_train, y_test = train_test_split(table.x, table.y, test_size=0.2, random_state=split)
    scaler = StandardScaler().fit(x_train)
    np.testing.assert_allclose(data.train.x, scaler.transform(x_train), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(data.test.x, scaler.transform(x_test), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(data.y_scaler.original(data.test.y), y_test, rtol=1e-5, atol=1e-3)
    assert data.y_scaler.loc == pytest.approx(y_train.mean(), rel=1e-6)


def test_splits_share_one_raw_array() -> None:
    """A hundred splits of a set hold one table between them."""
    tables = {id(table_of("yacht").x) for _ in range(100)}
    for k in range(20):
        uci.uci(files=fetch.files_at(), name="yacht", split=k, split_kind="standard", **PLAIN)
    assert tables == {id(table_of("yacht").x)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "wines"}, "choose from boston, concrete"),
        ({"split": 20}, "0 to 19"),
        ({"name": "protein", "split": 5}, "0 to 4"),
        ({"split_kind": "gap", "split": 6}, "0 to 5"),
        ({"split_kind": "random"}, "choose standard or gap"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    """A name, kind or number that does not exist is one sentence with what does."""
    call: dict[str, Any] = {"name": "yacht", "split": 0, "split_kind": "standard"} | PLAIN | options
    with pytest.raises(ConfigError, match=message):
        uci.uci(files=fetch.files_at(), **call)


def test_gap_rows_are_ordered_by_one_permutation() -> None:
    """Learning-curve subsets of a gap split are nested too, though its index files are sorted."""
    small, large = (
        uci.uci(files=fetch.files_at(), name="yacht", split=1, split_kind="gap", **(PLAIN | {"n_train": n}))
        for n in (50, 100)
    )
    assert small.y_scaler is not None and large.y_scaler is not None
    np.testing.assert_allclose(
        small.y_scaler.original(small.train.y), large.y_scaler.original(large.train.y[:50]), rtol=1e-5, atol=1e-4
    )
    train, _ = uci._gap(fetch.files_at(), "yacht", 1)
    order = train[permutation(len(train), 0)][:50]
    np.testing.assert_allclose(small.y_scaler.original(small.train.y), table_of("yacht").y[order], rtol=1e-5, atol=1e-4)


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cache, mirror and network the sentence says which file goes where."""
    monkeypatch.delenv("BDLBENCH_MIRROR", raising=False)
    with pytest.raises(fetch.NotFetchedError, match=rf"put the file at {tmp_path}/cambridge-mlg/DUN/.*yacht/data/data"):
        uci.uci(files=fetch.files_at(tmp_path), name="yacht", split=0, split_kind="standard", **PLAIN)
