"""Lanes mapped and lanes vmapped give one result, whatever the method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdlbench.inference.ivon import ivon
from bdlbench.inference.laplace import laplace
from bdlbench.inference.point import deep_ensemble, mc_dropout
from bdlbench.inference.svgd import svgd
from bdlbench.inference.svi import svi
from bdlbench.inference.swag import swag
from bdlbench.model import bnn, likelihoods, priors
from bdlbench.model.target import make_target
from bdlbench.networks.mlp import MLP
from bdlbench.types import Data, Schedule

OFF = {"validate_every": None, "patience": None, "validation_fraction": None}


def network(module, features=3, outputs=1):
    """The target of any Flax network with fixed noise, and data."""
    rng = np.random.default_rng(1)
    x, y = jnp.asarray(rng.standard_normal((8, features))), jnp.asarray(rng.standard_normal(8))

    def model(x, y=None):
        likelihood = likelihoods.heteroscedastic if outputs == 2 else likelihoods.gaussian_fixed
        options = {"min_scale": 0.1} if outputs == 2 else {"sigma": 0.3}
        likelihood = likelihood("regression", 1, **options)
        bnn.bnn(x, y, network=module, prior=priors.fan_in(weight_scale=1.0, bias_scale=1.0), likelihood=likelihood)

    return make_target(model, x, y), Data(x, y, 8)


# ---- lanes


def methods():
    """Every method of this family and its relatives on a small network."""
    optimizer = optax.adam(0.01)
    read = Schedule(2, 40, 5, 0)
    yield (
        "deep_ensemble",
        deep_ensemble,
        read._replace(num_samples=1),
        {"optimizer": optimizer, "objective": "posterior", **OFF},
    )
    yield "mc_dropout", mc_dropout, read, {"optimizer": optimizer, "objective": "posterior", "rate": 0.1, **OFF}
    batch = read._replace(batch_size=4)
    yield "swag", swag, batch, {"optimizer": optax.sgd(0.01), "rank": 5, "collect_after": 4, "collect_every": 3}
    yield "ivon", ivon, read, {"learning_rate": 0.01, "hessian_init": 1.0, "beta1": 0.9, "beta2": 0.999}
    yield "svgd", svgd, read._replace(num_samples=1), {"optimizer": optimizer, "num_particles": 4, "init_scale": 0.3}
    guide = {"optimizer": optimizer, "guide": "mean_field", "init_scale": 0.01, "num_particles": 1, "rank": None}
    yield "svi", svi, read, guide
    yield "laplace", laplace, Schedule(2, 0, 5, 0), {"structure": "last_layer", "evidence": True}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("factory", "schedule", "options"),
    [
        pytest.param(*m[1:], id=m[0], marks=() if m[0] in ("deep_ensemble", "laplace") else pytest.mark.slow)
        for m in methods()
    ],
)
def test_lanes_mapped_and_vmapped_agree(factory, schedule, options):
    """The same keys give the same draws to rounding, whether lanes are taken one by one or together."""
    target, data = network(functools.partial(MLP, width=3, depth=1, activation="tanh"))
    method = factory(target, schedule, **options)

    def lane(key):
        state = method.init(key, 0.1 * jax.random.normal(key, (target.dim,)), data)
        body = lambda t, s: method.step(jax.random.fold_in(key, t), t, s, data)[0]
        state = jax.lax.fori_loop(0, schedule.num_warmup, body, state)
        state, _ = method.finalize(key, state, data)
        return method.draw(key, state)

    keys = jax.random.split(jax.random.key(0), 2)
    mapped = jax.jit(lambda: jax.lax.map(lane, keys))()
    together = jax.jit(lambda: jax.vmap(lane)(keys))()
    assert np.isfinite(mapped).all()
    assert np.abs(mapped[0] - mapped[1]).max() > 1e-3
    np.testing.assert_allclose(mapped, together, rtol=1e-6, atol=1e-8)
