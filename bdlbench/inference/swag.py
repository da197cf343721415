"""SWAG: a normal fitted to the path of stochastic gradient descent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdlbench.errors import ConfigError
from bdlbench.options import at_least, fits
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """Where the optimiser is, and of the collected points the mean (D,), sum of squared deviations (D,) and the last
    deviations from the running mean (K, D).
    """

    theta: Array
    optimizer: Any
    mean: Array
    squares: Array
    deviations: Array


def swag(
    target: Target,
    schedule: Schedule,
    *,
    optimizer: optax.GradientTransformation,
    rank: int,
    collect_after: int,
    collect_every: int,
) -> Method:
    r"""Stochastic weight averaging, Gaussian (Maddox et al. 2019); in several chains MultiSWAG (Wilson & Izmailov).

    .. math:: \theta = \bar\theta + \mathrm{diag}(s^2)^{1/2} z_1 / \sqrt 2 + \hat D z_2 / \sqrt{2 (K - 1)}

    Over n collected points of the path, s^2 is their variance and the K columns of D are the last deviations from the
    running mean. The path is that of the minibatch optimiser at a constant rate; the stage before it trains. What it
    covers is set by rate and batch size, not by the posterior: on a Gaussian it is the optimiser's stationary law.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
        Minimises -log_density / N; plain SGD at a constant rate with momentum.
    rank : int
        K, deviations kept; 20.
    collect_after, collect_every : int
        Points are collected every so many steps, after so many steps of ``num_warmup``.

    Raises
    ------
    ConfigError
        The rows come all at once, so that there is no noise; or fewer points than ``rank`` are collected.
    """
    at_least("inference", 2, rank=rank)
    at_least("inference", 1, collect_every=collect_every)
    at_least("inference", 0, collect_after=collect_after)
    collected = max(0, schedule.num_warmup - collect_after) // collect_every
    if collected < rank:
        raise ConfigError(
            f"inference.rank={rank} is more than the {collected} points collected in schedule.num_warmup="
            f"{schedule.num_warmup} steps after collect_after={collect_after}, every collect_every={collect_every}: "
            "collect more often or lower the rank."
        )
    deviations = f"{rank} deviations of {target.dim} weights"
    fits("inference", 4 * rank * target.dim, deviations, "use a lower rank", rank=rank)
    if schedule.batch_size is None:
        raise ConfigError("inference.schedule.batch_size=null leaves swag no gradient noise to fit: give a batch size.")
    if schedule.thinning:
        raise ConfigError("inference.schedule.thinning must be 0 for swag: its draws are read from the fitted normal.")

    def init(key: Array, theta: Array, data: Data) -> State:
        zeros = jnp.zeros_like(theta)
        return State(theta, optimizer.init(theta), zeros, zeros, jnp.zeros((rank, target.dim), theta.dtype))

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        log_density, grad = target.value_and_grad(state.theta, data)
        loss_grad = jax.lax.optimization_barrier(-grad / data.size)
        updates, opt_state = optimizer.update(loss_grad, state.optimizer, state.theta)
        theta = optax.apply_updates(state.theta, updates)
        state = state._replace(theta=theta, optimizer=opt_state)
        since = t + 1 - collect_after

        def collect(state: State) -> State:
            n = since // collect_every
            before = theta - state.mean
            mean = state.mean + before / n
            # Welford's sum: mean of squares less squared mean would cancel to nothing in single precision.
            squares = state.squares + before * (theta - mean)
            deviations = jax.lax.dynamic_update_index_in_dim(state.deviations, theta - mean, (n - 1) % rank, 0)
            return state._replace(mean=mean, squares=squares, deviations=deviations)

        state = jax.lax.cond((since > 0) & (since % collect_every == 0), collect, lambda state: state, state)
        return state, {"num_grads": jnp.float32(1), "log_density": log_density}

    def draw(key: Array, state: State) -> Array:
        first, second = jax.random.split(key)
        theta = state.mean + jnp.sqrt(state.squares / (2 * collected)) * jax.random.normal(
            first, state.mean.shape, state.mean.dtype
        )
        return theta + jax.random.normal(second, (rank,), theta.dtype) @ state.deviations / (2 * (rank - 1)) ** 0.5

    return Method(init, step, draw, markov=False, fixed_target=False)
