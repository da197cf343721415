"""Hamiltonian Monte Carlo with NumPyro's kernels, driven one transition a step."""

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer.hmc import hmc as numpyro_hmc
from numpyro.infer.util import ParamInfo

from bdlbench.options import at_least, at_most, fits, fraction, full_data, positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target

DEEPEST = 30
"""Depth of a tree whose leapfrog steps a 32-bit number still counts."""


def nuts(
    target: Target,
    schedule: Schedule,
    *,
    target_accept_prob: float,
    max_tree_depth: int,
    dense_mass: bool,
) -> Method:
    """The No-U-Turn sampler (Hoffman & Gelman 2014) with multinomial sampling of the trajectory (Betancourt 2017).

    Dual averaging of the step size and windowed adaptation of the inverse mass matrix run inside the first
    ``num_warmup`` steps, as in Stan. One gradient a leapfrog step is charged, those of the rejected half tree included.

    Parameters
    ----------
    target_accept_prob : float
        Acceptance probability that dual averaging aims at; 0.9 for networks.
    max_tree_depth : int
        At most 2^max_tree_depth - 1 leapfrog steps a transition; the share of draws that reach it is reported.
    dense_mass : bool
        Adapt a full mass matrix (D x D) instead of a diagonal one.
    """
    fraction("inference", target_accept_prob=target_accept_prob)
    at_least("inference", 1, max_tree_depth=max_tree_depth)
    at_most("inference", DEEPEST, max_tree_depth=max_tree_depth)
    full_data("inference", "nuts", schedule.batch_size)
    if dense_mass:
        # The matrix, its square root, their like in the adaptation, and the sums that the next one comes from.
        matrices = f"five {target.dim} x {target.dim} matrices"
        fits("inference", 20 * target.dim**2, matrices, "use dense_mass=false", dense_mass="true")
    options = {"max_tree_depth": max_tree_depth, "dense_mass": dense_mass}
    init, step = _kernel(target, schedule, "NUTS", target_accept_prob=target_accept_prob, **options)

    def with_depth(key: Array, t: Array, state: Any, data: Data) -> tuple[Any, Info]:
        state, info = step(key, t, state, data)
        return state, {
            **info,
            "tree_depth": jnp.ceil(jnp.log2(state.num_steps + 1)).astype(jnp.int32),
            "reached_max_treedepth": state.num_steps >= 2**max_tree_depth - 1,
        }

    return Method(init, with_depth, draw=lambda key, state: state.z)


def hmc(
    target: Target,
    schedule: Schedule,
    *,
    target_accept_prob: float,
    trajectory_length: float,
    max_leapfrog_steps: int,
) -> Method:
    r"""Hamiltonian Monte Carlo of a fixed trajectory length (Duane et al. 1987; Neal 2011), identity mass matrix.

    ceil(tau / eps) leapfrog steps a transition, the step size eps found by dual averaging inside the first
    ``num_warmup`` steps. One gradient a leapfrog step is charged.

    Where ceil(tau / eps) is more than ``max_leapfrog_steps`` the trajectory is so many steps long and no more. With eps
    frozen that is HMC of a shorter trajectory, as exact as before; the draws it happened at are reported.

    Parameters
    ----------
    target_accept_prob : float
        Acceptance probability that dual averaging aims at; 0.9 for networks.
    trajectory_length : float
        tau. For networks (pi / 2) sigma sqrt(T), with sigma the prior's standard deviation, of several the largest, and
        T the temperature: a quarter of the prior's period (Izmailov, Vikram, Hoffman & Wilson 2021). The number does
        not follow the prior or T by itself: pi / 2 is for sigma = T = 1. On a Gaussian, half a period in one direction
        (tau = pi sigma_i) never mixes it.
    max_leapfrog_steps : int
        At most so many leapfrog steps a transition: a step size that has collapsed must not cost a million gradients.
    """
    fraction("inference", target_accept_prob=target_accept_prob)
    positive("inference", trajectory_length=trajectory_length)
    at_least("inference", 1, max_leapfrog_steps=max_leapfrog_steps)
    at_most("inference", 2**DEEPEST, max_leapfrog_steps=max_leapfrog_steps)
    full_data("inference", "hmc", schedule.batch_size)
    options = {"trajectory_length": trajectory_length, "adapt_mass_matrix": False}
    init, step = _kernel(target, schedule, "HMC", target_accept_prob=target_accept_prob, **options)

    def capped(key: Array, t: Array, state: Any, data: Data) -> tuple[Any, Info]:
        # A millionth less, so that rounding up gives n steps and not n + 1; NumPyro shortens them to fit the length.
        longest = max_leapfrog_steps * (1 - 1e-6) * state.adapt_state.step_size
        reached = trajectory_length > longest
        length = jnp.where(reached, longest, trajectory_length)
        state, info = step(key, t, state._replace(trajectory_length=length), data)
        return state, {**info, "reached_max_leapfrog_steps": reached}

    return Method(init, capped, draw=lambda key, state: state.z)


def _kernel(target: Target, schedule: Schedule, algorithm: str, **options: Any) -> tuple[Any, Any]:
    """``init`` and ``step`` of a NumPyro kernel whose potential takes its data as an argument."""

    def potential(data: Any) -> Any:  # None where only shapes are bound
        return lambda theta: -target.log_density(theta, data)

    def start(init: Any, theta: Any, data: Data | None, key: Array) -> Any:
        return init(theta, num_warmup=schedule.num_warmup, model_args=(data,), rng_key=key, **options)

    # NumPyro's sample kernel reads closures that init fills, so init runs once here, on a state nobody looks at.
    bind, sample = numpyro_hmc(potential_fn_gen=potential, algo=algorithm)
    zeros = jnp.zeros(target.dim)
    start(bind, ParamInfo(zeros, jnp.zeros(()), zeros), None, jax.random.key(0))

    def init(key: Array, theta: Array, data: Data) -> Any:
        fresh, _ = numpyro_hmc(potential_fn_gen=potential, algo=algorithm)
        return start(fresh, theta, data, key)

    def step(key: Array, t: Array, state: Any, data: Data) -> tuple[Any, Info]:
        state = sample(state._replace(rng_key=key), (data,))
        return state, {
            "num_grads": state.num_steps,
            "log_density": -state.potential_energy,
            "acceptance_rate": state.accept_prob,
            "step_size": state.adapt_state.step_size,
            "n_steps": state.num_steps,
            "energy": state.energy,
            "diverging": state.diverging,
        }

    return init, step
