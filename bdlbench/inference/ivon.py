"""IVON, the variational online Newton method: mean-field variational inference at the price of Adam."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdlbench.errors import ConfigError
from bdlbench.inference import schedules
from bdlbench.options import at_least, fraction, positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """Mean m (D,), curvature h (D,) of the mean loss, momentum (D,), and N."""

    mean: Array
    hessian: Array
    momentum: Array
    size: Array


def ivon(
    target: Target,
    schedule: Schedule,
    *,
    learning_rate: float | optax.Schedule,
    hessian_init: float,
    beta1: float,
    beta2: float,
) -> Method:
    r"""q = N(m, diag(1 / (N h))), improved by natural gradients with a reparameterised curvature (Shen et al. 2024).

    .. math::
        \theta = m + \xi / \sqrt{N h}, \quad g = -\nabla \log p(y, \theta) / N, \quad f = g\,(\theta - m)\,N h, \\
        u \leftarrow \beta_1 u + (1 - \beta_1) g, \quad
        h' = \beta_2 h + (1 - \beta_2) f + \tfrac12 (1 - \beta_2)^2 (h - f)^2 / h, \quad
        m' = m - \alpha\, u / ((1 - \beta_1^{t + 1})\, h')

    The loss is the whole log density, where the paper has the likelihood and a weight decay d beside h. Its d stands
    for an isotropic normal prior of precision N d; here the prior is the model's own (a scale a layer, one on the
    noise), so d = 0 and h is the curvature of likelihood and prior together. h stays positive: h' >= h / 2
    whatever f is.

    At the fixed point N h is E_q of the Hessian's diagonal, mean-field's own. A constant beta2 inflates h by about
    (1 - beta2)(2 + N/B)/2: 0.4 % at 0.9995 and N/B = 14.

    Parameters
    ----------
    learning_rate : float or schedule
        alpha, a number of the order of 0.1, or an optax schedule of the stage's step.
    hessian_init : float
        h before the first step; 1 is an initial standard deviation of 1 / sqrt(N).
    beta1 : float
        Memory of the gradient, 0.9.
    beta2 : float
        Memory of the curvature; 1 / (1 - beta2) steps must be few beside ``num_warmup``.
    """
    fraction("inference", beta1=beta1, beta2=beta2)
    positive("inference", hessian_init=hessian_init)
    schedules.check_step_size(schedule, learning_rate, "inference.learning_rate")
    at_least("inference", 1, schedule__num_warmup=schedule.num_warmup)
    if schedule.thinning:
        raise ConfigError("inference.schedule.thinning must be 0 for ivon: its draws are read from the fitted normal.")

    def scale(state: State) -> Array:
        return 1 / jnp.sqrt(state.size * state.hessian)

    def init(key: Array, theta: Array, data: Data) -> State:
        return State(
            theta, jnp.full_like(theta, hessian_init), jnp.zeros_like(theta), jnp.asarray(data.size, theta.dtype)
        )

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        mean, h, momentum, size = state
        # Keeps XLA's CPU backend from drawing the noise again in every consumer.
        away = jax.lax.optimization_barrier(jax.random.normal(key, mean.shape, mean.dtype) * scale(state))
        log_density, grad = target.value_and_grad(mean + away, data)
        g = jax.lax.optimization_barrier(-grad / size)
        f = g * away * h * size
        momentum = beta1 * momentum + (1 - beta1) * g
        h = beta2 * h + (1 - beta2) * f + 0.5 * (1 - beta2) ** 2 * (h - f) ** 2 / h
        mean = mean - schedules.at(learning_rate, t) * momentum / (1 - beta1 ** (t + 1)) / h
        return State(mean, h, momentum, size), {"num_grads": jnp.float32(1), "log_density": log_density}

    def noise(key: Array, state: State) -> Array:
        return jax.random.normal(key, state.mean.shape, state.mean.dtype)

    def log_q(key: Array, state: State) -> Array:
        return jax.scipy.stats.norm.logpdf(noise(key, state)).sum() - jnp.log(scale(state)).sum()

    return Method(
        init,
        step,
        draw=lambda key, state: state.mean + noise(key, state) * scale(state),
        log_q=log_q,
        markov=False,
        fixed_target=False,
    )
