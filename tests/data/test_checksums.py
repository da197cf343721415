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
    """A new set without one fails here, and the message has the line to add to checksums.json."""
    names = {path.stem for path in (conf_dir() / "data").glob("*.yaml")} - {"csv", "npz", "rows", "mnist"}
    lines = [f'"{name}": {json.dumps(facts(name))},' for name in sorted(names - set(KNOWN))]
    assert not lines, "\n".join(["add to tests/data/checksums.json, once the rows are known to be right:", *lines])
    assert set(KNOWN) == names


def facts(name):
    """Shapes of training and test rows, and the checksum of everything."""
    data = load_data(coerced(compose([f"data={name}"])[0], ""))
    test = None if data.test is None else list(data.test.x.shape)
    return {"train": list(data.train.x.shape), "test": test, "checksum": data.checksum}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_content(name):
    """Nothing has changed."""
    assert facts(name) == KNOWN[name]
