"""Hamiltonian Monte Carlo with NumPyro's kernels. One step of the loop is one transition."""

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer.hmc import hmc as numpyro_hmc
from numpyro.infer.util import ParamInfo

from bdlbench.options import at_least, at_most, fits, fraction, full_data, positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target

DEEPEST = 30
"""Largest depth of a tree whose number of leapfrog steps fits in a 32-bit integer."""


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
    ``num_warmup`` steps, as in Stan. Each leapfrog step counts as one gradient, including those of a rejected half tree.

    Parameters
    ----------
    target_accept_prob : float
        Acceptance probability that dual averaging aims at; 0.9 for networks.
    max_tree_depth : int
        A transition has at most 2^max_tree_depth - 1 leapfrog steps. The share of draws that reach it is reported.
    dense_mass : bool
        Adapt a full mass matrix (D, D) instead of a diagonal one.
    """
    fraction("inference", target_accept_prob=target_accept_prob)
    at_least("inference", 1, max_tree_depth=max_tree_depth)
    at_most("inference", DEEPEST, max_tree_depth=max_tree_depth)
    full_data("inference", "nuts", schedule.batch_size)
    if dense_mass:
        # These are the matrix and its square root, the same two in the adaptation, and the sums for the next matrix.
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
    r"""Hamiltonian Monte Carlo with fixed trajectory length and identity mass matrix (Duane et al. 1987; Neal 2011).

    A transition has ceil(tau / eps) leapfrog steps. Dual averaging finds the step size eps inside the first
    ``num_warmup`` steps. Each leapfrog step counts as one gradient.

    If ceil(tau / eps) is more than ``max_leapfrog_steps``, the trajectory has only ``max_leapfrog_steps`` steps. Since
    eps is then constant, this is HMC with a shorter trajectory, and equally exact. The draws at which it happens are
    reported.

    Parameters
    ----------
    target_accept_prob : float
        Acceptance probability that dual averaging aims at; 0.9 for networks.
    trajectory_length : float
        tau. For networks (pi / 2) sigma sqrt(T) is recommended, a quarter of the prior's period (Izmailov, Vikram,
        Hoffman & Wilson 2021). Here sigma is the largest standard deviation of the prior, and T the temperature. The
        value is not adjusted to the prior or T: pi / 2 is the value for sigma = T = 1. On a Gaussian, a direction with
        tau = pi sigma_i (half a period) never mixes.
    max_leapfrog_steps : int
        Largest number of leapfrog steps in a transition. It limits the cost if the step size becomes very small.
    """
    fraction("inference", target_accept_prob=target_accept_prob)
    positive("inference", trajectory_length=trajectory_length)
    at_least("inference", 1, max_leapfrog_steps=max_leapfrog_steps)
    at_most("inference", 2**DEEPEST, max_leapfrog_steps=max_leapfrog_steps)
    full_data("inference", "hmc", schedule.batch_size)
    options = {"trajectory_length": trajectory_length, "adapt_mass_matrix": False}
    init, step = _kernel(target, schedule, "HMC", target_accept_prob=target_accept_prob, **options)

    def capped(key: Array, t: Array, state: Any, data: Data) -> tuple[Any, Info]:
        # One millionth is subtracted, so that rounding up gives n steps and not n + 1. NumPyro shortens the steps so
        # that they fit the trajectory length.
        longest = max_leapfrog_steps * (1 - 1e-6) * state.adapt_state.step_size
        reached = trajectory_length > longest
        length = jnp.where(reached, longest, trajectory_length)
        state, info = step(key, t, state._replace(trajectory_length=length), data)
        return state, {**info, "reached_max_leapfrog_steps": reached}

    return Method(init, capped, draw=lambda key, state: state.z)


def _kernel(target: Target, schedule: Schedule, algorithm: str, **options: Any) -> tuple[Any, Any]:
    """Make ``init`` and ``step`` of a NumPyro kernel whose potential takes its data as an argument."""

    def potential(data: Any) -> Any:  # data is None when only the shapes matter
        return lambda theta: -target.log_density(theta, data)

    def start(init: Any, theta: Any, data: Data | None, key: Array) -> Any:
        return init(theta, num_warmup=schedule.num_warmup, model_args=(data,), rng_key=key, **options)

    # NumPyro's sample kernel reads closures that init fills. So init runs once here, and its state is not used.
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
