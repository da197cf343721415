"""CO2, NAB and the electrocardiogram: decoding against what the sources state, and splits in time."""

from typing import Any

import numpy as np
import pytest

from bdlbench.data import fetch, series
from bdlbench.types import ConfigError

PLAIN: dict[str, Any] = {"validation_fraction": 0.0, "n_train": None}


def test_co2_equals_statsmodels() -> None:
    """Values and dates are those of the library's loader without its 59 missing weeks."""
    import pandas as pd
    import statsmodels.datasets

    frame = statsmodels.datasets.co2.load_pandas().data.dropna()
    time, ppm = series._co2()
    np.testing.assert_array_equal(ppm, frame["co2"].to_numpy())
    assert len(ppm) == 2225
    index = pd.DatetimeIndex(frame.index)
    days = np.where(index.is_leap_year, 366, 365)
    np.testing.assert_allclose(time, index.year + (index.day_of_year - 1) / days, rtol=0, atol=1e-9)


def test_co2_is_split_in_time() -> None:
    """Train lies before validation, validation before test; subsets are nested; seasons are a unit circle."""
    data = series.co2(test_fraction=0.2, seasonal=True, validation_fraction=0.1, n_train=None)
    assert data.test is not None and data.validation is not None and data.feature_names[0] == "year"
    train, validation, test = (rows.x[:, 0] for rows in (data.train, data.validation, data.test))
    assert train.max() < validation.min() and validation.max() < test.min()
    assert (len(train), len(validation), len(test)) == (1602, 178, 445)
    assert data.x_scaler is not None
    circle = data.x_scaler.original(data.train.x)[:, 1:]
    np.testing.assert_allclose((circle**2).sum(axis=1), 1.0, atol=1e-5)  # float32 of values of order one
    some = series.co2(test_fraction=0.2, seasonal=False, validation_fraction=0.1, n_train=100)
    assert some.validation is not None and some.x_scaler is not None
    assert some.x_scaler.original(some.train.x).max() < some.x_scaler.original(some.validation.x).min()
    with pytest.raises(ConfigError, match=r"data\.test_fraction=0"):
        series.co2(test_fraction=0.0, seasonal=False, **PLAIN)


@pytest.mark.parametrize(
    ("name", "n", "anomalous"),
    [
        ("machine_temperature_system_failure", 22695, 2268),
        ("ambient_temperature_system_failure", 7267, 726),
        ("nyc_taxi", 10320, 1035),
        ("art_daily_jumpsup", 4032, 403),
    ],
)
def test_nab_series(name: str, n: int, anomalous: int) -> None:
    """Lengths, and labelled samples: NAB's windows cover a tenth of each series by construction."""
    values, labels = series._nab(fetch.files_at(), name)
    assert len(values) == n and labels.sum() == anomalous
    assert anomalous == pytest.approx(0.1 * n, rel=0.01)


def test_nab_rows_follow_each_other_and_keep_anomalies_apart() -> None:
    """A row is ``window`` values and the next one; no normal row touches a label; every labelled target is in ood."""
    name, window = "machine_temperature_system_failure", 12
    values, labels = series._nab(fetch.files_at(), name)
    data = series.nab(
        files=fetch.files_at(), series=name, window=window, test_fraction=0.5, validation_fraction=0.1, n_train=None
    )
    assert data.x_scaler is not None and data.y_scaler is not None and data.test is not None
    first = data.x_scaler.original(data.train.x[0])
    start = int(np.flatnonzero(~np.lib.stride_tricks.sliding_window_view(labels, window + 1).any(axis=1))[0])
    np.testing.assert_allclose(first, values[start : start + window], rtol=1e-5)
    np.testing.assert_allclose(data.y_scaler.original(data.train.y[0]), values[start + window], rtol=1e-5)
    assert len(data.ood["anomalies"].y) == labels[window:].sum()
    np.testing.assert_allclose(
        data.y_scaler.original(data.ood["anomalies"].y), values[window:][labels[window:]], rtol=1e-4, atol=1e-3
    )
    clean = ~np.lib.stride_tricks.sliding_window_view(labels, window + 1).any(axis=1)
    assert data.validation is not None
    assert len(data.train.y) + len(data.validation.y) + len(data.test.y) == clean.sum()


def test_nab_refusals() -> None:
    """An unknown series and an impossible window name their field."""
    with pytest.raises(ConfigError, match=r"data\.series=taxi is unknown: choose from machine"):
        series.nab(files=fetch.files_at(), series="taxi", window=3, test_fraction=0.5, **PLAIN)
    series._nab(fetch.files_at(), "nyc_taxi")
    with pytest.raises(ConfigError, match=r"data\.window=0"):
        series.nab(files=fetch.files_at(), series="nyc_taxi", window=0, test_fraction=0.5, **PLAIN)


def test_format_212_round_trip_and_header_checksums() -> None:
    """Packing any 12-bit numbers and reading them returns them; record 100 has its header's first values and sums."""
    numbers = np.random.default_rng(0).integers(-2048, 2048, size=(500, 2))
    a, b = numbers[:, 0] & 0xFFF, numbers[:, 1] & 0xFFF
    packed = np.stack([a & 0xFF, (a >> 8) | ((b >> 8) << 4), b & 0xFF], axis=1).astype(np.uint8)
    np.testing.assert_array_equal(series.read_212(packed.tobytes(), 2), numbers)
    samples = series.read_212(fetch.files_at().fetch(series.WFDB, "sample-data/100.dat").read_bytes(), 2)
    header = fetch.files_at().fetch(series.WFDB, "sample-data/100.hea").read_text().split("\n")
    lines = [line.split() for line in header if line.startswith("100.dat")]
    assert samples.shape == (650000, 2)
    for column, line in zip(samples.T, lines, strict=True):
        assert column[0] == int(line[5])
        assert (int(column.sum()) - int(line[6])) % 65536 == 0


def test_annotations_of_record_100() -> None:
    """2,239 normal, 33 atrial premature and 1 ventricular beat, as the database's own tables count them."""
    samples, codes = series.read_annotations(fetch.files_at().fetch(series.WFDB, "sample-data/100.atr").read_bytes())
    assert {code: int((codes == code).sum()) for code in series.BEATS} == {1: 2239, 5: 1, 8: 33}
    assert (np.diff(samples) > 0).all() and samples[-1] < 650000


def test_annotation_skip_and_text_are_read_over() -> None:
    """SKIP adds its 32-bit interval, NUM and AUX are no beats, and a zero word ends the file."""
    words = [(1 << 10) | 100, (59 << 10), 1, 4, (8 << 10) | 6, (63 << 10) | 3, 0x4141, 0x0041, (61 << 10) | 2]
    words += [(5 << 10) | 10, 0]
    samples, codes = series.read_annotations(np.array(words, "<u2").tobytes())
    assert samples.tolist() == [100, 100 + 65536 + 4 + 6, 100 + 65536 + 4 + 6 + 10] and codes.tolist() == [1, 8, 5]


def test_beats_are_centred_on_their_peak() -> None:
    """The largest sample of the average normal beat is within 5 samples (14 ms) of the annotated place."""
    data = series.mitbih(
        files=fetch.files_at(), window=200, split=0, test_fraction=0.2, validation_fraction=0.0, n_train=None
    )
    assert data.test is not None and data.x_scaler is not None
    assert len(data.train.y) + len(data.test.y) + len(data.ood["ventricular"].y) in range(2270, 2274)
    mean = data.x_scaler.original(data.train.x[data.train.y == 0]).mean(axis=0)
    assert abs(int(mean.argmax()) - 100) <= 5
    with pytest.raises(ConfigError, match=r"data\.window=1 "):
        series.mitbih(files=fetch.files_at(), window=1, split=0, test_fraction=0.2, **PLAIN)
