"""The one loop, seen from the host: it drives every method in blocks and hands over what each block left.

Between blocks the caller shows progress, stores draws and scores them; none of that is on the loop's clock.
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
    """What one block leaves behind, on the host, a row a lane.

    ``draws`` (L, n, D) or (L, n, P, D) start at draw ``first_draw`` of the stage and come with ``stats`` (L, n) of the
    step before each; where nothing steps but the state has a density, ``log_density`` and ``log_q`` of the draw.
    ``num_grads`` (full-data equivalents), ``num_diverging`` and ``seconds`` are those of this block;
    ``bad_step`` is the first step of the stage with a non-finite log density, ``NEVER`` where there is none,
    ``UNFINISHED`` where warm-up came to no end.
    ``provisional(n)`` draws n times from the running state of a method that optimises (``thinning`` 0).
    ``position()`` copies the running state: asked before the next block, it says where :func:`run` may go on.
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
        """The block of some of the lanes; ``provisional`` and ``position`` stay those of all lanes."""
        return self._replace(
            draws=None if self.draws is None else self.draws[some],
            stats={name: values[some] for name, values in self.stats.items()},
            num_grads=self.num_grads[some],
            num_diverging=self.num_diverging[some],
            bad_step=self.bad_step[some],
            anchor=None if self.anchor is None else self.anchor[some],
        )


def joined(blocks: Sequence[Block]) -> Block:
    """Consecutive blocks of draws as one."""
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
    """The compiled programs of the stages and shapes used last, at most ``maxsize`` of them."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self._programs: OrderedDict[Any, StagePrograms] = OrderedDict()

    def __len__(self) -> int:
        return len(self._programs)

    def get(self, program: Program, index: int, shared: Shared, lane: Lane) -> StagePrograms:
        """The programs of a stage, made where the cache has none for these shapes."""
        shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), (shared, lane))
        key = (program, index, str(shapes), jax.default_backend(), bool(jax.config.jax_enable_x64))
        if key not in self._programs:
            self._programs[key] = StagePrograms(program, index, shared, lane)
            while len(self._programs) > self.maxsize:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]


_PROGRAMS = ProgramCache(maxsize=64)
"""What the runs of this process have compiled. A run has about two stages, and a sweep's groups follow one another."""


def stage_programs(program: Program, index: int, shared: Shared, lane: Lane) -> StagePrograms:
    """The programs of a stage, from the process's cache where the same shapes have been compiled before."""
    return _PROGRAMS.get(program, index, shared, lane)


def is_markov(program: Program, shared: Shared, lane: Lane) -> bool:
    """Whether the draws of the last stage's chains are Markov chains."""
    lane = lane._replace(active=np.ones(np.shape(lane.dataset), bool))
    return stage_programs(program, len(program.stages) - 1, shared, lane).markov


def check(program: Program, shared: Shared, lane: Lane, resume: Position) -> None:
    """Raise ValueError unless :func:`run` can go on from ``resume``."""
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
    """Drive all stages over all lanes; yield a :class:`Block` after each block. Ends early if every lane has failed.

    Parameters
    ----------
    program, shared, lane
        What to compute, the rows, and the L lanes' keys, data-set indices and numbers (host arrays).
    clock : Clock
        Gets ``compile``, ``warmup`` and ``sample`` seconds; what the caller does between blocks is not on it.
    marks : (stage, phase) -> sorted steps (warm-up) or draws (sampling)
        Where a block must end so that the caller can look. They change no number.
    block_seconds : float
        Aimed length of a block, so that progress is seen.
    theta : array (L, D), optional
        Where the first stage begins; the program's own start where None.
    resume : Position, optional
        Go on from there, with the bits of the run that it was taken from.
    cache : ProgramCache, optional
        Where compiled programs are kept; the process's own cache where None.

    Raises
    ------
    ValueError
        If ``resume`` is no position of this program.
    """
    cache = _PROGRAMS if cache is None else cache
    num_lanes = int(np.shape(lane.dataset)[0])
    size = None if shared.weights is None else np.asarray(shared.weights).sum(1)[np.asarray(lane.dataset)]
    shared = lanes.replicate(shared)
    lane = lanes.place(lane._replace(active=np.ones(num_lanes, bool)))
    lane = lane._replace(active=lanes.place(lanes.active(num_lanes)))
    if theta is not None:  # start points may be another run's draws, of another precision
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
    """One stage in progress."""

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
        """Where the stage is, with a copy of its state."""
        return Position(
            self.programs.index, *self.at, to_host(self.state, self.num_lanes), self.bad_step.copy(), self.anchor
        )

    def failed(self) -> bool:
        """Whether no lane has a finite state left."""
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
        """Cut units ``begin`` to ``total`` into blocks that end at marks, fit ``largest``, last about ``block_seconds``.

        Marks count the ``before`` units of earlier cycles too.
        """
        wanted = {m - before for m in self.marks(self.programs.index, phase)}
        marks = sorted({m for m in wanted if 0 < m < total} | {total})
        done, rate = begin, 0.0

        def took(seconds: float) -> None:
            nonlocal rate
            rate = count / max(seconds, 1e-9)

        while done < total:
            # Of the first block nothing is known; while it lasts nobody can stop the run, or see it.
            aim = max(1, min(100, total // 100)) if rate == 0 else max(1, int(rate * self.block_seconds))
            count = min(aim, largest, next(m for m in marks if m > done) - done)
            yield done, count, took
            done += count

    def steps(self, phase: Phase, total: int, cycle: int, begin: int) -> Iterator[Block]:
        """Blocks of one cycle's share of ``total``: steps in warm-up; in sampling draws, with the steps before each."""
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
        """Whether the running state is a distribution already, as a guide's is."""
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
        """Up to ``capacity`` draws from the running state, on the clock's ``predict``."""
        with self.clock.measure("predict"):
            args = (self.shared, lanes.replicate(np.int32(first)), self.lane, self.state)
            draws = self.programs.call("draws", self.clock, 2, *args)
            return np.array(lanes.fetch(draws, self.num_lanes)[:, :count])

    def read(self, cycle: int, begin: int) -> Iterator[Block]:
        """Draws from a state that is a distribution: nothing moves."""
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
