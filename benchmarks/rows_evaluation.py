"""Rows about evaluation: how long worth and bias take."""

import time

import numpy as np

from bdlbench.metrics.fidelity import Reference, fidelity
from benchmarks.timing import Options, Row


def worth(options: Options) -> list[Row]:
    """Worth, bias and the rest of 4,000 draws against 4,000 reference draws at 60 points, the reference's part included."""
    num_draws, num_points = (40, 6) if options.quick else (500, 60)
    rng = np.random.default_rng(0)
    draws, reference = (rng.normal(size=(8, num_draws, num_points)).astype(np.float32) for _ in range(2))
    values = []
    for _ in range(options.repeat + 1):
        start = time.perf_counter()
        fidelity(draws, Reference(reference))
        values.append(time.perf_counter() - start)
    return [Row("worth and bias, 4,000 draws against 4,000 at 60 points", "s", values[1:], 1.0)]
