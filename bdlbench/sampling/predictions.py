"""Predict from draws at given inputs, in blocks of bounded memory.

The functions do not depend on particular methods. For a method with an ``anchor`` the network linearised at the anchor
is used, for any other method the network itself.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bdlbench.errors import ConfigError
from bdlbench.sampling import lanes
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.programs import Lane, Program, Shared
from bdlbench.types import Array, Target, Task

BLOCK_BYTES = 2**25
"""About the largest size in bytes of each predictive array of all lanes in one block."""
TOGETHER = 32
"""The number of draws that are vmapped together."""
_PREDICT = 2**30
"""Folded into the keys that draw y, so that they differ from the keys of the stages."""


class Predictor:
    """Computes predictions and named sites from draws, for all lanes of a program together.

    Parameters
    ----------
    program : Program
    task : "regression" or "classification"
    shared : Shared
        The training rows, from which the model takes its shapes.
    lane : Lane
        Keys, data-set indices and numbers of the L lanes, on the host.
    rows : Shared or None
        The inputs and targets to predict, x (U, T, ...) and y (U, T), for each of the U data sets. None if only
        :meth:`sites` is used.
    clock : Clock
        Receives the seconds of ``compile``. The caller measures the seconds of predictions.
    """

    def __init__(
        self, program: Program, task: Task, shared: Shared, lane: Lane, rows: Shared | None, clock: Clock
    ) -> None:
        self.program, self.task, self.clock = program, task, clock
        self.num_lanes = int(np.shape(lane.dataset)[0])
        self.shared = lanes.replicate(Shared(shared.x, shared.y))
        placed = lanes.place(lane._replace(active=np.ones(self.num_lanes, bool)))
        self.lane = placed._replace(active=lanes.place(lanes.active(self.num_lanes)))
        self.rows = None if rows is None else lanes.replicate(rows)
        # It is a multiple of TOGETHER, so that the bits of a prediction do not depend on the number of lanes.
        width = 1 if rows is None else max(1, int(np.prod(np.shape(rows.y)[1:])))
        many = BLOCK_BYTES // (4 * width * self.num_lanes)
        self.block = TOGETHER * int(max(1, min(8, many // TOGETHER)))

    def predict(self, draws: np.ndarray, first: int = 0, anchor: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Predict the T rows from each draw.

        Parameters
        ----------
        draws : array (L, n, D) or (L, n, P, D)
            In the second case the n P particles are treated as draws, and n P takes the place of n in the result.
        first : int
            The index of the first draw, which determines the keys of ``sample``.
        anchor : array (L, D), optional
            The weights at which the network is linearised.

        Returns
        -------
        dict of arrays (L, n, T)
            ``log_lik`` of the observed targets. As far as the distribution has them: ``sample``, a draw of y; for
            regression ``mean``, ``variance`` and ``cdf`` at the observed targets; for classification ``probs``
            (L, n, T, K).
        """
        assert self.rows is not None
        held = () if anchor is None else (lanes.place(anchor),)
        return self._in_blocks("predictions", draws, first, (self.shared, self.rows), held)

    def function(self, draws: np.ndarray, anchor: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The part of :meth:`predict` that does not depend on targets or keys: ``mean`` and ``variance``, or ``probs``.

        It takes less time, because nothing is drawn and no distribution function is evaluated.
        """
        assert self.rows is not None
        held = () if anchor is None else (lanes.place(anchor),)
        return self._in_blocks("function", draws, 0, (self.shared, self.rows), held)

    def sites(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Return the model's named sites at draws (L, n, D) as a dict of arrays (L, n, ...)."""
        return self._in_blocks("named_sites", draws, 0, (self.shared,), ())

    def _in_blocks(
        self, name: str, draws: np.ndarray, first: int, shared: tuple[Any, ...], held: tuple[Any, ...]
    ) -> dict[str, np.ndarray]:
        first *= draws.shape[2] if draws.ndim == 4 else 1  # y is drawn with another key for each particle
        draws = draws.reshape(draws.shape[0], -1, draws.shape[-1])
        parts = []
        # Blocks have one of two sizes, so that at most two programs are compiled.
        block = TOGETHER if draws.shape[1] <= TOGETHER else self.block
        for start in range(0, draws.shape[1], block):
            part = draws[:, start : start + block]
            count = part.shape[1]
            part = np.concatenate([part, np.repeat(part[:, -1:], block - count, 1)], 1)
            args = (*shared, lanes.replicate(np.int32(first + start)), self.lane, lanes.place(part), *held)
            out = _compiled(name, self.program, self.task, len(shared) + 1, args, self.clock)(*args)
            parts.append(jax.tree.map(lambda a: a[:, :count], lanes.fetch(out, self.num_lanes)))  # noqa: B023
        return {key: np.concatenate([part[key] for part in parts], 1) for key in parts[0]}


_COMPILED: dict[Any, Any] = {}


def _compiled(name: str, program: Program, task: Task, num_shared: int, args: Any, clock: Clock) -> Any:
    shapes = str(jax.tree.map(lambda a: (a.shape, str(a.dtype)), args))
    key = (name, program, shapes, jax.default_backend(), bool(jax.config.jax_enable_x64))
    if key not in _COMPILED:
        function: Callable[..., Any] = {"predictions": _predictions, "function": _function}.get(name, _named_sites)
        with clock.measure("compile"):

            def one(*a: Any) -> Any:
                lane = next(item for item in a if isinstance(item, Lane))
                return lanes.where_active(lane.active, lambda: function(program, task, *a))

            over = lanes.over_lanes(one, num_shared)
            _COMPILED[key] = over.lower(*args).compile()
    return _COMPILED[key]


def _target(program: Program, shared: Shared, lane: Lane) -> Target:
    data = shared.rows(lane.dataset)
    return program.make_target(lane.numbers, data.x, data.y)


def _named_sites(
    program: Program, task: Task, shared: Shared, first: Array, lane: Lane, draws: Array
) -> dict[str, Array]:
    target = _target(program, shared, lane)
    return jax.lax.map(target.constrain, draws, batch_size=TOGETHER)


def _predictions(
    program: Program,
    task: Task,
    shared: Shared,
    rows: Shared,
    first: Array,
    lane: Lane,
    draws: Array,
    anchor: Array | None = None,
) -> dict[str, Array]:
    target = _target(program, shared, lane)
    at = rows.rows(lane.dataset)
    keys = jax.vmap(lambda j: jax.random.fold_in(jax.random.fold_in(lane.key, _PREDICT), j))(
        first + jnp.arange(draws.shape[0])
    )

    def one(args: tuple[Array, Array]) -> dict[str, Array]:
        key, theta = args
        return describe(_predictive(target, anchor, theta, at.x), at.y, key, task)

    return jax.lax.map(one, (keys, draws), batch_size=TOGETHER)


def _function(
    program: Program,
    task: Task,
    shared: Shared,
    rows: Shared,
    first: Array,
    lane: Lane,
    draws: Array,
    anchor: Array | None = None,
) -> dict[str, Array]:
    target, x = _target(program, shared, lane), rows.rows(lane.dataset).x

    def one(theta: Array) -> dict[str, Array]:
        p = _predictive(target, anchor, theta, x)
        if task == "classification":
            return {"probs": class_probabilities(p)}
        return {"mean": jnp.broadcast_to(p.mean, p.shape()), "variance": jnp.broadcast_to(p.variance, p.shape())}

    return jax.lax.map(one, draws, batch_size=TOGETHER)


def _predictive(target: Target, anchor: Array | None, theta: Array, x: Any) -> dist.Distribution:
    """p(y | x, theta), of the linearised network where there is an anchor."""
    return target.predictive(theta, x) if anchor is None else linearised(target, anchor, theta, x)


def linearised(target: Target, anchor: Array, theta: Array, x: Any) -> dist.Distribution:
    """Return p(y | f, theta) at f = f(x; theta0) + J(x; theta0) (theta - theta0), where theta0 is the anchor.

    J is the Jacobian of the network with respect to theta (Immer, Korzepa & Bauer 2021).
    """
    f, change = jax.jvp(lambda t: target.forward(t, x), (anchor,), (theta - anchor,))
    return target.likelihood(theta, x, f + change)


def describe(p: dist.Distribution, y: Array, key: Array, task: Task) -> dict[str, Array]:
    """The quantities of one draw's predictive distribution that are kept; see :meth:`Predictor.predict`."""
    out = {"log_lik": p.log_prob(y)}
    with contextlib.suppress(*_UNKNOWN):
        out["sample"] = p.sample(key)
    if task == "classification":
        out["probs"] = class_probabilities(p)
        return out
    # NumPyro knows no moments of a censored distribution and no CDF of many others. The metrics that need them are
    # then not computed.
    with contextlib.suppress(*_UNKNOWN):
        out["mean"] = jnp.broadcast_to(p.mean, jnp.shape(y))
        out["variance"] = jnp.broadcast_to(p.variance, jnp.shape(y))
    if p.support is not None and not p.support.is_discrete:
        with contextlib.suppress(*_UNKNOWN):
            out["cdf"] = p.cdf(y)
    return out


_UNKNOWN = (NotImplementedError, ImportError)
"""Errors by which NumPyro reports that a distribution lacks a quantity, or needs another library for it."""


def class_probabilities(p: dist.Distribution) -> Array:
    """Return the probabilities (T, K) of a distribution over classes.

    Raises ConfigError for a distribution that has none.
    """
    base = p.base_dist if isinstance(p, dist.ExpandedDistribution) else p
    if not hasattr(base, "probs"):
        raise ConfigError(
            f"model: y ~ {type(base).__name__} gives no class probabilities: use Categorical or Bernoulli."
        )
    probs = base.probs
    if isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        probs = jnp.stack([1 - probs, probs], -1)
    # If the probabilities are the same for all rows, they have no axis for the rows.
    return jnp.broadcast_to(probs, (*p.batch_shape, probs.shape[-1]))


def is_gaussian(program: Program, numbers: Any, x: Any, y: Any) -> bool:
    """Whether the distribution of y given theta is normal. Then closed forms for mixtures of normals are used."""
    found: list[bool] = []

    def look() -> None:
        target = program.make_target(numbers, jnp.asarray(x), jnp.asarray(y))
        p = target.predictive(jnp.zeros(target.dim), jnp.asarray(x))
        base = p.base_dist if isinstance(p, dist.ExpandedDistribution) else p
        found.append(isinstance(base, dist.Normal))

    jax.eval_shape(look)
    return found[0]
