"""Real processes are killed with kill -9 at random times. The same command continues and ends with the same bits."""

import shutil
import time
import zlib

import numpy as np
import pytest
import yaml
from commands import QUICK, command, killed_until_done
from presets import PRESETS, assert_same, outcome, shortened

from bdlbench.runs.configuration import conf_dir
from bdlbench.store import Store

pytestmark = pytest.mark.faults
KILLS = 3
BUDGET = {
    # preset: warm-up steps, draws, steps of the stage before: some seconds of work on a small machine
    "map": (40_000, 1, 0), "swag": (20_000, 400, 4_000), "svi": (12_000, 400, 4_000), "ivon": (20_000, 400, 0),
    "laplace": (0, 1_000, 30_000), "nuts": (400, 1_500, 2_000), "chees": (200, 600, 2_000),
    "mclmc": (6_000, 1_500, 2_000), "adjusted_mclmc": (1_000, 1_500, 2_000), "sgld": (20_000, 1_000, 0),
    "sghmc": (20_000, 1_000, 0), "svgd": (8_000, 1, 0), "smc": (50, 400, 0),
}  # fmt: skip

KINDS = ("svi", "laplace", "nuts", "mclmc", "sgld", "svgd", "smc")
"""One family for each kind of state; the others run with the long tests."""


def family(preset: str) -> str:
    return yaml.safe_load((conf_dir() / "inference" / f"{preset}.yaml").read_text())["_target_"].rsplit(".", 1)[0]


def test_every_family_is_killed():
    """Every module of methods that a yaml names has a preset in this test."""
    assert {family(preset) for preset in BUDGET} == {family(preset) for preset in PRESETS}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "preset", [name if name in KINDS else pytest.param(name, marks=pytest.mark.long) for name in BUDGET]
)
def test_kills_change_no_bit(preset, tmp_path):
    """A run is killed three times, at its first checkpoint and at random times, and still ends with the same bits."""
    warmup, samples, before = BUDGET[preset]
    overrides = [*QUICK, *shortened(preset, warmup, samples, before)]
    code, errors = command(*overrides, f"store.path={tmp_path}/cold")  # fills the compilation cache
    assert code == 0, errors
    began = time.monotonic()
    command(*overrides, f"store.path={tmp_path}/whole")
    seconds = time.monotonic() - began
    whole = Store(tmp_path / "whole")
    (run_id,) = whole.finished()
    expected = outcome(whole, run_id)
    assert_same(expected, outcome(Store(tmp_path / "cold"), run_id))

    rng = np.random.default_rng(zlib.crc32(preset.encode()))
    kills = continued = 0
    while kills < KILLS:
        shutil.rmtree(tmp_path / "pieces", ignore_errors=True)
        landed, went_on = killed_until_done(overrides, tmp_path / "pieces", seconds, KILLS - kills, rng)
        assert landed and went_on, "the run was over before it could be killed: give it more steps"
        kills, continued = kills + landed, continued + went_on
        pieces = Store(tmp_path / "pieces")
        assert_same(expected, outcome(pieces, run_id))
        assert pieces.verify(run_id) == []
        assert pieces.unfinished() == []
    print(f"{preset}: {seconds:.1f} s, {kills} kills, {continued} of them continued from a checkpoint")
