r"""Is one method better than another, given paired differences over splits of one or several data sets?

A difference is metric(A) - metric(B) on the same split, seed and test points, oriented so that more is better, with the
seeds of a split averaged first. Splits of one data set share rows, so their differences are correlated. Nadeau & Bengio
(2003, "Inference for the generalization error") take the share of test rows for the correlation rho of two splits. Then

.. math:: se^2 = s^2 \left(\frac1n + \frac{\rho}{1 - \rho}\right)

with s the standard deviation over the n splits. The hierarchical model is that of Corani, Benavoli, Demsar, Mangili &
Zaffalon (2017, "Statistical comparison of classifiers through Bayesian hierarchical modelling").
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bdlbench.errors import ConfigError
from bdlbench.metrics import diagnostics, resampling
from bdlbench.metrics.checks import Floats

LEVEL = 0.95
"""Smallest posterior probability at which a verdict is given."""
NUM_CHAINS, NUM_WARMUP, NUM_SAMPLES = 4, 400, 500
MOST_TOGETHER = 16
"""Number of questions that are sampled together as lanes of one program."""
MAX_RHAT = 1.05
ATTEMPTS = 3
"""Largest number of times that a question is sampled, with new keys, until its chains agree."""
_FINEST = 1e-3  # smallest standard error in units of delta; at zero the density does not exist


class Difference(NamedTuple):
    """A difference between two methods on one data set. Its posterior is mean + se t, t ~ Student's t(``degrees``).

    Attributes
    ----------
    mean, sd : float
        Mean and standard deviation (divisor n - 1) over n splits.
    se : float
        Standard error with the correlation of splits.
    degrees : float
        n - 1.
    rho : float
        Correlation of two splits.
    """

    mean: float
    sd: float
    se: float
    degrees: float
    rho: float

    @property
    def num_splits(self) -> int:
        """n, the number of splits."""
        return int(self.degrees) + 1


class Verdict(NamedTuple):
    """The posterior probabilities that a difference is above delta, between -delta and delta, or below -delta.

    Attributes
    ----------
    better, equivalent, worse : float
        The three probabilities, in this order. Their sum is 1.
    median, low, high : float
        Posterior median of the difference, and the ends of its central 95 % interval.
    delta : float
        The smallest difference that matters.
    smallest_delta : float
        The smallest delta for which these data could decide. With it, two methods with equal observed scores would be
        called equivalent.
    rhat : float or None
        R-hat of the sampled difference; None if the posterior has a closed form.
    """

    better: float
    equivalent: float
    worse: float
    median: float
    low: float
    high: float
    delta: float
    smallest_delta: float
    rhat: float | None = None

    @property
    def word(self) -> str:
        """``better``, ``equivalent`` or ``worse`` if its probability is at least .95, otherwise ``undecided``.

        It is ``not converged`` if the chains disagree (R-hat above 1.05).
        """
        if self.rhat is not None and not self.rhat <= MAX_RHAT:
            return "not converged"
        for name in ("better", "equivalent", "worse"):
            if getattr(self, name) >= LEVEL:
                return name
        return "undecided"


class Hierarchy(NamedTuple):
    """Verdicts of the hierarchical model: on the mean over data sets like these, and on each of them."""

    overall: Verdict
    by_data: list[Verdict]


class Plan(NamedTuple):
    """The number of splits of the same data sets, or of data sets, that would decide. None if no number would."""

    num_splits: int | None
    num_data_sets: int | None

    def __str__(self) -> str:
        if self.num_splits is not None:
            return f"{self.num_splits} splits of each data set decide."
        if self.num_data_sets is not None:
            return f"No number of splits decides; add data sets, up to {self.num_data_sets} in all."
        return "No number of splits decides; add data sets."


def difference(differences: ArrayLike, *, rho: float) -> Difference:
    """The correlated t form of paired differences over splits (Nadeau & Bengio 2003, eq. 9).

    Parameters
    ----------
    differences : array (n,)
        The difference on each of n >= 2 splits.
    rho : float
        Correlation of two splits: the share of test rows for random splits, 0 for disjoint data.

    Raises
    ------
    ConfigError
        If there are fewer than two splits, a difference is not finite, or rho is outside [0, 1).
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ConfigError(f"a difference needs two splits or more, got {values.size}: run more splits.")
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ConfigError(f"the difference on split {bad} is not finite: score a failed run as the constant predictor.")
    if not 0 <= rho < 1:
        raise ConfigError(f"rho is {rho}, but must lie in [0, 1): give the share of test rows.")
    sd = resampling.spread(values)
    se = sd * resampling.error_factor(values.size, rho)
    return Difference(float(values.mean()), sd, se, float(values.size - 1), float(rho))


def verdict(one: Difference, delta: float) -> Verdict:
    """The verdict on one data set, in closed form: Student's t around the mean (Corani & Benavoli 2015).

    Parameters
    ----------
    one : Difference
    delta : float
        The smallest difference that matters, 0 or more. With 0, ``equivalent`` has probability 0.
    """
    from scipy.special import stdtr, stdtrit

    delta = _delta(delta, least=0.0)
    scale = max(one.se, _FINEST * delta)
    half = float(stdtrit(one.degrees, 0.5 + LEVEL / 2)) * scale
    if scale == 0:  # delta is 0 and all splits agree to the last digit
        better, worse = float(one.mean > 0), float(one.mean < 0)
    else:
        better = float(stdtr(one.degrees, (one.mean - delta) / scale))
        worse = float(stdtr(one.degrees, (-one.mean - delta) / scale))
    return Verdict(better, 1 - better - worse, worse, one.mean, one.mean - half, one.mean + half, delta, half)


def hierarchical(
    questions: Sequence[Sequence[Difference]], *, delta: float, between: float = 1.0, seed: int = 0
) -> list[Hierarchy]:
    r"""Verdicts over several data sets, by a hierarchical model that this project's own NUTS samples.

    .. math::
        \bar d_i &\sim t_{n_i - 1}(\mu_i, se_i), \qquad \mu_i \sim N(\mu_0, \tau^2) \\
        \tau &\sim N^+(0, (b u)^2), \qquad \mu_0 \sim N(\bar d, (10 u)^2)

    The first line is the model of normal differences with correlated splits, in which the standard deviation of each
    set is integrated out under the prior 1/sigma. u^2 is the mean of se_i^2 plus the variance of the sets' means, so
    that the result does not depend on the metric's unit. The prior of mu_0 is nearly constant over the range of the
    data. With few sets, the result depends on the prior of tau, the sd between sets. b is ``between``, and
    ``bdlbench-results compare`` says which verdicts change at b / 2 and at 2 b.

    ``overall`` is the verdict on mu_0, the mean over data sets like these. ``by_data`` are the verdicts on each mu_i;
    the estimate of each uses the data of all sets. For a single data set, both have the closed form of :func:`verdict`.

    Parameters
    ----------
    questions : sequence of sequences of Difference
        For each pair of methods, one difference for each data set.
    delta : float
        The smallest difference that matters, above 0.
    between : float
        b, the scale of the prior of tau in units of u.
    seed : int

    Returns
    -------
    list of Hierarchy
        One for each question.
    """
    delta = _delta(delta, least=np.nextafter(0.0, 1.0))
    if between <= 0 or not math.isfinite(between):
        raise ConfigError(f"between is {between}, but must be a positive number: 1 is the default.")
    out: list[Hierarchy | None] = [None] * len(questions)
    for index, question in enumerate(questions):
        if not question:
            raise ConfigError(f"question {index} has no data set: leave it out.")
        if len(question) == 1:
            alone = verdict(question[0], delta)
            out[index] = Hierarchy(alone, [alone])
    several = [index for index, question in enumerate(questions) if len(question) > 1]
    drawn = draws([questions[index] for index in several], delta=delta, between=between, seed=seed)
    for index, some in zip(several, drawn, strict=True):
        found = [_of_draws(some[..., column], delta) for column in range(some.shape[-1])]
        out[index] = Hierarchy(found[0], found[1:])
    return [one for one in out if one is not None]


def draws(
    questions: Sequence[Sequence[Difference]], *, delta: float, between: float = 1.0, seed: int = 0
) -> list[Floats]:
    """Draws (C, S, 1 + I) of mu_0 and of each mu_i of the model of :func:`hierarchical`, for each question.

    A question whose chains disagree is sampled again, ``ATTEMPTS`` times in all. The parameters are those of
    :func:`hierarchical`; each question has two data sets or more. A standard error below delta / 1,000 counts as that.
    """
    out: dict[int, Floats] = {}
    by_size: dict[int, list[int]] = {}
    for index, question in enumerate(questions):
        by_size.setdefault(len(question), []).append(index)
    for size, indices in by_size.items():
        for attempt in range(ATTEMPTS):
            together = min(MOST_TOGETHER, 2 ** math.ceil(math.log2(len(indices))))
            for start in range(0, len(indices), together):
                some = indices[start : start + together]
                padded = (some * together)[:together]
                key = seed + start + 100_003 * attempt
                found = _sample([questions[index] for index in padded], size, delta, between, key)
                out |= dict(zip(some, found, strict=False))
            indices = [index for index in indices if _of_draws(out[index][..., 0], delta).word == "not converged"]
            if not indices:
                break
    return [out[index] for index in range(len(questions))]


def plan(question: Sequence[Difference], found: Verdict) -> Plan:
    """The number of splits, or else of data sets, that would decide, if means and standard deviations do not change.

    ``found`` is the verdict on the question, which is undecided. A verdict needs a posterior sd of at most the distance
    of the median from delta over 1.645, or over 1.96 where it would be equivalence. That sd is the present one times
    the root of v(n, I) / v(now) with v(n, I) = (tau^2 + mean of s_i^2 (1/n + rho / (1 - rho))) / I for n splits of each
    of I sets, where tau^2 is the variance of the sets' means beyond that of their errors. It says what to run next, not
    what will come out.
    """
    from scipy.special import ndtri

    means, size = np.array([one.mean for one in question]), len(question)
    gap = abs(abs(found.median) - found.delta)
    equivalence = abs(found.median) < found.delta
    allowed = gap * (1.0 if equivalence else float(ndtri(0.5 + LEVEL / 2) / ndtri(LEVEL)))
    error = float(np.mean([one.se**2 for one in question]))
    tau_squared = max(0.0, float(means.var(ddof=1)) - error) if size > 1 else 0.0
    present = tau_squared + error
    wanted = present * (allowed / found.smallest_delta) ** 2
    floor = tau_squared + float(np.mean([one.sd**2 * one.rho / (1 - one.rho) for one in question]))
    if wanted > floor:
        needed = math.ceil(float(np.mean([one.sd**2 for one in question])) / (wanted - floor))
        return Plan(max(needed, 1 + max(one.num_splits for one in question)), None)
    if gap == 0 or size == 1:  # a single set does not say how much sets differ
        return Plan(None, None)
    return Plan(None, max(size + 1, math.ceil(size * present / wanted)))


def expected_false(verdicts: Sequence[Verdict]) -> float:
    """Expected number of false verdicts among those given, the sum of 1 - P. A table of all pairs shows it."""
    return sum(1 - getattr(one, one.word) for one in verdicts if one.word in ("better", "equivalent", "worse"))


def _delta(delta: float, *, least: float) -> float:
    if not (math.isfinite(delta) and delta >= least):
        raise ConfigError(f"delta is {delta}, but must be {'positive' if least else '0 or more'}: give what matters.")
    return float(delta)


def _of_draws(draws: Floats, delta: float) -> Verdict:
    """Compute a verdict from draws (C, S) of the difference."""
    flat = draws.reshape(-1)
    low, median, high = np.quantile(flat, [0.5 - LEVEL / 2, 0.5, 0.5 + LEVEL / 2])
    better, worse = float(np.mean(flat > delta)), float(np.mean(flat < -delta))
    found = diagnostics.function_diagnostics(
        lambda start, stop: draws[..., None], 1, num_chains=draws.shape[0], num_draws=draws.shape[1]
    )
    resolved = float(np.quantile(np.abs(flat - median), LEVEL))
    rhat = found["rhat_max"]
    return Verdict(
        better,
        1 - better - worse,
        worse,
        float(median),
        float(low),
        float(high),
        delta,
        resolved,
        math.inf if rhat is None else float(rhat),
    )


def _sample(
    questions: Sequence[Sequence[Difference]], size: int, delta: float, between: float, seed: int
) -> list[Floats]:
    """Draws (C, S, 1 + I) of mu_0 and mu_i in the metric's unit, for each question."""
    import jax

    from bdlbench.sampling import devices

    mean = np.array([[one.mean for one in question] for question in questions])
    se = np.maximum([[one.se for one in question] for question in questions], _FINEST * delta)
    degrees = np.array([[one.degrees for one in question] for question in questions])
    centre, spread = mean.mean(1, keepdims=True), mean.var(1, keepdims=True)
    unit = np.sqrt(spread + (se**2).mean(1, keepdims=True))
    y, scale = (mean - centre) / unit, se / unit
    tau_squared = np.maximum(0.0, spread / unit**2 - (scale**2).mean(1, keepdims=True))
    held = tau_squared / (tau_squared + scale**2)

    def lanes(values: Floats) -> Floats:
        return np.repeat(values, NUM_CHAINS, axis=0)

    numbers: dict[str, Any] = {"between": between}
    for name, values in (("mean", y), ("se", scale), ("degrees", degrees), ("centred", held)):
        numbers |= {f"{name}_{i}": lanes(values[:, i]) for i in range(size)}
    rows = np.zeros((size, 1), np.float32)
    # Chains start dispersed in units of u, wider than the posterior. The prior of mu_0 is flat and would start them so
    # far away that Student's t hardly pulls.
    num_lanes = len(questions) * NUM_CHAINS
    start = np.random.default_rng(seed).normal(size=(num_lanes, 2 + size)).astype(np.float32)
    with devices.settings():  # before JAX is used, which fixes the number of devices
        sample = _sampler(num_lanes)((rows, rows[:, 0]), jax.random.key(seed), numbers=numbers, theta=start)
    theta = sample.draws.astype(np.float64).reshape(len(questions), NUM_CHAINS, NUM_SAMPLES, -1)
    out = []
    for question, chains in enumerate(theta):
        # theta holds the sites of the model in their order, tau by its logarithm.
        mu_0, tau, free, c = chains[..., :1], np.exp(chains[..., 1:2]), chains[..., 2:], held[question]
        mu = mu_0 + tau ** (1 - c) * (free - c * mu_0)
        out.append(centre[question] + unit[question] * np.concatenate([mu_0, mu], axis=-1))
    return out


def _model(x: Any, y: Any = None, *, numbers: Mapping[str, Any]) -> None:
    """The hierarchical model in units of u around the mean of all sets; the y of every set is 0.

    mu_i is partly centred (Papaspiliopoulos, Roberts & Skold 2007), since precise sets want it centred and others do not:
    free_i ~ N(c mu_0, tau^c) and mu_i = mu_0 + tau^(1 - c) (free_i - c mu_0), with c the share of the variance of the
    observed mean that is between sets. c = 1 is centred, c = 0 is not; the law of mu_i is the same.
    """
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    mean, se, degrees, c = (
        jnp.stack([numbers[f"{name}_{i}"] for i in range(x.shape[0])]) for name in ("mean", "se", "degrees", "centred")
    )
    mu_0 = numpyro.sample("mu_0", dist.Normal(0.0, 10.0))
    tau = numpyro.sample("tau", dist.HalfNormal(numbers["between"]))
    with numpyro.plate("sets", x.shape[0]):
        free = numpyro.sample("free", dist.Normal(c * mu_0, tau**c))
        mu = mu_0 + tau ** (1 - c) * (free - c * mu_0)
        numpyro.sample("y", dist.StudentT(degrees, mu - mean, se), obs=y)


@functools.lru_cache(maxsize=8)
def _sampler(num_lanes: int) -> Any:
    from bdlbench import sampling
    from bdlbench.inference.hmc import nuts
    from bdlbench.model.target import make_target
    from bdlbench.types import Schedule, Stage, Target

    def target(numbers: Mapping[str, Any], x: Any, y: Any) -> Target:
        return make_target(functools.partial(_model, numbers=numbers), x, y)

    def method(target: Target, schedule: Schedule, numbers: Mapping[str, Any]) -> Any:
        return nuts(target, schedule, target_accept_prob=0.95, max_tree_depth=8, dense_mass=False)

    stage = Stage("nuts", method, Schedule(NUM_CHAINS, NUM_WARMUP, NUM_SAMPLES, 1))
    return sampling.compile(target, (stage,), num_lanes)
