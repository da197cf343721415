"""Sample a job in memory: the blocks of the loop become draws and the diagnostics that a record of a run holds."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from bdlbench.api.options import Options
from bdlbench.api.problem import SCHEDULE as SCHEDULE
from bdlbench.api.problem import Parts, Rows, make_job, make_parts, make_rows
from bdlbench.data.dataset import Rows as ModelRows
from bdlbench.errors import ConfigError
from bdlbench.metrics.diagnostics import CHAIN_DIAGNOSTICS
from bdlbench.runs import memory
from bdlbench.runs.arrangement import arrange
from bdlbench.runs.diagnosis import diagnosis, status
from bdlbench.runs.job import Job, check_job
from bdlbench.runs.look import look_at
from bdlbench.runs.observed import as_seen
from bdlbench.runs.progress import Notebook, Progress, make_progress
from bdlbench.runs.storage import TEST_GROUPS, Storage
from bdlbench.runs.tally import Tally
from bdlbench.sampling import lanes, loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.marks import num_steps
from bdlbench.sampling.position import Position
from bdlbench.sampling.predictions import Predictor, is_gaussian
from bdlbench.sampling.programs import NEVER, Shared, size_of
from bdlbench.store import RunWriter
from bdlbench.types import Precision

DIAGNOSED_ROWS = 500
"""Most training rows at which chains are compared; a run compares its chains at the same number of test rows."""


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """The result of sampling C chains of S draws.

    Attributes
    ----------
    theta : array (C, S, D), or (C, S, P, D) of populations
    good : bool array (C P, S)
        Which draws are finite and come before their chain's first bad step.
    anchor : array (C, D) or None
        The point at which predictions are linearised; None where they are not linearised.
    stats : dict of arrays (C, S)
        Statistics of the step before each draw.
    blocks : tuple of Block
        The blocks of the last stage that hold the draws.
    tally : Tally
        The costs of all blocks. No draw has been added to it.
    gaussian, markov : bool
        Whether y given theta is one normal number, and whether a chain's draws are a Markov chain.
    seconds : dict
        Wall-clock seconds by phase.
    position : Position or None
        The last state, if it is a fitted distribution from which an update can continue.
    start : "any", "mode" or "own"
        How the last stage uses the point at which it begins.
    """

    theta: np.ndarray
    good: np.ndarray
    anchor: np.ndarray | None
    stats: dict[str, np.ndarray]
    blocks: tuple[loop.Block, ...]
    tally: Tally
    gaussian: bool
    markov: bool
    seconds: dict[str, float]
    position: Position | None
    start: str

    def num_grads(self, num_rows: int) -> dict[str, float]:
        """Gradients by phase, in passes over the training rows."""
        return {phase: rows / num_rows for phase, rows in self.tally.row_grads.items()}


class _Memory(RunWriter):
    """A writer without a folder. It keeps in memory the arrays that diagnostics read, and drops all others."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, str], np.ndarray] = {}

    def allocate(
        self,
        group: str,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        dims: Sequence[str],
        coords: Mapping[str, Any] | None = None,
        chunk_draws: int | None = None,
        packing: tuple[float, float] | None = None,
    ) -> None:
        """Allocate the arrays that diagnostics read. They are not packed, since ranks and ratios do not need it."""
        if group in TEST_GROUPS:
            self.arrays[group, name] = np.empty(shape, dtype)

    def write(self, group: str, name: str, start_draw: int, array: Any) -> None:
        """Keep a block of draws."""
        if (group, name) in self.arrays:
            self.arrays[group, name][:, start_draw : start_draw + array.shape[1]] = array

    def read_columns(self, group: str, name: str, start: int, stop: int) -> np.ndarray:
        """Read the columns ``start`` to ``stop`` of the last axis."""
        return self.arrays[group, name][..., start:stop]


def prepare(
    network: Any,
    x: Any,
    y: Any,
    *,
    model: Any,
    inference: Any,
    prior: Any,
    likelihood: Any,
    temperature: float,
    seed: int,
    standardize: bool,
    options: Options,
    precision: Precision,
) -> tuple[Parts, Rows, Job]:
    """Make the job of a fit and check it. Nothing is compiled."""
    parts = make_parts(
        network=network,
        model=model,
        prior=prior,
        likelihood=likelihood,
        temperature=temperature,
        inference=inference,
        options=options,
        precision=precision,
    )
    rows = make_rows(parts, x, y, standardize=standardize)
    job = make_job(parts, rows, seed)
    job = check_job(job)
    return parts, rows, job


def progress_of(progress: bool | Literal["auto", "lines", "off"]) -> Progress:
    """The progress display: bars or lines for True, nothing for False."""
    if progress not in (True, False, "auto", "lines", "off"):
        raise ConfigError(f"progress={progress!r} is unknown: use True or False.")
    if progress is True or progress == "auto":
        return Notebook() if _in_notebook() else make_progress("auto")
    return make_progress("off" if progress is False else progress)


def sample(job: Job, progress: Progress, *, theta: np.ndarray | None = None, position: Position | None = None) -> Draws:
    """Run the stages of a job and keep the draws of the last stage.

    Parameters
    ----------
    theta : array (C, D), optional
        The points at which the first stage begins.
    position : Position, optional
        A state from which the first stage continues.

    Raises
    ------
    FloatingPointError
        If no chain has a finite draw. The message says in one sentence how this happened.
    ConfigError
        If the fit needs more memory than the machine has, before it starts.
    """
    clock = Clock()
    shared, lane, _, _ = arrange([job])
    last = len(job.program.stages) - 1
    stages = loop.every_stage(job.program, shared, lane)
    try:
        memory.refuse(job, stages, size_of(shared), job.num_chains, keeps_draws=True)
    except memory.NeverFits as error:
        raise ConfigError(str(error)) from None
    shared = lanes.replicate(shared)
    first = job.dataset.train
    num_rows, every, thinning = len(first.y), slice(0, job.num_chains), job.program.stages[last].schedule.thinning
    gaussian = is_gaussian(job.program, job.numbers, first.x, first.y)
    markov = stages[last].markov
    tally = Tally(job.num_chains, [], gaussian=gaussian)
    method = stages[last]
    lengths = [num_steps(stage.schedule) for stage in job.program.stages]
    blocks: list[loop.Block] = []
    carried: Position | None = None
    message = f"{job.id}: stopped"
    progress.start(job.id, sum(lengths))
    try:
        for block in loop.run(job.program, shared, lane, clock=clock, theta=theta, resume=position):
            name = job.program.stages[block.stage].name
            progress.advance(block.phase, name, sum(lengths[: block.stage]) + block.steps_done, block.stats)
            tally.charge(block, num_rows, last=block.stage == last)
            if block.stage == last and block.draws is not None:
                blocks.append(block._replace(position=None, provisional=None))
                if method.has_density and not method.two_bodies and block.position is not None and carried is None:
                    carried = block.position()  # a guide does not change while draws are taken from it
        message = f"{job.id}: done in {clock.sampling():.1f} s"
    finally:
        progress.finish(message)
    looks = [look_at(block, every, thinning, {}, {}) for block in blocks]
    good = [look.good for look in looks]
    seen = _copied(tally)
    for look in looks:
        seen.add(look)
    _, reason = status(job, seen)
    if not blocks or not np.concatenate(good, 1).any():
        raise FloatingPointError(f"The fit has no finite draw: {reason}.")
    theta_all = np.concatenate([block.draws for block in blocks if block.draws is not None], 1)
    starts = np.cumsum([0, *(block.draws.shape[1] for block in blocks if block.draws is not None)])
    blocks = [  # views, so that draws are held once
        block._replace(draws=theta_all[:, a:b]) for block, a, b in zip(blocks, starts[:-1], starts[1:], strict=True)
    ]
    stats = {name: np.concatenate([block.stats[name] for block in blocks], 1) for name in blocks[0].stats}
    mask = np.concatenate(good, 1)
    if not mask.all():
        bad = int((~mask.all(1)).sum())
        warnings.warn(f"{bad} of {len(mask)} chains are not used whole: {reason}.", stacklevel=4)
    return Draws(
        theta_all,
        mask,
        blocks[-1].anchor,
        stats,
        tuple(blocks),
        tally,
        gaussian,
        markov,
        dict(clock.seconds),
        carried,
        method.method.start,
    )


def diagnose(job: Job, draws: Draws) -> dict[str, Any]:
    """Diagnostics of the draws in function space, at training rows, and warnings, as in the record of a run."""
    tally = _copied(draws.tally)
    storage = _look(job, draws.blocks, tally, draws.gaussian)
    chains = tally.sound_chains() if draws.markov else []
    mixing = storage.mixing(chains, tally.drawn, tally.absent) if chains else dict.fromkeys(CHAIN_DIAGNOSTICS)
    found = diagnosis(job, tally, mixing, markov=draws.markov)
    counts = {"num_diverging": tally.num_diverging, "num_nonfinite": tally.num_nonfinite}
    return {
        "status": found.status,
        "reason": found.reason,
        "diagnostics": {
            **found.diagnostics,
            **counts,
            "num_grads": draws.num_grads(len(job.dataset.train.y)),
        },
        "warnings": [*([] if found.reason is None else [found.reason]), *found.warnings],
        "not_assessed": found.not_assessed,
    }


def mixing_of(
    job: Job, theta: np.ndarray, good: np.ndarray, anchor: np.ndarray | None, *, gaussian: bool
) -> dict[str, Any]:
    """R-hat and ESS of function values at training rows, of draws (C, S, D) that are Markov chains.

    Only chains are used all of whose draws are ``good``, (C, S).
    """
    chains, last = len(theta), len(job.program.stages) - 1
    none = np.zeros(chains)
    never = np.full(chains, NEVER)
    # The number of steps only has to be above the number of draws that it stands for.
    block = loop.Block(
        last, "sample", NEVER - 1, 0, theta, {}, none, none, never, 0.0, None, anchor, None
    )  # fmt: skip
    tally = Tally(chains, [], gaussian=gaussian)
    tally.bad = {chain: (0, "sample", last) for chain in range(chains) if not good[chain].all()}
    storage = _look(job, (block,), tally, gaussian)
    return storage.mixing(tally.sound_chains(), tally.drawn, tally.absent)


def _look(job: Job, blocks: Sequence[loop.Block], tally: Tally, gaussian: bool) -> Storage:
    """Predict training rows from the draws of blocks, and add them to a tally and to what is returned."""
    some = slice(DIAGNOSED_ROWS)
    train = job.dataset.train
    first = dataclasses.replace(job.dataset, test=ModelRows(train.x[some], train.y[some]), shifted={})
    rows = as_seen(job.program, job.numbers, first).test  # hidden rows may hold any y
    assert rows is not None
    schedule = job.program.stages[-1].schedule
    # Ranks and ratios have no units, so that the targets need not be scaled back.
    dataset = dataclasses.replace(job.dataset, test=rows, y_scaler=None)
    storage = Storage(_Memory(), dataset, schedule.num_samples, DIAGNOSED_ROWS, {})
    shared, lane, _, _ = arrange([job])
    predictor = Predictor(job.program, _task(job), shared, lane, Shared(rows.x[None], rows.y[None]), Clock())
    for block in blocks:
        assert block.draws is not None
        seen = predictor.predict(block.draws, block.first_draw, block.anchor)
        seen = _as_rows(seen) if rows.y.ndim == 2 else seen
        own = slice(0, job.num_chains)
        look = look_at(block, own, schedule.thinning, {}, {"": seen}, tally.absent, gaussian=gaussian)
        tally.add(look)
        storage.write(look)
    return storage


def _as_rows(seen: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reshape predictions (C, n, T, K) of K targets to (C, n, T K); each has the joint log likelihood of its row."""
    width = max(seen[name].shape[-1] for name in ("mean", "sample") if name in seen)
    names = [name for name in ("mean", "variance", "sample") if name in seen]
    flat = {name: seen[name].reshape(*seen[name].shape[:2], -1) for name in names}
    return {**flat, "log_lik": np.repeat(seen["log_lik"], width, -1)}


def _copied(tally: Tally) -> Tally:
    """A new tally with the same costs."""
    out = Tally(tally.num_chains, [], gaussian=tally.mixtures[""].gaussian)
    out.row_grads, out.num_diverging, out.bad = dict(tally.row_grads), tally.num_diverging, dict(tally.bad)
    return out


def _task(job: Job) -> Any:
    return "classification" if job.dataset.task == "classification" else "regression"


def _in_notebook() -> bool:
    import sys

    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "ZMQ" in type(shell).__name__
