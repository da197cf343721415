"""Predictions from draws, a model and new rows. The training rows are not needed."""

import dataclasses
from typing import Any

import jax
import numpy as np

from bdlbench.api.inputs import Inputs, Targets
from bdlbench.api.problem import checked_precision
from bdlbench.errors import ConfigError
from bdlbench.runs.look import as_chains
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.devices import settings
from bdlbench.sampling.predictions import Predictor
from bdlbench.sampling.programs import Lane, Program, Shared
from bdlbench.types import Precision

MOST_ROWS = 1024
"""Largest number of rows that are predicted at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Server:
    """C chains of S draws (with P particles each for populations), and the program that predicts from them.

    Attributes
    ----------
    program : Program
    numbers : dict
        The floats of the configuration.
    inputs, targets
        The scaling of rows from the caller's units to those of the model, and back.
    seed : int
    feature_shape : tuple of int
        Shape of the features of one row as the model sees it.
    rows : int
        Number of rows on which the model is built: two, or the number of training rows if the model has a latent
        variable for each row.
    theta : array (C, S, D), or (C, S, P, D)
        The draws.
    good : bool array (C P, S)
        Which draws are finite and come before their chain's first bad step.
    anchor : array (C, D) or None
        The point at which predictions are linearised; None if they are not linearised.
    gaussian : bool
        Whether y given theta is normal.
    """

    program: Program
    numbers: dict[str, float]
    inputs: Inputs
    targets: Targets
    seed: int
    feature_shape: tuple[int, ...]
    rows: int
    theta: np.ndarray
    good: np.ndarray
    anchor: np.ndarray | None
    gaussian: bool

    @property
    def population(self) -> int:
        """P, the number of particles of a chain; 1 if the method has no population."""
        return self.theta.shape[2] if self.theta.ndim == 4 else 1

    @property
    def precision(self) -> Precision:
        """The floating-point precision of the draws."""
        return "float64" if self.theta.dtype == np.float64 else "float32"

    @property
    def shared(self) -> Shared:
        """Rows that give the model its shapes. Their values are not used."""
        real = np.dtype(self.precision)
        y_type = real if self.targets.classes is None else np.int32
        return Shared(
            np.zeros((1, self.rows, *self.feature_shape), self.inputs.dtype(real)),
            np.zeros((1, self.rows, *self.targets.shape), y_type),
        )

    def lane(self, seed: int = 0) -> Lane:
        """One lane for each chain, with the random keys of the run. A ``seed`` that is not 0 gives other keys."""
        chains = len(self.theta)

        def key_of(chain: Any) -> Any:
            key = jax.random.fold_in(jax.random.key(np.uint32(self.seed)), chain)
            return key if seed == 0 else jax.random.fold_in(key, np.uint32(seed))

        keys = jax.vmap(key_of)(np.arange(chains))
        numbers = {name: np.full(chains, value, self.precision) for name, value in self.numbers.items()}
        return Lane(keys, np.zeros(chains, np.int32), numbers, None)

    def predict(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        seed: int = 0,
        every: int = 1,
        precision: Any = None,
    ) -> dict[str, np.ndarray]:
        """Predictive quantities (S, n, ...) of the good draws at standardised rows; see :class:`Predictor`.

        Rows are padded to a power of two, so that few shapes are compiled. If ``precision`` is None, it is that of the
        draws.
        """
        precision = self.precision if precision is None else checked_precision(precision)
        if not len(x):
            raise ConfigError("x has no rows: give at least one.")
        real = np.dtype(precision)
        if y is None:
            y = np.zeros((len(x), *self.targets.shape), real if self.targets.classes is None else np.int32)
        parts = []
        with settings(precision):
            shared = jax.tree.map(lambda a: a.astype(real) if a.dtype.kind == "f" else a, self.shared)
            lane = self.lane(seed)
            lane = lane._replace(numbers={name: np.asarray(v, real) for name, v in lane.numbers.items()})
            theta = self.theta[:, ::every].astype(real)
            anchor = None if self.anchor is None else self.anchor.astype(real)
            for start in range(0, len(x), MOST_ROWS):
                here = slice(start, start + MOST_ROWS)
                y_here = y[here].astype(real) if y.dtype.kind == "f" else y[here]
                rows = Shared(_padded(x[here].astype(self.inputs.dtype(real))), _padded(y_here))
                task: Any = self.targets.task
                predictor = Predictor(self.program, task, shared, lane, rows, Clock())
                found = predictor.predict(theta, 0, anchor)
                count = len(x[here])
                parts.append({name: values[:, :, :count] for name, values in found.items()})
        together = {name: np.concatenate([part[name] for part in parts], 2) for name in parts[0]}
        return {name: self._good(values, every) for name, values in together.items()}

    def scored(self, x: np.ndarray) -> np.ndarray:
        """Which standardised rows the model observes, (n,) bool: all but those that a mask hides."""
        from bdlbench.model.checks import scored_rows

        train = self.shared.x[0], self.shared.y[0]
        masked: list[bool] = []
        jax.eval_shape(lambda: masked.append(self.program.make_target(self.numbers, *train).scored is not None))
        if not masked[0]:
            return np.ones(len(x), bool)
        return scored_rows(self.program.make_target, dict(self.numbers), train, x.astype(train[0].dtype))

    def sites(self) -> dict[str, np.ndarray]:
        """The named sites of the model, (C P, S, ...), by name; NaN if a draw is not good."""
        with settings(self.precision):
            predictor = Predictor(self.program, self.targets.task, self.shared, self.lane(), None, Clock())
            found = predictor.sites(self.theta)
        return {name: self._masked(as_chains(values, self.population)) for name, values in found.items()}

    def _masked(self, values: np.ndarray) -> np.ndarray:
        if self.good.all() or values.dtype.kind != "f":
            return values
        good = self.good.reshape(*self.good.shape, *[1] * (values.ndim - 2))
        return np.where(good, values, np.nan).astype(values.dtype)

    def _good(self, values: np.ndarray, every: int) -> np.ndarray:
        return as_chains(values, self.population)[self.good[:, ::every]]


def _padded(rows: np.ndarray) -> np.ndarray:
    """Pad rows (n, ...) to (1, m, ...), where m is a power of two, by repeating the last row."""
    size = min(MOST_ROWS, 1 << max(0, len(rows) - 1).bit_length())
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])[None]
