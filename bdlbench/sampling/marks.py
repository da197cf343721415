"""When the host looks at a run: functions of the schedule alone, so that no machine's speed shows in a number."""

from collections.abc import Sequence
from typing import Any

from bdlbench.sampling.loop import Marks
from bdlbench.sampling.programs import Phase

DRAWS_AT_ONCE = 200
"""Draws a chain that are stored and scored together."""


def curve_marks(program: Any) -> Marks:
    """Log-spaced looks at the running posterior: 1, 2, 5, 10, ... steps of an optimiser or draws of a sampler."""

    def marks(stage: int, phase: Phase) -> list[int]:
        schedule = program.stages[stage].schedule
        if stage != len(program.stages) - 1 or (phase == "warmup") != (schedule.thinning == 0):
            return []
        total = schedule.num_warmup if phase == "warmup" else schedule.num_samples
        return [m * 10**e for e in range(8) for m in (1, 2, 5) if m * 10**e <= total]

    return marks


def looks(program: Any) -> Marks:
    """Where draws are stored and scored: at the curve's marks and every ``DRAWS_AT_ONCE`` draws.

    Blocks in between depend on the machine's speed. Averages are taken over these pieces instead, which do not, so that
    a repeated run repeats bit for bit.
    """
    curve = curve_marks(program)

    def marks(stage: int, phase: Phase) -> Sequence[int]:
        if phase == "warmup" or stage != len(program.stages) - 1:
            return curve(stage, phase)
        total = program.stages[stage].schedule.num_samples
        return sorted({*curve(stage, phase), *range(DRAWS_AT_ONCE, total, DRAWS_AT_ONCE), total})

    return marks


def num_steps(schedule: Any) -> int:
    """Steps of a stage, warm-up and sampling."""
    return int(schedule.num_warmup + schedule.num_samples * schedule.thinning)
