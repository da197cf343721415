"""What the tests of the Python interface share: rows, a small network, a short schedule, a model of nested inputs."""

import numpy as np
import numpyro
import numpyro.distributions as dist

NET = {"_target_": "bdlbench.networks.mlp.MLP", "width": 3, "depth": 1, "activation": "tanh"}
TINY = {
    "num_chains": 2,
    "num_warmup": 20,
    "num_samples": 20,
    "options": {"before.0.schedule.num_warmup": 20},
    "progress": False,
}


def rows(n=40, seed=0):
    """Return inputs with very different scales, and targets of about 100."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) * [1.0, 10.0, 100.0] + [0.0, 5.0, -7.0]
    return x, 100 + 3 * x[:, 0] + rng.normal(size=n)


def regression_on_tree(x, y=None):
    """A linear model with a slope for each group and a slope for the dose."""
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3]).to_event(1))
    v = numpyro.sample("v", dist.Normal(0, 1))
    with numpyro.plate("rows", x["dose"].shape[0]):
        numpyro.sample("y", dist.Normal(w[x["group"]] + v * x["dose"], 0.1), obs=y)
