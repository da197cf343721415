"""The network of a run, trained on some of its rows to the maximum a posteriori, for baselines that start from it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bdlbench.baselines.base import Problem
from bdlbench.errors import ConfigError

ROWS_AT_ONCE = 4096


class Trained(NamedTuple):
    """A trained network.

    Attributes
    ----------
    predictive : (x) -> dict
        ``mean`` (n,) of p(y | x, theta) for a regression, ``logits`` (n, K) for classes.
    num_grads : float
        Gradient evaluations of the training, in units of the full training set.
    """

    predictive: Callable[[np.ndarray], np.ndarray]
    num_grads: float


def train(problem: Problem, rows: np.ndarray, *, learning_rate: float, num_steps: int) -> Trained:
    """Train the network on the rows of these indices: ``num_steps`` steps of Adam on all of them.

    The weights maximise the posterior density over unconstrained theta, as in
    :func:`bdlbench.inference.point.maximum_a_posteriori`. The start is the network's own initialisation for the seed.

    Raises
    ------
    FloatingPointError
        If the log density has become non-finite.
    """
    import jax
    import optax

    from bdlbench.inference.point import maximum_a_posteriori
    from bdlbench.sampling.sample import compile as compiled
    from bdlbench.types import Method, Schedule, Stage, Target

    assert problem.network is not None
    network = problem.network
    numbers = {name: float(value) for name, value in network.numbers.items()}

    def factory(target: Target, schedule: Schedule, numbers: Mapping[str, Any]) -> Method:
        return maximum_a_posteriori(target, schedule, optimizer=optax.adam(learning_rate))

    stage = Stage("maximum_a_posteriori", factory, Schedule(1, num_steps, 1, 0))
    sampler = compiled(network.make_target, [stage], 1, start="network")
    x, y = problem.x[rows], problem.y[rows]
    found = sampler((x, y), jax.random.key(problem.seed), numbers=numbers)
    if not found.ok.all():
        raise FloatingPointError("the log density of the network became non-finite: use a smaller learning_rate")
    theta, classes = jax.numpy.asarray(found.theta[0]), problem.task == "classification"
    rows_seen = jax.numpy.asarray(x), jax.numpy.asarray(y)

    @jax.jit
    def at(new: Any) -> Any:
        target = network.make_target(numbers, *rows_seen)
        p = target.predictive(theta, new)
        if not classes:
            return p.mean
        from bdlbench.sampling.predictions import class_probabilities

        return jax.numpy.log(class_probabilities(p))

    def predictive(new: np.ndarray) -> np.ndarray:
        parts = [at(jax.numpy.asarray(new[start : start + ROWS_AT_ONCE])) for start in range(0, len(new), ROWS_AT_ONCE)]
        out = np.concatenate([np.asarray(part, np.float64) for part in parts])
        if not np.isfinite(out).all():
            raise FloatingPointError("a prediction of the network is not finite: use a smaller learning_rate")
        return out

    return Trained(predictive, float(found.num_grads.sum()) * len(rows) / len(problem.y))


def refuse_few(num_rows: int, fraction: float) -> None:
    """Raise ConfigError if fewer than two rows would be left to be fitted or held out."""
    held = round(fraction * num_rows)
    if held < 2 or num_rows - held < 2:
        raise ConfigError(
            f"inference.holdout_fraction={fraction} of {num_rows} training rows leaves fewer than 2 on one side: use another."
        )
