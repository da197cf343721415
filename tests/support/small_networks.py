"""The target of a small network on fixed rows."""

import functools

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bdlbench.model import bnn, likelihoods, priors
from bdlbench.model.target import make_target
from bdlbench.networks.mlp import MLP
from bdlbench.types import Data


def network_target(num_rows=24, features=3, temperature=1.0, width=4, task="regression"):
    """Return the target and the data of a tanh network with learned noise on fixed rows."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((num_rows, features))
    y = np.sin(x.sum(1)) + 0.1 * rng.standard_normal(num_rows)

    def model(x, y=None):
        network = functools.partial(MLP, width=width, depth=1, activation="tanh")
        likelihood = likelihoods.gaussian(task, 1, noise=dist.LogNormal(-1.0, 1.0))
        bnn.bnn(x, y, network=network, prior=priors.fan_in(weight_scale=1.0, bias_scale=1.0), likelihood=likelihood)

    x, y = jnp.asarray(x), jnp.asarray(y)
    return make_target(model, x, y, temperature), Data(x, y, num_rows)
