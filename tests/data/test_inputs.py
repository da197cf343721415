"""New inputs by position and by name."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from bdlbench.data import Dataset, make_dataset
from bdlbench.data.inputs import new_inputs
from bdlbench.types import ConfigError

X = np.random.default_rng(0).normal(size=(12, 3)) * [1.0, 10.0, 100.0] + [5.0, 0.0, 2e7]
NAMES = ("a", "b", "c")


@pytest.fixture
def data() -> Dataset:
    """Three features of different sizes."""
    return make_dataset(name="toy", task="regression", train=(X, np.arange(12.0)), feature_names=NAMES)


def structured(frame: pd.DataFrame) -> Any:
    """Return a structured array of a frame."""
    return frame.to_records(index=False)


@pytest.mark.parametrize("kind", [lambda f: f, lambda f: dict(f.items()), structured, lambda f: f.astype("Float64")])
def test_columns_of_a_table_are_taken_by_name(data: Dataset, kind: Any) -> None:
    """In another order, with blanks about a name, with further columns: the rows are those of the array in order."""
    frame = pd.DataFrame(X, columns=list(NAMES))
    frame["y"] = 0.0
    expected = new_inputs(X, data)
    np.testing.assert_array_equal(expected, data.train.x)
    for order in (["a", "b", "c"], ["c", "a", "b"], ["y", "b", "c", "a"]):
        np.testing.assert_array_equal(new_inputs(kind(frame[order]), data), expected)
    np.testing.assert_array_equal(new_inputs(kind(frame.rename(columns={"b": " b"})), data), expected)


def test_tables_that_do_not_fit(data: Dataset) -> None:
    """A missing feature, one that is there twice, columns without names, text: each one sentence."""
    frame = pd.DataFrame(X, columns=list(NAMES))
    with pytest.raises(ConfigError, match=r"without b: name its columns as the features of 'toy' \(a, b, c\), or give"):
        new_inputs(frame[["a", "c"]], data)
    with pytest.raises(ConfigError, match=r"without a, b, c: "):
        new_inputs(pd.DataFrame(X), data)
    with pytest.raises(ConfigError, match="two columns named a"):
        new_inputs(pd.concat([frame, frame["a"]], axis=1), data)
    with pytest.raises(ConfigError, match="x holds what is no number"):
        new_inputs(frame.assign(a="high"), data)
    nameless = make_dataset(name="toy", task="regression", train=(X, np.arange(12.0)))
    with pytest.raises(ConfigError, match="have no names: give an array"):
        new_inputs(frame, nameless)


def test_integers_stay_integers() -> None:
    """Inputs of a set of integers are integers, and a fraction is refused."""
    data = make_dataset(name="toy", task="regression", train=(np.arange(12)[:, None], np.arange(12.0)))
    rows = new_inputs(np.array([1.0, 4.0]), data)
    assert rows.dtype == np.int32 and rows.tolist() == [[1], [4]]
    with pytest.raises(ConfigError, match="holds a fraction, but inputs of 'toy' are integers"):
        new_inputs(np.array([1.5]), data)
