"""SWAG: a normal distribution fitted to the path of stochastic gradient descent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdlbench.errors import ConfigError
from bdlbench.options import at_least, fits
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """The optimiser with its theta (D,), and the sums over the collected points.

    The sums are the mean (D,), the sum of squared deviations from it (D,), and the last K deviations from the running
    mean (K, D).
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
    r"""SWA-Gaussian (Maddox et al. 2019). With several chains it is MultiSWAG (Wilson & Izmailov 2020).

    .. math:: \theta = \bar\theta + \mathrm{diag}(s^2)^{1/2} z_1 / \sqrt 2 + \hat D z_2 / \sqrt{2 (K - 1)}

    theta-bar and s^2 are the mean and the variance of the n collected points of the path, the K columns of D-hat are
    the last deviations from the running mean, and z_1, z_2 are standard normal. The path is that of the minibatch
    optimiser at a constant rate; the stage before it trains the network. The width of the result depends on the rate
    and the batch size, not on the posterior. On a Gaussian it is the stationary law of the optimiser.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
        Minimises -log_density / N; usually SGD at a constant rate with momentum.
    rank : int
        K, the number of deviations that are kept, usually 20.
    collect_after, collect_every : int
        After the first ``collect_after`` steps of the warm-up, one point is collected every ``collect_every`` steps.

    Raises
    ------
    ConfigError
        If there is no batch size, so that the gradients have no noise, or fewer points than ``rank`` are collected.
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
            # This is Welford's sum. The mean square minus the squared mean would lose all digits in single precision.
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
