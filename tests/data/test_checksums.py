"""Every set is the one it was: shapes and content, of the settings that its yaml ships.

The checksum covers the standardised single-precision arrays of all parts and the scalers. It was taken once from this
project's own loaders, after shapes, splits and known values had been tested; it tells a changed file, generator or
library from an unchanged one. Your own files (csv, npz) and MNIST's full training set have none.
"""

import json
from pathlib import Path

import pytest

from bdlbench.runs.configuration import coerced, compose, conf_dir
from bdlbench.runs.job import load_data

KNOWN = json.loads(Path(__file__).with_name("checksums.json").read_text())


def test_every_set_has_a_checksum():
    """A new set without one fails here."""
    names = {path.stem for path in (conf_dir() / "data").glob("*.yaml")}
    assert names - set(KNOWN) == {"csv", "npz", "mnist"}


@pytest.mark.parametrize("name", KNOWN)
def test_content(name):
    """Shapes of training and test rows, and the checksum of everything."""
    data = load_data(coerced(compose([f"data={name}"])[0], ""))
    known = KNOWN[name]
    assert list(data.train.x.shape) == known["train"]
    assert (None if data.test is None else list(data.test.x.shape)) == known["test"]
    assert data.checksum == known["checksum"]
