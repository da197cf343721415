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
    """The mean m (D,), the curvature h (D,) of the mean loss, the momentum u (D,), and the number of rows N."""

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

    The loss here is the whole log density. In the paper it is the likelihood, with a weight decay d beside h that
    stands for an isotropic normal prior of precision N d. Here the model has its own prior, which may have another
    scale in each layer and a prior of the noise. So d = 0, and h is the curvature of likelihood and prior together. h
    stays positive, because h' >= h / 2 for every f.

    At the fixed point N h is the mean under q of the Hessian's diagonal, as for the best mean-field normal. A constant
    beta2 increases h by the relative amount (1 - beta2)(2 + N/B)/2, which is 0.4 % at beta2 = 0.9995 and N/B = 14.

    Parameters
    ----------
    learning_rate : float or schedule
        alpha, a number of the order of 0.1, or an optax schedule of the stage's step.
    hessian_init : float
        h before the first step. The value 1 gives an initial standard deviation of 1 / sqrt(N).
    beta1 : float
        Decay rate of the average gradient, usually 0.9.
    beta2 : float
        Decay rate of the average curvature. The averaging time of 1 / (1 - beta2) steps must be much shorter than
        ``num_warmup``.
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
        # Without the barrier, XLA's CPU backend would draw the noise again at each place that uses it.
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
