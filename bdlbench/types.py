"""The vocabulary: what a log density, a method, a schedule and a stage are.

Nothing here computes. Every inference method of the project is a handful of pure functions of the type :class:`Method`,
so that one scan can drive them all, hold the only clock and charge them in one currency, the gradient evaluation.

Shapes are written with these letters: D weights (unconstrained, flat), N training rows, B rows of a batch,
S draws, C chains, P particles of a population that lives in one chain.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpyro.distributions as dist

from bdlbench.errors import ConfigError as ConfigError

Array = jax.Array
Task = Literal["regression", "classification"]
Precision = Literal["float32", "float64"]
Info = Mapping[str, Array]
"""What a step reports: scalars by name. ``num_grads`` is required: gradient evaluations on the data it was handed.
``log_density`` (of the tempered target, at the data it was handed), or ``loss`` where a method moves on one, lets the
loop find the first non-finite step; ``diverging`` (bool) is counted, or in its place ``num_diverging`` (int), of how many
of a population's particles the step diverged; after ``stopped`` (bool) no later step of the phase changes anything, so
that the loop may leave it; the rest become ``sample_stats``."""


class Data(NamedTuple):
    """Rows a log density is evaluated on: the whole training set or a batch of it.

    Attributes
    ----------
    x : array (B, ...) or None
        Standardised inputs.
    y : array (B,) or (B, K)
        Targets: standardised floats (regression) or integer labels (classification).
    size : int or scalar
        N, the number of training rows, however many rows ``x`` and ``y`` hold. With weights it is their sum over the
        whole training set, a traced scalar.
    validation : tuple (x, y) or None
        Rows cut from the training rows for early stopping. They enter no log density.
    weights : array (B,) or None
        How many training rows each row counts for in a sum over the training set; 0 where a row is not there. None
        means N/B for every row. A method that reads rows itself must weight them, as :meth:`total` does.
    key : key or None
        For a target whose log likelihood is a random estimate (``needs_key``): the key of this estimate.
    """

    x: Any
    y: Any
    size: Any
    validation: tuple[Any, Any] | None = None
    weights: Any = None
    key: Any = None

    def total(self, per_row: Array) -> Array:
        """The sum over the training set of a number a row, given those of the rows held here (B,).

        It is exact on all rows and unbiased on a random batch.
        """
        if self.weights is None:
            return self.size / per_row.shape[0] * per_row.sum()
        return (self.weights * per_row).sum()


class Terms(NamedTuple):
    """The parts of a log density at one theta, untempered.

    ``log_prior`` (scalar): the log density of all latent sites at their constrained values, under the distribution that
    ``Target.sample_prior`` draws from.
    ``log_jacobian`` (scalar): log absolute determinant of the map from theta to the constrained sites.
    ``log_lik`` (B,): one number a row.
    ``log_factor`` (scalar, or None where there is none): what is not drawn from and does not belong to rows, which are
    ``numpyro.factor`` terms and what masks and scales change of the latent sites' log prior.
    """

    log_prior: Array
    log_jacobian: Array
    log_lik: Array
    log_factor: Array | None = None

    @property
    def log_prior_with_factor(self) -> Array:
        """``log_prior + log_factor``: all of the tempered log density but the likelihood."""
        return self.log_prior if self.log_factor is None else self.log_prior + self.log_factor


class Target(NamedTuple):
    """A log density over flat unconstrained theta, tempered and scaled, with what a prediction needs.

    ``log_density(theta, data)
    = (log_prior(theta) + log_factor(theta) + N/B sum_b log p(y_b | x_b, theta)) / T + log |d sites / d theta|``,
    with the rows' weights in place of N/B where ``data`` has them.

    The temperature T is applied here and nowhere else; the Jacobian of a constrained site is left untouched by it.

    Attributes
    ----------
    dim : int
        D, the length of theta.
    sample_prior : (key) -> theta
        A draw from the prior.
    init_params : (key) -> theta
        The network's own random initialisation; the prior for sites that are no network's weights.
    terms : (theta, data) -> Terms
        Log prior, log Jacobian and the rows' log likelihood, in one trace of the model. The log likelihood is that of
        each row alone, without the row's weight.
    forward : (theta, x) -> (B, K)
        The network's output, or the model's deterministic site ``f``; what Laplace linearises and diagnostics look at.
    likelihood : (theta, x, f) -> Distribution
        p(y | f, theta) with batch shape (B,).
    predictive : (theta, x) -> Distribution
        p(y | x, theta) with batch shape (B,).
    constrain : (theta) -> dict
        The named sites a user knows, deterministic ones included.
    unconstrain : (dict) -> theta
        The inverse: theta (D,) of the latent sites by their names; deterministic sites may stand beside them.
    temperature : scalar
    rows : int
        N: models with one latent a row cannot be evaluated on other rows.
    units : () -> integer array (D,)
        The hidden unit that a weight reads from, -1 where there is none: dropout masks by it. Raises ConfigError for a
        network for which it cannot be derived.
    last_layer : () -> bool array (D,)
        False for the weights of the network before its last dense layer. Raises ConfigError likewise.
    needs_key : bool
        Whether the log likelihood is a random estimate that ``data.key`` determines. Only methods without a
        ``fixed_target`` take such a target.
    scored : (x) -> bool array (B,), or None
        Which rows the model observes, where it observes y under a mask. The mask depends on x alone. A hidden row has
        the log likelihood 0 and is not scored.
    fits : (theta, x, y) -> bool array (B,), or None
        Whether each y lies in the support of p(y | x, theta), or its row is hidden. None where the support is all real
        numbers or is not known.
    support : str
        The support in words; empty where ``fits`` is None.
    rows_interact : bool or None
        True where the model declares that what it says of a row depends on other rows, False where it is known not to,
        None where it is not known.
    notes : tuple of str
        What a reader of the results must know of the model.
    """

    dim: int
    sample_prior: Callable[[Array], Array]
    init_params: Callable[[Array], Array]
    terms: Callable[[Array, Data], Terms]
    forward: Callable[[Array, Any], Array]
    likelihood: Callable[[Array, Any, Array], dist.Distribution]
    predictive: Callable[[Array, Any], dist.Distribution]
    constrain: Callable[[Array], dict[str, Array]]
    unconstrain: Callable[[Mapping[str, Array]], Array]
    temperature: Any
    rows: int
    units: Callable[[], Any] | None = None
    last_layer: Callable[[], Any] | None = None
    needs_key: bool = False
    scored: Callable[[Any], Array] | None = None
    fits: Callable[[Array, Any, Any], Array] | None = None
    support: str = ""
    rows_interact: bool | None = None
    notes: tuple[str, ...] = ()

    def log_density(self, theta: Array, data: Data) -> Array:
        """Tempered unnormalised log posterior at ``theta`` (D,), exact on all rows and unbiased on a random batch."""
        # XLA's CPU backend would otherwise compute again whatever produced theta in each of its consumers.
        theta = jax.lax.optimization_barrier(theta)
        terms = self.terms(theta, data)
        return (terms.log_prior_with_factor + data.total(terms.log_lik)) / self.temperature + terms.log_jacobian

    def value_and_grad(self, theta: Array, data: Data) -> tuple[Array, Array]:
        """Log density and its gradient (D,): one gradient evaluation on the rows of ``data``."""
        return jax.value_and_grad(self.log_density)(theta, data)


class Schedule(NamedTuple):
    """How long a stage runs and what it keeps.

    ``num_warmup`` steps, then ``num_samples`` times ``thinning`` steps and a draw. NUTS is (1000, 1000, 1),
    SGLD (20000, 1000, 10), SVI (20000, 1000, 0): optimise, then read the guide.
    ``batch_size`` None is the full data. ``batching`` is ``epoch`` (every row once an epoch, in a new order each time)
    or ``iid`` (rows drawn with replacement).
    """

    num_chains: int
    num_warmup: int
    num_samples: int
    thinning: int
    batch_size: int | None = None
    batching: Literal["epoch", "iid"] = "epoch"


def no_finalize(key: Array, state: Any, data: Data) -> tuple[Any, Info]:
    """The default: nothing to do between warm-up and sampling."""
    return state, {}


class Method(NamedTuple):
    """An inference method: pure functions that the loop drives. Keys and the step index ``t`` belong to the loop.

    Attributes
    ----------
    init : (key, theta, data) -> state
        From a start point (D,). ``data`` is the full training set.
    step : (key, t, state, data) -> (state, Info)
        One step while sampling. ``t`` counts the stage's steps from 0, warm-up included.
    draw : (key, state) -> theta
        (D,), or (P, D) for a population that lives in one lane.
    warm : as ``step``, or None
        One step of warm-up; ``step`` where None.
    finalize : (key, state, data) -> (state, Info)
        Once, after warm-up, on the full data; may change the state's type. Its ``num_grads`` are counted. With
        ``unfinished`` (bool) true, what it leaves has nothing to do with the posterior: the lane has diverged.
    anchor : (state) -> theta0, or None
        Where given, predictions come from the network linearised at theta0.
    log_q : (key, state) -> scalar, or None
        Where the state is a distribution q with a density (``thinning`` 0): log q of the theta that ``draw`` gives for
        this key, so that importance ratios say how far q is from the posterior.
    markov : bool
        Whether the draws of one chain are a Markov chain, so that ESS and R-hat mean something.
    validation_fraction : float
        Share of the training rows, chosen by each lane for itself, that the loop keeps from the method and hands over
        as ``data.validation``; ``data.size`` is then the number of the others. 0: the data set's own validation rows.
    num_cycles : int
        Warm-up and sampling alternate so many times, an equal share of the schedule's steps and draws each, and all
        draws count. 1 for a method that warms up once; only a method whose ``finalize`` does nothing may have more.
    start : "any", "mode" or "own"
        What ``init`` makes of theta: a state from wherever it is; an approximation around it, which must therefore be a
        mode that something else has found; nothing, as the method has starts of its own.
    fixed_target : bool
        Whether the method is right only where the log density at one theta and one data is always the same number. A
        target whose log likelihood is a random estimate is then refused. False for methods whose law or optimum asks
        no more of a gradient than that it is unbiased and fresh in each step.
    """

    init: Callable[[Array, Array, Data], Any]
    step: Callable[[Array, Array, Any, Data], tuple[Any, Info]]
    draw: Callable[[Array, Any], Array]
    warm: Callable[[Array, Array, Any, Data], tuple[Any, Info]] | None = None
    finalize: Callable[[Array, Any, Data], tuple[Any, Info]] = no_finalize
    anchor: Callable[[Any], Array] | None = None
    log_q: Callable[[Array, Any], Array] | None = None
    markov: bool = True
    validation_fraction: float = 0.0
    num_cycles: int = 1
    start: Literal["any", "mode", "own"] = "any"
    fixed_target: bool = True


class Stage(NamedTuple):
    """One method for one schedule. A run is a tuple of stages; each starts where the last one ended.

    ``factory(target, schedule, numbers)`` makes the method while the program is traced; ``numbers`` maps the floats of
    the configuration to tracers.
    """

    name: str
    factory: Callable[..., Method]
    schedule: Schedule
