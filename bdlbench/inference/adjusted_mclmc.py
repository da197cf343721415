"""Metropolis-adjusted microcanonical dynamics, with BlackJAX's integrator and step-size adaptation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdlbench.errors import ConfigError
from bdlbench.inference.libraries import blackjax
from bdlbench.options import at_least, fraction, full_data, positive, static
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """theta (D,), its log density and gradient; the kernel's step size, trajectory length and inverse mass (D,)."""

    theta: Array
    log_density: Array
    grad: Array
    step_size: Array
    trajectory_length: Array
    inverse_mass: Array


class Tuning(NamedTuple):
    """The state of the warm-up: the chain, dual averaging, and the moments of theta so far."""

    state: State
    averaging: Any
    weight: Array
    mean: Array
    square: Array


@static("frac_tune1", "frac_tune2")
def adjusted_mclmc(
    target: Target,
    schedule: Schedule,
    *,
    initial_step_size: float,
    target_accept_prob: float,
    frac_tune1: float,
    frac_tune2: float,
    l_factor: float,
    diagonal_preconditioning: bool,
    max_num_steps: int,
) -> Method:
    r"""Metropolis-adjusted microcanonical sampling, MAMS (Robnik, Cohn-Gordon & Seljak 2025).

    A transition draws a random unit velocity and integrates isokinetic dynamics for a random number of steps, uniform
    with mean about L / eps. The end is accepted with probability min(1, exp(-Delta)), where Delta is the change of the
    kinetic energy minus that of the log density. The posterior is left invariant exactly. Each integration step counts
    as two gradients.

    The warm-up finds the step size eps by dual averaging. Its second phase also estimates the posterior variances,
    which determine the preconditioner and L.

    Parameters
    ----------
    initial_step_size : float
        eps at the start, in the same units as L. L is sqrt(D) at the start.
    target_accept_prob : float
        Acceptance probability that dual averaging aims at: 0.65 for the random number of steps used here.
    frac_tune1, frac_tune2 : float
        Shares of ``num_warmup`` for the first two phases. In the third phase the step size is found again. If the third
        phase has no step, the last step size of the second phase is used. If the second phase has only one step, no
        variances are estimated.
    l_factor : float
        L in units of sqrt(sum of variances), about 1.3. On an isotropic Gaussian, pi / 2 is a quarter of the circle.
    diagonal_preconditioning : bool
        Scale theta by the standard deviations found in the second phase.
    max_num_steps : int
        Largest number of integration steps in a transition.
    """
    positive("inference", initial_step_size=initial_step_size, l_factor=l_factor)
    fraction("inference", target_accept_prob=target_accept_prob, frac_tune1=frac_tune1, frac_tune2=frac_tune2)
    at_least("inference", 1, max_num_steps=max_num_steps)
    full_data("inference", "adjusted_mclmc", schedule.batch_size)
    dim = target.dim
    if dim < 2:
        raise ConfigError("inference: adjusted_mclmc moves on a sphere and needs at least 2 parameters: use nuts.")
    if frac_tune1 + frac_tune2 >= 1:
        raise ConfigError(
            f"inference.frac_tune1={frac_tune1} and frac_tune2={frac_tune2} leave nothing of the warm-up in which to find "
            "the step size again: their sum must be below 1."
        )
    begin, end = (round(schedule.num_warmup * share) for share in (frac_tune1, frac_tune1 + frac_tune2))
    integrators, util = blackjax("mcmc.integrators"), blackjax("util")
    dual_averaging = blackjax("adaptation.step_size").dual_averaging_adaptation
    averaging_init, averaging_update, averaging_final = dual_averaging(target_accept_prob)
    random_number = blackjax("mcmc.adjusted_mclmc_dynamic").make_random_trajectory_length_fn(True)

    def init(key: Array, theta: Array, data: Data) -> Tuning:
        number = lambda value: jnp.asarray(value, theta.dtype)  # noqa: E731
        length, step_size = number(dim**0.5), number(initial_step_size)
        state = State(theta, *target.value_and_grad(theta, data), step_size, length, jnp.ones_like(theta))
        zeros = jnp.zeros_like(theta)
        return Tuning(state, averaging_init(step_size), number(0), zeros, zeros)

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        number_key, velocity_key, accept_key = jax.random.split(key, 3)
        average = jnp.clip(state.trajectory_length / state.step_size, 1.1, max_num_steps / 2)
        num_steps = jnp.minimum(random_number(number_key, average), max_num_steps)
        integrate = integrators.isokinetic_mclachlan(lambda theta: target.log_density(theta, data), state.inverse_mass)
        velocity = jax.lax.optimization_barrier(util.generate_unit_vector(velocity_key, state.theta))
        begun = integrators.IntegratorState(state.theta, velocity, state.log_density, state.grad)

        def one(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
            moved, change = integrate(carry[0], state.step_size)
            return moved, carry[1] + change

        ended, kinetic_change = jax.lax.fori_loop(0, num_steps, one, (begun, jnp.zeros_like(state.log_density)))
        log_ratio = ended.logdensity - begun.logdensity - kinetic_change
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
        accepted = jnp.log(jax.random.uniform(accept_key, dtype=log_ratio.dtype)) < log_ratio
        old, new = (
            (state.theta, state.log_density, state.grad),
            (ended.position, ended.logdensity, ended.logdensity_grad),
        )
        moved = state._replace(
            **dict(zip(State._fields, (jnp.where(accepted, a, b) for a, b in zip(new, old, strict=True)), strict=False))
        )
        return moved, {
            "num_grads": 2.0 * num_steps,
            "log_density": moved.log_density,
            "acceptance_rate": jnp.minimum(1.0, jnp.exp(log_ratio)),
            "step_size": state.step_size,
            "n_steps": num_steps,
            "diverging": log_ratio < -1000.0,
        }

    def warm(key: Array, t: Array, tuning: Tuning, data: Data) -> tuple[Tuning, Info]:
        state, info = step(key, t, tuning.state, data)
        averaging = averaging_update(tuning.averaging, info["acceptance_rate"])
        # A trajectory is at least one step.
        step_size = jnp.minimum(jnp.exp(averaging.log_step_size), state.trajectory_length)
        state = state._replace(step_size=step_size)
        inside = (t >= begin) & (t < end)
        count = tuning.weight + inside
        share = inside / jnp.maximum(count, 1)
        mean = tuning.mean + share * (state.theta - tuning.mean)
        square = tuning.square + share * (state.theta**2 - tuning.square)

        def measured() -> tuple[State, Any]:
            variance = jnp.maximum(square - mean**2, jnp.finfo(square.dtype).tiny)
            if diagonal_preconditioning:
                scale = jnp.sqrt(variance.mean())
                length = jnp.asarray(l_factor * dim**0.5, scale.dtype)
                fresh = state._replace(
                    inverse_mass=variance, trajectory_length=length, step_size=jnp.minimum(step_size / scale, length)
                )
            else:
                fresh = state._replace(trajectory_length=l_factor * jnp.sqrt(variance.sum()))
            return fresh, averaging_init(fresh.step_size)

        if end - begin > 1:  # the variance of one position is not defined
            state, averaging = jax.lax.cond(t == end - 1, measured, lambda: (state, averaging))
        return Tuning(state, averaging, count, mean, square), info

    def finalize(key: Array, tuning: Tuning, data: Data) -> tuple[State, Info]:
        state = tuning.state
        measured_last = end == schedule.num_warmup and end - begin > 1
        # If averaging has just begun again, it has no values yet and its final value would be exp(0).
        if schedule.num_warmup > 0 and not measured_last:
            found = jnp.minimum(averaging_final(tuning.averaging), state.trajectory_length)
            state = state._replace(step_size=found)
        return state, {}

    return Method(init, step, draw=lambda key, state: state.theta, warm=warm, finalize=finalize)
