"""Keys of predictive draws: no two draws of a run share their noise."""

import jax
import numpy as np
import pytest
from presets import PRESETS, by_family, shortened

from bdlbench.runs import configuration
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.job import make_job
from bdlbench.sampling import loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.devices import setup_jax
from bdlbench.sampling.marks import looks
from bdlbench.sampling.predictions import Predictor

DATA = ["data=cosine_gap", "data.n_cluster=20", "data.n_test=6", "network.width=3"]
"""With the schedules below the program of the tests of resumed runs, so that it is compiled once for both."""
PIECES = 3
"""Draws that are predicted together: a piece that does not begin at 0 would share the keys of an earlier one."""


@pytest.mark.slow
@pytest.mark.parametrize("preset", by_family(PRESETS, "svgd"))
def test_every_draw_of_y_has_noise_of_its_own(preset):
    """y - E[y | theta] over its standard deviation is the draw's noise: S different ones, in each lane and in all.

    Two of S vectors of six normal numbers are equal by chance with a probability below S^2 2^-80. Equal keys give
    equal noise up to the rounding of a subtraction, some 1e-5 of a standard deviation, so that noise counts as equal
    where it agrees to 1e-4 in all six.
    """
    setup_jax()
    job = make_job(*configuration.compose([*DATA, *shortened(preset, warmup=16, samples=8, before=6)]))
    shared, lane, test, _ = arrange([job])
    predictor = Predictor(job.program, "regression", shared, lane, test, Clock())
    found = []
    for block in loop.run(job.program, shared, lane, clock=Clock(), marks=looks(job.program)):
        if block.stage == len(job.program.stages) - 1 and block.draws is not None:
            for at in range(0, block.draws.shape[1], PIECES):
                out = predictor.predict(block.draws[:, at : at + PIECES], block.first_draw + at, block.anchor)
                found.append((out["sample"] - out["mean"]) / np.sqrt(out["variance"]))
    noise = np.concatenate(found, 1).astype(np.float64)
    noise = noise.reshape(-1, noise.shape[-1])
    noise = noise[np.isfinite(noise).all(-1)]
    assert len(noise)
    order = noise[np.argsort(noise[:, 0])]
    for ahead in range(1, min(8, len(order))):
        same = (np.abs(order[ahead:] - order[:-ahead]) < 1e-4).all(-1)
        assert not same.any(), f"{same.sum()} of {len(order)} draws share their noise"
    jax.clear_caches()
