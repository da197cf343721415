"""ChEES-HMC: several chains share one trajectory length, which BlackJAX's adaptation tunes from all of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdlbench.inference.libraries import blackjax
from bdlbench.options import at_least, fits, fraction, full_data, non_negative, positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """P chains, theta (P, D), and the step size and trajectory length that they share."""

    chains: Any
    step_size: Array
    trajectory_length: Array


class Tuning(NamedTuple):
    """The state of the warm-up: the chains and BlackJAX's adaptation state."""

    chains: Any
    adaptation: Any


def chees(
    target: Target,
    schedule: Schedule,
    *,
    num_particles: int,
    init_scale: float,
    initial_step_size: float,
    learning_rate: float,
    target_accept_prob: float,
    decay_rate: float,
    max_leapfrog_steps: int,
) -> Method:
    r"""HMC whose trajectory length maximises the change in the estimator of the expected square (Hoffman et al. 2021).

    P chains in one lane take the same number of leapfrog steps, ceil(u_t tau / eps), where u_t is a Halton sequence in
    (0, 1). In the warm-up, Adam moves log tau along the gradient of

    .. math:: \tfrac14 E\left[\left(\|\theta' - E\theta'\|^2 - \|\theta - E\theta\|^2\right)^2\right]

    which is estimated over the P chains. Dual averaging finds eps from the harmonic mean of their acceptance rates.
    After the warm-up tau and eps are constant, and each of the P chains is a separate Markov chain. Each leapfrog step
    counts as P gradients.

    Parameters
    ----------
    num_particles : int
        P, at least 2; 16 or more are recommended.
    init_scale : float
        The chains begin at theta + init_scale N(0, I).
    initial_step_size, learning_rate : float
        eps at the start, and Adam's learning rate for log tau, usually 0.05.
    target_accept_prob : float
        Acceptance probability that dual averaging aims at, usually 0.651.
    decay_rate : float
        The averages of log eps and log tau give step t the weight t^(-decay_rate), usually 0.5.
    max_leapfrog_steps : int
        Upper bound on tau / eps.
    """
    positive("inference", initial_step_size=initial_step_size, learning_rate=learning_rate, decay_rate=decay_rate)
    non_negative("inference", init_scale=init_scale)
    fraction("inference", target_accept_prob=target_accept_prob)
    at_least("inference", 2, num_particles=num_particles)
    at_least("inference", 1, max_leapfrog_steps=max_leapfrog_steps, schedule__num_warmup=schedule.num_warmup)
    full_data("inference", "chees", schedule.batch_size)
    # The memory holds positions, momenta and gradients, before and after a move.
    state = f"{num_particles} particles of {target.dim} weights with momenta and gradients"
    fits("inference", 24 * num_particles * target.dim, state, "use fewer", num_particles=num_particles)

    num_bits = (schedule.num_warmup + schedule.num_samples * schedule.thinning + 1).bit_length() + 1
    num_bits = min(num_bits, 31)  # a 32-bit integer has no more bits, and no stage has more steps
    hmc, halton = blackjax("mcmc.hmc"), blackjax("mcmc.dynamic_hmc").halton_sequence
    jitter = lambda t: halton(t, num_bits)  # noqa: E731
    adaptation_init, adaptation_update = blackjax("adaptation.chees_adaptation").base(
        jitter, lambda t: t + 1, optax.adam(learning_rate), target_accept_prob, decay_rate, max_leapfrog_steps
    )
    transition = hmc.build_kernel()
    identity = jnp.ones(target.dim)

    def init(key: Array, theta: Array, data: Data) -> Tuning:
        spread = jax.random.normal(key, (num_particles, target.dim), theta.dtype)
        particles = jax.lax.optimization_barrier(theta + init_scale * spread)
        chains = hmc.HMCState(particles, *jax.vmap(lambda theta: target.value_and_grad(theta, data))(particles))
        fresh = adaptation_init(0, jnp.asarray(initial_step_size, theta.dtype))
        # Some leaves are Python numbers, which become arrays at the first update.
        real = lambda leaf: jnp.asarray(leaf, jnp.int32 if isinstance(leaf, int) else None)  # noqa: E731
        updated = jax.eval_shape(lambda state: advance(key, jnp.int32(0), Tuning(chains, state), data)[0], fresh)
        adaptation = jax.tree.map(lambda leaf, like: real(leaf).astype(like.dtype), fresh, updated.adaptation)
        return Tuning(chains, adaptation)

    def go(key: Array, t: Array, chains: Any, step_size: Array, length: Array, data: Data) -> tuple[Any, Any, Info]:
        # All chains take the same number of steps. Under vmap, a chain with fewer steps would save no time.
        num_steps = jnp.maximum(1, jnp.ceil(jitter(t) * length / step_size)).astype(jnp.int32)
        log_density = lambda theta: target.log_density(theta, data)  # noqa: E731
        one = lambda key, chain: transition(key, chain, log_density, step_size, identity, num_steps)  # noqa: E731
        moved, info = jax.vmap(one)(jax.random.split(key, num_particles), chains)
        return (
            moved,
            info,
            {
                "num_grads": jnp.float32(num_particles) * num_steps,
                "log_density": moved.logdensity.mean(),
                "acceptance_rate": info.acceptance_rate.mean(),
                "step_size": step_size,
                "trajectory_length": length,
                "n_steps": num_steps,
                "diverging": info.is_divergent.any(),
                "num_diverging": info.is_divergent.sum(),
            },
        )

    def advance(key: Array, t: Array, tuning: Tuning, data: Data) -> tuple[Tuning, Info]:
        chains, adaptation = tuning
        moved, proposed, info = go(key, t, chains, adaptation.step_size, adaptation.trajectory_length, data)
        adaptation = adaptation_update(
            adaptation,
            proposed.proposal.position,
            proposed.proposal.momentum,
            chains.position,
            proposed.acceptance_rate,
            proposed.is_divergent,
            identity,
        )
        return Tuning(moved, adaptation), info

    def finalize(key: Array, tuning: Tuning, data: Data) -> tuple[State, Info]:
        step_size = jnp.exp(tuning.adaptation.log_step_size_moving_average)
        length = jnp.exp(tuning.adaptation.log_trajectory_length_moving_average)
        return State(tuning.chains, step_size, jnp.clip(length, step_size, max_leapfrog_steps * step_size)), {}

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        chains, _, info = go(key, t, state.chains, state.step_size, state.trajectory_length, data)
        return state._replace(chains=chains), info

    return Method(init, step, draw=lambda key, state: state.chains.position, warm=advance, finalize=finalize)
