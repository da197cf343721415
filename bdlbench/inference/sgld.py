"""Stochastic-gradient Langevin dynamics in four forms: plain, preconditioned, cyclical, and with control variates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdlbench.inference import schedules
from bdlbench.inference.noise import standard_normal
from bdlbench.inference.stationarity import configurational_temperature
from bdlbench.options import at_least, fraction, non_negative, positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """theta (D,)."""

    theta: Array


def sgld(
    target: Target, schedule: Schedule, *, step_size: float | optax.Schedule, decay: float, decay_steps: float
) -> Method:
    r"""Langevin dynamics on minibatch gradients, without a Metropolis test (Welling & Teh 2011).

    .. math:: \theta' = \theta + \epsilon_t g(\theta) + \sqrt{2 \epsilon_t}\, \xi, \quad \xi \sim N(0, I), \quad
              \epsilon_t = \epsilon_0 (1 + t / b)^{-\gamma}

    g is the gradient of the whole log density, estimated on the batch. Welling & Teh write eps/2 before g, so their eps
    is twice this one. On a Gaussian of precision A with full-data gradients the stationary variance is
    1 / (A (1 - eps A / 2)). So a constant step size gives a bias, and only a decay of the step size removes it.

    Parameters
    ----------
    step_size : float or schedule
        eps_0, of the order of 0.04 / N for networks, or an optax schedule of the stage's step t in its place.
    decay : float
        gamma in (0.5, 1]; or 0 if the step size is constant or is given by a schedule.
    decay_steps : float
        b, the number of steps after which eps_0 is multiplied by 2^(-gamma).
    """
    schedules.check_step_size(schedule, step_size)
    positive("inference", decay_steps=decay_steps)
    non_negative("inference", decay=decay)

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        eps = schedules.at(step_size, t) * (1 + t / decay_steps) ** -decay
        log_density, grad = target.value_and_grad(state.theta, data)
        grad, noise = _apart(grad, key)
        theta = state.theta + eps * grad + jnp.sqrt(2 * eps) * noise
        info = {"num_grads": jnp.float32(1), "log_density": log_density, "step_size": eps}
        info["configurational_temperature"] = configurational_temperature(state.theta, grad)
        return State(theta), info

    return Method(
        init=lambda key, theta, data: State(theta),
        step=step,
        draw=lambda key, state: state.theta,
        fixed_target=False,
        halves=True,
    )


def _apart(grad: Array, key: Array) -> tuple[Array, Array]:
    """The gradient, and standard normal noise. The barrier keeps XLA's CPU backend from computing them several times."""
    grad, noise = jax.lax.optimization_barrier((grad, standard_normal(key, grad)))
    return grad, noise


class PreconditionedState(NamedTuple):
    """theta (D,), and V (D,), the average over steps of (g / N)^2."""

    theta: Array
    second_moment: Array


def psgld(
    target: Target, schedule: Schedule, *, step_size: float | optax.Schedule, averaging: float, damping: float
) -> Method:
    r"""Langevin dynamics preconditioned by RMSprop's diagonal (Li, Chen, Carlson & Carin 2016).

    .. math:: V' = a V + (1 - a) (g / N)^2, \quad G = (\lambda + \sqrt V)^{-1}, \quad
              \theta' = \theta + \epsilon G g + \sqrt{2 \epsilon G}\, \xi

    V adapts in the warm-up alone. While V changes, the drift would need the additional term Gamma = div G to leave the
    posterior invariant, and this term is not computed. With constant V the chain has the law of SGLD in the coordinates
    G^(-1/2) theta. The first averages give all gradients the same weight 1 / (t + 1), so that V has no bias towards 0.

    Parameters
    ----------
    step_size : float or schedule
        eps, or an optax schedule of the stage's step. If the gradients are mostly noise, a step has length about eps N
        in every direction.
    averaging : float
        a, usually 0.99. V is an average over about 1 / (1 - a) steps.
    damping : float
        lambda, in units of the mean gradient g / N. It bounds G by 1 / lambda.
    """
    schedules.check_step_size(schedule, step_size)
    positive("inference", damping=damping)
    fraction("inference", averaging=averaging)
    at_least("inference", 1, schedule__num_warmup=schedule.num_warmup)

    def move(
        key: Array, t: Array, state: PreconditionedState, second_moment: Array, log_density: Array, grad: Array
    ) -> tuple[PreconditionedState, Info]:
        grad, noise = _apart(grad, key)
        eps, scale = schedules.at(step_size, t), 1 / (damping + jnp.sqrt(second_moment))
        theta = state.theta + eps * scale * grad + jnp.sqrt(2 * eps * scale) * noise
        info = {"num_grads": jnp.float32(1), "log_density": log_density}
        info["configurational_temperature"] = configurational_temperature(state.theta, grad)
        return PreconditionedState(theta, second_moment), info

    def warm(key: Array, t: Array, state: PreconditionedState, data: Data) -> tuple[PreconditionedState, Info]:
        log_density, grad = target.value_and_grad(state.theta, data)
        weight = jnp.maximum(1 - averaging, 1 / (t + 1))
        second_moment = state.second_moment + weight * ((grad / data.size) ** 2 - state.second_moment)
        return move(key, t, state, second_moment, log_density, grad)

    def step(key: Array, t: Array, state: PreconditionedState, data: Data) -> tuple[PreconditionedState, Info]:
        return move(key, t, state, state.second_moment, *target.value_and_grad(state.theta, data))

    return Method(
        init=lambda key, theta, data: PreconditionedState(theta, jnp.zeros_like(theta)),
        step=step,
        draw=lambda key, state: state.theta,
        warm=warm,
        fixed_target=False,
    )


def cyclical_sgld(target: Target, schedule: Schedule, *, step_size: float, num_cycles: int) -> Method:
    r"""SGLD with a cyclical step size (Zhang, Li, Zhang, Chen & Wilson 2020).

    .. math:: \epsilon_t = \tfrac{\epsilon_0}{2} \left(\cos \frac{\pi (t \bmod C)}{C} + 1\right)

    C is the number of steps of a cycle. Each of M cycles first explores without noise for its share of the warm-up,
    which is gradient ascent with a large step, and then samples with the noise of SGLD. The draws of all cycles have
    equal weight. The stationary law of the method is not known exactly, so the method is tested by its predictions.

    Parameters
    ----------
    step_size : float
        eps_0 at a cycle's start.
    num_cycles : int
        M. The share of exploration is ``num_warmup / (num_warmup + num_samples thinning)``; it is 0.8 in the paper.
    """
    positive("inference", step_size=step_size)
    factor = schedules.cosine(schedule, num_cycles)

    def move(key: Array, t: Array, state: State, data: Data, explores: bool) -> tuple[State, Info]:
        eps = step_size * factor(t)
        log_density, grad = target.value_and_grad(state.theta, data)
        if explores:
            grad = jax.lax.optimization_barrier(grad)
            theta = state.theta + eps * grad
        else:
            grad, noise = _apart(grad, key)
            theta = state.theta + eps * grad + jnp.sqrt(2 * eps) * noise
        info = {"num_grads": jnp.float32(1), "log_density": log_density, "step_size": eps}
        info["configurational_temperature"] = configurational_temperature(state.theta, grad)
        return State(theta), info

    return Method(
        init=lambda key, theta, data: State(theta),
        step=lambda key, t, state, data: move(key, t, state, data, explores=False),
        draw=lambda key, state: state.theta,
        warm=lambda key, t, state, data: move(key, t, state, data, explores=True),
        markov=False,
        num_cycles=num_cycles,
        fixed_target=False,
    )


class AnchoredState(NamedTuple):
    """theta (D,), the anchor (D,), and the gradient on all rows at the anchor (D,)."""

    theta: Array
    anchor: Array
    anchor_grad: Array


def sgld_cv(target: Target, schedule: Schedule, *, step_size: float | optax.Schedule) -> Method:
    r"""SGLD whose gradient noise is reduced by control variates (Baker, Fearnhead, Fox & Nemeth 2019).

    .. math:: \theta' = \theta + \epsilon \left[g_N(\theta_0) + g_B(\theta) - g_B(\theta_0)\right]
              + \sqrt{2 \epsilon}\, \xi

    g_N is the gradient of the log density on all rows, and g_B its estimate on the batch. The anchor theta_0 is the
    point at which the stage starts, so a short MAP stage should come before it. To choose a new anchor, give the same
    stage again in ``before``. The noise of the gradient is 0 at the anchor and grows with the distance from it; far
    from the anchor it is larger than without control variates. A step takes two gradients on the batch, and the anchor
    takes one on all rows.

    Parameters
    ----------
    step_size : float or schedule
        eps, or an optax schedule of the stage's step.
    """
    schedules.check_step_size(schedule, step_size)

    def init(key: Array, theta: Array, data: Data) -> AnchoredState:
        return AnchoredState(theta, theta, target.value_and_grad(theta, data)[1])

    def step(key: Array, t: Array, state: AnchoredState, data: Data) -> tuple[AnchoredState, Info]:
        log_density, grad = target.value_and_grad(state.theta, data)
        grad = state.anchor_grad + grad - target.value_and_grad(state.anchor, data)[1]
        grad, noise = _apart(grad, key)
        eps = schedules.at(step_size, t)
        theta = state.theta + eps * grad + jnp.sqrt(2 * eps) * noise
        # The gradient at the anchor, in units of this batch, is counted at the first step of the stage.
        info = {"num_grads": 2 + jnp.where(t == 0, data.size / data.y.shape[0], 0), "log_density": log_density}
        info["configurational_temperature"] = configurational_temperature(state.theta, grad)
        return state._replace(theta=theta), info

    # The gradient at the anchor is computed only once, so a random error in it would be a bias of every step.
    return Method(init=init, step=step, draw=lambda key, state: state.theta, fixed_target=True, halves=True)
