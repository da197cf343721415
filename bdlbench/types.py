"""The shared types of the package: log densities, methods, schedules and stages.

Every inference method of the project is a small set of pure functions of the type :class:`Method`. Therefore one loop
runs them all, measures their time, and counts their cost in one unit, the gradient evaluation.

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
"""What a step reports: scalars by name.

``num_grads`` is required: the number of gradient evaluations on the data that the step was given. The loop finds the
first non-finite step by ``log_density`` (of the tempered target on the data that the step was given), or by ``loss``
for a method that minimises a loss. It counts ``diverging`` (bool); a method with a population reports ``num_diverging``
(int) instead, the number of particles that diverged in the step. ``stopped`` (bool) means that no later step of this
phase changes the state, so that the loop may end the phase early. All entries but ``num_grads`` and ``stopped`` are
stored as ``sample_stats``."""


class Data(NamedTuple):
    """The rows on which a log density is evaluated: the whole training set or a batch of it.

    Attributes
    ----------
    x : array (B, ...) or None
        Standardised inputs.
    y : array (B,) or (B, K)
        Targets: standardised floats (regression) or integer labels (classification).
    size : int or scalar
        N, the number of training rows, also where ``x`` and ``y`` hold only a batch of them. With weights it is the sum
        of the weights of the whole training set, a traced scalar.
    validation : tuple (x, y) or None
        Rows that were removed from the training rows for early stopping. No log density uses them.
    weights : array (B,) or None
        The weight of each row in a sum over the training set, that is, the number of training rows that it stands for.
        A row of weight 0 is ignored. None means N/B for every row. A method that reads rows itself must apply the
        weights, as :meth:`total` does.
    key : key or None
        The key of the random estimate, for a target whose log likelihood is a random estimate (``needs_key``).
    """

    x: Any
    y: Any
    size: Any
    validation: tuple[Any, Any] | None = None
    weights: Any = None
    key: Any = None

    def total(self, per_row: Array) -> Array:
        """Estimate the sum of a per-row quantity over the training set from its values at these rows, ``per_row`` (B,).

        The result is ``N/B sum_b per_row_b``, or ``sum_b weights_b per_row_b`` with weights. It is exact if the data
        are all rows, and unbiased if they are a random batch.
        """
        if self.weights is None:
            return self.size / per_row.shape[0] * per_row.sum()
        return (self.weights * per_row).sum()


class Terms(NamedTuple):
    """The parts of a log density at one theta, untempered.

    Attributes
    ----------
    log_prior : scalar
        The log density of all latent sites at their constrained values, under the distribution from which
        ``Target.sample_prior`` draws.
    log_jacobian : scalar
        The log absolute determinant of the Jacobian of the map from theta to the constrained sites.
    log_lik : array (B,)
        The log likelihood of each row.
    log_factor : scalar or None
        The terms that belong neither to the distribution from which the prior draws nor to single rows: those of
        ``numpyro.factor``, and the changes that masks and scales make to the log prior of the latent sites. None if the
        model has no such term.
    """

    log_prior: Array
    log_jacobian: Array
    log_lik: Array
    log_factor: Array | None = None

    @property
    def log_prior_with_factor(self) -> Array:
        """``log_prior + log_factor``: the part of the log density that is tempered beside the likelihood."""
        return self.log_prior if self.log_factor is None else self.log_prior + self.log_factor


class Target(NamedTuple):
    """A tempered log density over flat unconstrained theta, with the functions that predictions need.

    ``log_density(theta, data)
    = (log_prior(theta) + log_factor(theta) + N/B sum_b log p(y_b | x_b, theta)) / T + log |d sites / d theta|``,
    with the rows' weights in place of N/B where ``data`` has them.

    The temperature T is applied only here. It does not divide the Jacobian of the constrained sites.

    Attributes
    ----------
    dim : int
        D, the length of theta.
    sample_prior : (key) -> theta
        A draw from the prior.
    init_params : (key) -> theta
        The network's own random initialisation. Sites that are not weights of a network are drawn from the prior.
    terms : (theta, data) -> Terms
        Log prior, log Jacobian and the log likelihood of each row, from one trace of the model. The weights of the rows
        are not applied.
    forward : (theta, x) -> (B, K)
        The network's output, or the model's deterministic site ``f``. The Laplace approximation linearises it, and
        diagnostics use it.
    likelihood : (theta, x, f) -> Distribution
        p(y | f, theta) with batch shape (B,).
    predictive : (theta, x) -> Distribution
        p(y | x, theta) with batch shape (B,).
    constrain : (theta) -> dict
        The model's named sites in constrained space, including the deterministic ones.
    unconstrain : (dict) -> theta
        The inverse of ``constrain``: theta (D,) from the values of the latent sites by name. Deterministic sites in the
        dict are ignored.
    temperature : scalar
    rows : int
        N. A model with one latent variable for each row cannot be evaluated on another number of rows.
    units : () -> integer array (D,)
        For each weight the index of the hidden unit whose output it multiplies, or -1 if there is none. Dropout masks
        weights by this index. Raises ConfigError for a network for which the indices cannot be derived.
    last_layer : () -> bool array (D,)
        False for the weights of the network before its last dense layer, True for all others. Raises ConfigError for a
        network for which this cannot be derived.
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
    factor_reads_rows : bool
        Whether the value of a ``numpyro.factor`` depends on x or y. Such a term cannot be estimated from a batch of rows.
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
    factor_reads_rows: bool = False

    def log_density(self, theta: Array, data: Data) -> Array:
        """Return the tempered unnormalised log posterior at ``theta`` (D,).

        It is exact if ``data`` are all rows, and unbiased if they are a random batch.
        """
        # Without the barrier, XLA's CPU backend computes theta again in each operation that uses it.
        theta = jax.lax.optimization_barrier(theta)
        terms = self.terms(theta, data)
        return (terms.log_prior_with_factor + data.total(terms.log_lik)) / self.temperature + terms.log_jacobian

    def value_and_grad(self, theta: Array, data: Data) -> tuple[Array, Array]:
        """Return the log density and its gradient (D,). This costs one gradient evaluation on the rows of ``data``."""
        return jax.value_and_grad(self.log_density)(theta, data)


class Schedule(NamedTuple):
    """How many steps a stage takes, and which draws it keeps.

    A chain takes ``num_warmup`` steps. Then it repeats ``num_samples`` times: ``thinning`` steps, and one draw of the
    state. For example, NUTS has (num_warmup, num_samples, thinning) = (1000, 1000, 1) and SGLD has (20000, 1000, 10).
    With ``thinning`` 0 no step is taken between draws: SVI with (20000, 1000, 0) optimises for 20000 steps and then
    draws 1000 times from the guide.

    ``batch_size`` is the number of rows of a minibatch; None means the full data. ``batching`` is ``epoch`` (each row
    is used once in an epoch, in a new random order) or ``iid`` (rows are drawn with replacement).
    """

    num_chains: int
    num_warmup: int
    num_samples: int
    thinning: int
    batch_size: int | None = None
    batching: Literal["epoch", "iid"] = "epoch"


def no_finalize(key: Array, state: Any, data: Data) -> tuple[Any, Info]:
    """The default of ``Method.finalize``: it returns the state unchanged."""
    return state, {}


class Method(NamedTuple):
    """An inference method as pure functions. The loop calls them and supplies the keys and the step index ``t``.

    Attributes
    ----------
    init : (key, theta, data) -> state
        The state at a start point theta (D,). ``data`` is the full training set.
    step : (key, t, state, data) -> (state, Info)
        One step of the sampling phase. ``t`` counts the steps of the stage from 0, including warm-up.
    draw : (key, state) -> theta
        A draw (D,), or (P, D) for a population of P particles in one lane.
    warm : as ``step``, or None
        One step of warm-up. None means that warm-up uses ``step``.
    finalize : (key, state, data) -> (state, Info)
        Called once between warm-up and sampling, on the full data. It may change the type of the state. Its
        ``num_grads`` are counted. If its Info has ``unfinished`` (bool) true, the warm-up did not reach the posterior,
        and the lane counts as diverged.
    anchor : (state) -> theta0, or None
        If given, predictions use the network linearised at theta0 (D,).
    log_q : (key, state) -> scalar, or None
        For a state that is a distribution q with a density (``thinning`` 0): log q of the theta that ``draw`` returns
        for the same key. The importance ratios of the posterior to q tell how far q is from the posterior.
    markov : bool
        Whether the draws of one chain are a Markov chain. ESS and R-hat are computed only then.
    validation_fraction : float
        The fraction of the training rows that the loop holds out for each lane and passes as ``data.validation``.
        ``data.size`` is then the number of the remaining rows. With 0, ``data.validation`` holds the validation rows of
        the data set, if it has any.
    num_cycles : int
        The number of cycles of warm-up and sampling. Each cycle has an equal share of the steps and draws of the
        schedule, and the draws of all cycles are kept. More than 1 is allowed only with the default ``finalize``.
    start : "any", "mode" or "own"
        How ``init`` uses theta. "any": theta may be any point. "mode": theta must be a mode of the posterior that an
        earlier stage or run has found, because the method approximates the posterior around it. "own": theta is
        ignored, because the method draws its own start points.
    fixed_target : bool
        Whether the method requires that the log density is the same number each time it is evaluated at the same theta
        and data. A target whose log likelihood is a random estimate is then refused. False for methods that need only
        an unbiased gradient, with independent noise in each step.
    halves : bool
        Whether ``step`` discretises a diffusion whose noise is one :func:`~bdlbench.inference.noise.standard_normal` of
        the key, so that two steps of half ``step_size`` approximate the same path better.
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
    halves: bool = False


class Stage(NamedTuple):
    """One method with one schedule. A run is a tuple of stages, and each stage starts where the one before it ended.

    ``factory(target, schedule, numbers)`` makes the method while the program is traced. ``numbers`` maps the path of
    each float of the configuration to its tracer.
    """

    name: str
    factory: Callable[..., Method]
    schedule: Schedule
