"""The Laplace approximation with the generalised Gauss-Newton matrix, and predictions with the linearised network."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from bdlbench.errors import ConfigError
from bdlbench.inference.curvature import fisher_information, hessian, parameters, row_factor
from bdlbench.options import fits
from bdlbench.types import Array, Data, Info, Method, Schedule, Target

Structure = Literal["full", "diagonal", "last_layer"]
SIZE_LIMIT = 2**28
"""Largest precision matrix of a lane in bytes, which is enough for about 8,000 weights."""
EVIDENCE_STEPS = 200


class Start(NamedTuple):
    """The point theta (D,) at which the stage before ended."""

    theta: Array


class State(NamedTuple):
    """The mode theta (D,), and s (d,) and C of the normal N(0, Sigma) over d of its coordinates.

    Sigma^-1 = diag(1/s) C C' diag(1/s). C is lower triangular (d, d), or None for the identity.
    """

    theta: Array
    scale: Array
    chol: Array | None


def laplace(target: Target, schedule: Schedule, *, structure: Structure, evidence: bool) -> Method:
    r"""N(theta_0, Sigma) around the mode that the stage before has found (MacKay 1992; Daxberger et al. 2021).

    .. math:: \Sigma^{-1} = \sum_n J_n^T F_n J_n + \nabla^2 (-\log p(\theta))

    J_n is the Jacobian of the parameters of p(y_n | x_n, theta) (mean and scale of a normal, logits of classes) and F_n
    is their Fisher information. So the noise may be learned or heteroscedastic. For fixed noise and for classes the sum
    is the generalised Gauss-Newton matrix. Predictions use the network linearised at theta_0 (Immer, Korzepa & Bauer
    2021), because the Gauss-Newton matrix is the curvature of the linearised network. The result is exact if the
    network is linear and the noise is known. NumPyro's ``AutoLaplaceApproximation`` is not used: it takes the Hessian,
    which is seldom positive definite at the mode of a network, and then has no covariance.

    Parameters
    ----------
    structure : str
        ``full``: the whole precision matrix. ``diagonal``: its diagonal. ``last_layer``: only the weights after the
        last hidden layer and the likelihood's own parameters vary; the other weights stay at the mode.
    evidence : bool
        Whether to choose a factor on the prior's precision, and the scale of a learned homoscedastic noise, by MacKay's
        fixed point for the evidence. theta_0 does not change. The result is an empirical Bayes posterior and not the
        posterior of the model as given.

    Raises
    ------
    ConfigError
        If the schedule has steps or batches, which are not used; the matrix is too large for memory; the curvature of
        the likelihood is not known; the model cannot be evaluated on one row; or the network has no last dense layer.
    """
    if structure not in ("full", "diagonal", "last_layer"):
        raise ConfigError(f"inference.structure={structure!r} is unknown: use full, diagonal or last_layer.")
    if schedule.num_warmup or schedule.thinning:
        raise ConfigError(
            "inference.schedule.num_warmup and thinning must be 0 for laplace: the stage before it trains."
        )
    if schedule.batch_size is not None:
        raise ConfigError(
            f"inference.schedule.batch_size={schedule.batch_size} does not fit laplace, whose curvature is that of all "
            "rows: use null."
        )
    if evidence and isinstance(target.temperature, int | float) and target.temperature != 1:
        raise ConfigError(
            f"inference.evidence belongs to temperature=1, not to {target.temperature:g}: set it to false."
        )
    if structure == "last_layer" and target.last_layer is None:
        raise ConfigError("model: it does not say which weights are its last layer: use inference=laplace.")
    index = np.arange(target.dim)
    if structure == "last_layer" and target.last_layer is not None:
        index = np.flatnonzero(target.last_layer())
    dim, diagonal = len(index), structure == "diagonal"
    if not diagonal:
        matrix, remedy = f"a {dim} x {dim} matrix", "use laplace_diag or a smaller network"
        fits("inference", 4 * dim**2, matrix, remedy, limit=SIZE_LIMIT, structure=structure)

    def at(theta: Array) -> Any:
        """p(y | x) as a function of the d free coordinates."""
        return lambda free, x: target.predictive(theta.at[index].set(free), x)

    def init(key: Array, theta: Array, data: Data) -> Start:
        try:
            jax.eval_shape(lambda: row_factor(at(theta), theta[index], data.x[0]))
            if jax.eval_shape(lambda: parameters(target.predictive(theta, data.x[:1]))).shape[0] != 1:
                raise ValueError("the other rows come along")
        except ConfigError:
            raise
        except (TypeError, ValueError, IndexError) as error:
            raise ConfigError(
                "model: it cannot be evaluated on one row at a time, as Laplace's Jacobians need and a latent for each "
                "row prevents: use another method."
            ) from error
        return Start(theta)

    def finalize(key: Array, start: Start, data: Data) -> tuple[State, Info]:
        theta = start.theta
        free = theta[index]

        def minus_log_prior(free: Array) -> Array:
            terms = target.terms(theta.at[index].set(free), data)
            return -(terms.log_prior_with_factor / target.temperature + terms.log_jacobian)

        data = _shown(target, data)
        likelihood = fisher_information(at(theta), free, data, diagonal) / target.temperature
        prior = hessian(minus_log_prior, free, diagonal)
        if evidence:
            slope = jax.grad(minus_log_prior)(free)
            theta, precision = _by_evidence(target, theta, index, data, likelihood, prior, slope)
        else:
            precision = likelihood + prior
        scale = 1 / jnp.sqrt(precision if diagonal else jnp.diagonal(precision))
        chol = None if diagonal else jnp.linalg.cholesky(scale[:, None] * precision * scale)
        outputs = jax.eval_shape(lambda: row_factor(at(theta), free, data.x[0])).shape[0]
        return State(theta, scale, chol), {"num_grads": jnp.float32(outputs)}

    def step(key: Array, t: Array, state: Any, data: Data) -> tuple[Any, Info]:
        return state, {"num_grads": jnp.float32(0)}

    def draw(key: Array, state: State) -> Array:
        noise = jax.random.normal(key, (dim,), state.theta.dtype)
        if state.chol is not None:
            noise = solve_triangular(state.chol, noise, trans=1, lower=True)
        return state.theta.at[index].add(state.scale * noise)

    return Method(init, step, draw, finalize=finalize, anchor=lambda state: state.theta, markov=False, start="mode")


def _shown(target: Target, data: Data) -> Data:
    """The data, with weight 0 for the rows that a mask of the model hides, since they have no information."""
    if target.scored is None:
        return data
    weights = target.scored(data.x) * (1.0 if data.weights is None else data.weights)
    return data._replace(weights=weights, size=weights.sum())


def _by_evidence(
    target: Target, theta: Array, index: np.ndarray, data: Data, likelihood: Array, prior: Array, slope: Array
) -> tuple[Array, Array]:
    r"""The precision tau G + delta H of the weights at the fixed point of MacKay (1992), and theta with the new noise.

    .. math:: \gamma = \sum_i \frac{\tau \lambda_i}{\tau \lambda_i + \delta}, \quad \delta = \gamma / (w^T H w), \quad
              \sigma^2 = \sum_n r_n^2 / (N - \gamma)

    The lambda_i are the eigenvalues of the likelihood's G relative to the prior's H. w is theta minus the prior's mode;
    the gradient of minus the log of a normal prior is H w. The likelihood's own parameters (its noise) keep their
    curvature.
    """
    diagonal = prior.ndim == 1

    def log_scale(theta: Array) -> Array:
        """Log scale of the first row as a function of the likelihood's own parameters; constant if there are none."""
        eta = parameters(target.likelihood(theta, data.x, jax.lax.stop_gradient(outputs)))
        return jnp.log(eta[0, 1])

    p = target.predictive(theta, data.x)
    base = p.base_dist if isinstance(p, dist.ExpandedDistribution) else p
    gaussian = isinstance(base, dist.Normal)
    outputs = target.forward(theta, data.x)
    pull = jax.grad(log_scale)(theta) if gaussian else jnp.zeros_like(theta)
    weights = pull[index] == 0
    both = weights if diagonal else weights[:, None] & weights
    G = jnp.where(both, likelihood, 0.0)
    H = jnp.where(both, prior, 0.0) + jnp.where(weights, 0.0, 1.0) * (1.0 if diagonal else jnp.eye(len(index)))
    slope = jnp.where(weights, slope, 0.0)
    if diagonal:
        eigenvalues, distance = G / H, (slope**2 / H).sum()
    else:
        root = jnp.linalg.cholesky(H)
        half = solve_triangular(root, G, lower=True)
        eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(solve_triangular(root, half.T, lower=True)), 0.0)
        distance = (solve_triangular(root, slope, lower=True) ** 2).sum()
    learns_noise = (pull != 0).any()
    rows = data.y.shape[0] if data.weights is None else data.size
    # The mean square of the standardised residuals is sigma^2 / sigma_0^2 without the correction by gamma.
    squares = ((data.y - base.loc) / base.scale) ** 2 if gaussian else jnp.ones(data.y.shape[0])
    squares = squares if data.weights is None else data.weights * squares

    def fixed_point(_: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, tau = at
        gamma = (tau * eigenvalues / (tau * eigenvalues + delta)).sum()
        return gamma / distance, jnp.where(learns_noise, (rows - gamma) / squares.sum(), 1.0)

    one = jnp.ones((), theta.dtype)
    delta, tau = jax.lax.fori_loop(0, EVIDENCE_STEPS, fixed_point, (one, one))
    wanted = (log_scale(theta) if gaussian else 0.0) - 0.5 * jnp.log(tau)
    along = jax.nn.one_hot(jnp.argmax(jnp.abs(pull)), target.dim, dtype=theta.dtype)

    def newton(_: Array, theta: Array) -> Array:
        value, grad = jax.value_and_grad(log_scale)(theta)
        return theta + along * jnp.where(
            learns_noise, (wanted - value) / jnp.where(learns_noise, grad @ along, 1.0), 0.0
        )

    moved = jax.lax.fori_loop(0, 20, newton, theta) if gaussian else theta
    return moved, jnp.where(both, tau * likelihood + delta * prior, likelihood + prior)
