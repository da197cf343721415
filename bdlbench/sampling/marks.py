"""The steps and draws at which a run is scored.

They depend only on the schedule, so that the results do not depend on the speed of the machine.
"""

from collections.abc import Sequence
from typing import Any

from bdlbench.sampling.loop import Marks
from bdlbench.sampling.programs import Phase

DRAWS_AT_ONCE = 200
"""The largest number of draws of a chain that are stored and scored together."""


def curve_marks(program: Any) -> Marks:
    """Return the marks of the curve: 1, 2, 5, 10, 20, ... draws of a sampler, or steps of an optimiser (thinning 0)."""

    def marks(stage: int, phase: Phase) -> list[int]:
        schedule = program.stages[stage].schedule
        if stage != len(program.stages) - 1 or (phase == "warmup") != (schedule.thinning == 0):
            return []
        total = schedule.num_warmup if phase == "warmup" else schedule.num_samples
        return [m * 10**e for e in range(8) for m in (1, 2, 5) if m * 10**e <= total]

    return marks


def looks(program: Any) -> Marks:
    """Return the marks at which draws are stored and scored: those of the curve, and every ``DRAWS_AT_ONCE`` draws.

    The lengths of blocks depend on the speed of the machine. The draws between two marks do not. Averages are computed
    over these, so that a repeated run gives the same bits.
    """
    curve = curve_marks(program)

    def marks(stage: int, phase: Phase) -> Sequence[int]:
        if phase == "warmup" or stage != len(program.stages) - 1:
            return curve(stage, phase)
        total = program.stages[stage].schedule.num_samples
        return sorted({*curve(stage, phase), *range(DRAWS_AT_ONCE, total, DRAWS_AT_ONCE), total})

    return marks


def num_steps(schedule: Any) -> int:
    """Return the number of steps of a stage, warm-up and sampling together."""
    return int(schedule.num_warmup + schedule.num_samples * schedule.thinning)
