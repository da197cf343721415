"""Store the draws and predictions of a run in its folder while it runs."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bdlbench.data import Dataset
from bdlbench.data.dataset import units_of
from bdlbench.metrics.diagnostics import CHAIN_DIAGNOSTICS, function_diagnostics
from bdlbench.runs.look import Look
from bdlbench.runs.scores import original
from bdlbench.store.writer import RunWriter

SITE_STAT = {"log_density": "lp"}
"""ArviZ's names for statistics, where they differ."""
TEST_GROUPS = ("predictions", "log_likelihood_test")
"""Groups whose draws have a row for each test row."""
READ_BYTES = 2**27
"""Approximate size in bytes of the stored draws that diagnostics hold at one time."""
Variable = tuple[str, str]
"""The group and the name of an array."""


class Storage:
    """Writes the draws and predictions of one run, and computes ESS and R-hat from what it has written.

    Parameters
    ----------
    writer : RunWriter
        The writer of the run, inside its ``with`` block.
    dataset : Dataset
    num_samples : int
        The planned number of draws of one chain.
    num_rows : int
        The largest number of test rows whose predictions are stored.
    allocated : mapping
        The value of :attr:`allocated` when the checkpoint was written; empty for a new run.
    """

    def __init__(
        self,
        writer: RunWriter,
        dataset: Dataset,
        num_samples: int,
        num_rows: int,
        allocated: Mapping[Variable, tuple[Sequence[int], str]],
    ) -> None:
        self.writer, self.dataset, self.num_samples, self.rows = writer, dataset, num_samples, num_rows
        self._anchored = False
        self.allocated: dict[Variable, tuple[Sequence[int], str]] = {}
        """For each variable the shape (C, ...) of one draw of all chains, and its dtype."""
        for variable, (like, dtype) in allocated.items():
            packed = variable[0] == "predictions" and dataset.task == "regression"
            self._allocate(*variable, like, dtype, self._units() if packed else None)

    def observed(self) -> None:
        """Store the targets, in original units, of those test rows whose predictions are stored."""
        if self.dataset.test is not None:
            y = original(self.dataset.test.y, self.dataset)[: self.rows]
            self.writer.allocate("predictions_constant_data", "y", y.shape, y.dtype, ["row"])
            self.writer.write("predictions_constant_data", "y", 0, y)

    def write(self, look: Look) -> None:
        """Store the sites, the statistics and the predictions at the test rows, in original units.

        Draws that are not ``good`` and predictions that are not ``shown`` are stored as NaN.
        """
        every = np.ones_like(look.good)
        for name, values in look.sites.items():
            self._write("posterior", name, values, look.first_draw, look.good)
        for name, values in look.stats.items():
            repeated = np.repeat(values, look.population, 0)
            self._write("sample_stats", SITE_STAT.get(name, name), repeated, look.first_draw, every)
        if look.anchor is not None and not self._anchored:
            # Later predictions of the linearised network at new rows need the anchor.
            self._anchored = True
            self.writer.allocate("constant_data", "anchor", look.anchor.shape, look.anchor.dtype, ["mode", "weight"])
            self.writer.write("constant_data", "anchor", 0, look.anchor)
        own = look.predictions.get("")
        if own is None:
            return
        scale, loc = self._units()
        top = {name: values[:, :, : self.rows] for name, values in own.items()}
        if "log_lik" in top:  # intervals have no density
            # A log density has no large offset, so that it loses no digits in the precision in which it was computed.
            log_lik = (top["log_lik"].astype(np.float64) - math.log(scale)).astype(top["log_lik"].dtype)
            self._write("log_likelihood_test", "y", log_lik, look.first_draw, look.shown)
        if "probs" in top:
            self._write("predictions", "probs", top["probs"], look.first_draw, look.shown)
            if "sample" in top:
                self._write("predictions", "y", top["sample"], look.first_draw, every)
            return
        for name, key in (("mean", "mean"), ("y", "sample")):
            if key not in top or key in look.absent:
                continue
            values = top[key] if np.issubdtype(top[key].dtype, np.floating) else top[key].astype(np.float64)
            self._write("predictions", name, values, look.first_draw, look.shown, packing=(scale, loc))

    def _units(self) -> tuple[float, float]:
        """Scale and offset that turn standardised targets into original ones."""
        loc, scale = units_of(self.dataset.y_scaler)
        return scale, loc

    def _write(
        self,
        group: str,
        name: str,
        values: np.ndarray,
        start: int,
        good: np.ndarray,
        packing: tuple[float, float] | None = None,
    ) -> None:
        """Write values (C, n, ...), with NaN for bad draws if the dtype has NaN.

        Predictions are stored in standardised units, with scale and offset as their packing. In original units, an
        offset that is much larger than the spread would need twice the digits.
        """
        if np.issubdtype(values.dtype, np.floating) and not good.all():
            values = np.where(good.reshape(*good.shape, *[1] * (values.ndim - 2)), values, np.nan).astype(values.dtype)
        if (group, name) not in self.allocated:
            self._allocate(group, name, (len(values), *values.shape[2:]), values.dtype, packing)
        self.writer.write(group, name, start, values)

    def _allocate(
        self, group: str, name: str, like: Sequence[int], dtype: Any, packing: tuple[float, float] | None
    ) -> None:
        """Allocate all draws of a variable whose single draws have the shape of ``like`` (C, ...)."""
        chains, *extra = like
        self.allocated[group, name] = (chains, *extra), np.dtype(dtype).str
        coords = {}
        if group in TEST_GROUPS:
            dims = ["row", *(["class"] if len(extra) > 1 else [])]
            names = self.dataset.class_names
            coords = {"class": np.array(list(names))} if len(extra) > 1 and names else {}
        else:
            dims = [f"{name}_dim_{axis}" for axis in range(len(extra))]
        size = math.prod(extra) * np.dtype(dtype).itemsize
        block = max(1, min(self.num_samples, 2**20 // max(1, size)))
        shape = (chains, self.num_samples, *extra)
        dims = ["chain", "draw", *dims]
        self.writer.allocate(group, name, shape, dtype, dims, coords, chunk_draws=block, packing=packing)

    def mixing(self, chains: Sequence[int], num_draws: int, absent: Collection[str] = ()) -> dict[str, Any]:
        """ESS and R-hat in function space; if there are no test rows, those of the sites.

        The functions are, at each test row, the log likelihood, and for regression the mean of y given theta. For more
        than two classes the second function is the probability of the competing class: the class other than the label
        with the largest mean probability. The probability of the label is not needed, because it is the likelihood. With
        two classes, the other probability is its complement.

        Parameters
        ----------
        chains : sequence of int
            The chains to use. All their draws must be finite. Without chains all results are None.
        num_draws : int
            Number of draws of each of them.
        absent : collection of str
            Contains ``mean`` if y given theta has no mean.
        """
        if not chains:
            return dict.fromkeys(CHAIN_DIAGNOSTICS)
        wanted = [("log_likelihood_test", "y"), ("predictions", "probs")]
        wanted += [] if "mean" in absent else [("predictions", "mean")]
        if self.dataset.test is None:
            wanted = [variable for variable in self.allocated if variable[0] == "posterior"]
        found = [self._mixing_of(*v, chains, num_draws) for v in wanted if v in self.allocated]
        reduce: dict[str, Any] = {"ess_bulk_median": np.median, "rhat_max": max}
        values = {name: [d[name] for d in found if d[name] is not None] for name in CHAIN_DIAGNOSTICS}
        return {name: float(reduce.get(name, min)(some)) if some else None for name, some in values.items()}

    def _mixing_of(self, group: str, name: str, chains: Sequence[int], num_draws: int) -> dict[str, Any]:
        some, extra = list(chains), self.allocated[group, name][0][1:]
        if len(extra) > 1:
            if name == "probs":
                flat = self._competing(some, *extra)
            else:  # a matrix-valued site of a model without test rows: small enough to read at once
                whole = self.writer.read_columns(group, name, 0, extra[-1])[some]
                flat = whole.reshape(*whole.shape[:2], -1)
            columns, read = flat.shape[-1], lambda start, stop: flat[..., start:stop]
        else:
            columns = extra[0] if extra else 1
            read = lambda start, stop: self.writer.read_columns(group, name, start, stop)[some]  # noqa: E731
        return function_diagnostics(read, columns, num_chains=len(some), num_draws=num_draws)

    def _competing(self, chains: list[int], rows: int, classes: int) -> np.ndarray:
        """Draws (C, S, rows) of the probability of each row's competing class; no row where there are two classes."""

        def parts() -> Iterator[tuple[int, np.ndarray]]:
            """The classes, as many at a time as fit, as (first class, draws (C, S, rows, k))."""
            width = max(1, READ_BYTES // (4 * len(chains) * self.num_samples * rows))
            for start in range(0, classes, width):
                yield start, self._probs(start, min(start + width, classes))[chains]

        assert self.dataset.test is not None
        mean = np.concatenate([values.mean((0, 1)) for _, values in parts()], -1)
        mean[np.arange(rows), self.dataset.test.y[:rows]] = -1.0
        chosen = mean.argmax(-1)[: 0 if classes == 2 else rows]
        out: dict[int, np.ndarray] = {}
        for start, values in parts():
            for row in np.flatnonzero((chosen >= start) & (chosen < start + values.shape[-1])).tolist():
                out[row] = values[..., row, chosen[row] - start]
        return np.stack([out[row] for row in sorted(out)], -1) if out else np.empty((len(chains), 0, 0))

    def _probs(self, start: int, stop: int) -> np.ndarray:
        return self.writer.read_columns("predictions", "probs", start, stop)
