"""Stochastic-gradient Langevin dynamics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdlbench.checks import non_negative, positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """theta (D,)."""

    theta: Array


def sgld(target: Target, schedule: Schedule, *, step_size: float, decay: float, decay_steps: float) -> Method:
    r"""Langevin dynamics on minibatch gradients, without a Metropolis test (Welling & Teh 2011).

    .. math:: \theta' = \theta + \epsilon_t g(\theta) + \sqrt{2 \epsilon_t}\, \xi, \quad \xi \sim N(0, I), \quad
              \epsilon_t = \epsilon_0 (1 + t / b)^{-\gamma}

    g is the gradient of the whole log density, estimated on the batch. Welling & Teh write eps/2 before g: their eps is
    twice this one. On a Gaussian of precision A with full-data gradients the stationary variance is
    1 / (A (1 - eps A / 2)): the step size is a bias, which only a decay removes.

    Parameters
    ----------
    step_size : float
        eps_0, of the order of 0.04 / N for networks.
    decay : float
        gamma in (0.5, 1], or 0 for a constant step.
    decay_steps : float
        b, steps until the decay is felt.
    """
    positive("inference", step_size=step_size, decay_steps=decay_steps)
    non_negative("inference", decay=decay)

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        eps = step_size * (1 + t / decay_steps) ** -decay
        log_density, grad = target.value_and_grad(state.theta, data)
        # Keeps XLA's CPU backend from computing noise and gradient again in every consumer.
        grad, noise = jax.lax.optimization_barrier((grad, jax.random.normal(key, state.theta.shape, state.theta.dtype)))
        theta = state.theta + eps * grad + jnp.sqrt(2 * eps) * noise
        return State(theta), {"num_grads": jnp.float32(1), "log_density": log_density, "step_size": eps}

    return Method(
        init=lambda key, theta, data: State(theta),
        step=step,
        draw=lambda key, state: state.theta,
    )
