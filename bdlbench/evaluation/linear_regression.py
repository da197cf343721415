"""The exact posterior of linear regression with normal noise, y = w x + b + sigma e with e ~ N(0, 1)."""

from typing import Any, NamedTuple

import numpy as np

_PANELS, _NODES = 200, 20
_NEGLIGIBLE = 80.0  # nats below the mode; e^-80 is far below the rounding error of the integral in float64


class Moments(NamedTuple):
    """Mean (3,) and covariance (3, 3) of (w, b, sigma)."""

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def sd(self) -> np.ndarray:
        """The standard deviations (3,) of w, b and sigma."""
        return np.sqrt(np.diag(self.covariance))


def exact_posterior(x: Any, y: Any, *, weight_scale: float, bias_scale: float, low: float, high: float) -> Moments:
    r"""Posterior moments of a line under N(0, s_w^2) x N(0, s_b^2) on (w, b) and Uniform(low, high) on sigma.

    Given sigma everything is Gaussian (Bishop 2006, 3.3 and 3.5): with X = (x, 1) and S_0 = diag(s_w^2, s_b^2)

    .. math::
        \Lambda &= S_0^{-1} + X'X / \sigma^2, \qquad m = \Lambda^{-1} X'y / \sigma^2 \\
        \log p(y | \sigma) &= -n \log\sigma - \tfrac12 \log|\Lambda|
            - \tfrac12 \left(|y - Xm|^2 / \sigma^2 + m' S_0^{-1} m\right) + \text{const}

    Sigma is integrated out by Gauss-Legendre quadrature over the part of (max(low, 1e-6 high), high) in which its
    posterior density is above e^-80 times its largest value. The moments follow from the laws of total expectation and
    total variance.

    Parameters
    ----------
    x, y : array (n,)
    weight_scale, bias_scale : float
        Prior standard deviations of w and b.
    low, high : float
        Bounds of the prior of sigma.

    Returns
    -------
    Moments
        The moments of (w, b, sigma), in this order.
    """
    x, y = (np.asarray(part, np.float64).reshape(-1) for part in (x, y))
    X = np.stack([x, np.ones_like(x)], 1)
    prior_precision = np.diag([weight_scale**-2.0, bias_scale**-2.0])
    gram, projected = X.T @ X, X.T @ y

    def given(sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log p(y | sigma) (Q,), and mean (Q, 2) and covariance (Q, 2, 2) of (w, b), given each sigma (Q,)."""
        precision = prior_precision + gram / sigma[:, None, None] ** 2
        mean = np.linalg.solve(precision, (projected / sigma[:, None] ** 2)[..., None])[..., 0]
        misfit = ((y - mean @ X.T) ** 2).sum(1) / sigma**2 + np.einsum("qi,ij,qj->q", mean, prior_precision, mean)
        log_evidence = -len(y) * np.log(sigma) - 0.5 * np.linalg.slogdet(precision)[1] - 0.5 * misfit
        return log_evidence, mean, np.linalg.inv(precision)

    scan = np.geomspace(max(low, 1e-6 * high), high, 20_001)
    height, _, _ = given(scan)
    held = np.flatnonzero(height > height.max() - _NEGLIGIBLE)
    edges = np.linspace(scan[max(held[0] - 1, 0)], scan[min(held[-1] + 1, len(scan) - 1)], _PANELS + 1)
    node, weight = np.polynomial.legendre.leggauss(_NODES)
    half = 0.5 * np.diff(edges)[:, None]
    sigma = (0.5 * (edges[:-1] + edges[1:])[:, None] + half * node).reshape(-1)

    log_evidence, mean, covariance = given(sigma)
    density = (half * weight).reshape(-1) * np.exp(log_evidence - log_evidence.max())
    density /= density.sum()
    together = np.concatenate([mean, sigma[:, None]], 1)
    centre = density @ together
    total = np.einsum("q,qi,qj->ij", density, together - centre, together - centre)
    total[:2, :2] += np.einsum("q,qij->ij", density, covariance)
    return Moments(centre, total)
