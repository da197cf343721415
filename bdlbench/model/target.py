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
        If the model has no latent site or a discrete one, a prior that cannot be sampled, a plate with subsampling,
        state that is not a parameter, or not exactly one observed site; if the mask of the observed site depends on
        anything other than x; or if the log likelihood is not one number for each row.
    """
    declared = rows_interact(model)
    found = _inspect(model, x, y)
    notes: tuple[str, ...] = ()
    if found.free:
        model = handlers.substitute(model, data=_initial(model, x, found.free))
        notes = (_FREE.format(", ".join(f"'{name}'" for name in found.names)),)
        found = _inspect(model, x, y)
    if not found.samples:
        model = _WithoutDraws(model, found.observed)
    layout, observed, shape, needs_key = found.layout, found.observed, found.shape, found.needs_key
    imputed = observed.removesuffix(_OBSERVED) + _UNOBSERVED if observed.endswith(_OBSERVED) else None
    whole = None if imputed is None else observed.removesuffix(_OBSERVED)  # y with its hidden rows imputed
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
            if site["type"] != "sample" or name in (observed, imputed):
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
        wanted, fn = (jnp.shape(x)[0], *shape[1:]), _unmasked(site["fn"])
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
        return _mask_of(fn, (jnp.shape(x)[0], *shape[1:]))

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


class _Found(NamedTuple):
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

    layout: dict[str, _Slot]
    observed: str
    shape: tuple[int, ...]
    needs_key: bool
    masked: bool
    support: str
    free: list[str]
    names: list[str]
    samples: bool
    factor_reads_rows: bool


def _inspect(model: Model, x: Any, y: Any) -> _Found:
    """Trace the model abstractly, without computing values."""
    layout: dict[str, _Slot] = {}
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
                (factors if isinstance(site["fn"], dist.Unit) else log_probs).append(_log_prob(site))
                if not isinstance(site["fn"], dist.Unit):
                    observed[name] = shape = jnp.shape(site["fn"].log_prob(site["value"]))
                    supports.append(_support(site["fn"]))
                    try:
                        site["fn"].sample(key)
                    except (NotImplementedError, ImportError):
                        samples.append(False)
                    if _unmasked(site["fn"]) is not site["fn"]:
                        masks.append(_mask_of(site["fn"], shape, name))
                continue
            if name.endswith(_UNOBSERVED) and name.removesuffix(_UNOBSERVED) + _OBSERVED in sites:
                imputed.append(name)
                continue  # the hidden y of an obs_mask: its density integrates to one
            if imputed:
                priors.append(_log_prob(site).sum())
            if site["fn"].support.is_discrete:
                raise ConfigError(
                    f"model: latent site '{name}' is discrete, which gradient methods cannot move: marginalise it out."
                )
            size = biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))
            layout[name] = _Slot(offset, math.prod(size), tuple(size), _is_real(site["fn"].support))
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
    return _Found(layout, name, shape, needs_key, bool(num_masks), supports[0], free, names, all(samples), reads_rows)


def _log_prob(site: dict[str, Any]) -> Array:
    """Log probability of a site, times the scale that plates and handlers give it."""
    log_prob = site["fn"].log_prob(site["value"])
    return log_prob if site["scale"] is None else site["scale"] * log_prob


_OBSERVED, _UNOBSERVED = "_observed", "_unobserved"
"""Suffixes of the two sites that NumPyro makes from a site with ``obs_mask``."""
_FREE = "model: no prior is given for {}: no part of the posterior, kept by every method, SVI too, at the initial value"


def _without_prior(name: str, value: Any) -> list[str]:
    """Dotted names of the values of a ``numpyro.param`` site without a prior. NumPyro removes the others from the site."""
    leaves = jax.tree_util.tree_leaves_with_path(value)
    return [".".join([name.removesuffix("$params"), *(str(step.key) for step in path)]) for path, _ in leaves]


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
        support = _unmasked(fn).support
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


def _mask_of(fn: dist.Distribution, shape: tuple[int, ...], name: str = "") -> Array:
    """The mask of a distribution, broadcast to the shape of its log probability."""
    mask: Any = True
    while isinstance(fn, dist.MaskedDistribution | dist.Independent | dist.ExpandedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            mask = mask & fn._mask
        elif isinstance(fn, dist.Independent) and _unmasked(fn.base_dist) is not fn.base_dist:
            raise ConfigError(
                f"model: '{name}' is observed under a mask on parts of a row: mask the rows as a whole, after to_event."
            )
        fn = fn.base_dist
    return jnp.broadcast_to(jnp.asarray(mask, bool), shape)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())


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
        if msg["type"] == "sample" and msg["name"].endswith(_UNOBSERVED) and not msg["is_observed"]:
            msg["kwargs"]["rng_key"] = self.key


class _WithoutDraws(Messenger):
    """Puts zeros in place of draws of y if y cannot be drawn. Nothing that is computed from the zeros is used."""

    def __init__(self, model: Model, observed: str) -> None:
        super().__init__(model)
        self.observed = observed

    def process_message(self, msg: dict[str, Any]) -> None:
        """Set the value of the observed site to zeros."""
        if msg["type"] == "sample" and msg["name"] == self.observed and msg["value"] is None:
            msg["value"] = jnp.zeros(msg["fn"].shape())


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
