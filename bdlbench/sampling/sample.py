"""A sampler in memory: it runs the loop of a run as a function of data and key, and needs no store."""

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
"""The default number of data shapes whose compiled programs a sampler keeps."""


class Sample(NamedTuple):
    """The result of one call of a :class:`Sampler`: host arrays with C chains and S draws.

    Attributes
    ----------
    draws : array (C, S, D), or (C, S, P, D) for a method that moves a population of P particles
        Unconstrained theta of the last stage. S is less than ``num_samples`` if all chains have diverged.
    stats : dict of arrays (C, S, ...)
        The statistics that the method reports for the step before each draw.
    num_grads : array (C,)
        Gradient evaluations of all stages, warm-up included, in units of the whole training set.
    num_diverging : array (C,)
        Divergent steps of all stages.
    bad_step : array (C,)
        The first step of the last stage whose log density was not finite; ``NEVER`` if there is none, and
        ``UNFINISHED`` if the warm-up did not reach the posterior.
    anchor : array (C, D) or None
        The weights at which predictions are linearised.
    position : Position or None
        The position at the end of the last stage, with the method's state.
    theta : array (C, D)
        The last draw of each chain, from which another call can start; for a population its first particle.
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
    """Join all blocks of a loop into one :class:`Sample`.

    Raises
    ------
    ConfigError
        If there are no draws, because all chains diverged before the first draw.
    """
    last = blocks[-1].stage if blocks else 0
    with_draws = [block for block in blocks if block.stage == last and block.draws is not None]
    if not with_draws:
        raise ConfigError(
            "inference: no chain reached its first draw, because its log density was not finite or its warm-up did not "
            "reach the posterior: use a smaller step size or another start."
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
            All training rows. With ``weights`` (N,), N is a capacity: each row counts by its weight, and rows of weight
            0 are ignored, whatever they contain. Data of any size up to N then use the same compiled program.
        key : key
            The key of chain c is ``fold_in(key, c)``, as in a run with the seed of this key.
        numbers : mapping of float or array (C,), optional
            Numbers that ``make_target`` and the factories of the stages read by name. New values need no compilation.
        theta : array (D,) or (C, D), optional
            The start points of the first stage; None means the start that :func:`compile` was given.

        Raises
        ------
        ConfigError
            If data, weights, numbers or theta have a wrong shape or value, a factory refuses an option, or no chain
            reaches its first draw.
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
        """Run the same computation and yield each block when it is done.

        The arguments are those of a call and those of :func:`bdlbench.sampling.loop.run`.
        """
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
            raise ConfigError(f"data.weights must be a finite number, at least 0, for each of the {len(y)} rows.")
        there = weights > 0
        for stage in self.program.stages:
            size = stage.schedule.batch_size
            if there.sum() < (size or 1):
                raise ConfigError(
                    f"data.weights: {there.sum()} rows are there, and {stage.name} needs at least {size or 1}: give more "
                    "rows, or a smaller schedule.batch_size."
                )
        # Ignored rows may contain nan, and 0 times nan is nan: they are replaced by copies of the first row in use.
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
    """Make a sampler that runs ``stages`` in memory. It gives the same bits as a run, and stores nothing.

    It compiles at the first call for each shape of data, and keeps the programs of the shapes that were used last.
    Other data, keys, numbers and start points of the same shape need no compilation, so that it can be called in a
    loop.

    Parameters
    ----------
    make_target : (numbers, x, y) -> Target
        It is called during tracing: ``numbers`` maps names to tracers, and ``x`` and ``y`` hold all rows. For a NumPyro
        model it is ``lambda numbers, x, y: make_target(model, x, y)``, with
        :func:`bdlbench.model.target.make_target`.
    stages : sequence of Stage
        Each stage starts where the one before it ended. The result has the draws of the last stage, whose
        ``num_samples`` must be 1 or more.
    num_chains : int
        C. The ``num_chains`` of the stages' schedules is not used.
    start : "prior" or "network"
        The start of chains for which no theta is given: a draw from the prior, or the network's own initialisation.
    shapes_kept : int
        The largest number of data shapes whose compiled programs are kept.

    Raises
    ------
    ConfigError
        If there is no stage, the last stage has no draws, ``num_chains`` or ``shapes_kept`` is less than 1, or
        ``start`` is unknown.
    """
    if not stages or not stages[-1].schedule.num_samples:
        raise ConfigError("stages must end with a stage whose schedule.num_samples is 1 or more: it gives the draws.")
    if num_chains < 1 or shapes_kept < 1:
        raise ConfigError(f"num_chains={num_chains} and shapes_kept={shapes_kept} must be 1 or more.")
    if start not in ("prior", "network"):
        raise ConfigError(f"start={start!r} is unknown: use prior or network.")
    # Each sampler has its own cache, in which no other program can have this key.
    return Sampler(Program("in memory", make_target, tuple(stages), start), num_chains, shapes_kept)
