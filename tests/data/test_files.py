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
    assert len(data.notes) == 1 and data.notes[0].startswith("feature a is the row number")
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
        ({5: "4,high,1"}, {}, r"data\.b is text \('high'\) in line 6"),
        ({5: "4,,1"}, {}, r"data\.b is nan in line 6"),
        ({5: "4,inf,1"}, {}, r"data\.b is inf in line 6"),
        ({5: "4,4,"}, {}, r"data\.y is nan in line 6"),
        ({5: "4,4,"}, {"task": "classification"}, r"data\.y is empty in line 6"),
        ({5: "4,4,cat"}, {"task": "regression"}, r"data\.y is text \('cat'\) in line 6"),
        ({5: "4,4,1,9"}, {}, "cannot be read as a table"),
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
    assert str(caught.value) == "data.y is text ('abc') in line 5: mend it, or set data.task=classification."
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
    with pytest.raises(ConfigError, match="cannot be read as a table"):
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
        ({"x": np.ones((4, 2)), "y": np.ones((4, 2))}, r"data\.y of .* has shape \(4, 2\)"),
        ({"x": np.eye(4), "y": np.arange(4.0), "x_test": np.eye(4)}, "lacks y_test"),
        ({"x": np.array(["a", "b"]), "y": np.ones(2)}, r"data\.x of .* give numbers"),
        ({"x": np.array([[1.0], [np.nan]]), "y": np.arange(2.0)}, r"data\.x0 is nan in row 1"),
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
