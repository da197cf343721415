"""Turn a NumPyro model into a target, a density of one flat unconstrained vector that one trace evaluates."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from bdlbench.errors import ConfigError
from bdlbench.model.wiring import Wiring
from bdlbench.types import Data, Target, Terms

Model = Callable[..., None]
"""``model(x, y=None)``: a NumPyro model that observes y, one value or vector for each row of x."""


class _Slot(NamedTuple):
    """The place and shape of a latent site in theta, and whether its support is all real numbers."""

    start: int
    size: int
    shape: tuple[int, ...]
    real: bool


def make_target(model: Model, x: Any, y: Any, temperature: Any = 1.0) -> Target:
    """Wrap a NumPyro model as a :class:`~bdlbench.types.Target` over flat theta in R^D.

    Each latent site is mapped to the real numbers by NumPyro's ``biject_to`` of its support. The order of the sites in
    theta is that in which the model samples them. ``numpyro.factor`` terms, and the changes that masks and scales make
    to the prior of a latent site, are in ``log_factor``. They are tempered but not scaled by N/B, and ``sample_prior``
    ignores them.

    A model may draw random numbers of its own from ``numpyro.prng_key()``, for example to estimate the log likelihood
    of a row from K random latents. If such numbers enter the log density, ``needs_key`` of the target is True, and
    ``terms`` draws them from ``data.key``. Predictions draw them from one fixed key.

    Parameters
    ----------
    model : callable
        ``model(x, y=None)``. The hyperparameters inside it may be tracers, because it is traced again at each use.
    x, y : arrays
        Rows whose shapes are used; their values are not.
    temperature : scalar
        T, which divides the log prior, factors and log likelihood, but not the log Jacobian.

    Raises
    ------
    ConfigError
        If the model has no latent site or a discrete one, a prior that cannot be sampled, a plate with subsampling, no
        or several observed sites, an observed site under a mask, or a log likelihood that is not one number a row.
    """
    layout, observed, shape, needs_key = _inspect(model, x, y)
    rows = shape[0] if shape else 0

    def trace(
        theta: Array, x: Any, y: Any, fixed: dict[str, Any], key: Array | None = None
    ) -> tuple[dict[str, Any], Array]:
        """The model's trace at theta, and log |d constrained / d theta|."""
        log_jacobian = jnp.zeros((), theta.dtype)

        def value_of(site: dict[str, Any]) -> Any:
            nonlocal log_jacobian
            if site["name"] in fixed:
                return fixed[site["name"]]
            if site["type"] != "sample" or site["name"] not in layout:
                return None
            slot = layout[site["name"]]
            free = jax.lax.slice(theta, (slot.start,), (slot.start + slot.size,)).reshape(slot.shape)
            transform = biject_to(site["fn"].support)
            value = transform(free)
            if not isinstance(transform, dist.transforms.IdentityTransform) and not _is_real(site["fn"].support):
                log_jacobian = log_jacobian + transform.log_abs_det_jacobian(free, value).sum()
            return value

        # If no estimate needs the key, it only draws an unobserved y. This value is not used, so XLA removes the draw.
        key = jax.random.key(0) if key is None else key
        seeded = handlers.seed(handlers.substitute(model, substitute_fn=value_of), key)
        with handlers.block():
            return handlers.trace(seeded).get_trace(x, y), log_jacobian

    def terms(theta: Float[Array, " D"], data: Data) -> Terms:
        if needs_key and data.key is None:
            raise ConfigError(
                "model: its log likelihood is a random estimate, and data.key is None: give the key of the estimate."
            )
        sites, log_jacobian = trace(theta, data.x, data.y, {}, data.key if needs_key else None)
        log_prior = jnp.zeros((), theta.dtype)
        log_factor = None
        for name, site in sites.items():
            if site["type"] != "sample" or name == observed:
                continue
            if name in layout:
                drawn = _unmasked(site["fn"]).log_prob(site["value"]).sum()
                log_prior = log_prior + drawn
                if site["scale"] is None and _unmasked(site["fn"]) is site["fn"]:
                    continue
                rest = _log_prob(site).sum() - drawn
            else:
                rest = _log_prob(site).sum()
            log_factor = rest if log_factor is None else log_factor + rest
        log_lik = _log_prob(sites[observed])
        return Terms(log_prior, log_jacobian, log_lik.reshape(log_lik.shape[0], -1).sum(1), log_factor)

    def one_a_row(site: dict[str, Any], x: Any) -> dist.Distribution:
        """The site's distribution with the rows as its first axis, expanded if it is the same for all rows."""
        wanted = (jnp.shape(x)[0], *shape[1:])
        return site["fn"] if site["fn"].batch_shape == wanted else site["fn"].expand(wanted)

    def predictive(theta: Float[Array, " D"], x: Any) -> dist.Distribution:
        return one_a_row(trace(theta, x, None, {})[0][observed], x)

    def likelihood(theta: Float[Array, " D"], x: Any, f: Array) -> dist.Distribution:
        return one_a_row(trace(theta, x, None, {"f": f})[0][observed], x)

    def forward(theta: Float[Array, " D"], x: Any) -> Array:
        sites, _ = trace(theta, x, None, {})
        if "f" in sites:
            return sites["f"]["value"]
        mean = one_a_row(sites[observed], x).mean
        return mean.reshape(mean.shape[0], -1)

    def constrain(theta: Float[Array, " D"]) -> dict[str, Array]:
        sites, _ = trace(theta, x, y, {})
        kept = {
            name: s for name, s in sites.items() if name in layout or (s["type"] == "deterministic" and name != "f")
        }
        return {name.replace("/", "."): site["value"] for name, site in kept.items()}

    def unconstrain(values: Mapping[str, Array]) -> Float[Array, " D"]:
        missing = sorted({name.replace("/", ".") for name in layout} - set(values))
        if missing:
            raise ConfigError(f"model: no value is given for the latent site '{missing[0]}': give one for each site.")
        given = {name: values[name.replace("/", ".")] for name in layout}
        # The model is traced at the given values, because a support may depend on the sites before it.
        held = handlers.substitute(model, substitute_fn=lambda site: given.get(site["name"]))
        with handlers.block():
            sites = handlers.trace(handlers.seed(held, jax.random.key(0))).get_trace(x, y)
        return flatten(sites, given)

    def flatten(sites: dict[str, Any], values: dict[str, Array]) -> Float[Array, " D"]:
        free = [biject_to(sites[name]["fn"].support).inv(values[name]) for name in layout]
        # Flax initialises weights in single precision, whatever the run's is.
        return jnp.concatenate([jnp.ravel(part).astype(float) for part in free])

    def sample_prior(key: Array) -> Float[Array, " D"]:
        sites = handlers.trace(handlers.seed(model, key)).get_trace(x, None)
        return flatten(sites, {name: sites[name]["value"] for name in layout})

    def init_params(key: Array) -> Float[Array, " D"]:
        own = _InitialWeights()
        with own:
            sites = handlers.trace(handlers.seed(model, key)).get_trace(x, None)
        values = {name: own.found.get(name.replace("/", "."), sites[name]["value"]) for name in layout}
        return flatten(sites, values)

    dim = sum(slot.size for slot in layout.values())

    def wiring() -> Wiring:
        """The graph from the sites to the network's outputs."""

        def values(theta: Array) -> dict[str, Array]:
            sites, _ = trace(theta, x, None, {})
            return {name: sites[name]["value"] for name in layout} | {"f": sites["f"]["value"]} if "f" in sites else {}

        shapes = jax.eval_shape(values, jnp.zeros(dim))
        if "f" not in shapes:
            raise ConfigError(
                "model: it has no deterministic site 'f', the outputs whose layers could be found: use model=bnn."
            )
        del shapes["f"]
        return Wiring(lambda weights, x: trace(jnp.zeros(dim), x, None, weights)[0]["f"]["value"], shapes, x)

    def units() -> np.ndarray:
        out = np.full(dim, -1)
        for name, numbers in wiring().units().items():
            slot = layout[name]
            if (numbers >= 0).any() and not slot.real:
                raise ConfigError(
                    f"prior: '{name}' is constrained, but dropout sets weights to zero: use a normal prior."
                )
            if slot.real:
                out[slot.start : slot.start + slot.size] = numbers.reshape(-1)
        return out

    def last_layer() -> np.ndarray:
        found = wiring().last_layer()
        return np.concatenate([np.full(slot.size, found[name]) for name, slot in layout.items()])

    return Target(
        dim,
        sample_prior,
        init_params,
        terms,
        forward,
        likelihood,
        predictive,
        constrain,
        unconstrain,
        temperature,
        rows,
        units,
        last_layer,
        needs_key,
    )


def _inspect(model: Model, x: Any, y: Any) -> tuple[dict[str, _Slot], str, tuple[int, ...], bool]:
    """Trace the model abstractly, without computing values, and return what is needed to make its target.

    This is the layout of theta, the name of the observed site, the shape of its log probability, and whether the log
    likelihood or a factor depends on a key that the model asks for.
    """
    layout: dict[str, _Slot] = {}
    observed: dict[str, tuple[int, ...]] = {}

    def look(key: Array, x: Any, y: Any) -> list[Array]:
        offset = 0
        log_probs = []
        asked = handlers.seed(_AskedKeys(model, key), jax.random.key(0))
        for name, site in handlers.trace(asked).get_trace(x, y).items():
            if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
                raise ConfigError(
                    f"model: plate '{name}' has a subsample_size, but batches are drawn for the model: leave it out and "
                    "set inference.schedule.batch_size."
                )
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                if not isinstance(site["fn"], dist.Unit) and _unmasked(site["fn"]) is not site["fn"]:
                    raise ConfigError(
                        f"model: '{name}' is observed under a mask, and hidden rows would be scored as if their density "
                        "were 1: leave these rows out of the data."
                    )
                log_probs.append(_log_prob(site))
                if not isinstance(site["fn"], dist.Unit):
                    observed[name] = jnp.shape(site["fn"].log_prob(site["value"]))
                continue
            if site["fn"].support.is_discrete:
                raise ConfigError(
                    f"model: latent site '{name}' is discrete, which gradient methods cannot move: marginalise it out."
                )
            free = biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))
            layout[name] = _Slot(offset, math.prod(free), tuple(free), _is_real(site["fn"].support))
            offset += math.prod(free)
        return log_probs

    try:
        jaxpr = jax.make_jaxpr(look)(jax.random.key(0), x, y).jaxpr
    except NotImplementedError as error:
        raise ConfigError(
            "model: a distribution of it cannot do what is asked, as ImproperUniform, from which no start can be drawn: "
            "use a wide proper prior, as Normal(0, 100)."
        ) from error
    needs_key = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1][0]
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
    return layout, name, shape, needs_key


def _log_prob(site: dict[str, Any]) -> Array:
    """Log probability of a site, times the scale that plates and handlers give it."""
    log_prob = site["fn"].log_prob(site["value"])
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def _unmasked(fn: dist.Distribution) -> dist.Distribution:
    """The distribution without its masks. A mask changes the density of a site but not its draws."""
    if isinstance(fn, dist.MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, dist.Independent) and (inner := _unmasked(fn.base_dist)) is not fn.base_dist:
        return inner.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution) and (inner := _unmasked(fn.base_dist)) is not fn.base_dist:
        return inner.expand(fn.batch_shape)
    return fn


def _is_real(support: Any) -> bool:
    base = support.base_constraint if isinstance(support, dist.constraints.independent) else support
    return base is dist.constraints.real


class _AskedKeys(Messenger):
    """Gives the keys that the model itself asks for, derived from another key than that of its latent sites."""

    def __init__(self, model: Model, key: Array) -> None:
        super().__init__(model)
        self.key, self.count = key, 0

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give a new key at each request."""
        if msg["type"] == "prng_key" and msg["value"] is None:
            self.count += 1
            msg["value"] = jax.random.fold_in(self.key, self.count)


class _InitialWeights(Messenger):
    """Collects by dotted name the weights in the ``param`` sites of Flax modules, before priors replace them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Array] = {}

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Keep each weight of the module now, because NumPyro changes the dict in place afterwards."""
        if msg["type"] == "param" and msg["name"].endswith("$params") and msg["value"] is not None:
            prefix = msg["name"].removesuffix("$params")
            for path, leaf in jax.tree_util.tree_leaves_with_path(msg["value"]):
                self.found[".".join([prefix, *(str(step.key) for step in path)])] = leaf
