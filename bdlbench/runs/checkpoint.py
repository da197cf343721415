"""Checkpoints: their contents, when they are written, and how runs continue from them.

The runs of a group share one loop, but each run has its own checkpoint with the state of its own lanes. A group may be
killed between the writes of two checkpoints, so that its runs can be at different positions. Runs at the same position
continue together as lanes of one program.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bdlbench.runs.job import Job
from bdlbench.runs.member import Earlier, Member
from bdlbench.runs.provenance import versions
from bdlbench.sampling import loop
from bdlbench.sampling import position as positions
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.loop import Block
from bdlbench.sampling.position import Position
from bdlbench.sampling.programs import Lane, Program, Shared
from bdlbench.store import RunWriter

SCHEMA = 3
"""Version of the contents of a checkpoint. A checkpoint of another version is not used."""
SHARE = 0.02
"""The largest fraction of the running time that is spent on checkpoints. Large states are therefore written less often
than ``every`` says."""
UNFIT = (ValueError, KeyError, IndexError, TypeError)
"""The errors that mean that a checkpoint does not fit its run."""


class Saved(NamedTuple):
    """The checkpoint of one run. The first axis of its arrays is the chain.

    Attributes
    ----------
    position : Position
        Where the loop continues.
    earlier : Earlier
        The results so far, and the seconds of all attempts so far.
    pending : Block or None
        Draws that have not been stored yet, because the next look at the run was not reached.
    """

    position: Position
    earlier: Earlier
    pending: Block | None

    def arrays(self) -> dict[str, np.ndarray]:
        """The checkpoint as arrays by name, with the values by which :func:`read` checks that it fits."""
        tally, allocated, seconds = self.earlier
        header = {**_made_by(), "seconds": dict(seconds), "pending": None}
        header["allocated"] = [[*variable, *found] for variable, found in allocated.items()]
        out = {f"position/{name}": a for name, a in self.position.arrays().items()}
        out |= {f"tally/{name}": a for name, a in (tally or {}).items()}
        if self.pending is not None:
            assert self.pending.draws is not None
            header["pending"] = [self.pending.first_draw, self.pending.steps_done]
            out["draws"] = self.pending.draws
            out |= {f"stats/{name}": a for name, a in self.pending.stats.items()}
        return {"header": np.array(json.dumps(header)), **out}

    @property
    def place(self) -> Any:
        """A value that is equal for two runs of one program if they can continue together as its lanes."""
        pending = None if self.pending is None else (self.pending.first_draw, self.pending.steps_done)
        return self.position.place, pending, str([(a.shape, a.dtype) for a in self.position.leaves])


def _made_by() -> dict[str, Any]:
    device = {"backend": jax.default_backend(), "x64": bool(jax.config.jax_enable_x64)}
    return {"schema": SCHEMA, "versions": {k: v for k, v in versions().items() if k != "python"}, **device}


def read(arrays: Mapping[str, np.ndarray]) -> Saved:
    """Return the checkpoint that :meth:`Saved.arrays` wrote.

    Raises
    ------
    ValueError
        If it was written with other versions of the packages, on another kind of device, or with another precision.
    """
    header = json.loads(str(arrays["header"]))
    for name, here in _made_by().items():
        there = header.get(name)
        if there != here:
            if name == "versions":
                other = sorted(k for k in {*here, *there} if here.get(k) != there.get(k))
                raise ValueError(f"made with another version of {', '.join(other)}")
            raise ValueError(f"made with {name} {there}, not {here}")

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

    where = positions.from_arrays(part("position/"))
    pending = None
    if header["pending"] is not None:
        first, steps = header["pending"]
        pending = _block(where, first, steps, arrays["draws"], part("stats/"))
    allocated = {(group, name): (tuple(like), dtype) for group, name, like, dtype in header["allocated"]}
    return Saved(where, Earlier(part("tally/"), allocated, header["seconds"]), pending)


def _block(where: Position, first: int, steps: int, draws: np.ndarray, stats: dict[str, np.ndarray]) -> Block:
    """Return draws of an earlier attempt as a block. Its cost is zero, because the tally has counted it already."""
    none = np.zeros(len(draws), np.int64)
    return Block(
        where.stage, where.phase, steps, first, draws, stats, none * 0.0, none, where.bad_step, 0.0, None, where.anchor
    )


class Part(NamedTuple):
    """Jobs that run together as lanes of one program, all from the start or all from the same position."""

    jobs: list[Job]
    writers: list[RunWriter]
    saved: list[Saved] | None


def parts(jobs: Sequence[Job], writers: Mapping[str, RunWriter], note: Callable[[str], object]) -> list[Part]:
    """Group jobs by the position of their checkpoints.

    A job whose checkpoint cannot be used starts from the beginning, and ``note`` is called with a message that says so.
    """
    found: dict[Any, Part] = {}
    for job in jobs:
        writer = writers[job.id]
        saved = None
        arrays = writer.load_checkpoint(note)
        if arrays is not None:
            try:
                saved = read(arrays)
            except UNFIT as error:
                note(f"{job.id}: starts over: its checkpoint cannot be used ({error})")
                writer.start_over()
        part = found.setdefault(saved and saved.place, Part([], [], None if saved is None else []))
        part.jobs.append(job)
        part.writers.append(writer)
        if part.saved is not None and saved is not None:
            part.saved.append(saved)
    return list(found.values())


def restore(saved: Sequence[Saved], program: Program, shared: Shared, lane: Lane) -> tuple[Position, list[Block]]:
    """Return the position from which the loop continues, and the blocks of draws that are not stored yet.

    Raises
    ------
    ValueError, KeyError, IndexError, TypeError
        If a checkpoint does not fit the program.
    """
    where = positions.together([s.position for s in saved])
    loop.check(program, shared, lane, where)
    waiting = [s.pending for s in saved if s.pending is not None]
    if not waiting:
        return where, []
    first = waiting[0]
    draws = np.concatenate([b.draws for b in waiting if b.draws is not None])
    stats = {name: np.concatenate([b.stats[name] for b in waiting]) for name in first.stats}
    return where, [_block(where, first.first_draw, first.steps_done, draws, stats)]


class Checkpoints:
    """Writes the checkpoints of the runs of a group.

    Parameters
    ----------
    clock : Clock
        The clock of the group in this attempt.
    num_jobs : int
        The number of jobs in the group. Each is charged an equal share of the group's seconds.
    every : float or None
        Seconds between two checkpoints; None means that none is written.
    now : () -> seconds
        A clock that a change of the system time does not affect.
    """

    def __init__(
        self, clock: Clock, num_jobs: int, every: float | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock, self.num_jobs, self.every, self.now = clock, num_jobs, every, now
        self.wait = every
        self.last = now()

    def due(self) -> bool:
        """Whether the next checkpoint should be written now."""
        return self.wait is not None and self.now() - self.last >= self.wait

    def write(self, members: Sequence[Member], position: Callable[[], Position], pending: Sequence[Block]) -> None:
        """Write a checkpoint for each member whose folder exists, in one step each. Without ``every`` nothing is written."""
        if self.every is None:
            return
        began = self.now()
        where = position()
        waiting = loop.joined(pending) if pending else None
        for member in (each for each in members if not each.storage.writer.gone):
            own, storage = None if waiting is None else waiting.of(member.lanes), member.storage
            earlier = Earlier(member.tally.state(), storage.allocated, member.share(self.clock, self.num_jobs))
            storage.writer.checkpoint(Saved(where.of(member.lanes), earlier, own).arrays())
        self.last = self.now()
        self.wait = max(self.every, (self.last - began) / SHARE)
