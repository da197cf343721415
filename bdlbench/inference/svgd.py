"""Stein variational gradient descent: particles that repel one another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdlbench.errors import ConfigError
from bdlbench.options import at_least, fits, positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target


class State(NamedTuple):
    """Particles (P, D) and the optimiser's state."""

    particles: Array
    optimizer: Any


def svgd(
    target: Target,
    schedule: Schedule,
    *,
    optimizer: optax.GradientTransformation,
    num_particles: int,
    init_scale: float,
) -> Method:
    r"""Move P particles in the direction phi of steepest descent of KL in a kernel Hilbert space (Liu & Wang 2016).

    .. math::
        \phi(\theta_i) = \frac1P \sum_j
        [k(\theta_j, \theta_i) \nabla \log p(\theta_j) + \nabla_{\theta_j} k(\theta_j, \theta_i)], \\
        k(a, b) = \exp(-|a - b|^2 / h)

    Every step uses h = median_{i<j} |theta_i - theta_j|^2 / log(P + 1). The particles are one population in one lane,
    and one draw is all of them. The method is included as a baseline. If P is much smaller than D, the variance of the
    particles is far below that of the posterior (Ba et al. 2022), because the kernel's repulsion is too weak in high
    dimensions.

    Parameters
    ----------
    optimizer : optax.GradientTransformation
        Gets -phi / N in place of a gradient.
    num_particles : int
        P, usually 10 to 50. A step takes one gradient for each particle.
    init_scale : float
        Standard deviation of the particles around the start point.
    """
    at_least("inference", 2, num_particles=num_particles)
    positive("inference", init_scale=init_scale)
    at_least("inference", 1, schedule__num_warmup=schedule.num_warmup)
    # The memory holds particles, gradients, phi and the optimiser's two moments, and the distances and the kernel.
    count = num_particles
    state = f"{count} particles of {target.dim} weights with their {count} x {count} kernel"
    fits("inference", 20 * count * target.dim + 12 * count**2, state, "use fewer", num_particles=count)
    if schedule.thinning:
        raise ConfigError("inference.schedule.thinning must be 0 for svgd: its draw is the particles at the end.")
    if schedule.num_samples > 1:
        raise ConfigError(
            f"inference.schedule.num_samples={schedule.num_samples} would repeat the same particles: give 1, and set "
            "inference.num_particles."
        )

    def init(key: Array, theta: Array, data: Data) -> State:
        particles = theta + init_scale * jax.random.normal(key, (num_particles, target.dim), theta.dtype)
        return State(particles, optimizer.init(particles))

    def direction(particles: Array, grads: Array) -> Array:
        """phi (P, D) from gradients of the log density (P, D)."""
        centred = particles - particles.mean(0)
        # One fused reduction: the differences (P, P, D) are never in memory.
        squared = ((centred[:, None] - centred[None]) ** 2).sum(-1)
        upper = jnp.triu_indices(num_particles, 1)
        bandwidth = jnp.median(squared[upper]) / jnp.log(num_particles + 1.0)
        kernel = jnp.exp(-squared / bandwidth)
        repulsion = 2 / bandwidth * (kernel.sum(1, keepdims=True) * centred - kernel @ centred)
        return (kernel @ grads + repulsion) / num_particles

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        log_density, grads = jax.vmap(lambda theta: target.value_and_grad(theta, data))(state.particles)
        particles, grads = jax.lax.optimization_barrier((state.particles, grads))
        phi = jax.lax.optimization_barrier(direction(particles, grads))
        updates, opt_state = optimizer.update(-phi / data.size, state.optimizer, particles)
        particles = optax.apply_updates(particles, updates)
        return State(particles, opt_state), {
            "num_grads": jnp.float32(num_particles),
            "log_density": log_density.mean(),
        }

    return Method(init, step, draw=lambda key, state: state.particles, markov=False, fixed_target=False)
