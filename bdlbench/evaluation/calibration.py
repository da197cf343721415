r"""Simulation-based calibration: many fits of data sets whose parameters are known, because they were drawn from the prior.

If theta* ~ p(theta) and y ~ p(y | theta*), theta* is one more draw of the posterior p(theta | y). Among L independent exact
draws each rank of a quantity g(theta*, y) is therefore equally likely (Talts et al. 2018, arXiv 1804.06788; Modrak et al.
2023, arXiv 2211.02383, for quantities that depend on y). All data sets have the same inputs, so that the fits of a method
are the lanes of one program. All methods get the same data sets and the same random numbers for ties.

The same fits are a test of the predictions. The posterior predictive has the smallest expected negative log likelihood of
all predictions that can be made from y, on average over the prior. A method that is better than exact draws by more than
chance reveals a fault in this program.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from bdlbench.errors import ConfigError
from bdlbench.metrics import mixing
from bdlbench.metrics.diagnostics import MIN_DRAWS
from bdlbench.metrics.uniformity import Deviation, deviation, p_value, power, randomised_ranks, rank_probabilities
from bdlbench.sampling import loop
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.predictions import Predictor
from bdlbench.sampling.programs import NEVER, Lane, Program, Shared
from bdlbench.sampling.sample import collect
from bdlbench.types import Data, Target

NUM_DRAWS = 99
"""Draws of each fit among which the truth is ranked, so that u has steps of 1 / 100."""
LOG_LIKELIHOOD = "log likelihood"
_FRESH = "fresh rows"
BETTER_THAN_EXACT = -3.5
"""z of the paired differences of negative log likelihood below which a method is better than exact draws, which is a fault."""


class Simulated(NamedTuple):
    """U data sets drawn from the prior and the model, with n training rows and T fresh rows each.

    Attributes
    ----------
    theta : array (U, D)
        Unconstrained.
    train, fresh : Shared
        x (U, n, ...) and y (U, n); x (U, T, ...) and y (U, T). The inputs are the same in all data sets.
    truth : dict of arrays (U,)
        The quantities of :func:`calibrate` at theta, by name.
    probes : tuple of int
        Indices of the fresh rows at which the function is ranked.
    seed : int
    """

    theta: np.ndarray
    train: Shared
    fresh: Shared
    truth: dict[str, np.ndarray]
    probes: tuple[int, ...]
    seed: int


class Calibration(NamedTuple):
    """The fits of one method to all data sets.

    Attributes
    ----------
    u : dict of arrays (U,)
        By quantity; see :func:`~bdlbench.metrics.uniformity.randomised_ranks`.
    ess : array (U,)
        Smallest bulk ESS of the ranked draws over the quantities. A quantity that never changes has 1. NaN for fewer than 4
        draws.
    failed : bool array (U,)
        Fits with a draw that is not finite. They stay: their draws count as larger than any number, and they predict the
        normal distribution of the training targets.
    log_density : array (U, L, T)
        log p(y | x, theta) of the fresh rows.
    constant : array (U,)
        Negative log likelihood a row of the normal distribution of the training targets.
    num_grads : float
        Mean a fit, warm-up included.
    seconds, compile_seconds : float
        Of all fits.
    """

    u: dict[str, np.ndarray]
    ess: np.ndarray
    failed: np.ndarray
    log_density: np.ndarray
    constant: np.ndarray
    num_grads: float
    seconds: float
    compile_seconds: float

    @property
    def num_draws(self) -> int:
        """L, 99 or the number of draws of a method that has fewer."""
        return self.log_density.shape[1]


class Twins(NamedTuple):
    """Mean over data sets of the negative log likelihood a fresh row, less that of exact draws, with its standard error."""

    difference: float
    se: float

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        return self.difference / self.se if self.se > 0 else 0.0

    @property
    def is_fault(self) -> bool:
        """Whether the method is better than exact draws by more than chance."""
        return self.z < BETTER_THAN_EXACT


def simulate(
    program: Program,
    numbers: Mapping[str, float],
    x: np.ndarray,
    fresh_x: np.ndarray,
    *,
    num_datasets: int,
    probes: Sequence[int],
    seed: int,
) -> Simulated:
    """Draw theta from the prior and y from the model, ``num_datasets`` times.

    Parameters
    ----------
    program : Program
        Of any method; its target gives prior and model.
    numbers : mapping of float
    x, fresh_x : arrays (n, ...) and (T, ...)
        The inputs of the training rows and of the fresh rows.
    num_datasets : int
        U.
    probes : sequence of int
        Indices of fresh rows.
    seed : int
        Data sets of the same seed are the same for all methods.

    Raises
    ------
    ConfigError
        If the model is tempered, the log density has terms that draws from the prior and from the model do not know, or a
        probe does not exist.
    """
    if not probes or not all(0 <= probe < len(fresh_x) for probe in probes):
        raise ConfigError(f"probes={[*probes]} must name test rows, from 0 to {len(fresh_x) - 1}.")
    if num_datasets < MIN_DRAWS:
        raise ConfigError(
            f"num_datasets={num_datasets} must be at least {MIN_DRAWS}: 256 find gross faults, 1,000 fine ones."
        )
    if numbers.get("temperature", 1.0) != 1:
        raise ConfigError(
            f"temperature={numbers['temperature']}: only at 1 are the parameters of a data set a draw of its posterior."
        )
    x, fresh_x = np.asarray(x), np.asarray(fresh_x)
    placeholder = np.zeros(len(x), np.float64 if jax.config.jax_enable_x64 else np.float32)

    def target() -> Target:
        return program.make_target(numbers, jnp.asarray(x), jnp.asarray(placeholder))

    def look() -> Any:
        found = target()
        if found.needs_key or found.scored is not None:
            raise ConfigError(
                "model: its log likelihood is an estimate or hides rows, which calibration does not support."
            )
        terms = found.terms(jnp.zeros(found.dim), Data(jnp.asarray(x), jnp.asarray(placeholder), len(x)))
        if terms.log_factor is not None:
            raise ConfigError(
                "model: a numpyro.factor, or a mask or scale of the prior, changes the posterior and not the draws from the "
                "prior: calibration needs a model without them."
            )
        if terms.log_lik.ndim != 1 or found.predictive(jnp.zeros(found.dim), jnp.asarray(x)).event_shape:
            raise ConfigError("model: calibration needs one target a row: choose a set with a single target.")
        return terms

    jax.eval_shape(look)

    def one(key: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
        found, (own, train, fresh) = target(), jax.random.split(key, 3)
        theta = found.sample_prior(own)
        at, at_fresh = found.predictive(theta, jnp.asarray(x)), found.predictive(theta, jnp.asarray(fresh_x))
        y, fresh_y = at.sample(train).astype(placeholder.dtype), at_fresh.sample(fresh).astype(placeholder.dtype)
        truth = {LOG_LIKELIHOOD: at.log_prob(y).sum()} | {_mean(probe): at_fresh.mean[probe] for probe in probes}
        truth[_new(probes[0])] = fresh_y[probes[0]]
        return theta, y, fresh_y, truth | {name: v for name, v in found.constrain(theta).items() if not jnp.ndim(v)}

    keys = jax.random.split(jax.random.key(seed), num_datasets)
    theta, y, fresh_y, truth = jax.tree.map(np.asarray, jax.jit(lambda keys: jax.lax.map(one, keys))(keys))
    many = lambda rows: np.broadcast_to(rows, (num_datasets, *rows.shape))  # noqa: E731
    return Simulated(theta, Shared(many(x), y), Shared(many(fresh_x), fresh_y), truth, tuple(probes), seed)


def calibrate(program: Program, numbers: Mapping[str, float], simulated: Simulated, *, num_chains: int) -> Calibration:
    """Fit one method to all data sets, as the lanes of one program, and rank the truth among its draws.

    The quantities are the log likelihood of the training rows, which sees more faults than the others (Modrak et al. 2023),
    the mean of y at the probe points, a new y at the first of them, and each named site that is one number, such as the noise.
    NUM_DRAWS draws, evenly spaced over those of all chains, are ranked. They should be about independent: see ``ess``.

    Parameters
    ----------
    program : Program
    numbers : mapping of float
    simulated : Simulated
        Of the same prior and model.
    num_chains : int
        Chains of each fit. Their draws are pooled.

    Raises
    ------
    ConfigError
        If no fit reaches its first draw, or the distribution of y cannot be drawn from or has no mean.
    """
    num_sets = len(simulated.theta)
    clock, lane = Clock(), _lanes(simulated, numbers, num_chains)
    sample = collect(list(loop.run(program, simulated.train, lane, clock=clock)))
    seconds, compile_seconds = clock.sampling(), clock.seconds.get("compile", 0.0)
    fine = (sample.bad_step == NEVER) & np.isfinite(sample.draws).all(tuple(range(1, sample.draws.ndim)))

    draws = sample.draws.reshape(len(fine), -1, sample.draws.shape[-1])
    draws = draws[:, evenly(draws.shape[1], -(-NUM_DRAWS // num_chains))]
    found = _values(program, simulated, lane, draws, sample.anchor)
    kept = evenly(draws.shape[1] * num_chains, NUM_DRAWS)
    pooled = {name: value.reshape(num_sets, -1, *value.shape[2:])[:, kept] for name, value in found.items()}
    log_density = pooled.pop(_FRESH)
    failed = ~fine.reshape(num_sets, num_chains).all(1) | ~np.isfinite(log_density).all((1, 2))
    for value in pooled.values():
        failed |= ~np.isfinite(value).all(1)
    rng = np.random.default_rng([simulated.seed, 1])
    u = {
        name: randomised_ranks(
            simulated.truth[name], np.where(failed[:, None], np.inf, value), rng.uniform(size=num_sets)
        )
        for name, value in pooled.items()
    }
    return Calibration(
        u=u,
        ess=_ess(pooled, failed),
        failed=failed,
        log_density=log_density,
        constant=_constant(simulated),
        num_grads=float(sample.num_grads.sum()) / num_sets,
        seconds=seconds,
        compile_seconds=compile_seconds,
    )


class Line(NamedTuple):
    """What the ranks of one quantity say of one method.

    Attributes
    ----------
    method, quantity : str
    p_value : float
    is_uniform : bool
        Whether the ranks stay inside the simultaneous envelope at :func:`level`.
    deviation : Deviation
    """

    method: str
    quantity: str
    p_value: float
    is_uniform: bool
    deviation: Deviation


def level(fitted: Mapping[str, Calibration], alpha: float) -> float:
    """The level of one test, ``alpha`` / (quantities x methods): exact methods alone would fail anywhere with ``alpha``."""
    return alpha / sum(len(one.u) for one in fitted.values())


def judge(fitted: Mapping[str, Calibration], alpha: float) -> list[Line]:
    """Test every quantity of every method."""
    each = level(fitted, alpha)
    return [
        Line(method, quantity, p := p_value(u), p > each, deviation(u))
        for method, one in fitted.items()
        for quantity, u in one.u.items()
    ]


def smallest_found(num_datasets: int, each: float, probability: float) -> float:
    """The inflation of the sd that is found with this probability at the level ``each`` in ranks of one quantity.

    It is found to 1 %, and infinite above 16.
    """
    low, high = 1.0, 16.0
    if power(num_datasets, each, rank_probabilities(NUM_DRAWS, inflation=high)) < probability:
        return np.inf
    for _ in range(8):
        middle = float(np.sqrt(low * high))
        found = power(num_datasets, each, rank_probabilities(NUM_DRAWS, inflation=middle))
        low, high = (low, middle) if found >= probability else (middle, high)
    return high


def negative_log_likelihood(fitted: Calibration, num_draws: int) -> np.ndarray:
    """Of a fresh row, (U,): -log (1/S) sum_s p(y | x, theta_s) with S = ``num_draws`` evenly spaced draws, mean over rows."""
    chosen = evenly(fitted.num_draws, num_draws)
    densities = np.asarray(fitted.log_density[:, chosen], np.float64)
    densities = np.where(fitted.failed[:, None, None], 0.0, densities)
    scores = -(logsumexp(densities, axis=1) - np.log(len(chosen))).mean(1)
    return np.asarray(np.where(fitted.failed, fitted.constant, scores))


def twins(fitted: Calibration, exact: Calibration) -> Twins:
    """Compare predictions with those of exact draws on the same data sets, at the same number of draws."""
    num_draws = min(fitted.num_draws, exact.num_draws)
    difference = negative_log_likelihood(fitted, num_draws) - negative_log_likelihood(exact, num_draws)
    return Twins(float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference))))


def _lanes(simulated: Simulated, numbers: Mapping[str, float], num_chains: int) -> Lane:
    """Data sets x chains; the lanes of one data set follow each other."""
    num_sets = len(simulated.theta)
    key = jax.random.fold_in(jax.random.key(simulated.seed), num_sets)
    keys = jax.random.split(key, num_sets * num_chains)
    real = np.float64 if jax.config.jax_enable_x64 else np.float32
    spread = {name: np.full(len(keys), value, real) for name, value in numbers.items()}
    return Lane(keys, np.repeat(np.arange(num_sets, dtype=np.int32), num_chains), spread, None)


def evenly(total: int, wanted: int) -> np.ndarray:
    """Indices of ``wanted`` of ``total`` draws, or of all where there are fewer, evenly spaced."""
    wanted = min(total, wanted)
    return np.asarray((np.arange(wanted) + 0.5) * total / wanted).astype(int)


def _mean(probe: int) -> str:
    return f"f at {probe}"


def _new(probe: int) -> str:
    return f"y at {probe}"


def _values(
    program: Program,
    simulated: Simulated,
    lane: Lane,
    draws: np.ndarray,
    anchor: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """The quantities of draws (lanes, S, D) by name, (lanes, S), and the log densities of the fresh rows, (lanes, S, T)."""
    train, fresh = simulated.train, simulated.fresh
    rows = Shared(np.concatenate([train.x, fresh.x], 1), np.concatenate([train.y, fresh.y], 1))
    predictor = Predictor(program, "regression", train, lane, rows, Clock())
    predictions, num_train = predictor.predict(draws, anchor=anchor), train.y.shape[1]
    missing = {"mean", "sample"} - predictions.keys()
    if missing:
        raise ConfigError(
            f"likelihood: its distribution has no {sorted(missing)[0]}, which calibration ranks: choose another."
        )
    out = {LOG_LIKELIHOOD: predictions["log_lik"][..., :num_train].sum(-1, dtype=np.float64)}
    out |= {_mean(probe): predictions["mean"][..., num_train + probe] for probe in simulated.probes}
    out[_new(simulated.probes[0])] = predictions["sample"][..., num_train + simulated.probes[0]]
    out |= {name: value for name, value in predictor.sites(draws).items() if value.ndim == draws.ndim - 1}
    return {**out, _FRESH: predictions["log_lik"][..., num_train:]}


def _ess(values: Mapping[str, np.ndarray], failed: np.ndarray) -> np.ndarray:
    """Smallest bulk ESS over the quantities (U, L), for each data set; NaN where a fit failed or has too few draws."""
    out = np.full(len(failed), np.nan)
    columns = np.stack(list(values.values()), -1).astype(np.float64)[~failed]
    if len(columns) and columns.shape[1] >= MIN_DRAWS:
        varies = np.ptp(columns, axis=1) > 0
        ess = np.ones(varies.shape)
        if varies.any():
            ess[varies] = mixing.ess_bulk(columns.transpose(1, 0, 2)[:, varies][None])
        out[~failed] = ess.min(1)
    return out


def _constant(simulated: Simulated) -> np.ndarray:
    """Negative log likelihood of the fresh rows under the normal distribution of the training targets, mean over rows."""
    y = np.asarray(simulated.train.y, np.float64)
    return np.asarray(-norm.logpdf(simulated.fresh.y, y.mean(1)[:, None], y.std(1, ddof=1)[:, None]).mean(1))
