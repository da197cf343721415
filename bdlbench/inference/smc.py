"""Sequential Monte Carlo from prior to posterior, with particles, adaptive tempering and BlackJAX's HMC moves."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from bdlbench.errors import ConfigError
from bdlbench.inference.libraries import blackjax
from bdlbench.options import at_least, fits, fraction, full_data, positive
from bdlbench.types import Array, Data, Info, Method, Schedule, Target

MOST_STAGES = 10_000
"""Largest number of stages that are added after the warm-up."""
SOLVED = 1e-4
"""Tolerance of the logarithm of the ESS in the search for the next lambda."""
MOST_ESS = 1 - 10 * SOLVED
"""Largest ``target_ess``. An increment of 0 has the share 1, so its log ESS differs from the wanted one by
-log(target_ess). If this is less than ``SOLVED`` plus rounding (4 eps log P, about 5e-6 in single precision at a million
particles), the search may return 0, and lambda does not increase."""


class State(NamedTuple):
    """Equally weighted particles (P, D) of pi_lambda, lambda, the log evidence so far, and the settings of the moves."""

    particles: Any
    inverse_temperature: Array
    log_evidence: Array
    log_step_size: Array
    inverse_mass: Array


def smc(
    target: Target,
    schedule: Schedule,
    *,
    num_particles: int,
    target_ess: float,
    num_moves: int,
    num_leapfrog_steps: int,
    initial_step_size: float,
    target_accept_prob: float,
) -> Method:
    r"""Adaptive tempered SMC (Del Moral, Doucet & Jasra 2006; Buchholz, Chopin & Jacob 2021).

    .. math:: \pi_\lambda(\theta) \propto p_0(\theta) \left[p(\theta) / p_0(\theta)\right]^\lambda, \quad
              \log \hat Z = \sum_k \log \frac1P \sum_i w_k^{(i)}, \quad
              w_k^{(i)} = \left[p(\theta_i) / p_0(\theta_i)\right]^{\lambda_{k+1} - \lambda_k}

    p_0 is the prior of the latent sites. The particles are drawn from it, whatever stage came before. p is the target;
    the likelihood, the temperature and ``numpyro.factor`` terms enter gradually as lambda grows from 0 to 1. A step of
    the warm-up is one stage: it finds the next lambda, at which the ESS of the weights is ``target_ess`` P, resamples
    systematically, and makes ``num_moves`` HMC transitions. If lambda is less than 1 at the end of the warm-up, more
    stages follow before sampling, so that every draw is from the posterior. A lane that needs more than ``MOST_STAGES``
    of them has diverged. Steps after lambda = 1 are moves alone. In the warm-up the moves adapt to the particles: the
    variances of the particles are the inverse mass, and the step size follows the acceptance rate. In sampling both are
    constant.

    ``log_evidence`` is log p(y | x) if the model has no factor and the temperature is 1. Its error is proportional to
    P^(-1/2). A stage with n leapfrog steps in each transition counts as P (num_moves n + 2) gradients.

    Parameters
    ----------
    num_particles : int
        P.
    target_ess : float
        ESS of the weights as a share of P, in (0, ``MOST_ESS``], usually 0.5 to 0.9.
    num_moves : int
        Number of HMC transitions of each particle in a stage.
    num_leapfrog_steps : int
        Largest number of leapfrog steps. Each transition draws a number from 1 to this one, the same for all particles.
    initial_step_size : float
        Step size at the start, in units of the particles' standard deviations.
    target_accept_prob : float
        Acceptance probability at which the step size is aimed, usually 0.8.
    """
    positive("inference", initial_step_size=initial_step_size)
    fraction("inference", target_ess=target_ess, target_accept_prob=target_accept_prob)
    if isinstance(target_ess, int | float) and target_ess > MOST_ESS:
        raise ConfigError(
            f"inference.target_ess={target_ess} must be at most {MOST_ESS:g}, as the next temperature is found to "
            f"{SOLVED:g} of the ESS: use 0.5 to 0.9."
        )
    at_least("inference", 2, num_particles=num_particles)
    at_least("inference", 1, num_moves=num_moves, num_leapfrog_steps=num_leapfrog_steps)
    full_data("inference", "smc", schedule.batch_size)
    # The memory holds positions, momenta and gradients, before and after a move.
    state = f"{num_particles} particles of {target.dim} weights with momenta and gradients"
    fits("inference", 24 * num_particles * target.dim, state, "use fewer", num_particles=num_particles)
    hmc, ess, resampling = blackjax("mcmc.hmc"), blackjax("smc.ess"), blackjax("smc.resampling")
    dichotomy = functools.partial(blackjax("smc.solver").dichotomy, eps=SOLVED)
    transition = hmc.build_kernel()

    def log_prior(theta: Array, data: Data) -> Array:
        terms = target.terms(theta, data)
        return terms.log_prior + terms.log_jacobian

    def bridge(theta: Array, at: Array, data: Data) -> Array:
        return (1 - at) * log_prior(theta, data) + at * target.log_density(theta, data)

    def log_ratio(theta: Array, data: Data) -> Array:
        return target.log_density(theta, data) - log_prior(theta, data)

    def evaluated(particles: Array, at: Array, data: Data) -> Any:
        particles = jax.lax.optimization_barrier(particles)
        return hmc.HMCState(particles, *jax.vmap(jax.value_and_grad(lambda theta: bridge(theta, at, data)))(particles))

    def init(key: Array, theta: Array, data: Data) -> State:
        draws = jax.vmap(target.sample_prior)(jax.random.split(key, num_particles))
        zero = jnp.zeros((), theta.dtype)
        variance = jnp.maximum(draws.var(0), jnp.finfo(draws.dtype).tiny)
        log_step_size = jnp.asarray(jnp.log(initial_step_size), theta.dtype)
        return State(evaluated(draws, zero, data), zero, zero, log_step_size, variance)

    def moves(key: Array, state: State, data: Data) -> tuple[Any, Array, Array, Array]:
        """Make ``num_moves`` transitions of all particles.

        Return the particles, the mean acceptance, the leapfrog steps, and which particles diverged in any of them (P,).
        """
        log_density = lambda theta: bridge(theta, state.inverse_temperature, data)  # noqa: E731
        step_size = jnp.exp(state.log_step_size)

        def once(carry: tuple[Any, Array, Array, Array], key: Array) -> tuple[tuple[Any, Array, Array, Array], None]:
            particles, accepted, total, diverged = carry
            number_key, move_key = jax.random.split(key)
            num_steps = jax.random.randint(number_key, (), 1, num_leapfrog_steps + 1, jnp.int32)
            one = lambda key, chain: transition(key, chain, log_density, step_size, state.inverse_mass, num_steps)  # noqa: E731
            particles, info = jax.vmap(one)(jax.random.split(move_key, num_particles), particles)
            accepted, total = accepted + info.acceptance_rate.mean() / num_moves, total + num_steps
            return (particles, accepted, total, diverged | info.is_divergent), None

        begin = (state.particles, jnp.zeros_like(step_size), jnp.int32(0), jnp.zeros(num_particles, bool))
        return jax.lax.scan(once, begin, jax.random.split(key, num_moves))[0]

    def reported(state: State, acceptance: Array, diverged: Array, share: Array, num_grads: Array) -> Info:
        return {
            "num_grads": num_grads,
            "log_density": state.particles.logdensity.mean(),
            "acceptance_rate": acceptance,
            "diverging": diverged.any(),
            "num_diverging": diverged.sum(),
            "inverse_temperature": state.inverse_temperature,
            "ess_share": share,
            "log_evidence": state.log_evidence,
            "step_size": jnp.exp(state.log_step_size),
        }

    def tempered(key: Array, state: State, data: Data) -> tuple[State, Info]:
        """Make one stage. At lambda = 1 all weights are equal, so that only the moves have an effect."""
        resample_key, move_key = jax.random.split(key)
        ratios = jax.vmap(lambda theta: log_ratio(theta, data))(state.particles.position)
        at = state.inverse_temperature
        increment = ess.ess_solver(lambda _: ratios, None, target_ess, 1 - at, dichotomy)
        # Rounding must not make one more stage for a remaining increment of less than 1e-6.
        after = jnp.where(at + increment > 1 - 1e-6, 1.0, at + increment).astype(at.dtype)
        log_weights = (after - at) * ratios
        total = logsumexp(log_weights)
        chosen = resampling.systematic(resample_key, jnp.exp(log_weights - total), num_particles)
        chosen = jnp.where(at < 1, chosen, jnp.arange(num_particles))
        positions = state.particles.position[chosen]
        state = state._replace(
            particles=evaluated(positions, after, data),
            inverse_temperature=after,
            log_evidence=state.log_evidence + total - jnp.log(num_particles),
            inverse_mass=jnp.maximum(positions.var(0), jnp.finfo(positions.dtype).tiny),
        )
        particles, acceptance, num_steps, diverged = moves(move_key, state, data)
        gain = jnp.where(jnp.isfinite(acceptance), acceptance, 0.0) - target_accept_prob
        num_grads = jnp.float32(num_particles) * (num_steps + 2)
        ess_share = jnp.exp(ess.log_ess(log_weights)) / num_particles
        info = reported(state, acceptance, diverged, ess_share, num_grads)
        return state._replace(particles=particles, log_step_size=state.log_step_size + gain), info

    def finalize(key: Array, state: State, data: Data) -> tuple[State, Info]:
        def unfinished(carry: tuple[State, Array, Array]) -> Array:
            state, stages, _ = carry
            return (state.inverse_temperature < 1) & (stages < MOST_STAGES)

        def stage(carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
            state, stages, num_grads = carry
            state, info = tempered(jax.random.fold_in(key, stages), state, data)
            return state, stages + 1, num_grads + info["num_grads"]

        state, _, num_grads = jax.lax.while_loop(unfinished, stage, (state, jnp.int32(0), jnp.float32(0)))
        return state, {"num_grads": num_grads, "unfinished": state.inverse_temperature < 1}

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        particles, acceptance, num_steps, diverged = moves(key, state, data)
        state = state._replace(particles=particles)
        num_grads = jnp.float32(num_particles) * num_steps
        return state, reported(state, acceptance, diverged, jnp.ones_like(acceptance), num_grads)

    def warm(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        return tempered(key, state, data)

    return Method(init, step, draw=draw, warm=warm, finalize=finalize, start="own")


def draw(key: Array, state: Any) -> Array:
    """Return all particles (P, D), which are one draw."""
    return state.particles.position
