"""The problems that are timed, as programs of the library, and the bare gradient they are held against.

Built from the factories themselves, without a configuration: what is timed is the loop, and a machine with an
accelerator need not have Hydra.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from bdlbench import sampling
from bdlbench.data.generated import linear_regression as linear_regression_data
from bdlbench.data.sklearn_sets import diabetes as diabetes_data
from bdlbench.inference import hmc, point, sgld, svi
from bdlbench.model import likelihoods, priors
from bdlbench.model.bnn import bnn
from bdlbench.model.target import make_target
from bdlbench.networks.mlp import MLP
from bdlbench.sampling import loop
from bdlbench.types import Data, Method, Schedule, Stage, Target

NOISE = (-1.0, 1.0)
"""Location and scale of the log-normal prior of the noise, as configured."""


class Problem(NamedTuple):
    """A model and its rows."""

    name: str
    model: Callable[..., None]
    x: np.ndarray
    y: np.ndarray

    def target(self, x: Any, y: Any) -> Target:
        """The target; ``x`` and ``y`` may be tracers."""
        return make_target(self.model, x, y)


def network(width: int, depth: int) -> Callable[..., Any]:
    """A tanh network as a factory."""
    return functools.partial(MLP, width=width, depth=depth, activation="tanh")


def diabetes(width: int = 50) -> Problem:
    """353 training rows, 10 features, one hidden layer of 50 tanh units: 602 parameters with the noise."""
    data = diabetes_data(split=0, test_fraction=0.2, validation_fraction=0.0, n_train=None)
    model = functools.partial(
        bnn,
        network=network(width, 1),
        prior=priors.fan_in(weight_scale=1.0, bias_scale=1.0),
        likelihood=likelihoods.gaussian("regression", 1, noise=dist.LogNormal(*NOISE)),
    )
    return Problem(f"diabetes 10-{width}-1", model, data.train.x, data.train.y)


def many_rows(num_rows: int = 45_730, features: int = 9, width: int = 100) -> Problem:
    """Generated rows in the shape of the protein set: 45,730 rows, 9 features, 100 hidden units."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, features)).astype(np.float32)
    y = (np.sin(x.sum(1)) + 0.3 * rng.standard_normal(num_rows)).astype(np.float32)
    return diabetes(width)._replace(name=f"{num_rows:,} rows, {features}-{width}-1", x=x, y=y)


def line() -> Problem:
    """y = 3 x + 2 + 0.5 e at 100 points; sigma ~ Uniform(0, 10)."""
    data = linear_regression_data(n=100, center=0.0, half_width=5.0, seed=0)
    model = functools.partial(
        bnn,
        network=network(1, 0),
        prior=priors.normal(weight_scale=1.0, bias_scale=10.0),
        likelihood=likelihoods.gaussian("regression", 1, noise=dist.Uniform(0.0, 10.0)),
    )
    return Problem("linear regression", model, data.train.x, data.train.y)


# ---- programs


def nuts(num_warmup: int, num_samples: int, num_chains: int = 1, before: int = 200) -> tuple[Stage, ...]:
    """A short MAP, then NUTS as configured."""
    last = Schedule(num_chains, num_warmup, num_samples, 1)
    options = {"target_accept_prob": 0.9, "max_tree_depth": 8, "dense_mass": False}
    return *short_map(before, num_chains), stage("nuts", hmc.nuts, last, **options)


def short_map(num_steps: int, num_chains: int = 1) -> tuple[Stage, ...]:
    """A MAP of so many Adam steps, as a stage before another; no stage for 0 steps."""
    schedule = Schedule(num_chains, num_steps, 0, 0)
    return (stage("map", point.maximum_a_posteriori, schedule, optimizer=optax.adam(0.01)),) if num_steps else ()


def langevin(num_samples: int, thinning: int, batch_size: int | None, step_size: float) -> tuple[Stage, ...]:
    """SGLD with a constant step and epoch batching."""
    schedule = Schedule(1, 0, num_samples, thinning, batch_size, "epoch")
    return (stage("sgld", sgld.sgld, schedule, step_size=step_size, decay=0.0, decay_steps=1000.0),)


def mean_field(num_warmup: int, num_samples: int = 1) -> tuple[Stage, ...]:
    """Mean-field SVI with Adam 0.01."""
    options = {"optimizer": optax.adam(0.01), "guide": "mean_field", "init_scale": 0.01, "num_particles": 1}
    return (stage("svi", svi.svi, Schedule(1, num_warmup, num_samples, 0), rank=None, **options),)


def stage(name: str, factory: Callable[..., Method], schedule: Schedule, **options: Any) -> Stage:
    """A stage of ``factory`` with fixed options."""
    return Stage(name, lambda target, schedule, numbers: factory(target, schedule, **options), schedule)


_SAMPLERS: dict[str, sampling.Sampler] = {}


def blocks(
    problem: Problem, stages: tuple[Stage, ...], num_lanes: int = 1, seed: int = 0, block_seconds: float = 0.1
) -> Iterator[loop.Block]:
    """The library's loop over ``num_lanes`` lanes of a problem."""
    name = f"{problem.name} {[(s.name, s.schedule) for s in stages]} {num_lanes}"
    if name not in _SAMPLERS:
        _SAMPLERS[name] = sampling.compile(
            lambda numbers, x, y: problem.target(x, y), stages, num_lanes, start="network"
        )
    return _SAMPLERS[name].blocks((problem.x, problem.y), jax.random.key(seed), block_seconds=block_seconds)


# ---- what they are held against


def bare_gradient(problem: Problem, rows: int | None = None) -> Callable[[int], Any]:
    """``value_and_grad`` of the same log density in a scan, n times: on all rows, or on one fixed batch of ``rows``.

    Theta moves a little along the gradient, so that nothing can be hoisted out of the scan.
    """
    x, y = jnp.asarray(problem.x[:rows]), jnp.asarray(problem.y[:rows])
    size = len(problem.y)
    theta = jax.jit(lambda key: problem.target(x, y).init_params(key))(jax.random.key(0))

    @jax.jit
    def gradients(theta: Any, x: Any, y: Any, count: Any) -> Any:
        target = problem.target(x, y)

        def one(i: Any, carry: Any) -> Any:
            theta, total = carry
            value, grad = target.value_and_grad(theta, Data(x, y, size))
            return theta + 1e-9 * grad, total + value

        return jax.lax.fori_loop(0, count, one, (theta, jnp.zeros(())))

    return lambda count: gradients(theta, x, y, jnp.int32(count))


def gathered_gradient(problem: Problem, batch_size: int) -> Callable[[int], Any]:
    """The same on a batch of rows gathered at each step, indices made beforehand."""
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    index = jnp.asarray(np.random.default_rng(0).permutation(len(y))[: len(y) // batch_size * batch_size])
    index = index.reshape(-1, batch_size).astype(jnp.int32)
    theta = jax.jit(lambda key: problem.target(x, y).init_params(key))(jax.random.key(0))

    @jax.jit
    def gradients(theta: Any, x: Any, y: Any, index: Any, count: Any) -> Any:
        target = problem.target(x[:batch_size], y[:batch_size])

        def one(i: Any, carry: Any) -> Any:
            theta, total = carry
            take = index[i % index.shape[0]]
            value, grad = target.value_and_grad(theta, Data(x[take], y[take], x.shape[0]))
            return theta + 1e-9 * grad, total + value

        return jax.lax.fori_loop(0, count, one, (theta, jnp.zeros(())))

    return lambda count: gradients(theta, x, y, index, jnp.int32(count))
