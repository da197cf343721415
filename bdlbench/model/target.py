"""Turn a NumPyro model into a target, a density of one flat unconstrained vector that one trace evaluates."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.primitives import Messenger

from bdlbench.errors import ConfigError
from bdlbench.model.inspection import OBSERVED, UNOBSERVED, Model, inspect, is_real, log_prob_of, mask_of, unmasked
from bdlbench.model.wiring import Wiring
from bdlbench.types import Data, Target, Terms

_FREE = "model: no prior is given for {}: no part of the posterior, kept by every method, SVI too, at the initial value"


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
        If the model has no latent site or a discrete one, a prior that cannot be sampled, a plate with subsampling,
        state that is not a parameter, or not exactly one observed site; if the mask of the observed site depends on
        anything other than x; or if the log likelihood is not one number for each row.
    """
    declared = rows_interact(model)
    found = inspect(model, x, y)
    notes: tuple[str, ...] = ()
    if found.free:
        model = handlers.substitute(model, data=_initial(model, x, found.free))
        notes = (_FREE.format(", ".join(f"'{name}'" for name in found.names)),)
        found = inspect(model, x, y)
    if not found.samples:
        model = _WithoutDraws(model, found.observed)
    layout, observed, shape, needs_key = found.layout, found.observed, found.shape, found.needs_key
    imputed = observed.removesuffix(OBSERVED) + UNOBSERVED if observed.endswith(OBSERVED) else None
    whole = None if imputed is None else observed.removesuffix(OBSERVED)  # y with its hidden rows imputed
    rows = shape[0]

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
            if not isinstance(transform, dist.transforms.IdentityTransform) and not is_real(site["fn"].support):
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
            if site["type"] != "sample" or name in (observed, imputed):
                continue
            if name in layout:
                drawn = unmasked(site["fn"]).log_prob(site["value"]).sum()
                log_prior = log_prior + drawn
                if site["scale"] is None and unmasked(site["fn"]) is site["fn"]:
                    continue
                rest = log_prob_of(site).sum() - drawn
            else:
                rest = log_prob_of(site).sum()
            log_factor = rest if log_factor is None else log_factor + rest
        log_lik = log_prob_of(sites[observed])
        return Terms(log_prior, log_jacobian, log_lik.reshape(log_lik.shape[0], -1).sum(1), log_factor)

    def one_a_row(site: dict[str, Any], x: Any) -> dist.Distribution:
        """The site's distribution with the rows as its first axis, expanded if it is the same for all rows."""
        wanted, fn = (jnp.shape(x)[0], *shape[1:]), unmasked(site["fn"])
        return fn if fn.batch_shape == wanted else fn.expand(wanted)

    def predictive(theta: Float[Array, " D"], x: Any) -> dist.Distribution:
        return one_a_row(trace(theta, x, None, {})[0][observed], x)

    def likelihood(theta: Float[Array, " D"], x: Any, f: Array) -> dist.Distribution:
        return one_a_row(trace(theta, x, None, {"f": f})[0][observed], x)

    def forward(theta: Float[Array, " D"], x: Any) -> Array:
        sites, _ = trace(theta, x, None, {})
        if "f" in sites:
            return sites["f"]["value"]
        try:
            mean = one_a_row(sites[observed], x).mean
        except NotImplementedError as error:
            raise ConfigError(
                f"model: '{observed}' has no mean, and there is no deterministic site 'f' in its place: add "
                "numpyro.deterministic('f', ...) of shape (rows, outputs)."
            ) from error
        return mean.reshape(mean.shape[0], -1)

    def scored(x: Any) -> Array:
        fn = trace(jnp.zeros(dim), x, None, {})[0][observed]["fn"]
        return mask_of(fn, (jnp.shape(x)[0], *shape[1:]))

    def fits(theta: Float[Array, " D"], x: Any, y: Any) -> Array:
        fn = trace(theta, x, y, {})[0][observed]["fn"]
        inside = jnp.broadcast_to(fn.support(y), (jnp.shape(x)[0], *shape[1:]))
        inside = inside.reshape(inside.shape[0], -1).all(1)
        return inside | ~scored(x) if found.masked else inside

    def constrain(theta: Float[Array, " D"]) -> dict[str, Array]:
        sites, _ = trace(theta, x, y, {})
        kept = {
            name: s
            for name, s in sites.items()
            if name in layout or (s["type"] == "deterministic" and name not in ("f", whole))
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
        scored if found.masked else None,
        fits if found.support else None,
        found.support,
        declared,
        notes,
        found.factor_reads_rows,
    )


def _initial(model: Model, x: Any, names: list[str]) -> dict[str, Any]:
    """Initial values of ``numpyro.param`` sites, the same in all chains and at each trace."""
    with handlers.block():
        sites = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(x, None)
    return {name: sites[name]["value"] for name in names}


def rows_interact(model: Any) -> bool | None:
    """Whether the outputs of a model at a row depend on other rows, if this is known without evaluating the model.

    True if the model, its network or the network's class declares ``rows_interact``. False if model and network both
    belong to this package. None otherwise.
    """
    ours, parts = [], [model]
    while parts:
        part = parts.pop()
        if getattr(part, "rows_interact", False) is True:
            return True
        parts += [value for key, value in getattr(part, "keywords", {}).items() if key == "network"]
        inner = next((getattr(part, name) for name in ("func", "fn", "module") if hasattr(part, name)), None)
        if inner is not None:
            parts.append(inner)
        else:
            ours.append(str(getattr(part, "__module__", "")).startswith("bdlbench."))
    return False if ours and all(ours) else None


class _WithoutDraws(Messenger):
    """Puts zeros in place of draws of y if y cannot be drawn. Nothing that is computed from the zeros is used."""

    def __init__(self, model: Model, observed: str) -> None:
        super().__init__(model)
        self.observed = observed

    def process_message(self, msg: dict[str, Any]) -> None:
        """Set the value of the observed site to zeros."""
        if msg["type"] == "sample" and msg["name"] == self.observed and msg["value"] is None:
            msg["value"] = jnp.zeros(msg["fn"].shape())


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
