"""Law 1 for what samplers with a Hamiltonian move by: reversible, of second order, and one with each other."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from numpyro.infer.hmc_util import euclidean_kinetic_energy, velocity_verlet
from small_networks import network_target

from bdlbench.inference.chees import chees
from bdlbench.inference.libraries import blackjax
from bdlbench.inference.smc import smc
from bdlbench.types import Schedule


class Leapfrog(NamedTuple):
    """An integrator: a state (theta, momentum), a function for n steps of size eps, its parts, and the total energy."""

    begin: Any
    run: Any
    parts: Any
    energy: Any


def steps_of(update):
    """Apply ``update(state, eps)`` this number of times."""
    return jax.jit(lambda state, eps, num_steps: jax.lax.fori_loop(0, num_steps, lambda i, s: update(s, eps), state))


def numpyros_leapfrog(target, data):
    """The integrator of NUTS and HMC."""
    potential = lambda theta: -target.log_density(theta, data)
    init, update = velocity_verlet(potential, euclidean_kinetic_energy)
    metric = jnp.ones(target.dim)
    energy = lambda s: s.potential_energy + euclidean_kinetic_energy(metric, s.r)
    return Leapfrog(init, steps_of(lambda s, eps: update(eps, metric, s)), lambda s: (s.z, s.r), energy)


def blackjaxs_leapfrog(target, data):
    """The integrator of ChEES-HMC and of the moves of SMC: the default of BlackJAX's HMC kernel."""
    integrator = inspect.signature(blackjax("mcmc.hmc").build_kernel).parameters["integrator"].default
    metric = blackjax("mcmc.metrics").default_metric(jnp.ones(target.dim))
    log_density = lambda theta: target.log_density(theta, data)
    update = integrator(log_density, metric.kinetic_energy)
    begin = lambda theta, momentum: blackjax("mcmc.integrators").IntegratorState(
        theta, momentum, *jax.value_and_grad(log_density)(theta)
    )
    energy = lambda s: metric.kinetic_energy(s.momentum, position=s.position) - s.logdensity
    return Leapfrog(begin, steps_of(update), lambda s: (s.position, s.momentum), energy)


@pytest.fixture(params=[numpyros_leapfrog, blackjaxs_leapfrog])
def leapfrog(request):
    """Each integrator that a sampler of the project uses."""
    return request.param


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_leapfrog_is_reversible(leapfrog):
    """100 steps, a change of the momentum's sign and 100 steps lead back to the start to 1e-10.

    A step loses about 1e-14.
    """
    target, data = network_target()
    begin, run, parts, _ = leapfrog(target, data)
    theta, momentum = random.normal(random.key(0), (2, target.dim))
    there, speed = parts(run(begin(theta, momentum), 0.01, 100))
    assert float(jnp.abs(there - theta).max()) > 0.1
    back, turned = parts(run(begin(there, -speed), 0.01, 100))
    np.testing.assert_allclose(back, theta, atol=1e-10)
    np.testing.assert_allclose(-turned, momentum, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_the_integrators_are_one():
    """NumPyro's and BlackJAX's paths of 100 steps agree to rounding, so a test of one integrator is a test of both."""
    target, data = network_target()
    starts = random.normal(random.key(0), (2, target.dim))
    ends = []
    for make in (numpyros_leapfrog, blackjaxs_leapfrog):
        begin, run, parts, _ = make(target, data)
        ends.append(jnp.stack(parts(run(begin(*starts), 0.01, 100))))
    np.testing.assert_allclose(*ends, atol=1e-10)


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (chees, {"init_scale": 1.0, "initial_step_size": 0.1, "learning_rate": 0.05, "target_accept_prob": 0.651,
                 "decay_rate": 0.5, "max_leapfrog_steps": 4}),
        (smc, {"target_ess": 0.7, "num_moves": 1, "num_leapfrog_steps": 2, "initial_step_size": 0.2,
               "target_accept_prob": 0.8}),
    ],
)  # fmt: skip
def test_populations_take_the_kernels_own_integrator(factory, options, monkeypatch):
    """ChEES-HMC and SMC build BlackJAX's HMC kernel with its default integrator."""
    asked = []
    real = blackjax("mcmc.hmc").build_kernel
    monkeypatch.setattr(blackjax("mcmc.hmc"), "build_kernel", lambda *args, **kw: asked.append((args, kw)) or real())
    target, _ = network_target()
    factory(target, Schedule(1, 1, 1, 1), num_particles=2, **options)
    assert asked == [((), {})]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_energy_error_is_of_second_order(leapfrog):
    """|H' - H| over a fixed time falls as eps^2: slope 2 +- 0.1 over a factor of 16 in eps."""
    target, data = network_target()
    begin, run, _, energy = leapfrog(target, data)
    starts = random.normal(random.key(1), (2, 20, target.dim)) * 0.5
    steps = np.array([32, 64, 128, 256, 512])

    def error(theta, momentum, num_steps):
        first = begin(theta, momentum)
        return jnp.abs(energy(run(first, 0.32 / num_steps, num_steps)) - energy(first))

    errors = [float(jnp.sqrt((jax.vmap(error, (0, 0, None))(*starts, n) ** 2).mean())) for n in steps]
    slope = np.polyfit(np.log(1 / steps), np.log(errors), 1)[0]
    assert abs(slope - 2) <= 0.1, errors
