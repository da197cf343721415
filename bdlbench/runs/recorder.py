"""One run's bookkeeping: what of each block goes to the store, into the running scores and into the record."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bdlbench.metrics.diagnostics import CHAIN_DIAGNOSTICS, function_diagnostics, psis_khat
from bdlbench.metrics.evaluate import evaluate
from bdlbench.metrics.mixture import PredictiveMixture
from bdlbench.metrics.uncertainty import ood_aupr, ood_auroc, ood_fpr95
from bdlbench.runs.diagnosis import BOUNDS, NO_MOMENTS, status, warnings
from bdlbench.runs.job import Job
from bdlbench.runs.particles import MOMENTS, as_chains, finite_predictions, moments_kept, num_particles, pooled
from bdlbench.sampling.clock import Clock
from bdlbench.sampling.loop import Block
from bdlbench.sampling.programs import NEVER
from bdlbench.store.writer import RunWriter

OOD = "ood/"
"""Prefix that tells out-of-distribution rows from shifted ones."""
SITE_STAT = {"log_density": "lp"}  # ArviZ's names for statistics where they differ
GATHERED = ("row_grads", "num_diverging", "num_nonfinite", "num_draws", "population", "moments", "capped", "_written")
"""Plain numbers that a checkpoint keeps."""
SERIES = ("energy", "log_ratios")  # lists of arrays (C, n) that it keeps
PHASES = ("setup", "compile", "warmup", "sample", "predict")
STANDARDISED = ("lppd", "lppd_gaussian", "rmse", "crps")
"""Metrics that have units and are recorded in standardised ones too."""


class Recorder:
    """Follows one job through the loop.

    The P particles of a population are kept as chains, C P of them.
    Draws that are not finite, and the predictions of those whose predictions are not, are stored as NaN, enter no
    average and no diagnostic, and are counted in the record.

    Parameters
    ----------
    job : Job
    writer : RunWriter
        Entered; only this class writes to it.
    lanes : slice
        The job's chains among the group's lanes.
    gaussian : bool
        Whether y given theta is normal.
    markov : bool
        Whether a chain's draws are a Markov chain.
    predictive_rows : int
        Predictions are stored and diagnosed for at most so many test rows.
    """

    def __init__(
        self, job: Job, writer: RunWriter, lanes: slice, *, gaussian: bool, markov: bool, predictive_rows: int
    ) -> None:
        self.job, self.writer, self.lanes = job, writer, lanes
        self.gaussian, self.markov, self.rows = gaussian, markov, predictive_rows
        self.schedule = job.program.stages[-1].schedule
        self.mixture = PredictiveMixture(gaussian=gaussian)
        names = [*job.dataset.shifted, *(OOD + name for name in job.dataset.ood)]
        self.apart = {name: PredictiveMixture(gaussian=gaussian) for name in names}
        self.row_grads = {"warmup": 0, "sample": 0}
        # Of earlier attempts: this run's share by phase, and for the curve warm-up and sampling of all lanes.
        self.seconds, self.curve_seconds = dict.fromkeys(PHASES, 0.0), 0.0
        self.num_diverging = self.num_nonfinite = self.num_draws = self._written = 0
        self.population = 1
        self.moments: bool | None = None  # whether y given theta has a variance, once draws have been seen
        self.bad: dict[int, tuple[int, str, int]] = {}
        self.overflowing: dict[int, int] = {}  # finite draws of a chain or particle whose predictions are not
        self.capped: dict[str, int] = {}
        self.energy: list[np.ndarray] = []
        self.log_ratios: list[np.ndarray] = []
        self._scored: tuple[int, dict[str, Any]] | None = None
        self._allocated: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {}

    @property
    def num_grads(self) -> dict[str, float]:
        """Gradients by phase, in passes over the training rows."""
        spent = {phase: rows / len(self.job.dataset.train.y) for phase, rows in self.row_grads.items()}
        return spent if self.job.parent is None else spent | {"warm_start": self.job.parent.num_grads}

    def share(self, clock: Clock, num_jobs: int) -> dict[str, float]:
        """Seconds by phase of all attempts: of this one, an equal share of the group's."""
        return {phase: self.seconds[phase] + clock.seconds.get(phase, 0.0) / num_jobs for phase in PHASES}

    # ---- blocks

    def count(self, block: Block) -> None:
        """Charge a block's gradients and note chains that have become non-finite."""
        last = block.stage == len(self.job.program.stages) - 1
        phase = block.phase if last else "warmup"
        # In gradients of single rows, whole numbers, so that the sum does not depend on where blocks end.
        alive = np.array([chain not in self.bad for chain in range(self.schedule.num_chains)])
        rows = np.rint(block.num_grads[self.lanes] * len(self.job.dataset.train.y))
        self.row_grads[phase] += int(rows[alive].sum())
        if last and block.phase == "sample":
            self.num_diverging += int(block.num_diverging[self.lanes][alive].sum())
        for chain, step in enumerate(block.bad_step[self.lanes]):
            if step < NEVER and chain not in self.bad:
                self.bad[chain] = (int(step), block.phase, block.stage)

    @property
    def over(self) -> bool:
        """Whether no chain is left: what a group draws after the last look before that is not kept."""
        return len(self.bad) == self.schedule.num_chains

    def finite(self, block: Block) -> np.ndarray:
        """Which of the job's draws (C, n), or (C P, n), are finite and come before their chain's first bad step."""
        assert block.draws is not None
        draws = block.draws[self.lanes]
        population = num_particles(draws)
        good = as_chains(np.isfinite(draws).all(-1).reshape(len(draws), -1), population)
        ends = block.steps_done - self.schedule.thinning * np.arange(draws.shape[1])[::-1] - 1
        return good & (ends[None] < np.repeat(block.bad_step[self.lanes], population)[:, None])

    def keep(
        self,
        block: Block,
        sites: Mapping[str, np.ndarray],
        predictions: Mapping[str, np.ndarray],
        elsewhere: Mapping[str, Mapping[str, np.ndarray]],
    ) -> None:
        """Store a block of draws and add it to the running scores; each particle of a population is a chain."""
        assert block.draws is not None
        good, population = self.finite(block), num_particles(block.draws)
        self.population = population
        start, count = block.first_draw, good.shape[1]
        seen = {
            place: {name: as_chains(values[self.lanes], population) for name, values in arrays.items()}
            for place, arrays in ({"": predictions} | dict(elsewhere)).items()
            if arrays
        }
        if self.moments is None and "" in seen:
            self.moments = len(moments_kept(seen[""], good)) == len(seen[""])
        if self.moments is False:
            seen = {p: {n: a for n, a in some.items() if n not in MOMENTS} for p, some in seen.items()}
        shown = np.logical_and.reduce([good, *map(finite_predictions, seen.values())])
        for chain, lost in enumerate((good & ~shown).sum(1).tolist()):
            if lost:
                self.overflowing[chain] = self.overflowing.get(chain, 0) + lost
        self.num_draws += int(shown.sum())
        self.num_nonfinite += int((~shown).sum())
        for name, values in sites.items():
            self._write("posterior", name, as_chains(values[self.lanes], population), start, good)
        self._keep_stats(block, start, good)
        for place, predicted in seen.items():
            if place == "":
                self._store_predictions(predicted, start, shown)
            pooled(self.apart[place] if place else self.mixture, predicted, shown)
        self._written = start + count

    def _keep_stats(self, block: Block, start: int, good: np.ndarray) -> None:
        for name, values in block.stats.items():
            own = values[self.lanes]
            repeated = np.repeat(own, len(good) // len(own), 0)
            self._write("sample_stats", SITE_STAT.get(name, name), repeated, start, np.ones_like(good))
            if name in BOUNDS:
                self.capped[name] = self.capped.get(name, 0) + int(own.sum())
            if name == "energy":
                self.energy.append(own)
        if "log_q" in block.stats:
            ratio = block.stats["log_density"].astype(np.float64) - block.stats["log_q"]
            self.log_ratios.append(np.where(good, ratio[self.lanes], np.nan))

    def _store_predictions(self, own: Mapping[str, np.ndarray], start: int, good: np.ndarray) -> None:
        scaler = self.job.dataset.y_scaler
        loc, scale = (0.0, 1.0) if scaler is None else (float(scaler.loc), float(scaler.scale))
        top = slice(0, self.rows)
        # The log density of a row has no offset, so that the precision it was computed in keeps all its digits.
        density = own["log_lik"][:, :, top].astype(np.float64) - math.log(scale)
        self._write("log_likelihood", "y", density.astype(own["log_lik"].dtype), start, good)
        if "probs" in own:
            self._write("posterior_predictive", "probs", own["probs"][:, :, top], start, good)
            self._write("posterior_predictive", "y", own["sample"][:, :, top], start, np.ones_like(good))
        else:
            for name, key in [("mean", "mean")] * ("mean" in own) + [("y", "sample")]:
                values = (
                    own[key][:, :, top].astype(np.float64) * scale + loc
                )  # an offset may be large beside the spread
                self._write("posterior_predictive", name, values, start, good)

    def _write(self, group: str, name: str, values: np.ndarray, start: int, good: np.ndarray) -> None:
        """Write (C, n, ...), bad draws as NaN where the type has one."""
        if np.issubdtype(values.dtype, np.floating) and not good.all():
            values = np.where(good.reshape(*good.shape, *[1] * (values.ndim - 2)), values, np.nan).astype(values.dtype)
        self._allocate(group, name, values.shape, values.dtype)
        self.writer.write(group, name, start, values)

    def _allocate(self, group: str, name: str, like: tuple[int, ...], dtype: Any) -> None:
        """Make room once for blocks of shape ``like`` (C, n, ...)."""
        if (group, name) not in self._allocated:
            extra = like[2:]
            self._allocated[group, name] = (like[0], 1, *extra), np.dtype(dtype).str
            if group in ("log_likelihood", "posterior_predictive"):
                dims = ["row", *(["class"] if len(extra) > 1 else [])]
            else:
                dims = [f"{name}_dim_{axis}" for axis in range(len(extra))]
            shape = (like[0], self.schedule.num_samples, *extra)
            size = math.prod(extra) * np.dtype(dtype).itemsize
            block = max(1, min(self.schedule.num_samples, 2**20 // max(1, size)))
            self.writer.allocate(group, name, shape, dtype, ["chain", "draw", *dims], chunk_draws=block)

    # ---- checkpoints

    def state(self) -> dict[str, np.ndarray]:
        """Everything gathered so far beside what the store has, as arrays by name, for :meth:`restore`."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in GATHERED}
        facts |= {"bad": list(self.bad.items()), "overflowing": list(self.overflowing.items())}
        facts |= {"allocated": [[*key, *a] for key, a in self._allocated.items()]}
        out = {"facts": np.array(json.dumps(facts))}
        out |= {f"series/{name}": np.concatenate(getattr(self, name), 1) for name in SERIES if getattr(self, name)}
        for name, mixture in self._mixtures().items():
            out |= {f"mixture/{name}/{key}": value for key, value in mixture.state().items()}
        return out

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what :meth:`state` gave; the writer must have been set back to the same moment."""
        facts = json.loads(str(state["facts"]))
        for name in GATHERED:
            setattr(self, name, facts[name])
        self.bad = {chain: (step, phase, stage) for chain, (step, phase, stage) in facts["bad"]}
        self.overflowing = {chain: lost for chain, lost in facts["overflowing"]}
        for group, name, like, dtype in facts["allocated"]:
            self._allocate(group, name, tuple(like), dtype)
        for name in SERIES:
            setattr(self, name, [state[key] for key in [f"series/{name}"] if key in state])
        for name, mixture in self._mixtures().items():
            start = f"mixture/{name}/"
            mixture.restore({key.removeprefix(start): v for key, v in state.items() if key.startswith(start)})

    def _mixtures(self) -> dict[str, PredictiveMixture]:
        return {"own": self.mixture, **{f"apart {name}": mixture for name, mixture in self.apart.items()}}

    # ---- scores

    def observed(self) -> None:
        """Store the test rows that predictions are stored for, targets in original units."""
        test = self.job.dataset.test
        if test is None:
            return
        y = self.original(test.y)[: self.rows]
        self.writer.allocate("observed_data", "y", y.shape, y.dtype, ["row"])
        self.writer.write("observed_data", "y", 0, y)

    def original(self, y: np.ndarray) -> np.ndarray:
        """Targets in original units."""
        scaler = self.job.dataset.y_scaler
        return y if scaler is None else np.asarray(scaler.original(y), np.float64)

    def scores(self, mixture: PredictiveMixture | None = None, y: np.ndarray | None = None) -> dict[str, Any]:
        """Metrics of the draws so far: original units, and standardised ones beside them where they differ."""
        out = self.plain_scores(mixture, y)
        scaler, test = self.job.dataset.y_scaler, self.job.dataset.test
        if not out or scaler is None or test is None:
            return out
        standard = {name: self.job.metrics[name] for name in STANDARDISED if name in self.job.metrics}
        here = (self.mixture if mixture is None else mixture).ingredients()
        return out | {"standardized": evaluate(standard, test.y if y is None else y, here)}

    def plain_scores(self, mixture: PredictiveMixture | None = None, y: np.ndarray | None = None) -> dict[str, Any]:
        """Metrics in original units; of the run's own draws at its test rows they are computed once a look."""
        own, mixture = mixture is None and y is None, self.mixture if mixture is None else mixture
        test, scaler = self.job.dataset.test, self.job.dataset.y_scaler
        y = test.y if y is None and test is not None else y
        if y is None or mixture.num_draws == 0:
            return {}
        if own and self._scored is not None and self._scored[0] == mixture.num_draws:
            return dict(self._scored[1])
        here = mixture.ingredients()
        if scaler is not None:
            here = mixture.to_original(float(scaler.loc), float(scaler.scale))
        out: dict[str, Any] = dict(evaluate(self.job.metrics, self.original(y), here))
        if own:
            self._scored = mixture.num_draws, dict(out)
        return out

    def detection(self, mixture: PredictiveMixture) -> dict[str, float]:
        """How well uncertainty tells rows out of distribution from test rows, which it should score lower.

        By the entropy of the mean prediction (classification) or the variance between draws (regression).
        """
        if self.mixture.num_draws == 0 or mixture.num_draws == 0:
            return {}
        name = "entropy_of_mean" if self.job.dataset.task == "classification" else "model_variance"
        inside, outside = self.mixture.ingredients()[name], mixture.ingredients()[name]
        scores = {"auroc": ood_auroc, "aupr": ood_aupr, "fpr95": ood_fpr95}
        return {key: float(score(inside, outside)) for key, score in scores.items()}

    def curve(self, phase: str, num_draws: int, seconds: float, mixture: PredictiveMixture | None = None) -> None:
        """Append the running posterior's scores at its price so far."""
        flat = self.plain_scores(mixture)
        price = {"num_grads": sum(self.num_grads.values()), "seconds": seconds}
        self.writer.append_curve({"phase": phase, "num_draws": num_draws, **price, **flat})

    def khat(self) -> float | None:
        """Largest Pareto k-hat over the chains' approximations q; null without a density q or with too few draws.

        Infinite where the posterior has no finite density at a draw of q.
        """
        if not self.log_ratios or self.num_nonfinite or self.schedule.num_samples < 25:
            return None
        chains = np.concatenate(self.log_ratios, 1)
        return max(psis_khat(ratios) if np.isfinite(ratios).all() else math.inf for ratios in chains)

    def diagnostics(self) -> dict[str, Any]:
        """Diagnostics of the chains, and k-hat where the draws are from a distribution with a density."""
        return self.chain_diagnostics() | ({"psis_khat": self.khat()} if self.log_ratios else {})

    def chain_diagnostics(self) -> dict[str, Any]:
        """ESS and R-hat of function values and log likelihoods at the test rows; of the sites without test rows.

        Over the chains that stayed finite; null where draws are no Markov chain.
        """
        population = self.population
        lost = {c for c in range(self.schedule.num_chains * population) if c // population in self.bad}
        chains = sorted({*range(self.schedule.num_chains * population)} - lost - {*self.overflowing})
        if not self.markov or not chains:
            return dict.fromkeys(CHAIN_DIAGNOSTICS)
        wanted = [("log_likelihood", "y"), ("posterior_predictive", "mean")]
        if self.job.dataset.test is None:
            wanted = [key for key in self._allocated if key[0] == "posterior"]
        found = [self._diagnose(*key, chains) for key in wanted if key in self._allocated]
        reduce: dict[str, Any] = {"ess_bulk_median": np.median, "rhat_max": max}
        values = {name: [d[name] for d in found if d[name] is not None] for name in CHAIN_DIAGNOSTICS}
        return {name: float(reduce.get(name, min)(some)) if some else None for name, some in values.items()}

    def _diagnose(self, group: str, name: str, chains: list[int]) -> dict[str, Any]:
        extra = self._allocated[group, name][0][2:]
        if len(extra) > 1:  # a matrix-valued site of a model without test rows: small enough to read at once
            whole = self.writer.read_columns(group, name, 0, extra[-1])[chains]
            flat = whole.reshape(*whole.shape[:2], -1)
            columns, read = flat.shape[-1], lambda start, stop: flat[..., start:stop]
        else:
            columns = extra[0] if extra else 1
            read = lambda start, stop: self.writer.read_columns(group, name, start, stop)[chains]  # noqa: E731
        return function_diagnostics(read, columns, num_chains=len(chains), num_draws=self._written)

    # ---- the record

    def status(self) -> tuple[str, str | None]:
        """``complete``, or ``diverged`` with the reason."""
        return status(self.job, self.bad, self.num_nonfinite, sum(self.overflowing.values()))

    def warnings(self, diagnostics: Mapping[str, Any]) -> list[str]:
        """What a reader of the table must know."""
        energy = np.concatenate(self.energy, 1) if self.energy else None
        out = warnings(self.job, self.num_diverging, self.population, self.capped, energy, diagnostics)
        return out if self.moments is not False else [*out, NO_MOMENTS]
