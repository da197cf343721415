"""Likelihoods: the distribution of a target given the outputs of a network.

A factory receives the task and ``num_outputs``, which is the number of targets for regression and the number of classes
for classification. It returns a :class:`Likelihood`. Its ``observe`` runs inside the NumPyro model, so a likelihood may
have parameters of its own, such as a learned noise scale.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from bdlbench.errors import ConfigError
from bdlbench.options import non_negative, positive
from bdlbench.types import Task


class Likelihood(NamedTuple):
    """The number of outputs that the network must have, and p(y | f) as a function of its outputs f (rows, out)."""

    out_features: int
    observe: Callable[[Float[Array, "rows out"]], dist.Distribution]


def _only_for(name: str, wanted: Task, task: Task, remedy: str) -> None:
    if task != wanted:
        raise ConfigError(
            f"likelihood={name} is for {wanted}, but the data are a {task} task: use likelihood={remedy}."
        )


def gaussian(task: Task, num_outputs: int, *, noise: dist.Distribution) -> Likelihood:
    """Y ~ N(f(x), sigma^2) with one learned sigma ~ ``noise``, in standardised units.

    With several targets each has its own sigma, and their noise is independent.

    Parameters
    ----------
    noise : Distribution
        Prior of sigma. It may be any NumPyro distribution on the positive numbers.
    """
    _only_for("gaussian", "regression", task, "categorical or likelihood=auto")

    def observe(f: Float[Array, "rows out"]) -> dist.Distribution:
        if num_outputs == 1:
            return dist.Normal(f[:, 0], numpyro.sample("sigma", noise))
        sigma = numpyro.sample("sigma", noise.expand([num_outputs]).to_event(1))
        return dist.Normal(f, sigma).to_event(1)

    return Likelihood(num_outputs, observe)


def gaussian_fixed(task: Task, num_outputs: int, *, sigma: float) -> Likelihood:
    """Y ~ N(f(x), sigma^2) with a known sigma in standardised units, the same for all targets."""
    _only_for("gaussian_fixed", "regression", task, "categorical or likelihood=auto")
    positive("likelihood", sigma=sigma)
    if num_outputs > 1:
        return Likelihood(num_outputs, lambda f: dist.Normal(f, sigma).to_event(1))
    return Likelihood(1, lambda f: dist.Normal(f[:, 0], sigma))


def heteroscedastic(task: Task, num_outputs: int, *, min_scale: float) -> Likelihood:
    """Y ~ N(f_0(x), sigma(x)^2), sigma(x) = min_scale + softplus(f_1(x)), in standardised units (Nix & Weigend 1994).

    With K targets the network has 2 K outputs: first K means, then K outputs for the sigmas. The noise of the targets
    is independent given x.
    """
    _only_for("heteroscedastic", "regression", task, "categorical or likelihood=auto")
    non_negative("likelihood", min_scale=min_scale)
    if (k := num_outputs) > 1:
        scale = lambda f: min_scale + jax.nn.softplus(f[:, k:])  # noqa: E731
        return Likelihood(2 * k, lambda f: dist.Normal(f[:, :k], scale(f)).to_event(1))
    return Likelihood(2, lambda f: dist.Normal(f[:, 0], min_scale + jax.nn.softplus(f[:, 1])))


def categorical(task: Task, num_outputs: int) -> Likelihood:
    """Y ~ Categorical(softmax f(x)), with one output for each class."""
    _only_for("categorical", "classification", task, "gaussian or likelihood=auto")
    return Likelihood(num_outputs, lambda f: dist.Categorical(logits=f))


def auto(task: Task, num_outputs: int, *, noise: dist.Distribution) -> Likelihood:
    """The usual likelihood of a task: ``gaussian`` with learned noise for regression, ``categorical`` otherwise."""
    if task == "classification":
        return categorical(task, num_outputs)
    return gaussian(task, num_outputs, noise=noise)
