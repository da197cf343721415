"""Point estimates: the maximum a posteriori, alone or as the start of something better."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """theta (D,) and the optimiser's state."""

    theta: Array
    optimizer: Any


def maximum_a_posteriori(
    target: Target, schedule: Schedule, *, optimizer: optax.GradientTransformation
) -> Method:
    """Maximise the log density over unconstrained theta; each chain is one estimate, ``num_samples`` is 1.

    The optimiser minimises -log_density / N, so that a learning rate means the same for every size of data. The mode
    is that of the density over *unconstrained* theta, Jacobian included, as Stan's Laplace approximation takes it.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
    """

    def init(key: Array, theta: Array, data: Data) -> State:
        return State(theta, optimizer.init(theta))

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        log_density, grad = target.value_and_grad(state.theta, data)
        loss_grad = jax.lax.optimization_barrier(-grad / data.size)
        updates, opt_state = optimizer.update(loss_grad, state.optimizer, state.theta)
        theta = optax.apply_updates(state.theta, updates)
        return State(theta, opt_state), {"num_grads": jnp.float32(1), "log_density": log_density}

    return Method(init, step, draw=lambda key, state: state.theta, markov=False)
