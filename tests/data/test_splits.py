"""Splits and scalers: the published rule, nested subsets, and no look at a test row."""

import numpy as np
import pytest

from bdlbench.data import make_dataset, make_table, permutation, random_split, split_table
from bdlbench.types import ConfigError


def test_permutation_is_the_successive_choice() -> None:
    """Split k is the k-th draw of one generator, which also is ``RandomState.permutation``."""
    rng = np.random.RandomState(1)
    for k in range(4):
        np.testing.assert_array_equal(permutation(31, k), rng.permutation(31))


def test_parts_cover_all_rows_once() -> None:
    """Train, validation and test partition the rows; train has round(0.9 n) before validation is cut."""
    cut = random_split(103, split=3, test_fraction=0.1, validation_fraction=0.2, n_train=None)
    assert (len(np.asarray(cut.train)), len(cut.validation), len(cut.test)) == (74, 19, 10)
    np.testing.assert_array_equal(np.sort(np.concatenate([np.asarray(part) for part in cut])), np.arange(103))


def test_learning_curve_subsets_are_nested_and_share_validation() -> None:
    """The first n of one permutation, whatever n; validation and test stay."""
    cuts = [random_split(100, split=1, test_fraction=0.2, validation_fraction=0.1, n_train=n) for n in (10, 30, None)]
    trains = [np.asarray(c.train) for c in cuts]
    np.testing.assert_array_equal(trains[0], trains[1][:10])
    np.testing.assert_array_equal(trains[1], trains[2][:30])
    for other in cuts[1:]:
        np.testing.assert_array_equal(cuts[0].validation, other.validation)
        np.testing.assert_array_equal(cuts[0].test, other.test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": -1}, r"data\.split=-1"),
        ({"split": 1000}, r"0 to 999"),
        ({"test_fraction": 1.0}, r"data\.test_fraction=1\.0"),
        ({"test_fraction": 1e-4}, r"less than one row"),
        ({"validation_fraction": -0.1}, r"data\.validation_fraction=-0\.1"),
        ({"n_train": 0}, r"data\.n_train=0"),
        ({"n_train": 91}, r"1 to the 90"),
    ],
)
def test_bad_splits_name_the_field(options: dict[str, float], message: str) -> None:
    """Each wrong option ends in one sentence that names it."""
    good = {"split": 0, "test_fraction": 0.1, "validation_fraction": 0.0, "n_train": None}
    with pytest.raises(ConfigError, match=message):
        random_split(100, **(good | options))  # type: ignore[arg-type]


def test_scalers_see_no_test_row() -> None:
    """Any change of validation and test rows, however wild, leaves scalers and training rows as they were, bit by bit.

    Training rows have mean 0 and sd 1 to the rounding of float32 (relative 6e-8, times sqrt(n) at most): 1e-5.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(3.0, 2.0, (60, 4)), rng.normal(-5.0, 7.0, 60)
    cut = random_split(60, split=0, test_fraction=0.2, validation_fraction=0.25, n_train=None)
    outside = np.concatenate([cut.validation, cut.test])
    wild_x, wild_y = x.copy(), y.copy()
    wild_x[outside] = 1e9 * rng.standard_normal((len(outside), 4))
    wild_y[outside] = 1e9
    tame = split_table("tame", "regression", make_table(x.copy(), y.copy()), cut)
    wild = split_table("wild", "regression", make_table(wild_x, wild_y), cut)
    np.testing.assert_array_equal(tame.train.x, wild.train.x)
    np.testing.assert_array_equal(tame.train.y, wild.train.y)
    assert tame.x_scaler is not None and wild.x_scaler is not None and tame.y_scaler is not None
    np.testing.assert_array_equal(tame.x_scaler, wild.x_scaler)
    np.testing.assert_allclose(tame.train.x.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(tame.train.x.std(0), 1.0, atol=1e-5)
    assert tame.test is not None
    np.testing.assert_allclose(tame.y_scaler.original(tame.test.y), y[cut.test], rtol=1e-5, atol=1e-4)


def test_constant_feature_is_dropped_everywhere_with_a_note() -> None:
    """Constant on train is enough, though 0.1 summed and divided leaves a standard deviation of 1e-17."""
    x = np.column_stack([np.full(20, 0.1), np.arange(20.0)])
    x[15:, 0] = 7.0
    y = np.arange(20.0)
    data = make_dataset(
        name="toy", task="regression", train=(x[:15], y[:15]), test=(x[15:], y[15:]), feature_names=("flat", "slope")
    )
    assert data.feature_names == ("slope",) and data.train.x.shape == (15, 1)
    assert data.test is not None and data.test.x.shape == (5, 1)
    assert data.notes == ("dropped flat: constant over the training rows",)


def test_bad_rows_are_refused() -> None:
    """NaN names column and row; constant targets, one class and unequal shapes are one sentence each."""
    x = np.arange(12.0).reshape(6, 2)
    broken = x.copy()
    broken[4, 1] = np.nan
    with pytest.raises(ConfigError, match=r"^data: b is nan in row 4: remove"):
        make_table(broken, np.arange(6.0), feature_names=("a", "b"))
    with pytest.raises(ConfigError, match=r"^data: y is inf in row 0: remove"):
        make_table(x, np.array([np.inf, 1, 2, 3, 4, 5]))
    with pytest.raises(ConfigError, match="6 rows of inputs but 5 targets"):
        make_table(x, np.arange(5.0))
    with pytest.raises(ConfigError, match=r"data\.y is constant"):
        make_dataset(name="toy", task="regression", train=(x, np.ones(6)))
    with pytest.raises(ConfigError, match="single class"):
        make_dataset(name="toy", task="classification", train=(x, np.ones(6, int)), num_classes=2)
    with pytest.raises(ConfigError, match="fewer than 2 training rows"):
        make_dataset(name="toy", task="regression", train=(x[:1], np.arange(1.0)))
    with pytest.raises(ConfigError, match="the test rows of toy"):
        make_dataset(name="toy", task="regression", train=(x, np.arange(6.0)), test=(x[:, :1], np.arange(6.0)))
    with pytest.raises(ConfigError, match=r"leave 0\.\.1"):
        make_dataset(name="toy", task="classification", train=(x, np.arange(6)), num_classes=2)


def test_checksum_tells_values_types_and_parts_apart() -> None:
    """One bit, one dtype or a row moved from train to test changes it; a name does not."""
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    base = make_dataset(name="a", task="regression", train=(x[:4], y[:4]), test=(x[4:], y[4:]))
    other = x.copy()
    other[5, 1] = np.nextafter(np.float32(other[5, 1]), np.float32(np.inf))
    changed = [
        make_dataset(name="a", task="regression", train=(x[:4], y[:4]), test=(other[4:], y[4:])),
        make_dataset(name="a", task="regression", train=(x[:4], y[:4]), test=(x[4:], y[4:]), dtype=np.float64),
        make_dataset(name="a", task="regression", train=(x[:4], y[:4]), validation=(x[4:], y[4:])),
        make_dataset(name="a", task="regression", train=(x[:4], y[:4]), test=(x[4:], y[4:]), standardize="y"),
    ]
    assert len({base.checksum, *(c.checksum for c in changed)}) == 5
    again = make_dataset(name="b", task="regression", train=(x[:4], y[:4]), test=(x[4:], y[4:]))
    assert again.checksum == base.checksum


def test_float64_follows_jax_x64() -> None:
    """Arrays are float32 unless JAX runs in x64."""
    import jax

    x, y = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    assert make_dataset(name="a", task="regression", train=(x, y)).train.x.dtype == np.float32
    with jax.enable_x64(True):
        assert make_dataset(name="a", task="regression", train=(x, y)).train.x.dtype == np.float64


@pytest.mark.parametrize("offset", [0.0, 2e7, 1.7e9, -273.15])
def test_a_large_offset_takes_no_digit_of_the_spread(offset: float) -> None:
    """Rows are those without the offset, and the way back gives the source's values, to 1e-6 of the spread.

    The rounding of float32 to standardised values below 4 is 2.4e-7, that of float64 at 1.7e9 is 2.4e-7 too.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 2)), rng.normal(size=50)
    plain = make_dataset(name="a", task="regression", train=(x, y))
    far = make_dataset(name="a", task="regression", train=(x + offset, y + offset))
    np.testing.assert_allclose(far.train.x, plain.train.x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(far.train.y, plain.train.y, rtol=0, atol=1e-6)
    assert far.x_scaler is not None and far.y_scaler is not None and far.y_scaler.loc.dtype == np.float64
    for back, source in (
        (far.x_scaler.original(far.train.x), x + offset), (far.y_scaler.original(far.train.y), y + offset),
        (far.y_scaler.original(far.y_scaler.standardise(np.float64(offset + 1))), offset + 1),
    ):  # fmt: skip
        assert back.dtype == np.float64
        np.testing.assert_allclose(back, source, rtol=0, atol=1e-6)


def test_offsets_that_float32_cannot_tell_apart_are_two_data_sets() -> None:
    """2e7 and 2e7 + 0.25 are one number in float32, but other targets: another checksum, which names runs."""
    x, y = np.arange(16.0)[:, None], np.arange(16.0)
    one, two = (make_dataset(name="a", task="regression", train=(x, y + 2e7 + shift)) for shift in (0.0, 0.25))
    np.testing.assert_array_equal(one.train.y, two.train.y)
    assert one.checksum != two.checksum
