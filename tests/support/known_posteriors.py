"""Posteriors in closed form, samplers on them in many independent lanes, and the test of moments.

A check returns the largest |z| over the moments that it tests, and the limit that a correct implementation exceeds with
probability 10^-6. Tests assert that the limit is not exceeded. Tests of mutants assert that it is.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

from bdlbench.inference.hmc import nuts
from bdlbench.model.target import make_target
from bdlbench.runs import configuration
from bdlbench.runs.job import Job, check_job, make_job
from bdlbench.sampling import loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.programs import Lane, Program, Shared
from bdlbench.types import ConfigError, Data, Method, Schedule, Stage, Target

FAMILY_WISE = 1e-6
"""The probability that one check of a correct implementation exceeds its limit."""
PRECISION = 0.01
"""The largest Monte Carlo standard error of a mean, in standard deviations. That of a chain that does not move is larger."""
PRIOR_SCALE = 3.0
NOISE = 0.5
"""The scale of the noise of :func:`linear_job`, which the model knows."""
Factory = Callable[[Target, Schedule, Mapping[str, Any]], Method]


class Verdict(NamedTuple):
    """The result of a check.

    Attributes
    ----------
    z, limit : float
        The largest |z| over the moments, and the limit for it.
    mcse : float
        The largest Monte Carlo standard error of a mean, in standard deviations.
    """

    z: float
    limit: float
    mcse: float

    @property
    def passes(self) -> bool:
        """Whether the law holds, and the standard errors are small enough to decide it."""
        return bool(self.z <= self.limit and self.mcse <= PRECISION)


def limit(num_tests: int, degrees: float) -> float:
    """Return the two-sided Bonferroni limit for ``num_tests`` t statistics at the family-wise level ``FAMILY_WISE``."""
    return float(scipy.stats.t.isf(FAMILY_WISE / (2 * num_tests), degrees))


def largest_z(per_lane: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the largest |z| of lane averages (C, m) against ``truth`` (m,), and its limit by Student's t.

    The C lanes are independent, although the draws of one lane are not. Therefore the standard error follows from the
    spread of the lane averages, with C - 1 degrees of freedom, and no autocorrelation has to be estimated.
    """
    lanes = per_lane.shape[0]
    assert np.isfinite(per_lane).all(), "a moment is not finite"
    z = np.abs(per_lane.mean(0) - truth) / (per_lane.std(0, ddof=1) / np.sqrt(lanes))
    return float(z.max()), limit(per_lane.shape[1], lanes - 1)


def moments(draws: np.ndarray, mean: np.ndarray, cov: np.ndarray, per_sd: float = 1.0) -> Verdict:
    """Test all first and second moments of draws (C, n, D) against N(mean, cov).

    The draws are whitened with ``cov``. Then E[w] = 0 and E[w w'] = I are D + D (D + 1) / 2 equations that are
    equivalent to the moments, and directions with small and large variance have the same weight.
    """
    draws = np.asarray(draws, np.float64)
    white = np.linalg.solve(np.linalg.cholesky(np.asarray(cov, np.float64)), (draws - mean).reshape(-1, len(mean)).T).T
    white = white.reshape(draws.shape)
    first = white.mean(1)
    second = np.einsum("cni,cnj->cij", white, white) / white.shape[1]
    upper = np.triu_indices(len(mean))
    z, most = largest_z(
        np.concatenate([first, second[:, upper[0], upper[1]]], 1),
        np.concatenate([np.zeros(len(mean)), np.eye(len(mean))[upper]]),
    )
    return Verdict(z, most, float((first.std(0, ddof=1) / np.sqrt(len(first))).max()))


class Gaussian(NamedTuple):
    """Linear regression y ~ N(x theta, 1) with prior theta ~ N(0, PRIOR_SCALE^2 I) and posterior N(mean, precision^-1)."""

    x: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    precision: np.ndarray

    @property
    def cov(self) -> np.ndarray:
        """The posterior covariance (D, D)."""
        return np.linalg.inv(self.precision)


def gaussian(dim: int, condition: float, seed: int = 0, copies: int = 1) -> Gaussian:
    """Make a posterior of ``dim`` dimensions with random axes and variances from 1 down to 1 / condition.

    The prior is wider than the posterior, so that chains that start from the prior are overdispersed. The rows are
    chosen such that X'X = precision - I / PRIOR_SCALE^2.
    """
    rng = np.random.default_rng([seed, dim, int(condition)])
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    precision = axes @ np.diag(np.geomspace(1.0, condition, dim)) @ axes.T
    root = np.linalg.cholesky(precision - np.eye(dim) / PRIOR_SCALE**2).T / np.sqrt(copies)
    x = np.tile(root, (copies, 1))
    y = x @ rng.standard_normal(dim) + rng.standard_normal(dim * copies)
    # The posterior is computed for the single-precision rows that the samplers get.
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    exact = np.asarray(x, np.float64)
    precision = exact.T @ exact + np.eye(dim) / PRIOR_SCALE**2
    return Gaussian(x, y, np.linalg.solve(precision, exact.T @ np.asarray(y, np.float64)), precision)


def linear_job(path: Path, inference: str, *options: str, chains: int = 64) -> tuple[Job, Gaussian]:
    """Make a job of linear regression as a network without hidden layer, and return it with its posterior.

    There are 40 rows of 4 correlated features, and the noise is known. Theta is the bias, then the kernel. The rows of
    the returned problem are divided by the scale of the noise, so that it is a :class:`Gaussian`. ``options`` are
    further overrides, which may also change the problem.
    """
    rng = np.random.default_rng(11)
    x = rng.standard_normal((40, 4)) + 0.8 * rng.standard_normal((40, 1))
    np.savez(path / "rows.npz", x=x, y=x @ rng.standard_normal(4) + rng.standard_normal(40))
    usual = ["data=npz", f"data.path={path}/rows.npz", "data.test_fraction=0", "network=linear", "prior=normal"]
    usual += [f"prior.weight_scale={PRIOR_SCALE}", f"prior.bias_scale={PRIOR_SCALE}", "likelihood=gaussian_fixed"]
    usual += [f"likelihood.sigma={NOISE}", f"inference={inference}", *options]
    job = make_job(*configuration.compose([*usual, f"inference.schedule.num_chains={chains}"]))
    found = job.dataset.train
    design = np.column_stack([np.ones(len(found.y)), found.x]).astype(np.float64)
    target = found.y.astype(np.float64) / NOISE
    precision = design.T @ design / NOISE**2 + np.eye(5) / PRIOR_SCALE**2
    return job, Gaussian(design / NOISE, target, np.linalg.solve(precision, design.T @ target / NOISE), precision)


def target_of(problem: Any, model: Callable[..., None] | None = None) -> tuple[Target, Data]:
    """Return the target and the data of a problem."""
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    return make_target(model or regression, x, y, 1.0), Data(x, y, len(problem.y))


def assert_refused(options: Sequence[str], sentence: str, data: str = "diabetes") -> None:
    """Assert that a configuration is refused before compilation, with a message that matches ``sentence``."""
    with pytest.raises(ConfigError, match=sentence):
        check_job(make_job(*configuration.compose([f"data={data}", *options])))


def silence(patch: Any) -> None:
    """Replace the normal noise of a sampler by zeros."""
    patch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.zeros(shape, dtype))


def regression(x: jax.Array, y: jax.Array | None = None) -> None:
    """The model of :class:`Gaussian`."""
    theta = numpyro.sample("theta", dist.Normal(0.0, PRIOR_SCALE).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ theta, 1.0), obs=y)


_SERIAL = itertools.count()


def program(
    stages: tuple[Stage, ...], model: Callable[..., None] = regression, start: str = "prior", key: str | None = None
) -> Program:
    """Make a program with a new key, so that nothing compiled before is used. ``numbers["temperature"]`` tempers it."""

    def build(numbers: Mapping[str, Any], x: Any, y: Any) -> Target:
        return make_target(model, x, y, numbers["temperature"])

    return Program(key or f"test {next(_SERIAL)}", build, stages, start)  # type: ignore[arg-type]


def lanes_of(num: int, seed: int = 0, **numbers: Any) -> Lane:
    """Make ``num`` lanes with different keys. Each number is one value for all lanes, or an array (num,)."""
    keys = jax.vmap(lambda lane: jax.random.fold_in(jax.random.key(seed), lane))(jnp.arange(num))
    given = {"temperature": 1.0, **numbers}
    spread = {name: np.broadcast_to(np.asarray(value, np.float32), (num,)).copy() for name, value in given.items()}
    return Lane(keys, np.zeros(num, np.int32), spread, None)


class Outcome(NamedTuple):
    """The draws (L, n, D) and the blocks of a run."""

    draws: np.ndarray
    blocks: list[loop.Block]

    def stat(self, name: str) -> np.ndarray:
        """Return a statistic of the step before each draw, (L, n)."""
        return np.concatenate([b.stats[name] for b in self.blocks if b.draws is not None], 1)


def sample(
    program: Program,
    shared: Shared,
    lane: Lane,
    block_seconds: float = 1.0,
    marks: loop.Marks = lambda stage, phase: (),
) -> Outcome:
    """Run a program to its end, and return its draws and blocks."""
    blocks = list(loop.run(program, shared, lane, clock=Clock(), block_seconds=block_seconds, marks=marks))
    kept = [b.draws for b in blocks if b.draws is not None]
    return Outcome(np.concatenate(kept, 1), blocks)


def stage(name: str, factory: Callable[..., Method], schedule: Schedule, **options: Any) -> Stage:
    """Make a stage of ``factory`` with fixed options. An option made by :func:`number` is read from the lane."""

    def build(target: Target, schedule: Schedule, numbers: Mapping[str, Any]) -> Method:
        given = {
            key: value(numbers) if isinstance(value, functools.partial) else value for key, value in options.items()
        }
        return factory(target, schedule, **given)

    return Stage(name, build, schedule)


def number(name: str) -> functools.partial[Any]:
    """Return an option for :func:`stage` whose value is the lane's number of this name."""
    return functools.partial(lambda numbers: numbers[name])


def rows(problem: Any) -> Shared:
    """Return the rows of a problem in the form that the loop needs, as one data set."""
    return Shared(problem.x[None], problem.y[None])


def nuts_stage(
    num_samples: int,
    num_warmup: int = 300,
    *,
    target_accept_prob: float = 0.8,
    max_tree_depth: int = 8,
    dense_mass: bool = False,
    factory: Callable[..., Method] = nuts,
) -> Stage:
    """Make a stage of NUTS."""
    schedule = Schedule(1, num_warmup, num_samples, 1)
    options = {"target_accept_prob": target_accept_prob, "max_tree_depth": max_tree_depth, "dense_mass": dense_mass}
    return stage("nuts", factory, schedule, **options)
