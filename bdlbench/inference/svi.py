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
    """One inverse autoregressive flow (Kingma et al. 2016), followed by a learned shift and scale.

    NumPyro's flow starts with the width of its standard normal base and not at the start point. From there a network
    does not train well.
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

    The warm-up optimises the guide q. ``thinning`` is 0, so that the draws are independent draws from q. The record has
    the Pareto k-hat of the ratios p(theta) / q(theta) of the draws. If it is 0.7 or more, q is not a good approximation
    of the posterior (Yao et al. 2018).

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
        Number of draws of theta in each step. A step takes one gradient for each.
    rank : int or None
        Number of factors of ``low_rank``; None for the other guides.

    Raises
    ------
    ConfigError
        If a full-rank matrix is too large for memory (the message says its size), or a flow has more than 1,000
        dimensions.
    """
    positive("inference", init_scale=init_scale)
    at_least("inference", 1, num_particles=num_particles)
    at_least("inference", 1, schedule__num_warmup=schedule.num_warmup)
    if schedule.thinning:
        raise ConfigError("inference.schedule.thinning must be 0 for svi: its draws are read from the fitted guide.")
    _check_guide(guide, rank, target.dim)
    # The memory holds each draw of a step and its gradient.
    draws = f"{num_particles} draws of {target.dim} weights with their gradients"
    fits("inference", 8 * num_particles * target.dim, draws, "use fewer", num_particles=num_particles)

    def model(data: Data | None) -> None:
        # The mask saves the computation of its log density, which is 0.
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

    # The engine's closures are filled by its init. The state that is made here is not used.
    engine, family, _ = bind(jnp.zeros(target.dim), jax.random.key(0))

    def init(key: Array, theta: Array, data: Data) -> Any:
        return bind(theta, key)[2]

    def loss(free: Any, key: Array, data: Data) -> Array:
        """-(log p(y, theta) - log q(theta)) at one theta ~ q, the loss of ``Trace_ELBO``.

        The handlers of ``Trace_ELBO`` are not used. They split keys five times in each step, which makes XLA divide the
        work of a step between threads.
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
        # The density uses the noise of the draw. To invert the draw would take D passes for a flow, and would lose
        # precision for a Cholesky factor.
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
    """A normal distribution that keeps the noise of its draws, which is faster with XLA's CPU backend.

    Otherwise the backend would draw the noise again for theta and for each moment of the optimiser. With the noise,
    log q(theta) = -|noise|^2 / 2 - sum log(scale) + const is computed without theta, and no gradient passes through it.
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
    """NumPyro's mean-field guide with :class:`_Normal`. The barrier makes XLA compute the scale only once."""

    def get_posterior(self, params: Any) -> dist.Distribution:
        q = super().get_posterior(params)
        return _Normal(q.loc, jax.lax.optimization_barrier(q.scale))


class _Cholesky(dist.MultivariateNormal):
    """A multivariate normal that keeps the noise of its draws.

    log q(theta) = -|noise|^2 / 2 - sum log(diag L) + const. To solve L noise = theta - loc for the noise would lose all
    digits if L is ill-conditioned. The optimiser would then find an L whose rounding errors give a large false ELBO.
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
    """NumPyro's full-rank guide with :class:`_Cholesky`."""

    def get_posterior(self, params: Any) -> dist.Distribution:
        q = super().get_posterior(params)
        return _Cholesky(q.loc, scale_tril=q.scale_tril)


def _computed_once() -> optax.GradientTransformation:
    """The identity with a barrier: XLA computes a gradient once, and not again for each moment of the optimiser."""
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
        # There are D (D + 1) / 2 numbers with their gradient and Adam's two moments, and the full matrix with its
        # gradient.
        fits(
            "inference", 16 * dim**2, f"a {dim} x {dim} matrix with its parameters' gradient and moments",
            "use guide=low_rank or a smaller network", guide=guide,
        )  # fmt: skip
    if guide == "iaf" and dim > 1000:
        raise ConfigError(f"inference.guide=iaf is for at most 1,000 weights and this model has {dim}: use low_rank.")
    if guide not in ("mean_field", "low_rank", "full_rank", "iaf"):
        raise ConfigError(f"inference.guide={guide!r} is unknown: use mean_field, low_rank, full_rank or iaf.")
