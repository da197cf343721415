"""Function draws of samplers that are right and of samplers with one fault, of a posterior known in closed form.

The weights of a line of five features are N(m, P^-1), P = I + H the sum of the prior's and the data's precision, and the
function values at ten points are linear in them. A second posterior has two modes that weigh .9 and .1.
"""

import numpy as np
from scipy.signal import lfilter

POINTS, CHAINS = 10, 8
_X = np.linspace(-1, 1, POINTS)
FEATURES = np.stack([np.ones(POINTS), _X, _X**2, np.sin(3 * _X), np.cos(3 * _X)], 1)
PRIOR = np.eye(5)
DATA = 8 * FEATURES.T @ FEATURES / POINTS
SHARE = 0.1
"""B/N, where the factor N/B is missing."""


def functions(whitened, precision):
    """Function values of weights N(0, precision^-1), given whitened ones (..., 5)."""
    return whitened @ np.linalg.inv(np.linalg.cholesky(precision)) @ FEATURES.T


def exact(rng, *shape):
    return functions(rng.normal(size=(*shape, 5)), PRIOR + DATA)


def _langevin(rng, num_draws, noise):
    """theta' = theta - h theta + noise xi in whitened weights, h = .1, kept every 50 steps and started from its law."""
    step, thinning = 0.1, 50
    sd = noise / np.sqrt(1 - (1 - step) ** 2)
    keep = (1 - step) ** thinning
    noises = rng.normal(size=(CHAINS, num_draws, 5)) * sd * np.sqrt(1 - keep**2)
    noises[:, 0] /= np.sqrt(1 - keep**2)
    return functions(lfilter([1.0], [1.0, -keep], noises, axis=1), PRIOR + DATA)


def _two_modes(rng, second):
    """Draws of the second posterior, with the mode of each draw given (bool)."""
    return exact(rng, *second.shape) + 8.0 * second[..., None] * FEATURES[:, 1]


def exact_modes(rng, *shape):
    return _two_modes(rng, rng.random(shape) < 0.1)


def _stuck(rng, num_draws):
    draws = exact(rng, CHAINS, num_draws)
    draws[3] = draws[3, :1]
    return draws


def _cold_chain(rng, num_draws):
    draws = exact(rng, CHAINS, num_draws)
    draws[3] *= np.sqrt(0.5)
    return draws


WRONG = {
    "noise without sqrt 2": lambda rng, s: _langevin(rng, s, np.sqrt(0.1)),
    "N/B missing": lambda rng, s: functions(rng.normal(size=(CHAINS, s, 5)), PRIOR + SHARE * DATA),
    "half the temperature": lambda rng, s: np.sqrt(0.5) * exact(rng, CHAINS, s),
    "one chain at half the temperature": _cold_chain,
    "one chain stuck": _stuck,
    "mean-field posterior": lambda rng, s: functions(rng.normal(size=(CHAINS, s, 5)), np.diag(np.diag(PRIOR + DATA))),
    "sd 10 % too large": lambda rng, s: 1.1 * exact(rng, CHAINS, s),
    "mean .3 sd off": lambda rng, s: exact(rng, CHAINS, s) + 0.3 * exact(rng, 1000).std(0),
    "chains frozen in modes": lambda rng, s: _two_modes(
        rng, np.broadcast_to(np.arange(CHAINS)[:, None] % 2 == 1, (CHAINS, s))
    ),
    "one mode lost": lambda rng, s: _two_modes(rng, np.zeros((CHAINS, s), bool)),
}
"""Chains (CHAINS, S, POINTS) with one fault each, by (rng, S). The optimum of KL(q || p) of a mean field has P's diagonal."""


def truth(name):
    """The exact sampler of the posterior that a wrong one is meant for."""
    return exact_modes if "mode" in name.split() or "modes" in name.split() else exact
