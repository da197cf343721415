"""Sequential Monte Carlo from prior to posterior: particles, adaptive tempering and BlackJAX's HMC moves."""

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
"""Stages that are made up for after warm-up, at most."""
SOLVED = 1e-4
"""The next lambda is found when the logarithm of the ESS is known to so much."""
MOST_ESS = 1 - 10 * SOLVED
"""Largest share of P asked for. An increment of 0 has the share 1, whose logarithm lies -log(target_ess) from what is
asked for: where that is no more than ``SOLVED`` and rounding, some 4 eps log P = 5e-6 in single precision at a million
particles, 0 may be taken for the answer, and lambda stands still."""


class State(NamedTuple):
    """Equally weighted particles (P, D) of the bridge at lambda, the log evidence so far, and the moves' settings."""

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

    p_0 is the prior of the latent sites, from which the particles are drawn whatever the stage before left, and p the
    target: the likelihood, the temperature and ``numpyro.factor`` terms enter by degrees. A step of
    warm-up is one stage: the next lambda such that the weights' ESS is ``target_ess`` P, systematic resampling,
    ``num_moves`` HMC transitions. Stages that the warm-up did not reach are made up for before sampling, so that every
    draw is of the posterior, and a lane that needs more than ``MOST_STAGES`` of them has diverged; steps after lambda = 1
    are moves alone. Moves adapt to the particles (their variances are the inverse mass, the step size follows the
    acceptance rate) in warm-up, and are frozen in sampling.

    ``log_evidence`` is log p(y | x) where the model has no factor and the temperature is 1; its error falls as
    P^(-1/2). P (num_moves n + 2) gradients a stage are charged.

    Parameters
    ----------
    num_particles : int
        P.
    target_ess : float
        Share of P in (0, ``MOST_ESS``], 0.5 to 0.9.
    num_moves : int
        HMC transitions of each particle a stage.
    num_leapfrog_steps : int
        A transition has 1 to so many leapfrog steps, the same for all particles, drawn anew each time.
    initial_step_size : float
        In units of the particles' standard deviations.
    target_accept_prob : float
        0.8 as a rule.
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
    # Positions, momenta and gradients, before and after a move.
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
        """``num_moves`` transitions of all particles: they, mean acceptance, leapfrog steps, who diverged in any (P,)."""
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
        """One stage; at lambda = 1 its weights are equal and the moves remain."""
        resample_key, move_key = jax.random.split(key)
        ratios = jax.vmap(lambda theta: log_ratio(theta, data))(state.particles.position)
        at = state.inverse_temperature
        increment = ess.ess_solver(lambda _: ratios, None, target_ess, 1 - at, dichotomy)
        # Rounding must not leave a stage for the last part in a million.
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
    """All particles (P, D)."""
    return state.particles.position
