"""The user's own CSV files and NumPy archives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdlbench.data import files
from bdlbench.types import ConfigError

SPLIT: dict[str, Any] = {"split": 0, "test_fraction": 0.2, "validation_fraction": 0.0, "n_train": None}


def write(path: Path, rows: list[str]) -> str:
    """Write the lines to ``my.csv``."""
    file = path / "my.csv"
    file.write_text("\n".join(rows) + "\n")
    return str(file)


def numeric(n: int = 20) -> list[str]:
    """Return a header and n rows of two features and a target."""
    return ["a, b,y"] + [f"{i},{(i * 7) % 5},{i % 3}" for i in range(n)]


def test_csv_reads_what_is_there(tmp_path: Path) -> None:
    """Every value comes back in its own units to float32 rounding, in the rows that the split names."""
    data = files.csv(path=write(tmp_path, numeric()), target="y", task="auto", **SPLIT)
    assert data.task == "regression" and data.name == "my"  # three values, but numbers: never silently classes
    assert data.feature_names == ("a", "b") and data.target_name == "y"
    assert data.notes[0].startswith("feature a is the row number") and data.notes[1:] == ("standardised: a, b, y",)
    assert data.test is not None and data.x_scaler is not None and data.y_scaler is not None
    a = np.concatenate([data.x_scaler.original(r.x)[:, 0] for r in (data.train, data.test)])
    y = np.concatenate([data.y_scaler.original(r.y) for r in (data.train, data.test)])
    np.testing.assert_allclose(np.sort(a), np.arange(20), atol=1e-5)
    np.testing.assert_allclose(y, np.round(a) % 3, atol=1e-5)


def test_csv_labels(tmp_path: Path) -> None:
    """Text and boolean targets are classes in sorted order; numbers are where the user says so."""
    rows = ["x,y"] + [f"{i},{'cat' if i % 3 else 'ant'}" for i in range(20)]
    data = files.csv(path=write(tmp_path, rows), target="y", task="auto", **SPLIT)
    assert data.task == "classification" and data.class_names == ("ant", "cat") and data.num_outputs == 2
    assert (data.train.y == 0).sum() + (data.test.y == 0).sum() == 7  # type: ignore[union-attr]
    data = files.csv(path=write(tmp_path, numeric(21)), target="y", task="classification", **SPLIT)
    assert data.class_names == ("0", "1", "2")
    rows = ["x,y"] + [f"{i},{i % 2 == 0}" for i in range(22)]
    data = files.csv(path=write(tmp_path, rows), target="y", task="auto", **SPLIT)
    assert data.class_names == ("False", "True")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({5: "4,high,1"}, {}, r"^data\.path=.*my\.csv: b is text \('high'\) in line 6: remove"),
        ({5: "4,,1"}, {}, r": b is empty in line 6: fill"),
        ({5: "4,inf,1"}, {}, r": b is inf in line 6: fill"),
        ({5: "4,4,"}, {}, r": y is empty in line 6: fill"),
        ({5: "4,4,"}, {"task": "classification"}, r": y is empty in line 6: fill"),
        ({5: "4,4,cat"}, {"task": "regression"}, r": y is text \('cat'\) in line 6: mend"),
        ({5: "4,4,1,9"}, {}, "line 6 has 4 cells and the header 3: give every line"),
        ({}, {"target": "yy"}, r"which has a, b, y: did you mean y\?"),
        ({}, {"task": "ordinal"}, r"data\.task=ordinal is unknown"),
        ({}, {"path": "nowhere.csv"}, r"data\.path=nowhere\.csv is no file"),
        ({}, {"test_fraction": 0.01}, "less than one row"),
    ],
)
def test_csv_refusals(tmp_path: Path, change: dict[int, str], options: dict[str, Any], message: str) -> None:
    """Each fault is one sentence that names the field, and for a cell its column and its line in the file."""
    rows = numeric()
    for line, text in change.items():
        rows[line] = text
    call = {"path": write(tmp_path, rows), "target": "y", "task": "auto"} | SPLIT | options
    with pytest.raises(ConfigError, match=message):
        files.csv(**call)


def test_csv_target_of_numbers_with_a_typing_error(tmp_path: Path) -> None:
    """One bad cell makes the whole column text: that is refused, not made a class a value; half numbers are labels."""
    numbers = ["x,y"] + [f"{i},{0.5 * i}" for i in range(10)]
    broken = write(tmp_path, [*numbers[:4], "3,abc", *numbers[5:]])
    with pytest.raises(ConfigError) as caught:
        files.csv(path=broken, target="y", task="auto", **SPLIT)
    assert str(caught.value) == (
        f"data.path={broken}: y is text ('abc') in line 5: mend such cells, or set data.task=classification."
    )
    data = files.csv(path=broken, target="y", task="classification", **SPLIT)
    assert data.num_outputs == 10
    half = write(tmp_path, ["x,y"] + [f"{i},{'1' if i % 2 else 'low'}" for i in range(20)])
    assert files.csv(path=half, target="y", task="auto", **SPLIT).class_names == ("1", "low")


def test_csv_constant_target_and_empty_file(tmp_path: Path) -> None:
    """A target without variance and a file without rows are refused."""
    with pytest.raises(ConfigError, match=r"data\.y is constant"):
        files.csv(path=write(tmp_path, ["x,y"] + [f"{i},1" for i in range(9)]), target="y", task="auto", **SPLIT)
    with pytest.raises(ConfigError, match="has no rows"):
        files.csv(path=write(tmp_path, ["x,y"]), target="y", task="auto", **SPLIT)
    with pytest.raises(ConfigError, match="is empty: give a CSV file"):
        files.csv(path=write(tmp_path, [""]), target="y", task="auto", **SPLIT)


def test_npz_own_test_rows(tmp_path: Path) -> None:
    """x_test and y_test are the test rows, scaled by train; asking for a test fraction beside them is refused."""
    rng = np.random.default_rng(0)
    path = str(tmp_path / "my.npz")
    arrays: dict[str, Any] = {"x": rng.normal(size=(30, 2)), "y": rng.normal(size=30)}
    arrays |= {"x_test": rng.normal(size=(7, 2)), "y_test": rng.normal(size=(7, 1))}
    np.savez(path, **arrays)
    data = files.npz(path=path, task="auto", **(SPLIT | {"test_fraction": 0}))
    assert len(data.train.y) == 30 and data.test is not None and data.y_scaler is not None
    np.testing.assert_allclose(data.y_scaler.original(data.test.y), arrays["y_test"][:, 0], atol=1e-6)
    with pytest.raises(ConfigError, match="brings x_test and y_test: set it to 0"):
        files.npz(path=path, task="auto", **SPLIT)


def test_npz_random_split_and_images(tmp_path: Path) -> None:
    """Without test rows the standard rule splits; images stay as stored; labels are coded by sorted class."""
    x = np.random.default_rng(0).uniform(size=(20, 4, 4, 1)).astype(np.float32)
    np.savez(tmp_path / "im.npz", x=x, y=np.arange(20) % 3 + 5)
    data = files.npz(path=str(tmp_path / "im.npz"), task="classification", **SPLIT)
    assert data.train.x.shape == (16, 4, 4, 1) and data.class_names == ("5", "6", "7") and data.x_scaler is None
    assert set(data.train.y) <= {0, 1, 2}
    assert files.npz(path=str(tmp_path / "im.npz"), task="auto", **SPLIT).task == "regression"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((4, 2))}, "lacks y"),
        ({"x": np.ones((4, 2)), "y": np.ones(3)}, "4 rows of inputs but 3 targets"),
        ({"x": np.ones((4, 2)), "y": np.ones((4, 2))}, r"y has shape \(4, 2\) and must have one target a row"),
        ({"x": np.eye(4), "y": np.arange(4.0), "x_test": np.eye(4)}, "lacks y_test"),
        ({"x": np.array(["a", "b"]), "y": np.ones(2)}, r"x has dtype <U1 and must hold numbers"),
        ({"x": np.array([[1.0], [np.nan]]), "y": np.arange(2.0)}, r"^data\.path=.*my\.npz: x0 is nan in row 1: remove"),
        ({"x": np.array([None, 1]), "y": np.ones(2)}, "is no NumPy archive of plain arrays"),
    ],
)
def test_npz_refusals(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """Each fault is one sentence with the array's name."""
    np.savez(tmp_path / "my.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        files.npz(path=str(tmp_path / "my.npz"), task="auto", **SPLIT)


def test_npz_that_is_something_else(tmp_path: Path) -> None:
    """A file of another kind is named as such, and test rows of another width too."""
    (tmp_path / "my.npz").write_text("not an archive")
    with pytest.raises(ConfigError, match="is no NumPy archive"):
        files.npz(path=str(tmp_path / "my.npz"), task="auto", **SPLIT)
    np.savez(tmp_path / "w.npz", x=np.eye(4), y=np.arange(4.0), x_test=np.ones((2, 3)), y_test=np.ones(2))
    with pytest.raises(ConfigError, match="give every part the same features"):
        files.npz(path=str(tmp_path / "w.npz"), task="auto", **(SPLIT | {"test_fraction": 0}))


def test_npz_names_all_its_faults_at_once(tmp_path: Path) -> None:
    """Every column that holds NaN, infinity or a value too large, with its first row and how many there are more."""
    x = np.arange(24.0).reshape(8, 3)
    x[[2, 5], 1], x[7, 2] = np.nan, 1e308
    y = np.arange(8.0)
    y[4] = -np.inf
    np.savez(tmp_path / "my.npz", x=x, y=y)
    with pytest.raises(ConfigError) as caught:
        files.npz(path=str(tmp_path / "my.npz"), task="auto", **SPLIT)
    assert str(caught.value) == (
        f"data.path={tmp_path}/my.npz: x1 is nan in row 2 (and in 1 more rows); x2 is 1e+308 in row 7; "
        "y is -inf in row 4: remove such rows, fill them in, or give other units."
    )
    np.savez(tmp_path / "my.npz", x=np.array(["a", "b"]), x_test=np.ones((2, 1)), y=np.ones((2, 2)))
    with pytest.raises(ConfigError, match=r"lacks y_test .*; x has dtype <U1 .*; y has shape \(2, 2\)"):
        files.npz(path=str(tmp_path / "my.npz"), task="auto", **SPLIT)


def test_npz_paths_of_other_kinds(tmp_path: Path) -> None:
    """A single array is told how to become an archive, and no file of another kind shows a library's own text."""
    np.save(tmp_path / "x.npy", np.eye(3))
    with pytest.raises(ConfigError, match=r"x\.npy is a single array: give an archive of np\.savez"):
        files.npz(path=str(tmp_path / "x.npy"), task="auto", **SPLIT)
    np.save(tmp_path / "y.npz.npy", np.eye(3))
    (tmp_path / "y.npz.npy").rename(tmp_path / "y.npz")
    for name, content in (("y.npz", None), ("z.npz", b""), ("a.npz", b"PK\x03\x04"), ("b.npz", b"a: 1\n")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"is no NumPy archive of plain arrays .*: use np\.savez\.$") as caught:
            files.npz(path=str(tmp_path / name), task="auto", **SPLIT)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["int64", "uint8", "int32"])
def test_integers_of_an_archive_stay_as_they_are(tmp_path: Path, kind: str) -> None:
    """Tokens and indices of groups are neither moved nor made floats, unless the user says ``x``; a note says so."""
    x, y = np.arange(40).reshape(20, 2).astype(kind), np.linspace(-3.0, 9.0, 20)
    np.savez(tmp_path / "my.npz", x=x, y=y)
    path = str(tmp_path / "my.npz")
    data = files.npz(path=path, task="auto", **SPLIT)
    assert data.x_scaler is None and data.y_scaler is not None and data.test is not None
    assert data.train.x.dtype == data.test.x.dtype == np.int32
    kept = np.concatenate([data.train.x, data.test.x])
    np.testing.assert_array_equal(kept[np.argsort(kept[:, 0])], x)
    assert data.notes == (
        "x is all integers and is left as it is: data.standardize=x has it scaled", "standardised: y; not: x0, x1",
    )  # fmt: skip
    scaled = files.npz(path=path, task="auto", standardize="x", **SPLIT)
    assert scaled.x_scaler is not None and scaled.y_scaler is None and scaled.train.x.dtype == np.float32
    np.savez(tmp_path / "my.npz", x=x.astype(float), y=y)
    assert files.npz(path=path, task="auto", **SPLIT).x_scaler is not None
    np.savez(tmp_path / "big.npz", x=np.array([[1], [2**40], [3], [4]]), y=np.arange(4.0))
    with pytest.raises(ConfigError, match=r"inputs of the \w+ rows of big reach beyond 2\.15e\+09, which int32 cannot"):
        files.npz(path=str(tmp_path / "big.npz"), task="auto", **(SPLIT | {"test_fraction": 0.0}))


@pytest.mark.parametrize(("standardize", "scaled"), [(True, "xy"), (False, ""), ("x", "x"), ("y", "y")])
def test_what_is_standardised_is_the_users_choice(tmp_path: Path, standardize: bool | str, scaled: str) -> None:
    """Of a CSV file, whose columns of whole numbers are scaled as any; the notes name the columns either way."""
    data = files.csv(path=write(tmp_path, numeric()), target="y", task="auto", standardize=standardize, **SPLIT)
    assert (data.x_scaler is not None, data.y_scaler is not None) == ("x" in scaled, "y" in scaled)
    note = {
        "xy": "standardised: a, b, y", "": "not: a, b, y", "x": "standardised: a, b; not: y",
        "y": "standardised: y; not: a, b",
    }[scaled]  # fmt: skip
    assert data.notes[-1] == note
    whole = np.sort(data.train.y if "y" not in scaled else data.y_scaler.original(data.train.y))  # type: ignore[union-attr]
    np.testing.assert_allclose(np.unique(whole.round(5)), [0, 1, 2])


def test_standardize_refusals(tmp_path: Path) -> None:
    """Another word, and ``y`` where the target is a label."""
    call: dict[str, Any] = {"path": write(tmp_path, numeric(21)), "target": "y"} | SPLIT
    with pytest.raises(ConfigError, match=r"data\.standardize=both is unknown: choose true, false, x or y\."):
        files.csv(task="auto", standardize="both", **call)
    with pytest.raises(ConfigError, match=r"data\.standardize=y, but the target of my is a label"):
        files.csv(task="classification", standardize="y", **call)
    np.savez(tmp_path / "im.npz", x=np.ones((20, 4, 4)), y=np.arange(20.0))
    with pytest.raises(ConfigError, match=r"data\.standardize=x, but x of .* holds images"):
        files.npz(path=str(tmp_path / "im.npz"), task="auto", standardize="x", **SPLIT)


def test_archive_of_texts_is_no_classification_with_a_class_a_row(tmp_path: Path) -> None:
    """Numbers written as text are refused by ``auto``; said to be labels, they are taken with a note."""
    path = str(tmp_path / "my.npz")
    np.savez(path, x=np.arange(20.0), y=np.array([f"{i} %" for i in range(20)]))
    with pytest.raises(ConfigError, match=r"data\.y of .* has 20 different texts in 20 rows, as '0 %': store numbers"):
        files.npz(path=path, task="auto", **SPLIT)
    data = files.npz(path=path, task="classification", **SPLIT)
    assert data.num_outputs == 20 and data.notes[0] == "target y has 20 classes in 20 rows: a regression may be meant"


def test_digits_that_single_precision_loses_are_noted(tmp_path: Path) -> None:
    """A target that is not standardised and large beside its spread is rounded by float32: the record says so."""
    y = 2e7 + np.random.default_rng(0).normal(size=20)
    np.savez(tmp_path / "my.npz", x=np.arange(20.0), y=y)
    data = files.npz(path=str(tmp_path / "my.npz"), task="auto", standardize="x", **SPLIT)
    assert (
        data.notes[0] == "y is not standardised, and float32 keeps few digits of its spread beside its size: shift it"
    )
    assert len(files.npz(path=str(tmp_path / "my.npz"), task="auto", **SPLIT).notes) == 1
