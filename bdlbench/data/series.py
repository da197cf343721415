"""Time series and signals: atmospheric CO2, NAB series with labelled anomalies, and an electrocardiogram."""

import json
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bdlbench.data.dataset import Dataset, make_dataset, split_table
from bdlbench.data.fetch import Files
from bdlbench.data.splits import cut, permutation, random_split
from bdlbench.data.table import Table, make_table
from bdlbench.data.wheels import wheel_file
from bdlbench.errors import ConfigError

NAB = "numenta/NAB"
NAB_SERIES = {
    "machine_temperature_system_failure": "realKnownCause",
    "ambient_temperature_system_failure": "realKnownCause",
    "nyc_taxi": "realKnownCause",
    "art_daily_jumpsup": "artificialWithAnomaly",
}
WFDB = "MIT-LCP/wfdb-python"
BEATS = {1: "N", 5: "V", 8: "A"}  # the annotation codes of the MIT format that occur in record 100


def _cut_in_time(n: int, validation_fraction: float, n_train: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, validation) of n rows in order of time. Validation is the last block.

    If ``n_train`` is given, train is the first ``n_train`` rows of a fixed random order of the other rows. The training
    sets of a learning curve are therefore nested.
    """
    train, validation = cut(np.arange(n), validation_fraction=validation_fraction, n_train=None)
    if n_train is not None:
        train, _ = cut(train[permutation(len(train), 0)], validation_fraction=0.0, n_train=n_train)
    return train, validation


def _check_test_fraction(value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"data.test_fraction={value} is out of range: choose one between 0 and 1.")


@lru_cache(maxsize=1)
def _co2() -> tuple[np.ndarray, np.ndarray]:
    file = wheel_file("statsmodels", "statsmodels", "datasets/co2/co2.csv")
    pairs = [line.split(",") for line in file.read_text().split()[1:]]
    dates = np.array([f"{d[:4]}-{d[4:6]}-{d[6:]}" for d, value in pairs if value], dtype="datetime64[D]")
    years = dates.astype("datetime64[Y]")
    days = (dates - years).astype(float)
    next_year = (years + np.timedelta64(1, "Y")).astype("datetime64[D]")
    length = (next_year - years.astype("datetime64[D]")).astype(float)
    return years.astype(float) + 1970.0 + days / length, np.array([float(value) for _, value in pairs if value])


def co2(
    *,
    test_fraction: float,
    seasonal: bool,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """Weekly CO2 at Mauna Loa, ppm, 1958-2001 (Keeling & Whorf, 2004; 59 weeks without a value are left out).

    The input is the time in years. ``seasonal`` adds the sine and cosine of 2 pi times it. The last ``test_fraction``
    of the weeks are the test rows, so that a forecast is tested. The last part of the other weeks is for validation.
    """
    _check_test_fraction(test_fraction)
    time, ppm = _co2()
    x, names = time[:, None], ["year"]
    if seasonal:
        x = np.column_stack([time, np.sin(2.0 * np.pi * time), np.cos(2.0 * np.pi * time)])
        names += ["sin_year", "cos_year"]
    num_fit = int(np.round((1.0 - test_fraction) * len(time)))
    train, validation = _cut_in_time(num_fit, validation_fraction, n_train)
    return make_dataset(
        standardize=standardize,
        name="co2",
        task="regression",
        train=(x[train], ppm[train]),
        validation=(x[validation], ppm[validation]) if len(validation) else None,
        test=(x[num_fit:], ppm[num_fit:]),
        feature_names=tuple(names),
        target_name="co2",
        notes=("split in time: the test rows are a forecast",),
    )


class Series(NamedTuple):
    """One NAB series: its values (n,), and for each whether it lies in a labelled anomaly window (n,)."""

    values: np.ndarray
    anomalous: np.ndarray


@lru_cache(maxsize=4)
def _nab(files: Files, series: str) -> Series:
    key = f"{NAB_SERIES[series]}/{series}.csv"
    lines = files.fetch(NAB, f"data/{key}").read_text().split("\n")[1:]
    pairs = [line.strip().split(",") for line in lines if line.strip()]
    times = np.array([stamp for stamp, _ in pairs], dtype="datetime64[s]")
    anomalous = np.zeros(len(pairs), dtype=bool)
    for start, end in json.loads(files.fetch(NAB, "labels/combined_windows.json").read_text())[key]:
        anomalous |= (times >= np.datetime64(start[:19])) & (times <= np.datetime64(end[:19]))
    return Series(np.array([float(value) for _, value in pairs]), anomalous)


def nab(
    *,
    files: Files,
    series: str,
    window: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """Predict the next value of a NAB series from the ``window`` before it (Lavin & Ahmad, 2015, arXiv 1510.03336).

    Rows from the first ``1 - test_fraction`` of the series are for training and validation, the others for testing.
    Both hold only rows whose window and target contain no labelled anomaly. ``ood["anomalies"]`` holds all rows whose
    target lies in an anomaly window, with the observed target. ``series`` is one of :data:`NAB_SERIES`. A window is a
    number of consecutive samples; the few time steps that are missing in a series are not filled in.
    """
    _check_test_fraction(test_fraction)
    if series not in NAB_SERIES:
        raise ConfigError(f"data.series={series} is unknown: choose from {', '.join(NAB_SERIES)}.")
    values, anomalous = _nab(files, series)
    if not 1 <= window < len(values) // 2:
        raise ConfigError(f"data.window={window} is out of range: choose from 1 to {len(values) // 2 - 1}.")
    x = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]
    touched = np.lib.stride_tricks.sliding_window_view(anomalous, window + 1).any(axis=1)
    y, inside = values[window:], anomalous[window:]
    early = np.arange(len(y)) + window < np.round((1.0 - test_fraction) * len(values))
    fit, test = np.flatnonzero(early & ~touched), np.flatnonzero(~early & ~touched)
    train, validation = (fit[rows] for rows in _cut_in_time(len(fit), validation_fraction, n_train))
    if not len(test):
        raise ConfigError(f"data.test_fraction={test_fraction} leaves {series} no normal test rows: raise it.")
    return make_dataset(
        standardize=standardize,
        name="nab",
        task="regression",
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]) if len(validation) else None,
        test=(x[test], y[test]),
        ood={"anomalies": (x[inside], y[inside])},
        feature_names=tuple(f"lag_{lag}" for lag in range(window, 0, -1)),
        target_name=series,
        notes=("split in time", "rows that touch a labelled anomaly are in neither train nor test"),
    )


def read_212(content: bytes, num_signals: int) -> np.ndarray:
    """Samples (n, num_signals) of a WFDB file of format 212: three bytes hold two 12-bit two's complement numbers."""
    triple = np.frombuffer(content, np.uint8).reshape(-1, 3).astype(np.int16)
    first = triple[:, 0] | ((triple[:, 1] & 0x0F) << 8)
    second = triple[:, 2] | ((triple[:, 1] & 0xF0) << 4)
    samples = np.stack([first, second], axis=1).reshape(-1)
    return np.where(samples > 2047, samples - 4096, samples).reshape(-1, num_signals)


def read_annotations(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Sample numbers and codes of a WFDB annotation file in MIT format, whose 16-bit words are code << 10 | interval.

    Words of code 59 (SKIP, followed by a 32-bit interval), 60 to 62 (fields of the annotation before) and 63 (AUX,
    followed by text) are not annotations.
    """
    words = np.frombuffer(content, "<u2").astype(int)
    samples, codes = [], []
    time = i = 0
    while i < len(words) and words[i] != 0:
        code, interval = int(words[i]) >> 10, int(words[i]) & 0x3FF
        i += 1
        if code == 59:
            skip = (int(words[i]) << 16) | int(words[i + 1])
            time += skip - (1 << 32) if skip >= 1 << 31 else skip
            i += 2
        elif code == 63:
            i += (interval + 1) // 2
        elif code < 59:
            time += interval
            samples.append(time)
            codes.append(code)
    return np.array(samples), np.array(codes)


@lru_cache(maxsize=2)
def _mitbih(files: Files, window: int) -> tuple[Table, Table]:
    raw = read_212(files.fetch(WFDB, "sample-data/100.dat").read_bytes(), 2)
    lead = (raw[:, 0] - 1024) / 200.0  # in mV, by the baseline and gain in the header of the record
    samples, codes = read_annotations(files.fetch(WFDB, "sample-data/100.atr").read_bytes())
    before = window // 2
    whole = (samples >= before) & (samples + window - before <= len(lead)) & np.isin(codes, list(BEATS))
    samples, codes = samples[whole], codes[whole]
    x = lead[samples[:, None] + np.arange(-before, window - before)]
    ectopic = codes == 5
    labels = np.where(codes == 8, 1, 0).astype(np.int32)
    names = ("normal", "atrial_premature")
    return (
        make_table(x[~ectopic], labels[~ectopic], target_name="beat", class_names=names),
        make_table(x[ectopic], labels[ectopic], target_name="beat", class_names=names),
    )


def mitbih(
    *,
    files: Files,
    window: int,
    split: int,
    test_fraction: float,
    validation_fraction: float,
    n_train: int | None,
    standardize: bool | str = True,
) -> Dataset:
    """Beats of MIT-BIH arrhythmia record 100, normal (0) or atrial premature (1) (Moody & Mark, 2001).

    A row holds ``window`` samples of lead MLII about the annotated peak, at 360 samples a second. Each position in the
    window is standardised as a feature. 33 of some 2,270 beats are premature, and all come from one patient, so
    accuracy says little. ``ood["ventricular"]`` holds the only ventricular beat of the record.
    """
    if not 2 <= window <= 360:
        raise ConfigError(f"data.window={window} is out of range: choose from 2 to 360 samples (one second).")
    table, ectopic = _mitbih(files, window)
    rows = random_split(
        len(table.y), split=split, test_fraction=test_fraction, validation_fraction=validation_fraction, n_train=n_train
    )
    return split_table(
        "mitbih", "classification", table, rows, ood={"ventricular": (ectopic.x, ectopic.y)}, standardize=standardize
    )
