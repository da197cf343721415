"""Models of fits from Python that are kept in a store: over trees of inputs, and with some of the weights fixed.

Their configurations are written by :func:`bdlbench.fit` with ``store=``, so that the run can be made again from them.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.primitives import Messenger

from bdlbench.errors import ConfigError
from bdlbench.model.bnn import NetworkFactory, bnn
from bdlbench.model.likelihoods import Likelihood
from bdlbench.model.priors import Prior
from bdlbench.model.trees import Unpacked, from_plain

SITES = "site/"
"""Beginning of the names of the weights in a file of fixed weights."""


class Fixed(Messenger):
    """A NumPyro model some of whose latent sites are constants, which no outer handler sees."""

    def __init__(self, model: Callable[..., None], fixed: Mapping[str, np.ndarray]) -> None:
        super().__init__(model)
        self.fixed = fixed

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give a site its value, and stop there."""
        if msg["type"] == "sample" and (name := msg["name"].replace("/", ".")) in self.fixed:
            msg["value"] = jnp.asarray(self.fixed[name])
            msg["stop"] = True


def partly(
    x: Array,
    y: Array | None = None,
    *,
    network: NetworkFactory,
    prior: Prior,
    likelihood: Likelihood,
    layout: Any,
    weights: str | None,
) -> None:
    """The Bayesian neural network of :func:`bdlbench.model.bnn.bnn`, with some weights fixed or on a tree of inputs.

    Parameters
    ----------
    layout : dict or None
        How the rows of x are unpacked into a tree, as :func:`bdlbench.model.trees.to_plain` writes it.
    weights : str or None
        A file of the fixed weights, as :func:`read_weights` takes it.
    """
    model: Callable[..., None] = functools.partial(bnn, network=network, prior=prior, likelihood=likelihood)
    if weights is not None:
        model = Fixed(model, read_weights(weights)[0])
    (model if layout is None else Unpacked(model, from_plain(layout)))(x, y)


def on_tree(x: Array, y: Array | None = None, *, of: Callable[..., None], layout: Any) -> None:
    """Run the NumPyro model ``of`` on the tree of inputs that the rows of x contain in packed form; see :func:`partly`."""
    Unpacked(of, from_plain(layout))(x, y)


def write_weights(file: Path, fixed: Mapping[str, np.ndarray], price: Mapping[str, float]) -> None:
    """Write weights that stay at a mode, by their sites' names, and the gradients and seconds that it took."""
    arrays = {f"{SITES}{name}": value for name, value in fixed.items()}
    part = file.with_name(f".{file.name}.part.npz")
    try:
        np.savez(part, allow_pickle=False, **{name: np.asarray(value) for name, value in price.items()}, **arrays)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def read_weights(file: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What :func:`write_weights` wrote: the weights, and the price of their fit.

    Raises
    ------
    ConfigError
        If the file is missing.
    """
    path = Path(file)
    if not path.is_file():
        raise ConfigError(
            f"model.weights={file} is no file: put the folder of rows back beside the store, or fit again."
        )
    with np.load(path, allow_pickle=False) as held:
        arrays = {name: held[name] for name in held.files}
    fixed = {name.removeprefix(SITES): value for name, value in arrays.items() if name.startswith(SITES)}
    return fixed, {name: float(value) for name, value in arrays.items() if not name.startswith(SITES)}
