"""Store the draws and predictions of a run in its folder while it runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bdlbench.data import Dataset
from bdlbench.metrics.diagnostics import CHAIN_DIAGNOSTICS, function_diagnostics
from bdlbench.runs.look import Look
from bdlbench.runs.scores import original
from bdlbench.store.writer import RunWriter

SITE_STAT = {"log_density": "lp"}
"""The names of statistics in ArviZ, if they differ from ours."""
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
            self._allocate(*variable, like, dtype)

    def observed(self) -> None:
        """Store the targets, in original units, of those test rows whose predictions are stored."""
        if self.dataset.test is not None:
            y = original(self.dataset.test.y, self.dataset)[: self.rows]
            self.writer.allocate("observed_data", "y", y.shape, y.dtype, ["row"])
            self.writer.write("observed_data", "y", 0, y)

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
        scaler = self.dataset.y_scaler
        loc, scale = (0.0, 1.0) if scaler is None else (float(scaler.loc), float(scaler.scale))
        top = {name: values[:, :, : self.rows] for name, values in own.items()}
        # A log density has no large offset, so that it loses no digits in the precision in which it was computed.
        log_lik = (top["log_lik"].astype(np.float64) - math.log(scale)).astype(top["log_lik"].dtype)
        self._write("log_likelihood", "y", log_lik, look.first_draw, look.shown)
        if "probs" in top:
            self._write("posterior_predictive", "probs", top["probs"], look.first_draw, look.shown)
            self._write("posterior_predictive", "y", top["sample"], look.first_draw, every)
            return
        for name, key in [("mean", "mean")] * ("mean" in top) + [("y", "sample")]:
            values = top[key].astype(np.float64) * scale + loc  # the offset may be much larger than the spread
            self._write("posterior_predictive", name, values, look.first_draw, look.shown)

    def _write(self, group: str, name: str, values: np.ndarray, start: int, good: np.ndarray) -> None:
        """Write values (C, n, ...) from draw ``start`` on. Floats of draws that are not good are written as NaN."""
        if np.issubdtype(values.dtype, np.floating) and not good.all():
            values = np.where(good.reshape(*good.shape, *[1] * (values.ndim - 2)), values, np.nan).astype(values.dtype)
        if (group, name) not in self.allocated:
            self._allocate(group, name, (len(values), *values.shape[2:]), values.dtype)
        self.writer.write(group, name, start, values)

    def _allocate(self, group: str, name: str, like: Sequence[int], dtype: Any) -> None:
        """Allocate the array for all draws of a variable. ``like`` (C, ...) is the shape of one draw of all chains."""
        chains, *extra = like
        self.allocated[group, name] = (chains, *extra), np.dtype(dtype).str
        if group in ("log_likelihood", "posterior_predictive"):
            dims = ["row", *(["class"] if len(extra) > 1 else [])]
        else:
            dims = [f"{name}_dim_{axis}" for axis in range(len(extra))]
        size = math.prod(extra) * np.dtype(dtype).itemsize
        block = max(1, min(self.num_samples, 2**20 // max(1, size)))
        shape = (chains, self.num_samples, *extra)
        self.writer.allocate(group, name, shape, dtype, ["chain", "draw", *dims], chunk_draws=block)

    def mixing(self, chains: Sequence[int], num_draws: int) -> dict[str, Any]:
        """Return ESS and R-hat of the predicted means and log likelihoods at the test rows.

        For a data set without test rows they are those of the named sites.

        Parameters
        ----------
        chains : sequence of int
            The chains to use. All their draws must be finite. Without chains all results are None.
        num_draws : int
            The number of draws of each chain.
        """
        if not chains:
            return dict.fromkeys(CHAIN_DIAGNOSTICS)
        wanted = [("log_likelihood", "y"), ("posterior_predictive", "mean")]
        if self.dataset.test is None:
            wanted = [variable for variable in self.allocated if variable[0] == "posterior"]
        found = [self._mixing_of(*v, chains, num_draws) for v in wanted if v in self.allocated]
        reduce: dict[str, Any] = {"ess_bulk_median": np.median, "rhat_max": max}
        values = {name: [d[name] for d in found if d[name] is not None] for name in CHAIN_DIAGNOSTICS}
        return {name: float(reduce.get(name, min)(some)) if some else None for name, some in values.items()}

    def _mixing_of(self, group: str, name: str, chains: Sequence[int], num_draws: int) -> dict[str, Any]:
        some, extra = list(chains), self.allocated[group, name][0][1:]
        if len(extra) > 1:  # a matrix-valued site, used only without test rows: it is small enough to be read at once
            whole = self.writer.read_columns(group, name, 0, extra[-1])[some]
            flat = whole.reshape(*whole.shape[:2], -1)
            columns, read = flat.shape[-1], lambda start, stop: flat[..., start:stop]
        else:
            columns = extra[0] if extra else 1
            read = lambda start, stop: self.writer.read_columns(group, name, start, stop)[some]  # noqa: E731
        return function_diagnostics(read, columns, num_chains=len(some), num_draws=num_draws)
