"""Rows about methods: what each one's step costs over its own bare gradients, everything it does beside them included."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from bdlbench.inference import adjusted_mclmc, chees, hmc, ivon, mclmc, sghmc, sgld, svgd
from bdlbench.types import Method, Schedule
from benchmarks import problems
from benchmarks.timing import Options, Row, in_blocks, in_turns, num_grads, ratio_row, steady

ENDLESS = 10**6
"""Draws, or steps, asked of a run of which a few seconds are watched."""
BATCH = 100
NUTS_LIMIT, SGLD_LIMIT = 1.25, 2.5
"""A sampler's step may cost so many of its own gradients: on all rows as NUTS, on batches as SGLD."""
_UNDERDAMPED = {"step_size": 1e-4, "friction": 1000.0}


class Case(NamedTuple):
    """A method as it is timed: its settings, its warm-up, the limit, if it has one, and its steps a draw.

    ``limit`` None: there to be compared with. ``thinning`` 0: its warm-up is what is watched. The unit is a gradient,
    so two a step of MCLMC and P a step of a population count as two and P.
    """

    factory: Callable[..., Method]
    options: Mapping[str, Any]
    num_warmup: int
    limit: float | None = None
    thinning: int = 1


FULL = {
    "hmc": Case(
        hmc.hmc, {"target_accept_prob": 0.9, "trajectory_length": 1.5, "max_leapfrog_steps": 2000}, 300, NUTS_LIMIT
    ),
    "mclmc": Case(
        mclmc.mclmc,
        {
            "initial_step_size": 0.01,
            "energy_variance_start": 5e-4,
            "energy_variance_end": 5e-4,
            "frac_tune1": 0.3,
            "frac_tune2": 0.4,
            "l_factor": 0.4,
            "trust_in_estimate": 1.5,
            "num_effective_samples": 150.0,
            "diagonal_preconditioning": True,
        },
        2000,
        NUTS_LIMIT,
        thinning=20,
    ),
    "adjusted_mclmc": Case(
        adjusted_mclmc.adjusted_mclmc,
        {
            "initial_step_size": 0.1,
            "target_accept_prob": 0.65,
            "frac_tune1": 0.3,
            "frac_tune2": 0.4,
            "l_factor": 1.3,
            "diagonal_preconditioning": True,
            "max_num_steps": 256,
        },
        300,
        NUTS_LIMIT,
    ),
    "chees": Case(
        chees.chees,
        {
            "num_particles": 16,
            "init_scale": 0.1,
            "initial_step_size": 0.01,
            "learning_rate": 0.05,
            "target_accept_prob": 0.651,
            "decay_rate": 0.5,
            "max_leapfrog_steps": 32,
        },
        50,
    ),
    "svgd": Case(
        svgd.svgd,
        {"optimizer": optax.adam(0.01), "num_particles": 20, "init_scale": 0.3},
        ENDLESS,
        thinning=0,
    ),
}
BATCHES = {
    "sghmc": Case(sghmc.sghmc, _UNDERDAMPED, 0, SGLD_LIMIT, thinning=10),
    "baoa": Case(sghmc.baoa, _UNDERDAMPED, 0, SGLD_LIMIT, thinning=10),
    "sgnht": Case(sghmc.sgnht, _UNDERDAMPED, 0, thinning=10),
    "psgld": Case(sgld.psgld, {"step_size": 1e-7, "averaging": 0.99, "damping": 1e-5}, 100, thinning=10),
    "ivon": Case(
        ivon.ivon,
        {"learning_rate": 0.01, "hessian_init": 1.0, "beta1": 0.9, "beta2": 0.9995},
        ENDLESS,
        thinning=0,
    ),
}


def step(name: str, options: Options) -> list[Row]:
    """The step of one method, in units of a bare gradient on the rows that it sees."""
    batched = name in BATCHES
    case = BATCHES[name] if batched else FULL[name]
    if batched:
        problem = problems.many_rows(1000, 9, 10) if options.quick else problems.many_rows()
    else:
        problem = problems.diabetes(5 if options.quick else 50)
    phase = "sample" if case.thinning else "warmup"
    warmup = min(case.num_warmup, 30) if options.quick and case.thinning else case.num_warmup
    batch = BATCH if batched else None
    schedule = Schedule(1, warmup, ENDLESS if case.thinning else 1, case.thinning, batch)
    stages = (*problems.short_map(0 if batched else 200), problems.stage(name, case.factory, schedule, **case.options))
    share = len(problem.y) / BATCH if batched else 1.0
    run = problems.blocks(problem, stages)
    found = in_turns(
        {
            "bare": steady(problems.bare_gradient(problem, batch), options.least),
            "ours": in_blocks(run, len(stages) - 1, phase, lambda b: num_grads(b) * share, options.least),
        },
        options.repeat,
    )
    on = f"batches of {BATCH}" if batched else "all rows"
    return [ratio_row(f"{name}, a gradient of its step on {on} / bare gradient", found, "ours", "bare", case.limit)]


ROWS: dict[str, Callable[[Options], list[Row]]] = {name: functools.partial(step, name) for name in (*FULL, *BATCHES)}
