"""CSV files as people write them: what is read, and what is refused with line, column and remedy."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdlbench.data import Dataset, files
from bdlbench.types import ConfigError

SPLIT: dict[str, Any] = {"split": 0, "test_fraction": 0.2, "validation_fraction": 0.0, "n_train": None}


def read(path: Path, content: str | bytes, name: str = "my.csv", task: str = "auto", target: str = "y") -> Dataset:
    """Write the content and read it."""
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return files.csv(path=str(file), target=target, task=task, **SPLIT)


def targets(values: list[str]) -> str:
    """Return a file with one feature and these targets."""
    return "x,y\n" + "".join(f"{i * i},{value}\n" for i, value in enumerate(values))


def original(data: Dataset) -> np.ndarray:
    """Return the targets in the file's units and order, by the squares that :func:`targets` counts with."""
    assert data.x_scaler is not None and data.y_scaler is not None and data.test is not None
    x = np.concatenate([data.x_scaler.original(rows.x)[:, 0] for rows in (data.train, data.test)])
    y = np.concatenate([data.y_scaler.original(rows.y) for rows in (data.train, data.test)])
    return y[np.argsort(x)]


@pytest.mark.parametrize("unit", ["{} %", '"{},4 Mio"', "EUR {}", "{} kg", "{}_000", "1.000.{}"])
@pytest.mark.parametrize("n", [20, 400])
def test_numbers_written_as_text_are_no_classes(tmp_path: Path, unit: str, n: int) -> None:
    """``auto`` refuses a target with more different texts than half of the rows and says what to do."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, targets([unit.format(i) for i in range(n)]))
    message = str(caught.value)
    assert f": y has {n} different texts in {n} rows, as " in message and "\n" not in message
    assert message.endswith(
        ": write plain numbers for a regression, or set data.task=classification if these are labels."
    )
    data = read(tmp_path, targets([unit.format(i) for i in range(n)]), task="classification")
    assert data.num_outputs == n
    assert data.notes[0] == f"target y has {n} classes in {n} rows: a regression may be meant"


def test_half_of_the_rows_is_the_bound(tmp_path: Path) -> None:
    """N/2 classes of N rows are accepted without a note, one more is refused."""
    labels = [f"c{i % 10}" for i in range(20)]
    data = read(tmp_path, targets(labels))
    assert data.num_outputs == 10 and data.notes == ("standardised: x",)
    with pytest.raises(ConfigError, match="y has 11 different texts in 20 rows"):
        read(tmp_path, targets([*labels[:-1], "c10"]))


def test_thirty_digits_are_a_number(tmp_path: Path) -> None:
    """A target that no integer type holds is a regression."""
    digits = [str(10**29 + i * 10**27) for i in range(20)]
    data = read(tmp_path, targets(digits))
    assert data.task == "regression"
    np.testing.assert_allclose(original(data), [float(d) for d in digits], rtol=1e-6)


@pytest.mark.parametrize("name", ["y", "a", " y"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    """From the header as it is written: no column is renamed, and none becomes a feature in silence."""
    rows = "".join(f"{i},{i * i},{i},{i}\n" for i in range(20))
    second = name.strip()
    with pytest.raises(ConfigError, match=rf"columns \d and \d of line 1 are both named {second}: give every column a"):
        read(tmp_path, f"a,b,y,{name}\n{rows}")


def test_a_genuine_y_1_is_a_feature(tmp_path: Path) -> None:
    """The name that a library would give a second y is a name as any."""
    data = read(tmp_path, "y.1,y\n" + "".join(f"{i * i},{i % 7}\n" for i in range(20)))
    assert data.feature_names == ("y.1",) and data.target_name == "y"


def test_all_faults_in_one_message(tmp_path: Path) -> None:
    """Header, cells and lengths of lines together, each with column and line, in the order of the lines.

    Blank lines count as lines, as in an editor, and a quoted cell may hold one.
    """
    rows = [
        "a,b,a,c,y",
        "1,2,3,4,5",
        "",
        "1,high,3,4,5",
        '1,2,3,4,"5',
        '"',
        "1,2,3,4",
        "1,low,3,2020-01-31,",
        "1,2,3,1e308,7",
    ]
    rows += ["1,2,3,12 %,7", "1,2,3,nan,7", "true,2,3,4,8", "5,2,3,4,8"]
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "\n".join(rows) + "\n")
    assert str(caught.value) == (
        f"data.path={tmp_path}/my.csv: a mixes true and false with numbers; columns 1 and 3 of line 1 are both named a; "
        "b is text ('high') in line 4 (and in 1 more lines); line 7 has 4 cells and the header 5; "
        "c is a date ('2020-01-31') in line 8; y is empty in line 8; c is 1e308 in line 9, beyond 1e+150; "
        "c is no plain number ('12 %') in line 10; c is nan in line 11: "
        "give every column a name of its own; give every line as many cells as the header has, without a comma at its "
        "end; remove such columns or encode them as numbers; give dates as numbers, such as days since a day of your "
        "choice; give such columns in other units; write plain numbers, with a decimal point and without units; "
        "fill such cells in or remove their rows; write 1 and 0 in the place of true and false."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a;b;y\n1;2;3\n", r"is separated by ';' \(line 1\): separate its columns by commas"),
        ("a\tb\ty\n1\t2\t3\n", r"is separated by '\\t' \(line 1\)"),
        ("a|y\n1|2\n", r"is separated by '\|' \(line 1\)"),
        ("a b y\n1 2 3\n", r"is separated by ' ' \(line 1\)"),
        ("y\n1\n2\n", r"has a single column \(y\) and so no features"),
        ("1.5,2,3\n4,5,6\n", "has numbers in line 1: give it a header line"),
        ("x,y\n1,caf\u00e9\n".encode("latin-1"), r"is not UTF-8 text \(byte 0xe9 in line 2\): save it as UTF-8"),
        ("x,y\n1,2\n".encode("utf-16"), r"is not UTF-8 text \(byte 0xff in line 1\)"),
        ("x,y\n1,2\n".encode("utf-16-le"), r"is not UTF-8 text \(byte 0x00\)"),
        ("x,y,\n1,2,\n3,4,\n", "column 3 of line 1 has no name: give every column a name"),
        ("x,y\n1,2,\n3,4,\n", r"line 2 has 3 cells and the header 2 \(and in 1 more lines\): give every line"),
        (",x,y\n0,1,2\n1,3,4\n", "column 1 of line 1 has no name"),
        ("x,y\n,\n1,2\n", "x is empty in line 2; y is empty in line 2: fill"),
        ('x,y\n1,"2\n3,4\n', r"cannot be read as a table \(unexpected end of data, line 3\): check the quotes"),
        ("x,y\n2020-01-01,1\n2020-01-02,2\n", r"x is a date \('2020-01-01'\) in line 2 \(and in 1 more lines\): give dates"),
        ("x,y\n01.02.2020 10:00,1\n", r"x is a date \('01\.02\.2020 10:00'\) in line 2"),
        ("x,y\n1e308,1\n2,2\n", r"x is 1e308 in line 2, beyond 1e\+150: give such columns in other units"),
        ("x,y\n1e400,1\n2,2\n", r"x is 1e400 in line 2: fill"),
        ("x,y\n5,2\ntrue,3\n", "x mixes true and false with numbers: write 1 and 0"),
        ("x,y\n", "has no rows: give it some"),
        ("", "is empty: give a CSV file"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, content: str | bytes, message: str) -> None:
    """One sentence on one line that names the file, the fault with its line, and the remedy."""
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("data.path=")


def test_a_table_on_its_side_is_refused(tmp_path: Path) -> None:
    """A million columns are none that a network is meant for."""
    wide = ",".join(f"c{i}" for i in range(10**6 - 1)) + ",y\n" + ",".join(["1"] * 10**6) + "\n"
    with pytest.raises(ConfigError, match=r"has 1,000,000 columns, more than 100,000: give a row a line"):
        read(tmp_path, wide)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my.yml", r"ends in \.yml and is no CSV file: save it as CSV"),
        ("my.npy", r"ends in \.npy and is no CSV file: use data=npz with an archive of np\.savez"),
        ("my.XLSX", r"ends in \.xlsx and is no CSV file"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, message: str) -> None:
    """Even where the content could be read as a table."""
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, targets([str(i) for i in range(20)]), name=name)


@pytest.mark.parametrize("word", ["None", "none", "other"])
def test_none_is_a_label(tmp_path: Path, word: str) -> None:
    """A class may be called None; a word for a missing value is refused with its line."""
    labels = [word if i % 3 else "some" for i in range(20)]
    assert set(read(tmp_path, targets(labels)).class_names) == {word, "some"}
    for missing in ("", "NaN", "NA", "null"):
        with pytest.raises(ConfigError, match=f": y is {missing or 'empty'} in line 6: fill such cells in"):
            read(tmp_path, targets([*labels[:4], missing, *labels[5:]]))


def test_classes_of_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    """1 and 1.0 are one class, 10 comes after 9, and codes of more than 53 bits stay apart."""
    data = read(tmp_path, targets(["9", "10", "1", "1.0"] * 6), task="classification")
    assert data.class_names == ("1", "9", "10")
    data = read(tmp_path, targets([str(2**60 + i % 2) for i in range(20)]), task="classification")
    assert data.class_names == (str(2**60), str(2**60 + 1))


def test_what_editors_and_libraries_write(tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends, blank lines, quotes, blanks after commas, booleans, compression."""
    content = '\ufeff"x", flag ,y\r\n' + "".join(
        f'"{i * i}", {"TRUE" if i % 2 else "false"},{i}\r\n\r\n' for i in range(20)
    )
    data = read(tmp_path, content)
    assert data.feature_names == ("x", "flag") and data.target_name == "y"
    np.testing.assert_allclose(original(data), np.arange(20), atol=1e-5)
    again = read(tmp_path, gzip.compress(content.encode()), name="my.csv.gz")
    assert again.checksum == data.checksum
    with pytest.raises(ConfigError, match="cannot be read .*: check the file"):
        read(tmp_path, gzip.compress(content.encode())[:-20], name="cut.csv.gz")


def test_large_files_are_read_in_parts(tmp_path: Path) -> None:
    """Rows of all chunks arrive in order, and a fault of the last one has its own line."""
    n = 25_000
    rows = [f"{i % 97},{i * 0.5}" for i in range(n)]
    data = read(tmp_path, "x,y\n" + "\n".join(rows) + "\n")
    assert data.test is not None and data.y_scaler is not None
    both = np.concatenate([data.y_scaler.original(part.y) for part in (data.train, data.test)])
    np.testing.assert_allclose(np.sort(both), 0.5 * np.arange(n), atol=0.01)
    rows[-1] = "high,1"
    with pytest.raises(ConfigError, match=r"x is text \('high'\) in line 25001"):
        read(tmp_path, "x,y\n" + "\n".join(rows) + "\n")


def test_a_feature_too_small_to_be_squared(tmp_path: Path) -> None:
    """Its standard deviation would be zero though it varies: refused, as what is too large."""
    with pytest.raises(ConfigError, match=r"data\.x is too small or too large to be standardised"):
        read(tmp_path, "x,y\n" + "".join(f"{i}e-200,{i % 7}\n" for i in range(20)))
