"""Stochastic variational inference: NumPyro's autoguides over the flat theta."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_value

from bdlbench.errors import ConfigError
from bdlbench.options import at_least, fits, positive, static
from bdlbench.types import Array, Data, Info, Method, Schedule, Target

Guide = Literal["mean_field", "low_rank", "full_rank", "iaf"]


class AutoScaledIAF(autoguide.AutoIAFNormal):
    """One inverse autoregressive flow (Kingma et al. 2016), then a learned shift and scale.

    NumPyro's own starts as wide as its standard normal base and away from the start point, which ruins a network.
    """

    def __init__(self, model: Any, *, init_loc_fn: Any, init_scale: Any, hidden_dims: tuple[int, ...]) -> None:
        self._init_scale = init_scale
        super().__init__(model, init_loc_fn=init_loc_fn, num_flows=1, hidden_dims=hidden_dims)

    def _get_posterior(self) -> dist.Distribution:
        flow = super()._get_posterior()
        loc = numpyro.param(f"{self.prefix}_loc", self._init_latent)
        scale = numpyro.param(
            f"{self.prefix}_scale",
            jnp.full(self.latent_dim, self._init_scale),
            constraint=dist.constraints.softplus_positive,
        )
        affine = dist.transforms.IndependentTransform(dist.transforms.AffineTransform(loc, scale), 1)
        return dist.TransformedDistribution(flow.base_dist, [*flow.transforms, affine])


@static("init_scale")
def svi(
    target: Target,
    schedule: Schedule,
    *,
    optimizer: optax.GradientTransformation,
    guide: Guide,
    init_scale: float,
    num_particles: int,
    rank: int | None,
) -> Method:
    r"""Maximise the ELBO over a family q_phi by stochastic gradients (Ranganath et al. 2014; Kucukelbir et al. 2017).

    .. math:: \mathcal L(\phi) = E_{q_\phi}[\log p(y, \theta) - \log q_\phi(\theta)], \quad
              \theta = g_\phi(\epsilon)\ \text{(reparameterised)}

    The warm-up optimises; ``thinning`` is 0, so sampling reads the guide. The record has the Pareto k-hat of the ratios
    p(theta) / q(theta) of the draws: from 0.7 on, q is not to be taken for the posterior (Yao et al. 2018).

    Parameters
    ----------
    optimizer : optax.GradientTransformation
        Minimises -ELBO (a sum over the rows, not a mean).
    guide : str
        ``mean_field`` (independent normals), ``low_rank`` (diagonal plus ``rank`` factors), ``full_rank`` (Cholesky
        factor) or ``iaf`` (one inverse autoregressive flow; small D only), on unconstrained theta.
    init_scale : float
        Initial standard deviation of q; 1e-2 or less for networks.
    num_particles : int
        Draws of theta a step; each costs a gradient.
    rank : int or None
        Factors of ``low_rank``; null for the other guides.

    Raises
    ------
    ConfigError
        For a full-rank matrix too large for memory, named with its size, or a flow of more than 1,000 dimensions.
    """
    positive("inference", init_scale=init_scale)
    at_least("inference", 1, num_particles=num_particles)
    at_least("inference", 1, schedule__num_warmup=schedule.num_warmup)
    if schedule.thinning:
        raise ConfigError("inference.schedule.thinning must be 0 for svi: its draws are read from the fitted guide.")
    _check_guide(guide, rank, target.dim)
    # Each draw of a step and its gradient.
    draws = f"{num_particles} draws of {target.dim} weights with their gradients"
    fits("inference", 8 * num_particles * target.dim, draws, "use fewer", num_particles=num_particles)

    def model(data: Data | None) -> None:
        # Masked, since its log density would look for infinities in theta, to add 0.
        flat = dist.ImproperUniform(dist.constraints.real_vector, (), (target.dim,)).mask(False)
        theta = numpyro.sample("theta", flat)
        if data is not None:
            numpyro.factor("log_density", target.log_density(theta, data))

    def bind(theta: Array, key: Array) -> tuple[SVI, Any, Any]:
        options: dict[str, Any] = {"init_loc_fn": init_to_value(values={"theta": theta}), "init_scale": init_scale}
        family = {
            "mean_field": _MeanField,
            "low_rank": autoguide.AutoLowRankMultivariateNormal,
            "full_rank": _FullRank,
            "iaf": AutoScaledIAF,
        }[guide]
        if guide == "low_rank":
            options["rank"] = rank
        if guide == "iaf":
            options["hidden_dims"] = (target.dim,)
        q = family(model, **options)
        engine = SVI(model, q, optax.chain(_computed_once(), optimizer), Trace_ELBO(num_particles=num_particles))
        return engine, q, engine.init(key, None)

    # The engine's closures are filled by its init; the state made here is never looked at.
    engine, family, _ = bind(jnp.zeros(target.dim), jax.random.key(0))

    def init(key: Array, theta: Array, data: Data) -> Any:
        return bind(theta, key)[2]

    def loss(free: Any, key: Array, data: Data) -> Array:
        """-(log p(y, theta) - log q(theta)) at one theta ~ q, as ``Trace_ELBO`` has it.

        Without its handlers, which split keys five times a step, and with them the work over threads.
        """
        q = family.get_posterior(engine.constrain_fn(free))
        theta, noise = q.sample_with_intermediates(key)
        log_q = q.log_prob(theta, noise) if noise else q.log_prob(theta)
        return log_q.sum() - target.log_density(theta, data)

    def step(key: Array, t: Array, state: Any, data: Data) -> tuple[Any, Info]:
        def estimate(free: Any) -> tuple[Array, None]:
            if num_particles == 1:
                return loss(free, key, data), None
            keys = jax.random.split(key, num_particles)
            return jax.vmap(lambda k: loss(free, k, data))(keys).mean(), None

        (value, _), optim_state = engine.optim.eval_and_update(estimate, state.optim_state)
        return state._replace(optim_state=optim_state), {"num_grads": jnp.float32(num_particles), "loss": value}

    def draw_with_log_q(key: Array, state: Any) -> tuple[Array, Array]:
        # With the intermediates: the inverse of a flow would cost D passes, that of a Cholesky factor precision.
        q = family.get_posterior(engine.get_params(state))
        theta, noise = q.sample_with_intermediates(key)
        return theta, (q.log_prob(theta, noise) if noise else q.log_prob(theta)).sum()

    return Method(
        init,
        step,
        draw=lambda key, state: draw_with_log_q(key, state)[0],
        log_q=lambda key, state: draw_with_log_q(key, state)[1],
        markov=False,
        fixed_target=False,
    )


class _Normal(dist.Normal):
    """A normal that remembers its noise, for XLA's CPU backend.

    The backend would draw the noise again in theta and in each moment of the optimiser. And with the noise at hand
    log q(theta) = -|noise|^2 / 2 - sum log(scale) + const needs no theta, whose gradient through it is 0.
    """

    def sample_with_intermediates(self, key: Any, sample_shape: tuple[int, ...] = ()) -> tuple[Array, list[Array]]:
        noise = jax.random.normal(key, sample_shape + self.batch_shape, jnp.result_type(self.loc, self.scale))
        noise = jax.lax.optimization_barrier(noise)
        return self.loc + self.scale * noise, [noise]

    def log_prob(self, value: Array, intermediates: list[Array] | None = None) -> Array:
        if not intermediates:
            return super().log_prob(value)
        return -0.5 * (intermediates[0] ** 2 + math.log(2 * math.pi)) - jnp.log(self.scale)


class _MeanField(autoguide.AutoDiagonalNormal):
    """NumPyro's mean-field guide over :class:`_Normal`, its scale computed once and not again in each use."""

    def get_posterior(self, params: Any) -> dist.Distribution:
        q = super().get_posterior(params)
        return _Normal(q.loc, jax.lax.optimization_barrier(q.scale))


class _Cholesky(dist.MultivariateNormal):
    """A multivariate normal that remembers its noise.

    log q(theta) = -|noise|^2 / 2 - sum log(diag L) + const. Solving L noise = theta - loc for it instead loses all
    digits where L is ill-conditioned, and an optimiser finds the L whose rounding errors pass for a large ELBO.
    """

    def sample_with_intermediates(self, key: Any, sample_shape: tuple[int, ...] = ()) -> tuple[Array, list[Array]]:
        shape = sample_shape + self.batch_shape + self.event_shape
        noise = jax.random.normal(key, shape, jnp.result_type(self.loc, self.scale_tril))
        return self.loc + (self.scale_tril @ noise[..., None])[..., 0], [noise]

    def log_prob(self, value: Array, intermediates: list[Array] | None = None) -> Array:
        if not intermediates:
            return super().log_prob(value)
        log_det = jnp.log(jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1)).sum(-1)
        dim = self.event_shape[0]
        return -0.5 * ((intermediates[0] ** 2).sum(-1) + dim * math.log(2 * math.pi)) - log_det


class _FullRank(autoguide.AutoMultivariateNormal):
    """NumPyro's full-rank guide over :class:`_Cholesky`."""

    def get_posterior(self, params: Any) -> dist.Distribution:
        q = super().get_posterior(params)
        return _Cholesky(q.loc, scale_tril=q.scale_tril)


def _computed_once() -> optax.GradientTransformation:
    """The identity, behind a barrier: a gradient is computed once, not again in each moment of the optimiser."""
    return optax.stateless(lambda grads, params: jax.lax.optimization_barrier(grads))


def _check_guide(guide: str, rank: int | None, dim: int) -> None:
    if guide == "low_rank" and (rank is None or not 1 <= rank <= dim):
        raise ConfigError(f"inference.rank={rank} does not fit guide=low_rank with {dim} weights: give 1 to {dim}.")
    if guide != "low_rank" and rank is not None:
        raise ConfigError(f"inference.rank={rank} belongs to guide=low_rank: set it to null for guide={guide}.")
    if guide == "low_rank" and rank is not None:
        fits(
            "inference", 16 * dim * rank, f"a {dim} x {rank} matrix with its gradient and moments",
            "use a lower rank", rank=rank,
        )  # fmt: skip
    if guide == "full_rank":
        # D (D + 1) / 2 numbers, their gradient and Adam's two moments, and the matrix they fill with its gradient.
        fits(
            "inference", 16 * dim**2, f"a {dim} x {dim} matrix with its parameters' gradient and moments",
            "use guide=low_rank or a smaller network", guide=guide,
        )  # fmt: skip
    if guide == "iaf" and dim > 1000:
        raise ConfigError(f"inference.guide=iaf is for at most 1,000 weights and this model has {dim}: use low_rank.")
    if guide not in ("mean_field", "low_rank", "full_rank", "iaf"):
        raise ConfigError(f"inference.guide={guide!r} is unknown: use mean_field, low_rank, full_rank or iaf.")
