"""The compiled programs of a stage. Their functions are written for one lane.

The number of steps is an argument. Therefore blocks of any length use the same program, and one long block gives the
same bits as many short ones. The keys of a lane are ``fold_in(fold_in(key, stage), purpose)``, into which the index of
the step, the epoch or the draw is folded next.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdlbench.errors import ConfigError
from bdlbench.sampling import batches, lanes
from bdlbench.sampling.clock import Clock
from bdlbench.types import Array, Data, Method, Schedule, Stage, Target, no_finalize

Numbers = Mapping[str, Any]
Phase = Literal["warmup", "sample"]
STEP, BATCH, DRAW, INIT, FINALIZE, START, HOLD_OUT, LIKELIHOOD = range(8)
DRAW_BYTES = 2**20
"""Largest size in bytes of the draws that one lane holds on the device between two blocks."""
AVERAGED = ("configurational_temperature",)
"""Statistics that are averaged over all steps since the draw before. Of the others, a draw has the last value."""
NEVER = int(np.iinfo(np.int32).max)
"""The value of ``bad_step`` for a lane without a bad step."""
_BESIDE = ThreadPoolExecutor(1)  # the thread starts with the first task
UNFINISHED = -1
"""The value of ``bad_step`` if the warm-up did not reach the posterior. It is less than the step of every draw."""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """All that is traced and compiled. Two programs with equal keys are the same computation.

    Attributes
    ----------
    key : str
        Identifies the program part of a configuration.
    make_target : (numbers, x, y) -> Target
    stages : tuple of Stage
        ``stage.factory(target, schedule, numbers)`` makes the method.
    start : "prior" or "network"
        The distribution of the start points of the first stage.
    """

    key: str
    make_target: Callable[[Numbers, Any, Any], Target]
    stages: tuple[Stage, ...]
    start: Literal["prior", "network"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


class Lane(NamedTuple):
    """The arguments that differ between lanes. The first axis of every array is the lane.

    Attributes
    ----------
    key : key (L,)
    dataset : int array (L,)
        The index of the lane's data set in :class:`Shared`.
    numbers : mapping from path to array (L,)
    active : bool array (L,) or None
        False for a padding lane.
    """

    key: Any
    dataset: Any
    numbers: Mapping[str, Any]
    active: Any


class Shared(NamedTuple):
    """The rows of the U different data sets that the lanes of a program use: x (U, N, ...), y (U, N, ...).

    With ``weights`` (U, N), N is a capacity: rows of weight 0 are ignored everywhere.
    """

    x: Any
    y: Any
    validation: tuple[Any, Any] | None = None
    weights: Any = None

    def rows(self, dataset: Array, index: Array | None = None) -> Data:
        """Return all rows of one data set, or those at ``index``. If U is 1, the rows are not copied for each lane."""

        def take(a: Any) -> Any:
            if index is not None:
                return a[0, index] if a.shape[0] == 1 else a[dataset, index]
            return a[0] if a.shape[0] == 1 else a[dataset]

        held_out = None
        if self.validation is not None and index is None:
            held_out = (take(self.validation[0]), take(self.validation[1]))
        if self.weights is None:
            return Data(take(self.x), take(self.y), self.x.shape[1], held_out)
        size = (self.weights[0] if self.weights.shape[0] == 1 else self.weights[dataset]).sum()
        return Data(take(self.x), take(self.y), size, held_out, take(self.weights))


def check_target(name: str, method: Method, target: Target) -> None:
    """Raise ConfigError if the log likelihood is a random estimate and the method requires a fixed target."""
    if target.needs_key and method.fixed_target:
        raise ConfigError(
            f"inference={name} needs a log likelihood that is the same number each time, and this model's is a random "
            "estimate: use map, deep_ensemble, sgld, sghmc, swag, svi or ivon."
        )


class _Totals(NamedTuple):
    num_grads: Array
    num_diverging: Array
    bad_step: Array


def size_of(tree: Any) -> int:
    """Return the total size in bytes of the arrays, or shapes of arrays, in a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class StagePrograms:
    """The compiled programs of one stage for one set of shapes."""

    def __init__(self, program: Program, index: int, shared: Shared, lane: Lane) -> None:
        self.program, self.index = program, index
        self.stage: Stage = program.stages[index]
        self.schedule: Schedule = self.stage.schedule
        self._compiled: dict[Any, Any] = {}
        self._shapes: dict[bool, Any] = {}
        found: list[tuple[Target, Method]] = []

        def look(shared: Shared, lane: Lane) -> tuple[Any, Any, Array]:
            target, method, data = self.build(shared, lane)
            found.append((target, method))
            first = method.init(lane.key, jnp.zeros(target.dim), data)
            finalized, _ = method.finalize(lane.key, first, data)
            return first, finalized, method.draw(lane.key, finalized)

        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), lane)
        first, finalized, self.draw_shape = jax.eval_shape(look, shared, one)
        self.states = (first, finalized)
        target, self.method = found[0]
        self.dim, self.needs_key = target.dim, target.needs_key
        self.finalizes = self.method.finalize is not no_finalize
        self.two_bodies = self.method.warm is not None or self.finalizes
        # With random estimates, importance ratios would measure their noise and not the distance of q to the posterior.
        self.has_density = self.method.log_q is not None and not self.needs_key
        self.has_anchor = self.method.anchor is not None
        self.markov = self.method.markov
        self.num_cycles = self.method.num_cycles
        # The share is applied on the host. Single precision counts whole gradients exactly, but not fractions of one.
        total = shared.x.shape[1]
        self.num_rows = total - batches.num_held_out(total, self.method.validation_fraction)
        self.share = (self.schedule.batch_size or self.num_rows) / total
        self.capacity = max(1, min(self.schedule.num_samples, DRAW_BYTES // max(1, size_of(self.draw_shape))))

    def build(self, shared: Shared, lane: Lane) -> tuple[Target, Method, Data]:
        """Make target, method and data of one lane.

        Each trace makes them anew, because NumPyro and Flax keep tracers in closures.
        """
        data = shared.rows(lane.dataset)
        target = self.program.make_target(lane.numbers, data.x, data.y)
        method = self.stage.factory(target, self.schedule, lane.numbers)
        check_target(self.stage.name, method, target)
        if target.needs_key:  # this key is for estimates outside of steps
            data = data._replace(key=jax.random.fold_in(self.key(lane, LIKELIHOOD), NEVER))
        if method.validation_fraction:
            if data.weights is not None:
                raise ConfigError(
                    f"inference.validation_fraction={method.validation_fraction} of {self.stage.name} holds out a number "
                    "of rows that is fixed, which rows with weights do not have: set it to null."
                )
            order = batches.permute(self.key(lane, HOLD_OUT), jnp.arange(data.size), data.size)
            data = batches.hold_out(data, order, method.validation_fraction)
        return target, method, data

    def key(self, lane: Lane, purpose: int) -> Array:
        """Return the key of the lane for one purpose in this stage."""
        return jax.random.fold_in(jax.random.fold_in(lane.key, self.index), purpose)

    # ---- the functions of one lane

    def start(self, shared: Shared, lane: Lane) -> Array:
        """Return the start point (D,) of the first stage."""
        target, _, _ = self.build(shared, lane)
        draw = target.init_params if self.program.start == "network" else target.sample_prior
        return draw(self.key(lane, START))

    def begin(self, shared: Shared, lane: Lane) -> Any:
        """Return the method's state at the start of the first stage. One program in place of two saves compilation."""
        return self.init(shared, lane, jax.lax.optimization_barrier(self.start(shared, lane)))

    def init(self, shared: Shared, lane: Lane, theta: Array) -> Any:
        """Return the method's state at theta (D,)."""
        _, method, data = self.build(shared, lane)
        return _strong(method.init(self.key(lane, INIT), theta, data))

    def finalize(self, shared: Shared, lane: Lane, state: Any) -> tuple[Any, Array, Array, Any]:
        """Call the method's ``finalize`` between warm-up and sampling.

        Return the new state, the number of gradients, whether the warm-up is unfinished, and the anchor (D,) or None.
        """
        _, method, data = self.build(shared, lane)
        state, info = method.finalize(self.key(lane, FINALIZE), state, data)
        anchor = method.anchor(state) if method.anchor is not None else None
        num_grads = jnp.asarray(info.get("num_grads", 0.0), jnp.float32)
        return _strong(state), num_grads, jnp.asarray(info.get("unfinished", False)), anchor

    def state_shapes(self, shared: Shared, lane: Lane, *, finalized: bool) -> Any:
        """Return the shapes of one lane's state before or after :meth:`finalize`, as a tree like the state's."""
        if finalized in self._shapes:
            return self._shapes[finalized]
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), lane)

        def made(shared: Shared, lane: Lane) -> Any:
            state = self.init(shared, lane, self.start(shared, lane))
            return self.finalize(shared, lane, state)[0] if finalized else state

        self._shapes[finalized] = jax.eval_shape(made, shared, one)
        return self._shapes[finalized]

    def final(self, shared: Shared, lane: Lane, state: Any) -> Array:
        """Return the start point (D,) of the next stage: a draw, or the first particle of a population."""
        _, method, _ = self.build(shared, lane)
        draw = method.draw(jax.random.fold_in(self.key(lane, DRAW), NEVER), state)
        return draw if draw.ndim == 1 else draw[0]

    def draws(self, shared: Shared, first: Array, lane: Lane, state: Any) -> Array:
        """Return the draws with indices first, first+1, ... from a state that is a distribution."""
        _, method, _ = self.build(shared, lane)
        keys = jax.vmap(lambda j: jax.random.fold_in(self.key(lane, DRAW), j))(first + jnp.arange(self.capacity))
        return jax.lax.map(lambda key: method.draw(key, state), keys)

    def ratios(self, shared: Shared, first: Array, lane: Lane, state: Any, draws: Array) -> dict[str, Array]:
        """Return the log densities of :meth:`draws` under the target and under the distribution q of the state."""
        target, method, data = self.build(shared, lane)
        assert method.log_q is not None
        log_q = method.log_q
        keys = jax.vmap(lambda j: jax.random.fold_in(self.key(lane, DRAW), j))(first + jnp.arange(self.capacity))

        def one(args: tuple[Array, Array]) -> dict[str, Array]:
            key, theta = args
            return {"log_density": target.log_density(theta, data), "log_q": log_q(key, state)}

        return jax.lax.map(one, (keys, draws))

    def block_warmup(self, *args: Any) -> Any:
        """Run a block of warm-up steps, see :meth:`_block`."""
        return self._block("warmup", *args)

    def block_sample(self, *args: Any) -> Any:
        """Run a block of sampling steps, see :meth:`_block`."""
        return self._block("sample", *args)

    def _block(
        self, phase: Phase, shared: Shared, t0: Array, num_steps: Array, stride: Array, lane: Lane, state: Any
    ) -> tuple[Any, _Totals, Array, dict[str, Array]]:
        """Take ``num_steps`` steps from step ``t0`` on.

        The draw and the statistics of every ``stride``-th step are kept. Return the new state, the totals, the draws
        (capacity, ...) and the statistics (capacity, ...).
        """
        _, method, data = self.build(shared, lane)
        take_step = method.warm if phase == "warmup" and method.warm is not None else method.step
        step_key, draw_key = self.key(lane, STEP), self.key(lane, DRAW)

        def advance(i: Array, key: Array, state: Any, rows: Data) -> tuple[Any, dict[str, Array]]:
            state, info = take_step(key, t0 + i, state, rows)
            return state, dict(info)

        info_shape = jax.eval_shape(lambda: advance(jnp.int32(0), step_key, state, self._some_rows(data))[1])
        keeps_draws = self.schedule.thinning > 0 and (phase == "sample" or not self.two_bodies)
        draw = jax.eval_shape(lambda: method.draw(draw_key, state)) if keeps_draws else jnp.zeros(())
        recorded = {name: s for name, s in info_shape.items() if name not in ("num_grads", "stopped")}
        # Under vmap a stopped lane saves no time, because all lanes take the same number of steps.
        may_stop = "stopped" in info_shape and lanes.sequential()
        slots = jnp.zeros((self.capacity, *draw.shape), draw.dtype)
        stats = {name: jnp.zeros((self.capacity, *s.shape), s.dtype) for name, s in recorded.items()}

        def body(i: Array, key: Array, carry: Any, rows: Data) -> Any:
            state, totals, slots, stats, _ = carry
            state, info = advance(i, key, state, rows)
            finite = jnp.isfinite(info.get("log_density", info.get("loss", jnp.float32(0))))
            bad = jnp.where(finite, NEVER, t0 + i)
            diverging = info.get("num_diverging", info.get("diverging", jnp.bool_(False)))
            alive = totals.bad_step == NEVER  # steps of a lane after its first bad step are not counted
            totals = _Totals(
                totals.num_grads + jnp.where(alive, jnp.asarray(info["num_grads"], jnp.float32), 0),
                totals.num_diverging + jnp.where(alive, diverging, 0).astype(jnp.int32),
                jnp.minimum(totals.bad_step, bad),
            )
            slot = jnp.minimum(i // stride, self.capacity - 1)
            if keeps_draws:
                draw = method.draw(jax.random.fold_in(draw_key, t0 + i), state)
                slots = jax.lax.dynamic_update_index_in_dim(slots, draw, slot, 0)
            for name, kept in stats.items():
                value = info[name]
                if name in AVERAGED:
                    value = jax.lax.dynamic_index_in_dim(kept, slot, 0, keepdims=False) + value / stride
                stats = stats | {name: jax.lax.dynamic_update_index_in_dim(kept, value, slot, 0)}
            return state, totals, slots, stats, info["stopped"] if may_stop else ()

        totals = _Totals(jnp.float32(0), jnp.int32(0), jnp.int32(NEVER))
        carry: Any = (state, totals, slots, stats, jnp.bool_(False) if may_stop else ())
        num_steps = lanes.steps_here(num_steps, lane.active)
        keys_of = jax.vmap(lambda t: jax.random.fold_in(step_key, t))
        estimates_of = jax.vmap(lambda t: jax.random.fold_in(self.key(lane, LIKELIHOOD), t))
        many = self._steps_per_chunk(shared)
        batches_of = self._gather(shared, lane) if self.schedule.batch_size is not None else None

        def chunk(first: Array, carry: Any) -> Any:
            # Keys and batches are made for many steps together, because XLA's CPU backend runs a loop for each key.
            steps = t0 + first + jnp.arange(many)
            keys = jax.lax.optimization_barrier(jax.random.key_data(keys_of(steps)))
            together = None if batches_of is None else batches_of(steps)
            estimates = None
            if self.needs_key:
                estimates = jax.lax.optimization_barrier(jax.random.key_data(estimates_of(steps)))

            def one(i: Array, carry: Any) -> Any:
                at = lambda a: jax.lax.dynamic_index_in_dim(a, i, 0, keepdims=False)  # noqa: E731
                key_at = lambda words: jax.random.wrap_key_data(at(words), impl=jax.random.key_impl(step_key))  # noqa: E731
                rows = data
                if together is not None:
                    rows = data._replace(x=at(together.x), y=at(together.y))
                    if together.weights is not None:
                        rows = rows._replace(weights=at(together.weights))
                if estimates is not None:
                    rows = rows._replace(key=key_at(estimates))
                key = key_at(keys)
                return body(first + i, key, carry, rows)

            return jax.lax.fori_loop(0, jnp.minimum(many, num_steps - first), one, carry)

        chunks = (num_steps + many - 1) // many
        _, carry = jax.lax.while_loop(
            lambda at: (at[0] < chunks) & ~at[1][-1] if may_stop else at[0] < chunks,
            lambda at: (at[0] + 1, chunk(at[0] * many, at[1])),
            (jnp.int32(0), carry),
        )
        return carry[:-1]

    def _steps_per_chunk(self, shared: Shared) -> int:
        if self.schedule.batch_size is None:
            return batches.MOST_AT_ONCE
        row_bytes = sum(int(np.prod(a.shape[2:])) * a.dtype.itemsize for a in (shared.x, shared.y))
        return batches.steps_per_gather(row_bytes, self.schedule)

    def _gather(self, shared: Shared, lane: Lane) -> Callable[[Array], Data]:
        """Return a function from step indices to their batches, rows (steps, B, ...), which are gathered together.

        One gather for several steps is faster than one for each step.
        """
        key, total = self.key(lane, BATCH), shared.x.shape[1]
        if shared.weights is not None:
            return self._gather_present(shared, lane)
        rows_of = jax.vmap(lambda t: batches.rows_of_step(key, t, self.num_rows, self.schedule))

        def gather(steps: Array) -> Data:
            rows = rows_of(steps)
            if self.num_rows < total:
                rows = batches.permute(self.key(lane, HOLD_OUT), rows, total)
            together = shared.rows(lane.dataset, rows)
            return together._replace(x=jax.lax.optimization_barrier(together.x))

        return gather

    def _gather_present(self, shared: Shared, lane: Lane) -> Callable[[Array], Data]:
        """:meth:`_gather` for rows with weights.

        Batches are drawn from the n rows with positive weight. In a batch each weight is multiplied by n/B.
        """
        assert self.schedule.batch_size is not None
        key, size = self.key(lane, BATCH), self.schedule.batch_size
        there = shared.rows(lane.dataset).weights > 0
        present, count = jnp.argsort(~there, stable=True), there.sum()
        rows_of = jax.vmap(lambda t: batches.rows_of_step_among(key, t, count, len(present), self.schedule))

        def gather(steps: Array) -> Data:
            together = shared.rows(lane.dataset, present[rows_of(steps)])
            return together._replace(
                x=jax.lax.optimization_barrier(together.x), weights=together.weights * (count / size)
            )

        return gather

    def _some_rows(self, data: Data) -> Data:
        """Return rows with the shape of a batch of one step."""
        rows = slice(self.schedule.batch_size)
        some = data._replace(x=jax.tree.map(lambda a: a[rows], data.x), y=data.y[rows])
        return some if data.weights is None else some._replace(weights=data.weights[rows])

    # ---- compilation, once for these shapes

    def call(self, name: str, clock: Clock, num_shared: int, *args: Any, donate: tuple[int, ...] = ()) -> Any:
        """Call the method ``name`` of this class on all lanes. The time for compilation counts as ``compile``."""
        kind = "block" if name.startswith("block_") and not self.two_bodies else name
        if kind not in self._compiled:
            with clock.measure("compile"):
                lowered = self._lowered(kind, num_shared, args, donate)
                if kind == "block_warmup" and self.schedule.num_samples * self.schedule.thinning and not self.finalizes:
                    # XLA compiles on one core. The program for sampling, which has the same arguments and compiles
                    # faster, is compiled at the same time.
                    compiling = _BESIDE.submit(lowered.compile)
                    beside = self._lowered("block_sample", num_shared, args, donate)
                    self._compiled["block_sample"] = beside.compile()
                    self._compiled[kind] = compiling.result()
                else:
                    self._compiled[kind] = lowered.compile()
        return self._compiled[kind](*args)

    def _lowered(self, kind: str, num_shared: int, args: tuple[Any, ...], donate: tuple[int, ...]) -> Any:
        # Steps on minibatches, and steps with thinning other than 1, consist of small operations.
        many = self.schedule.batch_size is not None or self.schedule.thinning != 1
        small = kind.startswith("block") and many
        function = getattr(self, "block_sample" if kind == "block" else kind)
        return lanes.over_lanes(function, num_shared, donate, small=small).lower(*args)


def _strong(state: Any) -> Any:
    """Return a state without weak types. A state from a checkpoint has none, and must be traced as the original was."""

    def one(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if is_key else jax.lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(one, state)
