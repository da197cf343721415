"""What a NumPyro model is made of: its latent sites, what it observes, and what no target can be made of."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from bdlbench.errors import ConfigError

Model = Callable[..., None]
"""``model(x, y=None)``: a NumPyro model that observes y, one value or vector for each row of x."""


OBSERVED, UNOBSERVED = "_observed", "_unobserved"
"""Suffixes of the two sites that NumPyro makes from a site with ``obs_mask``."""


class Slot(NamedTuple):
    """The place and shape of a latent site in theta, and whether its support is all real numbers."""

    start: int
    size: int
    shape: tuple[int, ...]
    real: bool


class Found(NamedTuple):
    """What is needed to make a target.

    Attributes
    ----------
    layout : dict
        The latent sites in theta.
    observed : str
        Name of the observed site.
    shape : tuple of int
        Shape of the log probability of the observed site.
    needs_key : bool
        Whether the log likelihood or a factor depends on a key that the model asks for.
    masked : bool
        Whether the observed site is under a mask.
    support : str
        The support of y in words; empty if it is all real numbers or is not known.
    free : list of str
        Names of the ``numpyro.param`` sites that hold values without a prior.
    names : list of str
        Dotted names of these values.
    samples : bool
        Whether y can be drawn. Some truncated distributions have a density but cannot be sampled.
    factor_reads_rows : bool
        Whether the value of a ``numpyro.factor`` depends on x or y.
    """

    layout: dict[str, Slot]
    observed: str
    shape: tuple[int, ...]
    needs_key: bool
    masked: bool
    support: str
    free: list[str]
    names: list[str]
    samples: bool
    factor_reads_rows: bool


def inspect(model: Model, x: Any, y: Any) -> Found:
    """Trace the model abstractly, without computing values."""
    layout: dict[str, Slot] = {}
    observed: dict[str, tuple[int, ...]] = {}
    supports: list[str] = []
    free: list[str] = []
    names: list[str] = []
    imputed: list[str] = []
    samples: list[bool] = []
    counts: list[int] = []

    def look(latent_key: Array, key: Array, imputed_key: Array, x: Any, y: Any) -> list[list[Array]]:
        offset = 0
        log_probs: list[Array] = []  # first of the observed sites, then of the factors
        factors: list[Array] = []
        masks: list[Array] = []
        priors: list[Array] = []
        asked = handlers.seed(_AskedKeys(_ImputedTargets(_RefusedPriors(model), imputed_key), key), latent_key)
        sites = handlers.trace(asked).get_trace(x, y)
        for name, site in sites.items():
            if site["type"] == "param":
                without = _without_prior(name, site["value"])
                if without:
                    free.append(name)
                    names.extend(without)
            if site["type"] == "mutable":
                raise ConfigError(
                    f"model: '{name}' is state that is no parameter, so that one row would be computed by what other "
                    "rows or draws left: use LayerNorm in place of BatchNorm, and inference=mc_dropout in place of "
                    "Dropout."
                )
            if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
                raise ConfigError(
                    f"model: plate '{name}' has a subsample_size, but batches are drawn for the model: leave it out and "
                    "set inference.schedule.batch_size."
                )
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                (factors if isinstance(site["fn"], dist.Unit) else log_probs).append(log_prob_of(site))
                if not isinstance(site["fn"], dist.Unit):
                    observed[name] = shape = jnp.shape(site["fn"].log_prob(site["value"]))
                    supports.append(_support(site["fn"]))
                    try:
                        site["fn"].sample(key)
                    except (NotImplementedError, ImportError):
                        samples.append(False)
                    if unmasked(site["fn"]) is not site["fn"]:
                        masks.append(mask_of(site["fn"], shape, name))
                continue
            if name.endswith(UNOBSERVED) and name.removesuffix(UNOBSERVED) + OBSERVED in sites:
                imputed.append(name)
                continue  # the hidden y of an obs_mask: its density integrates to one
            if imputed:
                priors.append(log_prob_of(site).sum())
            if site["fn"].support.is_discrete:
                raise ConfigError(
                    f"model: latent site '{name}' is discrete, which gradient methods cannot move: marginalise it out."
                )
            size = biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))
            layout[name] = Slot(offset, math.prod(size), tuple(size), is_real(site["fn"].support))
            offset += math.prod(size)
        counts.extend((len(log_probs), len(log_probs + factors), len(masks)))
        return [log_probs + factors, masks, priors]

    keys = [jax.random.key(0)] * 3
    try:
        jaxpr = jax.make_jaxpr(look)(*keys, x, y).jaxpr
    except NotImplementedError as error:
        raise ConfigError(
            f"model: a distribution of it cannot do what is asked ({_first_line(error)}): each needs log_prob and sample."
        ) from error
    num_likelihoods, num_log_probs, num_masks = counts
    num_outputs = len(jaxpr.outvars)

    def used(start: int, stop: int) -> list[bool]:
        """Which inputs (three keys, x, y) the outputs from start to stop depend on."""
        return dce_jaxpr(jaxpr, [start <= i < stop for i in range(num_outputs)])[1]

    needs_key = used(0, num_log_probs)[1]
    if not layout:
        raise ConfigError("model: it has no latent site, so there is nothing to infer: sample at least one parameter.")
    if len(observed) != 1:
        raise ConfigError(
            f"model: it observes {sorted(observed) or 'nothing'}, but one site must observe y: "
            "pass obs=y to exactly one numpyro.sample."
        )
    name, shape = next(iter(observed.items()))
    rows = jnp.shape(y)[0]
    # For example, outputs (N, 1) and y (N,) are broadcast to N x N numbers.
    if not shape or shape != jnp.shape(y)[: len(shape)]:
        raise ConfigError(
            f"model: the log likelihood of '{name}' has shape {shape}, but one number for each of the {rows} rows is "
            f"needed, as y has shape {jnp.shape(y)}: observe y under a plate over the rows, with parameters of y's shape."
        )
    if num_masks:
        if len(shape) > 1:
            raise ConfigError(
                f"model: '{name}' is observed under a mask, but has a log likelihood of shape {shape} and not one number a "
                "row: declare the targets of a row as one event, as Normal(...).to_event(1)."
            )
        on = used(num_log_probs, num_log_probs + num_masks)
        if any(on[:3]) or on[-1]:
            what = "y" if on[-1] else "latent sites or random numbers"
            raise ConfigError(
                f"model: '{name}' is observed under a mask that depends on {what}, so that which rows are scored is not "
                "known beforehand: let the mask depend on x alone, or leave these rows out of the data."
            )
    if imputed and (used(0, num_log_probs)[2] or used(num_log_probs + num_masks, num_outputs)[2]):
        raise ConfigError(
            f"model: '{imputed[0]}', which obs_mask hides, enters the density of another site: declare it as a latent site "
            "of its own, and observe the other rows."
        )
    reads_rows = any(used(num_likelihoods, num_log_probs)[3:])
    return Found(layout, name, shape, needs_key, bool(num_masks), supports[0], free, names, all(samples), reads_rows)


def log_prob_of(site: dict[str, Any]) -> Array:
    """Log probability of a site, times the scale that plates and handlers give it."""
    log_prob = site["fn"].log_prob(site["value"])
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def _without_prior(name: str, value: Any) -> list[str]:
    """Dotted names of the values of a ``numpyro.param`` site without a prior. NumPyro removes the others from the site."""
    leaves = jax.tree_util.tree_leaves_with_path(value)
    return [".".join([name.removesuffix("$params"), *(str(step.key) for step in path)]) for path, _ in leaves]


_WORDS = {
    "boolean": "0 or 1",
    "nonnegative_integer": "whole numbers of at least 0",
    "positive_integer": "whole numbers of at least 1",
    "positive": "numbers above 0",
    "nonnegative": "numbers of at least 0",
    "unit_interval": "numbers from 0 to 1",
    "simplex": "shares that sum to 1",
}
_BOUNDS = {
    "_IntegerInterval": "whole numbers from {lower_bound} to {upper_bound}",
    "_Interval": "numbers from {lower_bound} to {upper_bound}",
    "_OpenInterval": "numbers between {lower_bound} and {upper_bound}",
    "_IntegerGreaterThan": "whole numbers of at least {lower_bound}",
    "_GreaterThan": "numbers above {lower_bound}",
    "_GreaterThanEq": "numbers of at least {lower_bound}",
    "_LessThan": "numbers below {upper_bound}",
    "_LessThanEq": "numbers of at most {upper_bound}",
}


def _support(fn: dist.Distribution) -> str:
    """The support of y in words; empty if it is all real numbers or the distribution does not state it."""
    try:
        support = unmasked(fn).support
    except NotImplementedError:
        return ""
    while isinstance(support, dist.constraints.independent):
        support = support.base_constraint
    if support is None or support in (dist.constraints.real, dist.constraints.real_vector):
        return ""
    for name, words in _WORDS.items():
        if support is getattr(dist.constraints, name):
            return words
    words = _BOUNDS.get(type(support).__name__, "values in its support")
    bounds = {name: getattr(support, name, None) for name in ("lower_bound", "upper_bound")}
    plain = {name: f"{value:g}" if isinstance(value, int | float) else "its bound" for name, value in bounds.items()}
    return words.format(**plain)


def mask_of(fn: dist.Distribution, shape: tuple[int, ...], name: str = "") -> Array:
    """The mask of a distribution, broadcast to the shape of its log probability."""
    mask: Any = True
    while isinstance(fn, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            mask = mask & fn._mask
        elif isinstance(fn, dist.Independent) and unmasked(fn.base_dist) is not fn.base_dist:
            raise ConfigError(
                f"model: '{name}' is observed under a mask on parts of a row: mask the rows as a whole, after to_event."
            )
        fn = fn.base_dist
    return jnp.broadcast_to(jnp.asarray(mask, bool), shape)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())


def unmasked(fn: dist.Distribution) -> dist.Distribution:
    """The distribution without its masks. A mask changes the density of a site but not its draws."""
    if isinstance(fn, dist.MaskedDistribution):
        return unmasked(fn.base_dist)
    if isinstance(fn, dist.Independent) and (inner := unmasked(fn.base_dist)) is not fn.base_dist:
        return inner.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution) and (inner := unmasked(fn.base_dist)) is not fn.base_dist:
        return inner.expand(fn.batch_shape)
    return fn


def is_real(support: Any) -> bool:
    """Whether a support is all real numbers or all real vectors."""
    base = support.base_constraint if isinstance(support, dist.constraints.independent) else support
    return base is dist.constraints.real


class _AskedKeys(Messenger):
    """Gives the model the keys that it asks for itself. They are independent of the key of the latent sites."""

    def __init__(self, model: Model, key: Array) -> None:
        super().__init__(model)
        self.key, self.count = key, 0

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give a new key at each request."""
        if msg["type"] == "prng_key" and msg["value"] is None:
            self.count += 1
            msg["value"] = jax.random.fold_in(self.key, self.count)


class _ImputedTargets(Messenger):
    """Draws the targets that ``obs_mask`` hides with a separate key, which shows what depends on these targets."""

    def __init__(self, model: Model, key: Array) -> None:
        super().__init__(model)
        self.key = key

    def process_message(self, msg: dict[str, Any]) -> None:
        """Set the key of a hidden target."""
        if msg["type"] == "sample" and msg["name"].endswith(UNOBSERVED) and not msg["is_observed"]:
            msg["kwargs"]["rng_key"] = self.key


class _RefusedPriors(Messenger):
    """Refuses the priors from which no start can be drawn, or that have no density, by the name of their site."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Raise ConfigError if the distribution of a latent site cannot be sampled or has no density."""
        fn = msg["fn"] if msg["type"] == "sample" else None
        while isinstance(fn, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
            fn = fn.base_dist
        if isinstance(fn, dist.Delta) and not msg["is_observed"]:
            raise ConfigError(
                f"model: latent site '{msg['name']}' has a Delta prior, which is a single value and no density: use "
                "numpyro.deterministic, or the value itself."
            )
        if isinstance(fn, dist.ImproperUniform):
            raise ConfigError(
                f"model: latent site '{msg['name']}' has an ImproperUniform prior, from which no start can be drawn: use a "
                "wide proper prior with the same support, as Normal(0, 10), HalfNormal(10) or Uniform(a, b)."
            )
