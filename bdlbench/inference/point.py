"""Point estimates: the maximum a posteriori, deep ensembles, and Monte Carlo dropout."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdlbench.errors import ConfigError
from bdlbench.options import at_least, fraction, static
from bdlbench.types import Array, Data, Info, Method, Schedule, Target

Objective = Literal["posterior", "likelihood"]


class State(NamedTuple):
    """theta (D,), and the state of the optimiser."""

    theta: Array
    optimizer: Any


class Best(NamedTuple):
    """The theta (D,) with the highest score on the validation rows, and the number of evaluations since then."""

    theta: Array
    score: Array
    misses: Array


class Member(NamedTuple):
    """A network in training: its weights, the optimiser, the last value of the log density, and the best weights."""

    theta: Array
    optimizer: Any
    log_density: Array
    best: Best | None

    @property
    def kept(self) -> Array:
        """The theta (D,) that is the result."""
        return self.theta if self.best is None else self.best.theta


def _one_draw(method: str, schedule: Schedule) -> None:
    if schedule.num_samples > 1:
        raise ConfigError(
            f"inference.schedule.num_samples={schedule.num_samples} does not fit {method}, of which a chain has one draw: "
            "use 1, and more chains for more estimates."
        )


def maximum_a_posteriori(target: Target, schedule: Schedule, *, optimizer: optax.GradientTransformation) -> Method:
    """Maximise the log density over unconstrained theta. Each chain is one estimate, so ``num_samples`` is 1.

    The optimiser minimises -log_density / N, so that a learning rate means the same for every size of data. The mode
    is that of the density over *unconstrained* theta, which includes the Jacobian, as in Stan's Laplace approximation.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
        Minimises -log_density / N.

    Raises
    ------
    ConfigError
        If more than one draw is asked for. All draws would be the same.
    """
    _one_draw("map", schedule)

    def init(key: Array, theta: Array, data: Data) -> State:
        return State(theta, optimizer.init(theta))

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        log_density, grad = target.value_and_grad(state.theta, data)
        loss_grad = jax.lax.optimization_barrier(-grad / data.size)
        updates, opt_state = optimizer.update(loss_grad, state.optimizer, state.theta)
        theta = optax.apply_updates(state.theta, updates)
        return State(theta, opt_state), {"num_grads": jnp.float32(1), "log_density": log_density}

    return Method(init, step, draw=lambda key, state: state.theta, markov=False, fixed_target=False)


@static("validation_fraction")
def deep_ensemble(
    target: Target,
    schedule: Schedule,
    *,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    validate_every: int | None,
    patience: int | None,
    validation_fraction: float | None,
) -> Method:
    r"""A deep ensemble: each chain is one trained network (Lakshminarayanan, Pritzel & Blundell 2017).

    Every chain starts from its own initialisation and has its own batches. The adversarial training of the paper is
    left out; its authors found that it helps little. A chain has one draw, so ``num_samples`` is 1.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
        Minimises -objective / N; ``optax.adamw`` decays weights on top of it.
    objective : str
        ``posterior``: the log density, so that a member is a maximum a posteriori. ``likelihood``: the log likelihood
        without the prior, as ensembles are usually trained; the temperature has then no effect.
    validate_every : int or None
        Number of steps between two evaluations of the mean log likelihood of the validation rows. The result is the
        theta with the highest value. None does not evaluate it; the result is the last theta.
    patience : int or None
        Training stops after this number of evaluations without a higher value, and computes no more gradients. None
        does not stop.
    validation_fraction : float or None
        Share of the training rows that each member chooses at random as validation rows and does not train on. Later
        stages use all rows again. None uses the validation rows of the data set (``data.validation_fraction``), on
        which no stage trains.

    Raises
    ------
    ConfigError
        If early stopping is asked for without validation rows, or more than one draw is asked for.
    """
    _one_draw("deep_ensemble", schedule)
    value = _objective(target, objective)
    stopping = _Stopping(schedule, validate_every, patience, validation_fraction)
    return _trained(target, optimizer, lambda key, theta, data: value(theta, data), stopping)


@static("validation_fraction")
def mc_dropout(
    target: Target,
    schedule: Schedule,
    *,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    rate: float,
    validate_every: int | None,
    patience: int | None,
    validation_fraction: float | None,
) -> Method:
    r"""Dropout in training and in prediction, as a variational posterior (Gal & Ghahramani 2016).

    .. math:: \theta = M \circ z_{u(\cdot)} / (1 - p), \quad z_u \sim \mathrm{Bernoulli}(1 - p)

    ``u`` is the hidden unit that a weight reads from. Each step draws one theta from this distribution and takes the
    gradient of the log density there. With a prior N(0, s^2) the mean of this log density over z is the bound of Gal &
    Ghahramani: the expected log likelihood minus |M|^2 / (2 s^2 (1 - p)) for weights that read from hidden units. A
    draw is one mask for all inputs, so that a draw is a function. In training too, all rows of a batch share one mask.
    Other code usually draws one mask for each row, which has the same expectation and less variance.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
        Minimises -objective / N; ``optax.adamw`` decays weights on top of it.
    objective : str
        ``posterior``: the log density, as in the bound. ``likelihood``: the log likelihood without the prior, as
        dropout networks are usually trained, with the weight decay of ``optimizer`` in place of the prior. The
        temperature has then no effect.
    rate : float
        p, the probability that a hidden unit is left out, usually 0.005 to 0.1.
    validate_every, patience : int or None
    validation_fraction : float or None
        As for :func:`deep_ensemble`. Validation rows are evaluated at M, the mean network.

    Raises
    ------
    ConfigError
        If the network has no hidden unit, or it cannot be derived which unit a weight reads from.
    """
    fraction("inference", rate=rate)
    if target.units is None:
        raise ConfigError("model: it does not say which hidden units its weights read from: use a network, model=bnn.")
    units = np.asarray(target.units())
    count = int(units.max()) + 1

    def masked(key: Array, theta: Array) -> Array:
        keep = jax.random.bernoulli(key, 1 - rate, (count,)).astype(theta.dtype) / (1 - rate)
        return theta * jnp.where(units < 0, 1.0, keep[units])

    objective_of = _objective(target, objective)

    def value(key: Array, theta: Array, data: Data) -> Array:
        return objective_of(masked(key, theta), data)

    method = _trained(target, optimizer, value, _Stopping(schedule, validate_every, patience, validation_fraction))
    # The bound is the expectation over masks of a fixed log likelihood, so the target must be fixed.
    return method._replace(draw=lambda key, state: masked(key, state.kept), fixed_target=True)


def _objective(target: Target, objective: Objective) -> Callable[[Array, Data], Array]:
    """The log density, or the log likelihood alone at temperature 1."""
    if objective not in ("posterior", "likelihood"):
        raise ConfigError(f"inference.objective={objective!r} is unknown: use posterior or likelihood.")
    if objective == "posterior":
        return target.log_density

    def log_likelihood(theta: Array, data: Data) -> Array:
        theta = jax.lax.optimization_barrier(theta)
        return data.total(target.terms(theta, data).log_lik)

    return log_likelihood


class _Stopping:
    """The checked options for when training evaluates validation rows and when it ends."""

    def __init__(
        self, schedule: Schedule, validate_every: int | None, patience: int | None, validation_fraction: float | None
    ) -> None:
        self.every, self.patience, self.validation_fraction = validate_every, patience, validation_fraction or 0.0
        if validate_every is not None:
            at_least("inference", 1, validate_every=validate_every)
            if validate_every > schedule.num_warmup:
                raise ConfigError(
                    f"inference.validate_every={validate_every} is more than schedule.num_warmup="
                    f"{schedule.num_warmup}, so that nothing would ever be kept: make it smaller."
                )
        for name, value in (("patience", patience), ("validation_fraction", validation_fraction)):
            if value is not None and validate_every is None:
                raise ConfigError(
                    f"inference.{name}={value} is for looks at validation rows: give inference.validate_every as well."
                )
        if patience is not None:
            at_least("inference", 1, patience=patience)
        if validation_fraction is not None:
            fraction("inference", validation_fraction=validation_fraction)


def _trained(target: Target, optimizer: optax.GradientTransformation, value: Any, stopping: _Stopping) -> Method:
    """Maximise ``value(key, theta, data)``. With ``stopping``, keep the theta that is best on the validation rows."""
    every, patience = stopping.every, stopping.patience

    def init(key: Array, theta: Array, data: Data) -> Member:
        if every is not None and data.validation is None:
            raise ConfigError(
                "inference.validate_every needs validation rows: give data.validation_fraction, or "
                "inference.validation_fraction to hold some training rows out, or set it to null."
            )
        best = None if every is None else Best(theta, jnp.full((), -jnp.inf, theta.dtype), jnp.int32(0))
        return Member(theta, optimizer.init(theta), jnp.zeros((), theta.dtype), best)

    def move(key: Array, state: Member, data: Data) -> Member:
        log_density, grad = jax.value_and_grad(lambda theta: value(key, theta, data))(state.theta)
        loss_grad = jax.lax.optimization_barrier(-grad / data.size)
        updates, opt_state = optimizer.update(loss_grad, state.optimizer, state.theta)
        theta = optax.apply_updates(state.theta, updates)
        return state._replace(theta=theta, optimizer=opt_state, log_density=log_density)

    def look(state: Member, rows: Data) -> Best:
        theta, best = jax.lax.optimization_barrier(state.theta), state.best
        assert best is not None
        score = target.terms(theta, rows).log_lik.mean()
        better = score > best.score
        return Best(
            jnp.where(better, theta, best.theta),
            jnp.where(better, score, best.score),
            jnp.where(better, 0, best.misses + 1),
        )

    def step(key: Array, t: Array, state: Member, data: Data) -> tuple[Member, Info]:
        if every is None:
            state = move(key, state, data)
            return state, {"num_grads": jnp.float32(1), "log_density": state.log_density}
        assert data.validation is not None
        held = data._replace(x=data.validation[0], y=data.validation[1], weights=None)
        assert state.best is not None
        going = jnp.bool_(True) if patience is None else state.best.misses < patience
        state = jax.lax.cond(going, lambda s: move(key, s, data), lambda s: s, state)
        checks = going & (t % every == every - 1)
        best = jax.lax.cond(checks, lambda s: look(s, held), lambda s: s.best, state)
        info = {"num_grads": going.astype(jnp.float32), "log_density": state.log_density}
        if patience is not None:
            info["stopped"] = best.misses >= patience
        return state._replace(best=best), info

    return Method(
        init,
        step,
        draw=lambda key, state: state.kept,
        markov=False,
        validation_fraction=stopping.validation_fraction,
        fixed_target=False,
    )
