"""The same models and samplers in other hands, measured beside ours."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdlbench.types import Data
from benchmarks.problems import Problem
from benchmarks.timing import Measure, Skipped, seconds, steady


def numpyro_mcmc(problem: Problem, num_chains: int, num_warmup: int, num_samples: int, max_tree_depth: int) -> Measure:
    """Seconds a leapfrog step a chain of NumPyro's own ``MCMC`` on the model's named sites, compilation left out.

    The first run warms up and compiles; those after it go on from its last state with the programs it has cached.
    """
    from numpyro.infer import MCMC, NUTS

    kernel = NUTS(problem.model, target_accept_prob=0.9, max_tree_depth=max_tree_depth)
    method = "sequential" if num_chains == 1 else "vectorized"
    mcmc = MCMC(
        kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains, chain_method=method,
        progress_bar=False, jit_model_args=True,
    )  # fmt: skip
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    key = jax.random.key(0)
    mcmc.warmup(key, x, y, extra_fields=("num_steps",))

    def once() -> float:
        mcmc.post_warmup_state = mcmc.last_state
        took = seconds(
            lambda: (mcmc.run(mcmc.last_state.rng_key, x, y, extra_fields=("num_steps",)), mcmc.last_state)[1]
        )
        return took / float(np.sum(mcmc.get_extra_fields()["num_steps"]))

    once()
    return once


def blackjax_nuts(problem: Problem, step_size: float, least: float) -> Measure:
    """Seconds a leapfrog step of BlackJAX's NUTS on the same flat log density, in a scan."""
    try:
        import blackjax
    except ImportError as error:
        raise Skipped("BlackJAX is not installed") from error
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    size = len(problem.y)
    target = jax.jit(lambda key: problem.target(x, y).init_params(key))
    theta = target(jax.random.key(0))

    @jax.jit
    def transitions(theta: Any, x: Any, y: Any, count: Any) -> Any:
        flat = problem.target(x, y)
        kernel = blackjax.nuts(
            lambda t: flat.log_density(t, Data(x, y, size)), step_size, jnp.ones(flat.dim), max_num_doublings=8
        )

        def one(i: Any, carry: Any) -> Any:
            state, total = carry
            state, info = kernel.step(jax.random.fold_in(jax.random.key(1), i), state)
            return state, total + info.num_integration_steps

        return jax.lax.fori_loop(0, count, one, (kernel.init(theta), jnp.int32(0)))

    count = 4

    def measure() -> float:
        nonlocal count
        while True:
            start = time.perf_counter()
            steps = int(transitions(theta, x, y, jnp.int32(count))[1])
            took = time.perf_counter() - start
            if took >= least / 2:
                return took / steps
            count *= 2

    transitions(theta, x, y, jnp.int32(1))
    return measure


def numpyro_svi(problem: Problem, least: float) -> Measure:
    """Seconds a step of NumPyro's SVI with ``AutoDiagonalNormal`` on the model's named sites, in a scan."""
    import optax
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    guide = autoguide.AutoDiagonalNormal(problem.model, init_scale=0.01)
    svi = SVI(problem.model, guide, optax.adam(0.01), Trace_ELBO())
    state = svi.init(jax.random.key(0), x, y)

    @jax.jit
    def steps(state: Any, x: Any, y: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, lambda i, s: svi.update(s, x, y)[0], state)

    return steady(lambda n: steps(state, x, y, jnp.int32(n)), least)
