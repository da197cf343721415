"""The host part of the sampling loop: it runs every method in blocks of steps, and yields the results of each block.

Between blocks the caller shows progress, and stores and scores draws. The loop's clock does not measure that time.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bdlbench.sampling import lanes
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.position import Position, to_devices, to_host
from bdlbench.sampling.position import check as check_leaves
from bdlbench.sampling.programs import NEVER, UNFINISHED, Lane, Phase, Program, Shared, StagePrograms
from bdlbench.types import no_finalize

Marks = Callable[[int, Phase], Sequence[int]]


class Block(NamedTuple):
    """The results of one block, as host arrays whose first axis is the lane.

    Attributes
    ----------
    stage : int
        The index of the stage.
    phase : "warmup" or "sample"
    steps_done : int
        The number of steps of the stage that are done, including this block.
    first_draw : int
        The index in the stage of the first draw of this block.
    draws : array (L, n, D) or (L, n, P, D), or None
        None in warm-up.
    stats : dict of arrays (L, n)
        The statistics of the step before each draw. If the draws come from a distribution with a density
        (``thinning`` 0), these are ``log_density`` and ``log_q`` of each draw. A block of warm-up has n = 1.
    num_grads : array (L,)
        The gradient evaluations of this block, in units of the full training set.
    num_diverging : int array (L,)
        The number of divergent steps of this block.
    bad_step : int array (L,)
        The first step of the stage with a non-finite log density; ``NEVER`` if there is none, ``UNFINISHED`` if the
        warm-up did not reach the posterior.
    seconds : float
        The duration of this block.
    provisional : (n) -> array (L, n, D), or None
        Draws n times from the current state of a method that optimises (``thinning`` 0).
    anchor : array (L, D) or None
        The weights at which predictions are linearised.
    position : () -> Position, or None
        Copies the current state. It must be called before the next block is computed. :func:`run` can continue from the
        result.
    """

    stage: int
    phase: Phase
    steps_done: int
    first_draw: int
    draws: np.ndarray | None
    stats: dict[str, np.ndarray]
    num_grads: np.ndarray
    num_diverging: np.ndarray
    bad_step: np.ndarray
    seconds: float
    provisional: Callable[[int], np.ndarray] | None
    anchor: np.ndarray | None
    position: Callable[[], Position] | None = None

    def of(self, some: slice) -> "Block":
        """Return the block of some of the lanes. ``provisional`` and ``position`` still refer to all lanes."""
        return self._replace(
            draws=None if self.draws is None else self.draws[some],
            stats={name: values[some] for name, values in self.stats.items()},
            num_grads=self.num_grads[some],
            num_diverging=self.num_diverging[some],
            bad_step=self.bad_step[some],
            anchor=None if self.anchor is None else self.anchor[some],
        )


def joined(blocks: Sequence[Block]) -> Block:
    """Join consecutive blocks of draws into one block."""
    if len(blocks) == 1:
        return blocks[0]
    return blocks[-1]._replace(
        first_draw=blocks[0].first_draw,
        draws=np.concatenate([block.draws for block in blocks], 1),
        stats={name: np.concatenate([block.stats[name] for block in blocks], 1) for name in blocks[0].stats},
        num_grads=np.sum([block.num_grads for block in blocks], 0),
        num_diverging=np.sum([block.num_diverging for block in blocks], 0),
        seconds=sum(block.seconds for block in blocks),
    )


class ProgramCache:
    """A cache of the compiled programs of stages. It keeps the ``maxsize`` entries that were used last."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self._programs: OrderedDict[Any, StagePrograms] = OrderedDict()

    def __len__(self) -> int:
        return len(self._programs)

    def get(self, program: Program, index: int, shared: Shared, lane: Lane) -> StagePrograms:
        """Return the programs of a stage for these shapes, and make them if the cache does not have them."""
        shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), (shared, lane))
        key = (program, index, str(shapes), jax.default_backend(), bool(jax.config.jax_enable_x64))
        if key not in self._programs:
            self._programs[key] = StagePrograms(program, index, shared, lane)
            while len(self._programs) > self.maxsize:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]


_PROGRAMS = ProgramCache(maxsize=64)
"""The cache of the runs of this process. A run has about two stages, and a sweep has several groups of runs."""


def stage_programs(program: Program, index: int, shared: Shared, lane: Lane) -> StagePrograms:
    """Return the programs of a stage, from the cache of the process if these shapes have been used before."""
    return _PROGRAMS.get(program, index, shared, lane)


def every_stage(program: Program, shared: Shared, lane: Lane) -> list[StagePrograms]:
    """Return the programs of all stages, for lanes that are all active."""
    active = lane._replace(active=np.ones(np.shape(lane.dataset), bool))
    return [stage_programs(program, index, shared, active) for index in range(len(program.stages))]


def is_markov(program: Program, shared: Shared, lane: Lane) -> bool:
    """Whether the draws of each chain in the last stage are a Markov chain."""
    lane = lane._replace(active=np.ones(np.shape(lane.dataset), bool))
    return stage_programs(program, len(program.stages) - 1, shared, lane).markov


def check(program: Program, shared: Shared, lane: Lane, resume: Position) -> None:
    """Raise ValueError unless :func:`run` can continue from ``resume``."""
    lane = lane._replace(active=np.ones(np.shape(lane.dataset), bool))
    if len(resume.bad_step) != len(lane.dataset):
        raise ValueError(f"it has {len(resume.bad_step)} lanes, not {len(lane.dataset)}")
    check_leaves(resume.leaves, _shapes(stage_programs(program, resume.stage, shared, lane), shared, lane, resume))


def _shapes(programs: StagePrograms, shared: Shared, lane: Lane, resume: Position) -> Any:
    finalized = resume.phase == "sample" and programs.method.finalize is not no_finalize
    return programs.state_shapes(shared, lane, finalized=finalized)


def run(
    program: Program,
    shared: Shared,
    lane: Lane,
    *,
    clock: Clock,
    marks: Marks = lambda stage, phase: (),
    block_seconds: float = 1.0,
    resume: Position | None = None,
    theta: np.ndarray | None = None,
    cache: ProgramCache | None = None,
) -> Iterator[Block]:
    """Run all stages on all lanes and yield a :class:`Block` after each block. It ends early if every lane has failed.

    Parameters
    ----------
    program, shared, lane
        The program, the rows of the data sets, and the keys, data-set indices and numbers of the L lanes (host arrays).
    clock : Clock
        Receives the seconds of ``compile``, ``warmup`` and ``sample``, without the time between blocks.
    marks : (stage, phase) -> sorted steps (warm-up) or draws (sampling)
        The steps or draws at which a block must end, so that the caller can score. They do not change the draws.
    block_seconds : float
        The desired duration of a block, so that the progress can be shown.
    resume : Position, optional
        Continue from this position. The draws are those of the run from which it was taken, bit for bit.
    theta : array (L, D), optional
        The start points of the first stage; None means the start that the program defines.
    cache : ProgramCache, optional
        The cache of compiled programs; None means that of the process.

    Raises
    ------
    ValueError
        If ``resume`` does not fit the program.
    """
    cache = _PROGRAMS if cache is None else cache
    num_lanes = int(np.shape(lane.dataset)[0])
    size = None if shared.weights is None else np.asarray(shared.weights).sum(1)[np.asarray(lane.dataset)]
    shared = lanes.replicate(shared)
    lane = lanes.place(lane._replace(active=np.ones(num_lanes, bool)))
    lane = lane._replace(active=lanes.place(lanes.active(num_lanes)))
    if theta is not None:  # start points may be draws of another run, which may have another precision
        theta = lanes.place(np.asarray(theta, jax.dtypes.canonicalize_dtype(float)))
    for index in range(0 if resume is None else resume.stage, len(program.stages)):
        with clock.measure("compile"):
            programs = cache.get(program, index, shared, lane)
        if resume is not None:
            state = to_devices(resume.leaves, _shapes(programs, shared, lane, resume))
        else:
            name, given = ("begin", ()) if theta is None else ("init", (theta,))
            with clock.measure("warmup"):
                state = jax.block_until_ready(programs.call(name, clock, 1, shared, lane, *given))
        share: float | np.ndarray = programs.share
        if size is not None and programs.schedule.batch_size is not None:
            share = programs.schedule.batch_size / size
        stage = _StageRun(programs, shared, lane, state, num_lanes, clock, marks, block_seconds, share)
        yield from stage.go(resume)
        resume = None
        if stage.failed():
            return
        if index < len(program.stages) - 1:
            theta = programs.call("final", clock, 1, shared, lane, stage.state)


class _StageRun:
    """One stage while it runs."""

    def __init__(
        self,
        programs: StagePrograms,
        shared: Any,
        lane: Any,
        state: Any,
        num_lanes: int,
        clock: Clock,
        marks: Marks,
        block_seconds: float,
        share: float | np.ndarray,
    ) -> None:
        self.programs, self.shared, self.lane, self.state = programs, shared, lane, state
        self.num_lanes, self.clock, self.block_seconds = num_lanes, clock, block_seconds
        self.marks = marks
        self.share = share
        self.schedule = programs.schedule
        self.anchor: np.ndarray | None = None
        self.bad_step = np.full(num_lanes, NEVER)
        self.at: tuple[int, Phase, int] = (0, "warmup", 0)

    def position(self) -> Position:
        """Return the position of the stage, with a copy of its state."""
        return Position(
            self.programs.index, *self.at, to_host(self.state, self.num_lanes), self.bad_step.copy(), self.anchor
        )

    def failed(self) -> bool:
        """Whether every lane has become non-finite or has not finished its warm-up."""
        return bool((self.bad_step < NEVER).all())

    def go(self, resume: Position | None = None) -> Iterator[Block]:
        schedule = self.schedule
        if resume is not None:
            self.at = (resume.cycle, resume.phase, resume.done)
            self.bad_step, self.anchor = resume.bad_step.copy(), resume.anchor
        first, phase, done = self.at
        if self.failed():
            return
        for cycle in range(first, self.programs.num_cycles):
            if cycle > first:
                phase, done = "warmup", 0
            if phase == "warmup":
                yield from self.steps("warmup", schedule.num_warmup, cycle, done)
                if self.failed():
                    return
                if self.programs.method.finalize is not no_finalize or self.programs.has_anchor:
                    yield self.finalize(cycle)
                    if self.failed():
                        return
                done = 0
            if schedule.num_samples and schedule.thinning:
                yield from self.steps("sample", schedule.num_samples, cycle, done)
            elif schedule.num_samples:
                yield from self.read(cycle, done)
            if self.failed():
                return

    def pieces(
        self, phase: Phase, total: int, largest: int, begin: int, before: int = 0
    ) -> Iterator[tuple[int, int, Callable[[float], None]]]:
        """Divide the steps or draws from ``begin`` to ``total`` into blocks.

        Yield for each block the number that is done before it, its length, and a function to be called with its
        duration. A block ends at the latest at the next mark, is not longer than ``largest``, and takes about
        ``block_seconds``. Marks also count the ``before`` units of earlier cycles.
        """
        wanted = {m - before for m in self.marks(self.programs.index, phase)}
        marks = sorted({m for m in wanted if 0 < m < total} | {total})
        done, rate = begin, 0.0

        def took(seconds: float) -> None:
            nonlocal rate
            rate = count / max(seconds, 1e-9)

        while done < total:
            # The speed is not known before the first block. It is short, because a run can be stopped only between
            # blocks.
            aim = max(1, min(100, total // 100)) if rate == 0 else max(1, int(rate * self.block_seconds))
            count = min(aim, largest, next(m for m in marks if m > done) - done)
            yield done, count, took
            done += count

    def steps(self, phase: Phase, total: int, cycle: int, begin: int) -> Iterator[Block]:
        """Run one cycle's share of ``total`` (steps in warm-up, draws in sampling) and yield its blocks."""
        warm, cycles = phase == "warmup", self.programs.num_cycles
        stride = 1 if warm else self.schedule.thinning
        total //= cycles
        num_warmup = self.schedule.num_warmup // cycles
        length = num_warmup + self.schedule.num_samples // cycles * self.schedule.thinning
        offset = cycle * length + (0 if warm else num_warmup)
        before = cycle * total
        for done, count, took in self.pieces(phase, total, total if warm else self.programs.capacity, begin, before):
            counts = lanes.replicate(
                (np.int32(offset + done * stride), np.int32(count * stride), np.int32(count if warm else stride))
            )
            with self.clock.measure(phase) as timed:
                self.state, totals, slots, stats = jax.block_until_ready(
                    self.programs.call(
                        f"block_{phase}", self.clock, 4, self.shared, *counts, self.lane, self.state, donate=(5,)
                    )
                )
            took(timed.elapsed)
            kept = 1 if warm else count
            totals, stats = lanes.fetch((totals, stats), self.num_lanes)
            alive = self.bad_step == NEVER
            self.bad_step = np.minimum(self.bad_step, totals.bad_step)
            self.at = (cycle, phase, done + count)
            yield Block(
                stage=self.programs.index,
                phase=phase,
                steps_done=offset + (done + count) * stride,
                first_draw=before + done,
                draws=None if warm else np.array(np.asarray(slots)[: self.num_lanes, :count]),
                stats={name: np.array(a[:, :kept]) for name, a in stats.items()},
                num_grads=np.where(alive, totals.num_grads.astype(np.float64) * self.share, 0.0),
                num_diverging=np.where(alive, totals.num_diverging, 0),
                bad_step=self.bad_step,
                seconds=timed.elapsed,
                provisional=self.provisional if warm and self.can_peek() else None,
                anchor=self.anchor,
                position=self.position,
            )
            if self.failed():
                return

    def can_peek(self) -> bool:
        """Whether one can draw from the state during optimisation, because it is a distribution such as a guide."""
        return self.schedule.thinning == 0 and not self.programs.two_bodies

    def finalize(self, cycle: int) -> Block:
        with self.clock.measure("warmup") as timed:
            self.state, num_grads, unfinished, anchor = jax.block_until_ready(
                self.programs.call("finalize", self.clock, 1, self.shared, self.lane, self.state)
            )
        self.anchor = None if anchor is None else lanes.fetch(anchor, self.num_lanes)
        alive = self.bad_step == NEVER
        self.bad_step = np.where(alive & lanes.fetch(unfinished, self.num_lanes), UNFINISHED, self.bad_step)
        self.at = (cycle, "sample", 0)
        zeros = np.zeros(self.num_lanes, np.int64)
        done = self.schedule.num_warmup
        grads = lanes.fetch(num_grads, self.num_lanes).astype(np.float64)
        return Block(
            self.programs.index,
            "warmup",
            done,
            0,
            None,
            {},
            grads,
            zeros,
            self.bad_step,
            timed.elapsed,
            None,
            self.anchor,
            self.position,
        )

    def provisional(self, count: int, first: int = 0) -> np.ndarray:
        """Return ``count`` draws, at most ``capacity``, from the current state. Their time counts as ``predict``."""
        with self.clock.measure("predict"):
            args = (self.shared, lanes.replicate(np.int32(first)), self.lane, self.state)
            draws = self.programs.call("draws", self.clock, 2, *args)
            return np.array(lanes.fetch(draws, self.num_lanes)[:, :count])

    def read(self, cycle: int, begin: int) -> Iterator[Block]:
        """Yield blocks of draws from a state that is a distribution (``thinning`` 0). The state does not change."""
        total, zeros = self.schedule.num_samples, np.zeros(self.num_lanes, np.int64)
        for done, count, took in self.pieces("sample", total, self.programs.capacity, begin):
            with self.clock.measure("sample") as timed:
                args = (self.shared, lanes.replicate(np.int32(done)), self.lane, self.state)
                draws = jax.block_until_ready(self.programs.call("draws", self.clock, 2, *args))
            took(timed.elapsed)
            stats: dict[str, np.ndarray] = {}
            if self.programs.has_density:
                with self.clock.measure("predict"):
                    ratios = jax.block_until_ready(self.programs.call("ratios", self.clock, 2, *args, draws))
                stats = {name: np.array(a)[:, :count] for name, a in lanes.fetch(ratios, self.num_lanes).items()}
            self.at = (cycle, "sample", done + count)
            yield Block(
                stage=self.programs.index,
                phase="sample",
                steps_done=self.schedule.num_warmup,
                first_draw=done,
                draws=np.array(np.asarray(draws)[: self.num_lanes, :count]),
                stats=stats,
                num_grads=zeros.astype(np.float64),
                num_diverging=zeros,
                bad_step=self.bad_step,
                seconds=timed.elapsed,
                provisional=None,
                anchor=self.anchor,
                position=self.position,
            )
