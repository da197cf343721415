"""Stochastic-gradient Hamiltonian dynamics with friction and noise; one of the methods has a thermostat."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdlbench.errors import ConfigError
from bdlbench.inference import schedules
from bdlbench.inference.noise import standard_normal
from bdlbench.inference.stationarity import configurational_temperature
from bdlbench.options import positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """theta (D,) and the momentum m (D,), standard normal at equilibrium."""

    theta: Array
    momentum: Array


def _start(key: Array, theta: Array, data: Data) -> State:
    return State(theta, jax.random.normal(key, theta.shape, theta.dtype))


def _drift(state: Any, step_size: Any, kept: Any) -> tuple[Array, Array]:
    """Return theta moved by the momentum, and the momentum after friction.

    The barrier makes XLA compute both before the gradient. Otherwise its CPU backend would keep the old momentum in
    memory until after the gradient and then copy it, which takes a third of the time of a minibatch step.
    """
    return jax.lax.optimization_barrier((state.theta + step_size * state.momentum, kept * state.momentum))


def _gradient_and_noise(target: Target, key: Array, theta: Array, data: Data) -> tuple[Array, Array, Array]:
    """Log density, gradient and noise. Without the barriers, XLA's CPU backend would compute them several times."""
    log_density, grad = target.value_and_grad(theta, data)
    grad, noise = jax.lax.optimization_barrier((grad, standard_normal(key, theta)))
    return log_density, grad, noise


def _check(schedule: Schedule, step_size: float | optax.Schedule, friction: float) -> None:
    largest = schedules.check_step_size(schedule, step_size)
    positive("inference", friction=friction)
    if largest is not None and isinstance(friction, int | float) and largest * friction >= 1:
        raise ConfigError(
            f"inference.friction={friction} times step_size={largest:.6g} must be below 1, for 1 - step_size friction is "
            "what is kept of the momentum: 0.1 is usual."
        )


def sghmc(target: Target, schedule: Schedule, *, step_size: float | optax.Schedule, friction: float) -> Method:
    r"""Stochastic-gradient HMC (Chen, Fox & Guestrin 2014), with the semi-implicit scheme of the paper.

    .. math:: \theta' = \theta + h m, \quad m' = (1 - h \alpha) m + h g(\theta') + \sqrt{2 \alpha h}\, \xi

    g is the gradient of the whole log density, estimated on the batch. It is taken at the *new* theta. At the old theta
    the scheme would be explicit Euler, which has the same cost and a much larger error of the stationary variance. On a
    Gaussian of precision A the variance is (1/A) / (1 - h^2 A / (2 (1 + mu))), mu = 1 - h alpha. The gradient's noise
    increases it further; no correction for this noise is made.

    Parameters
    ----------
    step_size : float or schedule
        h, or an optax schedule of the stage's step. As an optimiser of the whole log density, the same dynamics have
        the learning rate h^2. With a schedule the damping h alpha changes with h, so that the momentum is standard
        normal at every h.
    friction : float
        alpha. As an optimiser, the dynamics have the momentum mu = 1 - h alpha, usually 0.9.
    """
    _check(schedule, step_size, friction)

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        h = schedules.at(step_size, t)
        theta, momentum = _drift(state, h, 1 - h * friction)
        log_density, grad, noise = _gradient_and_noise(target, key, theta, data)
        momentum = momentum + h * grad + jnp.sqrt(2 * friction * h) * noise
        info = {"num_grads": jnp.float32(1), "log_density": log_density}
        info["configurational_temperature"] = configurational_temperature(theta, grad)
        return State(theta, momentum), info

    return Method(_start, step, draw=lambda key, state: state.theta, fixed_target=False, halves=True)


def baoa(target: Target, schedule: Schedule, *, step_size: float | optax.Schedule, friction: float) -> Method:
    r"""Underdamped Langevin dynamics by the splitting BAOA (Leimkuhler & Matthews 2013), on minibatch gradients.

    .. math:: m \leftarrow m + h g(\theta), \quad \theta \leftarrow \theta + \tfrac h2 m, \quad
              m \leftarrow e^{-h \gamma} m + \sqrt{1 - e^{-2 \gamma h}}\, \xi, \quad
              \theta \leftarrow \theta + \tfrac h2 m

    A step takes one gradient, as SGHMC does. With full-data gradients the law of theta is exact on Gaussians for every
    stable h (h^2 A < 4, A the precision); on other densities its error is of second order in h.

    Parameters
    ----------
    step_size : float or schedule
        h, or an optax schedule of the stage's step.
    friction : float
        gamma. A step multiplies the momentum by exp(-h gamma) before it adds noise.
    """
    schedules.check_step_size(schedule, step_size)
    positive("inference", friction=friction)

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        log_density, grad, noise = _gradient_and_noise(target, key, state.theta, data)
        h = schedules.at(step_size, t)
        momentum = state.momentum + h * grad
        middle = state.theta + h / 2 * momentum
        kept = jnp.exp(-h * friction)
        momentum = kept * momentum + jnp.sqrt(1 - kept**2) * noise
        theta = middle + h / 2 * momentum
        info = {"num_grads": jnp.float32(1), "log_density": log_density}
        info["configurational_temperature"] = configurational_temperature(state.theta, grad)
        return State(theta, momentum), info

    return Method(_start, step, draw=lambda key, state: state.theta, fixed_target=False, halves=True)


class ThermostatState(NamedTuple):
    """theta (D,), momentum (D,) and the thermostat chi, a scalar."""

    theta: Array
    momentum: Array
    thermostat: Array


def sgnht(target: Target, schedule: Schedule, *, step_size: float | optax.Schedule, friction: float) -> Method:
    r"""The stochastic-gradient Nose-Hoover thermostat (Ding et al. 2014): SGHMC with a friction chi that adapts.

    .. math:: \theta' = \theta + h m, \quad m' = (1 - h \chi) m + h g(\theta') + \sqrt{2 \alpha h}\, \xi, \quad
              \chi' = \chi + h (m'^\top m' / D - 1)

    The added noise has the fixed alpha. chi grows until it also balances the noise of the gradient, so that the mean of
    m'm / D is 1 for every batch size. Because chi is one number, this corrects only gradient noise that has the same
    variance in all directions.

    Parameters
    ----------
    step_size : float or schedule
        h, or an optax schedule of the stage's step.
    friction : float
        alpha, and chi at the start.
    """
    _check(schedule, step_size, friction)

    def init(key: Array, theta: Array, data: Data) -> ThermostatState:
        return ThermostatState(*_start(key, theta, data), jnp.asarray(friction, theta.dtype))

    def step(key: Array, t: Array, state: ThermostatState, data: Data) -> tuple[ThermostatState, Info]:
        h = schedules.at(step_size, t)
        theta, momentum = _drift(state, h, 1 - h * state.thermostat)
        log_density, grad, noise = _gradient_and_noise(target, key, theta, data)
        momentum = momentum + h * grad + jnp.sqrt(2 * friction * h) * noise
        momentum = jax.lax.optimization_barrier(momentum)
        thermostat = state.thermostat + h * (jnp.mean(momentum**2) - 1)
        info = {"num_grads": jnp.float32(1), "log_density": log_density, "thermostat": thermostat}
        info["configurational_temperature"] = configurational_temperature(theta, grad)
        return ThermostatState(theta, momentum, thermostat), info

    return Method(init, step, draw=lambda key, state: state.theta, fixed_target=False, halves=True)


def cyclical_sghmc(target: Target, schedule: Schedule, *, step_size: float, friction: float, num_cycles: int) -> Method:
    r"""SGHMC with a cyclical learning rate h^2 (Zhang, Li, Zhang, Chen & Wilson 2020).

    .. math:: h_t^2 = \tfrac{h_0^2}{2} \left(\cos \frac{\pi (t \bmod C)}{C} + 1\right), \quad
              h_t \alpha_t = h_0 \alpha_0

    C is the number of steps of a cycle. The momentum decay 1 - h alpha is constant. Each of M cycles first explores
    without noise for its share of the warm-up, which is stochastic gradient ascent with momentum, and then samples with
    noise. The draws of all cycles have equal weight. The stationary law of the method is not known exactly.

    Parameters
    ----------
    step_size, friction : float
        h_0 and alpha_0.
    num_cycles : int
        M. The share of exploration is ``num_warmup / (num_warmup + num_samples thinning)``; it is 0.8 in the paper.
    """
    _check(schedule, step_size, friction)
    factor = schedules.cosine(schedule, num_cycles)
    damping = step_size * friction

    def move(key: Array, t: Array, state: State, data: Data, explores: bool) -> tuple[State, Info]:
        h = step_size * jnp.sqrt(factor(t))
        theta, momentum = _drift(state, h, 1 - damping)
        if explores:
            log_density, grad = target.value_and_grad(theta, data)
            grad = jax.lax.optimization_barrier(grad)
            momentum = momentum + h * grad
        else:
            log_density, grad, noise = _gradient_and_noise(target, key, theta, data)
            momentum = momentum + h * grad + jnp.sqrt(2 * damping) * noise
        info = {"num_grads": jnp.float32(1), "log_density": log_density, "step_size": h}
        info["configurational_temperature"] = configurational_temperature(theta, grad)
        return State(theta, momentum), info

    return Method(
        _start,
        step=lambda key, t, state, data: move(key, t, state, data, explores=False),
        draw=lambda key, state: state.theta,
        warm=lambda key, t, state, data: move(key, t, state, data, explores=True),
        markov=False,
        num_cycles=num_cycles,
        fixed_target=False,
    )
