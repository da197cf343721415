"""Stochastic gradient descent at a constant learning rate, read as a sampler."""

from typing import NamedTuple

import jax.numpy as jnp

from bdlbench.options import positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """theta (D,)."""

    theta: Array


def constant_sgd(target: Target, schedule: Schedule, *, learning_rate: float) -> Method:
    r"""Iterates of SGD as approximate posterior draws (Mandt, Hoffman & Blei 2017).

    .. math:: \theta' = \theta + \eta\, g(\theta) / N

    g is the gradient of the log density, estimated on the batch; the noise of the batches alone spreads the draws.

    Parameters
    ----------
    learning_rate : float
        eta, for the mean loss.
    """
    positive("inference", learning_rate=learning_rate)

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        log_density, grad = target.value_and_grad(state.theta, data)
        theta = state.theta + learning_rate * grad / data.size
        return State(theta), {"num_grads": jnp.float32(1), "log_density": log_density}

    return Method(init=lambda key, theta, data: State(theta), step=step, draw=lambda key, state: state.theta)
