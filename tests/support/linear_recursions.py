"""Moments of linear recursions z' = step(z; batch) + noise on Gaussian posteriors: stationary, and at every step.

A step gets ``grad``, the gradient of the log density as a function of theta, and the state z, which starts with theta.
It is affine in z if the gradient is affine in theta. Batches are drawn with replacement. The map of a batch is the mean
of the maps of its rows.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from known_posteriors import PRIOR_SCALE, Gaussian

Gradient = Callable[[np.ndarray], np.ndarray]
Step = Callable[[Gradient, np.ndarray], np.ndarray]


def affine(step: Callable[[np.ndarray], np.ndarray], size: int) -> np.ndarray:
    """Return the matrix (size + 1, size + 1) that applies an affine map of z to the vector (z, 1)."""
    zero = step(np.zeros(size))
    columns = [step(e) - zero for e in np.eye(size)]
    return np.block([[np.stack(columns, 1), zero[:, None]], [np.zeros((1, size)), np.ones((1, 1))]])


def gradients(problem: Gaussian) -> list[Gradient]:
    """Return for each row the gradient of N times its log likelihood plus the log prior."""
    x, y = problem.x.astype(np.float64), problem.y.astype(np.float64)
    prior = np.eye(x.shape[1]) / PRIOR_SCALE**2
    return [
        lambda theta, i=i: len(x) * x[i] * (y[i] - x[i] @ theta) - prior @ theta  # type: ignore[misc]
        for i in range(len(x))
    ]


class Moments(NamedTuple):
    """The matrix S = E[(z, 1) (z, 1)'] (size + 1, size + 1), which holds the first and second moments of z."""

    second: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean of z."""
        return self.second[:-1, -1]

    @property
    def cov(self) -> np.ndarray:
        """The covariance of z."""
        return self.second[:-1, :-1] - np.outer(self.mean, self.mean)


class Recursion(NamedTuple):
    """One step: the matrices of the rows' maps (N, size + 1, size + 1), the covariance of the noise, the batch size."""

    maps: np.ndarray
    noise: np.ndarray
    batch_size: int | None

    @property
    def mean_map(self) -> np.ndarray:
        """The mean map E[T], where T is the random matrix of a batch."""
        return self.maps.mean(0)

    def after(self, moments: Moments) -> Moments:
        """Return the moments after the step, S' = E[T S T'] + Q.

        E[T x T] = Tm x Tm + (mean_i T_i x T_i - Tm x Tm) / B with Tm = E[T], the Kronecker product x and B rows in a
        batch.
        """
        mean = self.mean_map
        second = mean @ moments.second @ mean.T
        if self.batch_size is not None:
            rows = (self.maps @ moments.second @ self.maps.transpose(0, 2, 1)).mean(0)
            second = second + (rows - second) / self.batch_size
        second[:-1, :-1] += self.noise
        return Moments(second)

    def stationary(self) -> Moments:
        """Return the fixed point of :meth:`after`. Without batches it solves Lyapunov's Sigma = F Sigma F' + Q."""
        mean, size = self.mean_map, len(self.noise)
        if self.batch_size is None:
            loc = np.linalg.solve(np.eye(size) - mean[:-1, :-1], mean[:-1, -1])
            return moments_of(loc, scipy.linalg.solve_discrete_lyapunov(mean[:-1, :-1], self.noise))
        both = np.kron(mean, mean)
        both = both + (np.mean([np.kron(m, m) for m in self.maps], 0) - both) / self.batch_size
        q = np.zeros((size + 1, size + 1))
        q[:-1, :-1] = self.noise
        free = np.arange((size + 1) ** 2 - 1)
        second = np.linalg.solve(np.eye(len(free)) - both[np.ix_(free, free)], both[free, -1] + q.ravel()[free])
        return Moments(np.append(second, 1.0).reshape(size + 1, size + 1))


def moments_of(mean: np.ndarray, cov: np.ndarray) -> Moments:
    """Return the moments of a vector with this mean and covariance."""
    one = np.append(mean, 1.0)
    second = np.outer(one, one)
    second[:-1, :-1] += cov
    return Moments(second)


def recursion(problem: Gaussian, step: Step, noise: np.ndarray, batch_size: int | None) -> Recursion:
    """Make the recursion of a step for the rows of a problem."""
    size = len(noise)
    maps = np.stack([affine(functools.partial(step, grad), size) for grad in gradients(problem)])
    return Recursion(maps, noise, batch_size)


def law(problem: Gaussian, step: Step, noise: np.ndarray, batch_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the stationary mean (D,) and covariance (D, D) of theta."""
    found, dim = recursion(problem, step, noise, batch_size).stationary(), problem.x.shape[1]
    return found.mean[:dim], found.cov[:dim, :dim]


# ---- the steps of the methods


def langevin(dim: int, eps: float) -> tuple[Step, np.ndarray]:
    """SGLD: theta' = theta + eps g(theta) + sqrt(2 eps) xi. Return the step and the covariance of the noise."""
    return lambda grad, theta: theta + eps * grad(theta), 2 * eps * np.eye(dim)


def ascent(dim: int, eps: float) -> tuple[Step, np.ndarray]:
    """Gradient ascent: the step of :func:`langevin` without noise."""
    return langevin(dim, eps)[0], np.zeros((dim, dim))


def sghmc(dim: int, h: float, damping: float, noisy: bool = True) -> tuple[Step, np.ndarray]:
    """SGHMC: theta' = theta + h m, m' = (1 - damping) m + h g(theta') + sqrt(2 damping) xi, where damping = h alpha."""

    def step(grad: Gradient, z: np.ndarray) -> np.ndarray:
        theta = z[:dim] + h * z[dim:]
        return np.concatenate([theta, (1 - damping) * z[dim:] + h * grad(theta)])

    return step, scipy.linalg.block_diag(np.zeros((dim, dim)), 2 * damping * noisy * np.eye(dim))


def baoa(dim: int, h: float, friction: float) -> tuple[Step, np.ndarray]:
    """BAOA: m += h g, theta += h m / 2, m <- exp(-h friction) m + noise, theta += h m / 2."""
    kept = np.exp(-h * friction)

    def step(grad: Gradient, z: np.ndarray) -> np.ndarray:
        m = z[dim:] + h * grad(z[:dim])
        return np.concatenate([z[:dim] + h / 2 * (1 + kept) * m, kept * m])

    return step, (1 - kept**2) * np.kron([[h**2 / 4, h / 2], [h / 2, 1]], np.eye(dim))


def control_variates(problem: Gaussian, eps: float, anchor: np.ndarray) -> tuple[Step, np.ndarray]:
    """SGLD-CV: theta' = theta + eps [g_N(anchor) + g_B(theta) - g_B(anchor)] + sqrt(2 eps) xi."""
    at_anchor = np.mean([grad(anchor) for grad in gradients(problem)], 0)
    step = lambda grad, theta: theta + eps * (at_anchor + grad(theta) - grad(anchor))
    return step, 2 * eps * np.eye(len(anchor))


def heavy_ball(problem: Gaussian, rate: float, momentum: float) -> tuple[Step, np.ndarray]:
    """SGD with momentum as in optax, on -log density / N.

    trace' = -g / N + momentum trace, theta' = theta - rate trace'.
    """
    num_rows, dim = problem.x.shape

    def step(grad: Gradient, z: np.ndarray) -> np.ndarray:
        trace = momentum * z[dim:] - grad(z[:dim]) / num_rows
        return np.concatenate([z[:dim] - rate * trace, trace])

    return step, np.zeros((2 * dim, 2 * dim))
