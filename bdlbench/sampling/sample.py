"""A sampler in memory: the loop of a run as a function of data and key, without a store."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.sampling import batches, loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.position import Position
from bdlbench.sampling.programs import NEVER, Lane, Program, Shared
from bdlbench.types import Data, Stage, Target

SHAPES_KEPT = 8
"""Shapes of data whose compiled programs a sampler keeps."""


class Sample(NamedTuple):
    """What one call of a :class:`Sampler` gives, host arrays with C chains and S draws.

    Attributes
    ----------
    draws : array (C, S, D), or (C, S, P, D) for a method that moves a population of P particles
        Unconstrained theta of the last stage. S is smaller than asked for where all chains have diverged.
    stats : dict of arrays (C, S, ...)
        What the method reports of the step before each draw.
    num_grads : array (C,)
        Gradient evaluations of all stages, warm-up included, in units of the whole training set.
    num_diverging : array (C,)
        Divergent steps of all stages.
    bad_step : array (C,)
        The first step of the last stage whose log density was not finite; ``NEVER`` where there is none, and
        ``UNFINISHED`` where the warm-up did not reach the posterior.
    anchor : array (C, D) or None
        Where the predictions of a linearised network are linearised.
    position : Position or None
        Where the last stage ended: the method's state.
    theta : array (C, D)
        The last draw, its first particle for a population: where a next call may start.
    """

    draws: np.ndarray
    stats: dict[str, np.ndarray]
    num_grads: np.ndarray
    num_diverging: np.ndarray
    bad_step: np.ndarray
    anchor: np.ndarray | None
    position: Position | None

    @property
    def ok(self) -> np.ndarray:
        """Which chains (C,) have stayed finite."""
        return self.bad_step == NEVER

    @property
    def theta(self) -> np.ndarray:
        """The last draw of each chain, (C, D)."""
        last = self.draws[:, -1]
        return last if last.ndim == 2 else last[:, 0]


def collect(blocks: Sequence[loop.Block]) -> Sample:
    """The blocks of a loop, from its first to its last, as one :class:`Sample`.

    Raises
    ------
    ConfigError
        If there are no draws, as all chains had diverged before the first.
    """
    last = blocks[-1].stage if blocks else 0
    with_draws = [block for block in blocks if block.stage == last and block.draws is not None]
    if not with_draws:
        raise ConfigError(
            "inference: no chain reached its first draw, as the log density of each was not finite or its warm-up came "
            "to no end: use a smaller step size or another start."
        )
    drawn, end = loop.joined(with_draws), blocks[-1]
    assert drawn.draws is not None
    return Sample(
        draws=drawn.draws,
        stats=drawn.stats,
        num_grads=np.sum([block.num_grads for block in blocks], 0),
        num_diverging=np.sum([block.num_diverging for block in blocks], 0),
        bad_step=end.bad_step,
        anchor=end.anchor,
        position=None if end.position is None else end.position(),
    )


class Sampler:
    """A sampler that is called with data and a key, made by :func:`compile`."""

    def __init__(self, program: Program, num_chains: int, shapes_kept: int) -> None:
        self.program, self.num_chains = program, num_chains
        self.cache = loop.ProgramCache(shapes_kept * len(program.stages))

    def __call__(
        self,
        data: Data | tuple[Any, ...],
        key: jax.Array,
        *,
        numbers: Mapping[str, Any] | None = None,
        theta: Any = None,
    ) -> Sample:
        """Run all stages on ``data`` and return the draws of the last one.

        Parameters
        ----------
        data : Data, or tuple (x, y) or (x, y, weights)
            All training rows. With ``weights`` (N,) the rows are a capacity: each counts by its weight, and a row of
            weight 0 is not there, whatever it holds. Data of any size up to the capacity then share one compilation.
        key : key
            Chain c draws from ``fold_in(key, c)``, as in a run whose seed makes this key.
        numbers : mapping of float or array (C,), optional
            What ``make_target`` and the stages' factories read by name. Other values compile nothing anew.
        theta : array (D,) or (C, D), optional
            Where the first stage starts, in place of the program's own start.

        Raises
        ------
        ConfigError
            Data, weights, numbers or theta of the wrong shape or value; what the stages' factories refuse; no chain
            reached its first draw.
        """
        return collect(list(self.blocks(data, key, numbers=numbers, theta=theta)))

    def blocks(
        self,
        data: Data | tuple[Any, ...],
        key: jax.Array,
        *,
        numbers: Mapping[str, Any] | None = None,
        theta: Any = None,
        clock: Clock | None = None,
        marks: loop.Marks = lambda stage, phase: (),
        block_seconds: float = 1.0,
        resume: Position | None = None,
    ) -> Iterator[loop.Block]:
        """The same run, block after block as it is computed; arguments as for a call and for :func:`loop.run`."""
        shared = self._rows(data)
        lane = self._lanes(key, {} if numbers is None else numbers)
        if theta is not None:
            theta = np.asarray(theta)
            if theta.ndim not in (1, 2) or (theta.ndim == 2 and theta.shape[0] != self.num_chains):
                raise ConfigError(
                    f"theta has the shape {theta.shape}: give (D,) for all chains, or ({self.num_chains}, D)."
                )
            theta = np.broadcast_to(theta, (self.num_chains, theta.shape[-1]))
        return loop.run(
            self.program,
            shared,
            lane,
            clock=Clock() if clock is None else clock,
            marks=marks,
            block_seconds=block_seconds,
            resume=resume,
            theta=theta,
            cache=self.cache,
        )

    def _lanes(self, key: jax.Array, numbers: Mapping[str, Any]) -> Lane:
        if not jax.dtypes.issubdtype(getattr(key, "dtype", np.dtype(int)), jax.dtypes.prng_key) or key.shape:
            raise ConfigError("key must be one typed key: give jax.random.key(seed).")
        keys = jax.vmap(lambda chain: jax.random.fold_in(key, chain))(np.arange(self.num_chains))
        real = np.float64 if jax.config.jax_enable_x64 else np.float32
        spread = {}
        for name, value in numbers.items():
            value = np.asarray(value, real)
            if value.shape not in ((), (self.num_chains,)):
                raise ConfigError(
                    f"numbers['{name}'] has the shape {value.shape}: give one number, or {self.num_chains}, one a chain."
                )
            spread[name] = np.broadcast_to(value, (self.num_chains,)).copy()
        return Lane(keys, np.zeros(self.num_chains, np.int32), spread, None)

    def _rows(self, data: Data | tuple[Any, ...]) -> Shared:
        if not isinstance(data, Data):
            x, y, *rest = data
            data = Data(x, y, len(y), weights=rest[0] if rest else None)
        x, y = np.asarray(data.x), np.asarray(data.y)
        if not len(x) == len(y) > 0:
            raise ConfigError(f"data has {len(x)} rows of x and {len(y)} of y: give equally many, and at least one.")
        for stage in self.program.stages:
            batches.check(stage.schedule, len(y))
        held = data.validation
        held = None if held is None else (np.asarray(held[0])[None], np.asarray(held[1])[None])
        if data.weights is None:
            if data.size != len(y):
                raise ConfigError(f"data.size={data.size} is not the number of its rows, {len(y)}: give all rows.")
            return Shared(x[None], y[None], held)
        weights = np.asarray(data.weights, np.float64 if jax.config.jax_enable_x64 else np.float32)
        if weights.shape != (len(y),) or not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ConfigError(f"data.weights must be one finite number from 0 on for each of the {len(y)} rows.")
        there = weights > 0
        for stage in self.program.stages:
            size = stage.schedule.batch_size
            if there.sum() < (size or 1):
                raise ConfigError(
                    f"data.weights: {there.sum()} rows are there, and {stage.name} needs at least {size or 1}: give more "
                    "rows, or a smaller schedule.batch_size."
                )
        # What is not there may hold anything, a nan too, which times 0 would still be one.
        first = int(np.argmax(there))
        x, y = x.copy(), y.copy()
        x[~there], y[~there] = x[first], y[first]
        return Shared(x[None], y[None], held, weights[None])


def compile(
    make_target: Callable[[Mapping[str, Any], Any, Any], Target],
    stages: Sequence[Stage],
    num_chains: int,
    *,
    start: Literal["prior", "network"] = "prior",
    shapes_kept: int = SHAPES_KEPT,
) -> Sampler:
    """Make a sampler that runs ``stages`` in memory with the loop and the bits of a run, and stores nothing.

    It compiles at its first call, and once for each shape of data; the shapes used last are kept. Other data, keys,
    numbers and start points of these shapes compile nothing, so that it may be called in a loop of one's own.

    Parameters
    ----------
    make_target : (numbers, x, y) -> Target
        Called while tracing: ``numbers`` maps names to tracers, ``x`` and ``y`` hold all rows.
        ``lambda numbers, x, y: make_target(model, x, y)`` makes one of a NumPyro model.
    stages : sequence of Stage
        Each starts where the one before ended; the draws are those of the last, whose ``num_samples`` is 1 or more.
    num_chains : int
        C. The stages' schedules have their own ``num_chains``, which is not read here.
    start : "prior" or "network"
        Where chains start that are given no theta: draws from the prior, or the network's own initialisation.
    shapes_kept : int
        At most so many shapes of data keep their compiled programs.

    Raises
    ------
    ConfigError
        No stage, no draws, no chain, or a start of another name.
    """
    if not stages or not stages[-1].schedule.num_samples:
        raise ConfigError("stages must end with a stage whose schedule.num_samples is 1 or more: it gives the draws.")
    if num_chains < 1 or shapes_kept < 1:
        raise ConfigError(f"num_chains={num_chains} and shapes_kept={shapes_kept} must be 1 or more.")
    if start not in ("prior", "network"):
        raise ConfigError(f"start={start!r} is unknown: use prior or network.")
    # The cache is the sampler's own, in which no other program can have this key.
    return Sampler(Program("in memory", make_target, tuple(stages), start), num_chains, shapes_kept)
