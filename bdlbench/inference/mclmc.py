"""Unadjusted microcanonical Langevin Monte Carlo, with BlackJAX's integrator and a tuner that runs step by step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdlbench.errors import ConfigError
from bdlbench.inference.libraries import blackjax
from bdlbench.inference.stationarity import configurational_temperature
from bdlbench.options import at_least, fraction, full_data, positive, static
from bdlbench.types import Array, Data, Info, Method, Schedule, Target

KEPT_BYTES = 2**24
"""Bytes of positions that one lane's tuner keeps to estimate an autocorrelation time."""


class State(NamedTuple):
    """The state of a chain, and the parameters of its kernel.

    ``chain`` is BlackJAX's ``IntegratorState`` with position and unit momentum u (D,). The parameters are the step
    size, the decoherence length L and the inverse mass (D,).
    """

    chain: Any
    step_size: Array
    decoherence: Array
    inverse_mass: Array


class Tuning(NamedTuple):
    """The state of the warm-up: sums for the step size, running moments of theta, and the kept positions (n, D)."""

    state: State
    error: Array
    weight: Array
    largest: Array
    time: Array
    mean: Array
    square: Array
    kept: Array


@static("frac_tune1", "frac_tune2")
def mclmc(
    target: Target,
    schedule: Schedule,
    *,
    initial_step_size: float,
    energy_variance_start: float,
    energy_variance_end: float,
    frac_tune1: float,
    frac_tune2: float,
    l_factor: float,
    trust_in_estimate: float,
    num_effective_samples: float,
    diagonal_preconditioning: bool,
) -> Method:
    r"""MCLMC (Robnik, De Luca, Silverstein & Seljak 2023): dynamics of constant speed without a Metropolis test.

    .. math:: u' \propto e (1 - z)(1 + z + (e \cdot u)(1 - z)) + 2 z u, \quad \theta' = \theta + \epsilon u', \quad
              u'' \propto u' + \nu \xi

    with e = g / \|g\|, z = exp(-eps \|g\| / (D - 1)), nu = sqrt((exp(2 eps / L) - 1) / D). McLachlan's splitting takes
    two gradients in each step. The discretisation makes the draws biased. The bias grows with the variance of the
    energy error, which the tuner keeps at the wanted value; without a Metropolis test, no bound on it is guaranteed.

    The warm-up is the tuner of Robnik et al. In the first phase the step size is found from the energy error, whose
    variance is proportional to eps^6. The second phase also estimates the posterior variances, for the preconditioner
    or for L = sqrt(sum of variances). The third phase finds L from the autocorrelation time of the kept positions.
    After a step that is not finite, the chain returns to the position before it, takes a random direction, and its step
    size becomes at most 0.8 of the last one.

    Parameters
    ----------
    initial_step_size : float
        eps at the start.
    energy_variance_start, energy_variance_end : float
        Wanted variance of the energy error per dimension, interpolated linearly up to the end of the second phase.
        BlackJAX uses 5e-4 for both. MILE uses 0.5 and 0.1, which is faster and has more bias.
    frac_tune1, frac_tune2 : float
        Shares of ``num_warmup`` for the first two phases; the rest is the third.
    l_factor : float
        L in units of eps times the autocorrelation time in steps; usually 0.4.
    trust_in_estimate : float
        sigma in the weight exp(-(log(r) / (6 sigma))^2 / 2) of a step in the average that gives the step size, where r
        is the squared energy error of the step divided by the wanted variance; usually 1.5.
    num_effective_samples : float
        Averaging time of the step size in steps; usually 150.
    diagonal_preconditioning : bool
        Scale theta by the standard deviations found in the second phase.
    """
    positive("inference", initial_step_size=initial_step_size, l_factor=l_factor, trust_in_estimate=trust_in_estimate)
    positive("inference", energy_variance_start=energy_variance_start, energy_variance_end=energy_variance_end)
    fraction("inference", frac_tune1=frac_tune1, frac_tune2=frac_tune2)
    at_least("inference", 2, num_effective_samples=num_effective_samples)
    full_data("inference", "mclmc", schedule.batch_size)
    dim = target.dim
    phases = _Phases(schedule.num_warmup, frac_tune1, frac_tune2, diagonal_preconditioning, dim)
    forgetting = (num_effective_samples - 1) / (num_effective_samples + 1)

    integrators, util = blackjax("mcmc.integrators"), blackjax("util")
    diagnostics = blackjax("diagnostics")

    def start(key: Array, theta: Array, data: Data) -> Tuning:
        log_density, grad = target.value_and_grad(theta, data)
        chain = integrators.IntegratorState(theta, util.generate_unit_vector(key, theta), log_density, grad)
        number = lambda value: jnp.asarray(value, theta.dtype)  # noqa: E731
        state = State(chain, number(initial_step_size), number(dim**0.5), jnp.ones_like(theta))
        zeros = jnp.zeros_like(theta)
        kept = jnp.zeros((phases.num_kept + 1, dim), theta.dtype)
        return Tuning(state, number(0), number(0), number(jnp.inf), number(0), zeros, zeros, kept)

    def step(key: Array, t: Array, state: State, data: Data) -> tuple[State, Info]:
        chain, energy_change, finite = move(target, key, state, data)
        return state._replace(chain=chain), {
            "num_grads": jnp.float32(2),
            "log_density": chain.logdensity,
            "energy_change": energy_change,
            "step_size": state.step_size,
            "diverging": ~finite,
            "configurational_temperature": configurational_temperature(chain.position, chain.logdensity_grad),
        }

    def warm(key: Array, t: Array, tuning: Tuning, data: Data) -> tuple[Tuning, Info]:
        used = tuning.state.step_size
        state, info = step(key, t, tuning.state, data)
        finite, theta = ~info["diverging"], state.chain.position
        wanted = energy_variance_start + (energy_variance_end - energy_variance_start) * phases.progress(t)
        # The error's variance is proportional to eps^6, so each error gives an estimate of the right eps.
        error = info["energy_change"] ** 2 / (dim * wanted) + 1e-8
        trust = jnp.exp(-0.5 * (jnp.log(error) / (6 * trust_in_estimate)) ** 2)
        scale = initial_step_size
        sums = forgetting * tuning.error + trust * error / (used / scale) ** 6, forgetting * tuning.weight + trust
        largest = jnp.where(finite, tuning.largest, 0.8 * used)
        solved = jnp.minimum(scale * (sums[0] / sums[1]) ** (-1 / 6), largest)
        step_size = jnp.where(phases.adapts(t), solved, used)
        # Moments are averages over the length of the path, so that the weight of a step is its length.
        length = jnp.where(phases.measures(t) & finite, used, 0.0)
        time = tuning.time + length
        share = length / jnp.maximum(time, jnp.finfo(time.dtype).tiny)
        mean = tuning.mean + share * (theta - tuning.mean)
        square = tuning.square + share * (theta**2 - tuning.square)
        kept = jax.lax.dynamic_update_index_in_dim(tuning.kept, theta, phases.slot(t), 0)
        state = state._replace(step_size=step_size)

        def measured() -> tuple[State, Array, Array, Array]:
            variance = jnp.maximum(square - mean**2, jnp.finfo(square.dtype).tiny)
            found = jnp.isfinite(variance).all() & (time > 0)
            if not diagonal_preconditioning:
                L = jnp.where(found, jnp.sqrt(variance.sum()), state.decoherence)
                return state._replace(decoherence=L), *sums, largest
            zero = jnp.zeros_like(time)
            fresh = state._replace(
                inverse_mass=jnp.where(found, variance, state.inverse_mass),
                decoherence=jnp.asarray(dim**0.5, time.dtype),
            )
            return fresh, zero, zero, jnp.full_like(time, jnp.inf)

        unchanged = lambda: (state, *sums, largest)  # noqa: E731
        state, error, weight, largest = jax.lax.cond(t == phases.measured - 1, measured, unchanged)
        return Tuning(state, error, weight, largest, time, mean, square, kept), info

    def finalize(key: Array, tuning: Tuning, data: Data) -> tuple[State, Info]:
        state = tuning.state
        if phases.num_kept >= 10:
            ess = diagnostics.effective_sample_size(tuning.kept[None, : phases.num_kept])
            steps = phases.num_kept * phases.stride / ess
            # For a coordinate that never changed, the autocorrelation time is not defined.
            usable = jnp.isfinite(steps)
            L = l_factor * state.step_size * jnp.where(usable, steps, 0.0).sum() / jnp.maximum(usable.sum(), 1)
            state = state._replace(decoherence=jnp.where(usable.any(), L, state.decoherence))
        return state, {}

    return Method(start, step, draw=lambda key, state: state.chain.position, warm=warm, finalize=finalize)


class _Phases:
    """The ends of the phases of the warm-up, and the steps of the last phase whose positions are kept."""

    def __init__(self, num_warmup: int, first: float, second: float, preconditions: bool, dim: int) -> None:
        if dim < 2:
            raise ConfigError("inference: mclmc moves on a sphere and needs at least 2 parameters: use nuts.")
        if first + second > 1:
            raise ConfigError(f"inference.frac_tune1={first} and frac_tune2={second} are more than the whole warm-up.")
        begin, self.adapted = round(num_warmup * first), round(num_warmup * (first + second))
        # After preconditioning the step size is found again.
        self.measured = self.adapted - (self.adapted - begin) // 4 if preconditions else self.adapted
        self.begin = begin
        last = num_warmup - self.adapted
        most = min(1000, max(100, KEPT_BYTES // (4 * dim)))
        self.stride = max(1, -(-last // most))
        self.num_kept = last // self.stride

    def progress(self, t: Array) -> Array:
        return jnp.clip(t / max(1, self.adapted), 0, 1)

    def adapts(self, t: Array) -> Array:
        return t < self.adapted

    def measures(self, t: Array) -> Array:
        return (t >= self.begin) & (t < self.measured)

    def slot(self, t: Array) -> Array:
        """The row to which the position of step t is written. The last row is for positions that are not kept."""
        behind = t - self.adapted
        return jnp.where(
            (behind >= 0) & (behind % self.stride == 0),
            jnp.minimum(behind // self.stride, self.num_kept),
            self.num_kept,
        )


def move(target: Target, key: Array, state: State, data: Data) -> tuple[Any, Array, Array]:
    """Take one step. Return the chain, its energy error, and whether the step was finite.

    If it was not finite, the chain keeps its position and takes a random direction.
    """
    chain = state.chain
    mclachlan = blackjax("mcmc.integrators").isokinetic_mclachlan
    integrate = mclachlan(lambda theta: target.log_density(theta, data), state.inverse_mass)
    moved, kinetic_change = integrate(chain, state.step_size)
    noise = jax.lax.optimization_barrier(jax.random.normal(key, moved.momentum.shape, moved.momentum.dtype))
    nu = jnp.sqrt(jnp.expm1(2 * state.step_size / state.decoherence) / noise.size)
    energy_change = kinetic_change - moved.logdensity + chain.logdensity
    finite = (
        jnp.isfinite(energy_change) & jnp.isfinite(moved.position).all() & jnp.isfinite(moved.logdensity_grad).all()
    )
    # The direction is chosen before it is normalised, so that only one norm is computed.
    turned = jax.lax.optimization_barrier(jnp.where(finite, moved.momentum + nu * noise, noise))
    direction = turned / jnp.linalg.norm(turned)
    chain = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, chain)._replace(momentum=direction)
    return chain, jnp.where(finite, energy_change, 0.0), finite
