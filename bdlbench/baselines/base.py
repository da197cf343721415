"""What a baseline is, and the training rows that it gets.

A baseline has no posterior of weights from which draws are taken one after another. It is fitted once, and gives a
distribution of y at each row. A run of it is stored and scored as any other run, and its price is in seconds.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from bdlbench.baselines.predictives import Probabilities, RealPredictive
from bdlbench.errors import ConfigError
from bdlbench.types import Target, Task

Predict = Callable[[np.ndarray], RealPredictive | Probabilities]
"""The distribution of y at inputs (n, ...) in the units of the training rows."""
EVERY_TASK: tuple[Task, ...] = ("regression", "classification")


class Network(NamedTuple):
    """The model of a run, for a baseline that starts from a network.

    Attributes
    ----------
    make_target : (numbers, x, y) -> Target
    numbers : mapping
        The floats of the configuration by their dotted paths.
    """

    make_target: Callable[[Mapping[str, Any], Any, Any], Target]
    numbers: Mapping[str, float]


class Problem(NamedTuple):
    """The training rows of a run, with what else a fit may read.

    Attributes
    ----------
    x : array (N, ...)
        Inputs as the run has them, standardised by the training rows unless the data set says otherwise.
    y : array (N,)
        Targets: floats of the same scaling (regression), or integer labels 0..K-1 (classification).
    task : "regression" or "classification"
    num_classes : int
        K; 1 for a regression.
    seed : int
        Everything random in a fit follows from it.
    network : Network or None
        The model of the run, if the baseline says that it uses it.
    """

    x: np.ndarray
    y: np.ndarray
    task: Task
    num_classes: int
    seed: int
    network: Network | None = None

    @property
    def table(self) -> np.ndarray:
        """The inputs as a float64 table (N, d). Images and signals become rows of numbers."""
        return as_table(self.x)

    @property
    def random_state(self) -> int:
        """The seed as scikit-learn takes it, below 2^32."""
        return self.seed % 2**32


class Fitted(NamedTuple):
    """The result of a fit.

    Attributes
    ----------
    predict : (x) -> predictive
    num_grads : float or None
        Gradient evaluations of a network on the full training set, where the fit took them. None where a library fits in
        another way, so that there is nothing to count.
    """

    predict: Predict
    num_grads: float | None = None


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A predictive model that is fitted once.

    Attributes
    ----------
    fit : (problem) -> Fitted
    tasks : tuple
        The tasks that it has.
    uses_network : bool
        Whether it starts from the model of the run: network, prior and likelihood. If not, these sections are no part of
        the run.
    check : (N, d, task) -> None
        Raises ConfigError if the fit is impossible or too large for N rows of d numbers.
    remark : str
        What a reader must know of the predictive, in one sentence; empty if there is nothing.
    """

    fit: Callable[[Problem], Fitted]
    tasks: tuple[Task, ...] = EVERY_TASK
    uses_network: bool = False
    check: Callable[[int, int, str], None] = lambda num_rows, num_inputs, task: None
    remark: str = ""


def baseline(factory: Callable[..., Baseline]) -> Callable[..., Baseline]:
    """Declare that a factory makes a :class:`Baseline`, so that a run does not look for a schedule of its own."""
    setattr(factory, "is_baseline", True)  # noqa: B010
    return factory


def is_baseline(factory: Any) -> bool:
    """Whether a factory makes a :class:`Baseline`."""
    return bool(getattr(factory, "is_baseline", False))


def as_table(x: np.ndarray) -> np.ndarray:
    """Inputs (n, ...) as float64 numbers (n, d)."""
    return np.asarray(x, np.float64).reshape(len(x), -1)


def held_out(num_rows: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows at random into those that are fitted and those that are held out, at least one each.

    Returns
    -------
    tuple (fitted, held)
        Indices of rows. ``held`` has ``round(fraction num_rows)`` of them.
    """
    order = np.random.default_rng([seed, 0x5E1F]).permutation(num_rows)
    size = min(max(1, round(fraction * num_rows)), num_rows - 1)
    return order[size:], order[:size]


def every_class_fitted(problem: Problem, labels: np.ndarray) -> None:
    """Raise ConfigError if the fitted rows lack a class, whose probability would be unknown."""
    missing = sorted(set(range(problem.num_classes)) - set(labels.tolist()))
    if missing:
        raise ConfigError(
            f"data: no fitted row has class {missing[0]}, so that its probability is unknown: give more rows, as with "
            "data.n_train, or another split."
        )


def smoothed(probs: np.ndarray, count: float) -> np.ndarray:
    """Laplace's rule of succession: (c_k + 1) / (c + K) for shares c_k / c of ``count`` votes c, so that none is 0."""
    return (probs * count + 1) / (count + probs.shape[1])


def from_labels(columns: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Probabilities (n, K) of all classes from those of the classes that a library has seen; the others have 0."""
    out = np.zeros((len(columns), num_classes))
    out[:, np.asarray(classes, int)] = columns
    return out


def fitted_with_warnings(model: Baseline, problem: Problem) -> tuple[Fitted, list[str]]:
    """Fit with one thread, and return the texts of the warnings that a library gave meanwhile, each once.

    With one thread, sums have the same order on each machine, and the seconds do not depend on the number of its cores.
    """
    with threadpool_limits(limits=1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = model.fit(problem)
    return found, list(dict.fromkeys(" ".join(str(one.message).split()) for one in caught))
