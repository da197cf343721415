"""Hamiltonian Monte Carlo with NumPyro's kernels, driven one transition a step."""

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.infer.hmc import hmc as numpyro_hmc
from numpyro.infer.util import ParamInfo

from bdlbench.checks import at_least, fraction
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


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

    def potential(data: Any) -> Any:  # None where only shapes are bound
        return lambda theta: -target.log_density(theta, data)

    def start(init: Any, theta: Any, data: Data | None, key: Array) -> Any:
        return init(
            theta,
            num_warmup=schedule.num_warmup,
            target_accept_prob=target_accept_prob,
            max_tree_depth=max_tree_depth,
            dense_mass=dense_mass,
            model_args=(data,),
            rng_key=key,
        )

    # NumPyro's sample kernel reads closures that init fills, so init runs once here, on a state nobody looks at.
    bind, sample = numpyro_hmc(potential_fn_gen=potential, algo="NUTS")
    zeros = jnp.zeros(target.dim)
    start(bind, ParamInfo(zeros, jnp.zeros(()), zeros), None, jax.random.key(0))

    def init(key: Array, theta: Array, data: Data) -> Any:
        fresh, _ = numpyro_hmc(potential_fn_gen=potential, algo="NUTS")
        return start(fresh, theta, data, key)

    def step(key: Array, t: Array, state: Any, data: Data) -> tuple[Any, Info]:
        state = sample(state._replace(rng_key=key), (data,))
        return state, {
            "num_grads": state.num_steps,
            "log_density": -state.potential_energy,
            "acceptance_rate": state.accept_prob,
            "step_size": state.adapt_state.step_size,
            "n_steps": state.num_steps,
            "tree_depth": jnp.ceil(jnp.log2(state.num_steps + 1)).astype(jnp.int32),
            "reached_max_treedepth": state.num_steps >= 2**max_tree_depth - 1,
            "energy": state.energy,
            "diverging": state.diverging,
        }

    return Method(init, step, draw=lambda key, state: state.z)
