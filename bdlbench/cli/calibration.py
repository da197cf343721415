"""The Hydra launcher of ``experiment=sbc``: each job of a sweep is a method, and is fitted to data sets drawn from the prior.

A job of a sweep is otherwise one run on one data set, with a record in the store. Here it is some hundred fits that only
make sense together, and of which a few numbers each are kept. Therefore the jobs are composed as in any sweep, but another
launcher takes them.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bdlbench.cli import launcher
from bdlbench.errors import ConfigError
from bdlbench.options import at_least, coerce
from bdlbench.runs.outcome import Outcome, sentence


class CalibrationLauncher(launcher.LanesLauncher):
    """Simulation-based calibration of the methods of a sweep, with a table and a picture.

    Parameters
    ----------
    num_datasets : int
        Data sets that are drawn from the prior and fitted by each method, as the lanes of one program.
    exact : str
        The option of ``inference`` whose draws are exact: the predictions of the other methods are compared with its.
    probes : list of int
        Test rows, from 0, at which the function is ranked.
    alpha : float
        The probability that any exact method of the sweep fails in any quantity, at most.
    settings : mapping from option of ``inference`` to list of overrides
        Further overrides of a job with this method. Those of the command line come after them.
    table, figure : str
        Paths of the CSV file and of the PNG file.
    others
        Options of the usual launcher, which have no effect here.
    """

    def __init__(
        self,
        num_datasets: int,
        exact: str,
        probes: Sequence[int],
        alpha: float,
        settings: Mapping[str, Sequence[str]],
        table: str,
        figure: str,
        **others: Any,
    ) -> None:
        self.num_datasets = coerce("hydra.launcher.num_datasets", num_datasets, int)
        at_least("hydra.launcher", 4, num_datasets=self.num_datasets)
        self.alpha = coerce("hydra.launcher.alpha", alpha, float)
        if not 0 < self.alpha < 1:
            raise ConfigError(f"hydra.launcher.alpha={self.alpha} must lie between 0 and 1: use 0.05 for 5 %.")
        self.exact, self.probes = exact, [int(probe) for probe in probes]
        self.settings = {name: [str(one) for one in given] for name, given in settings.items()}
        self.table, self.figure = table, figure

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Fit every method to the same data sets, print and write the table, and draw the picture."""
        from bdlbench.report import calibration as report
        from bdlbench.runs.job import Job, check_job, make_job
        from bdlbench.sampling.devices import setup_jax

        setup_jax()
        outcome = launcher.OUTCOME[-1] if launcher.OUTCOME else Outcome()
        names = [_method(overrides) for overrides in job_overrides]
        full = [
            [*self.settings.get(name, ()), *overrides] for name, overrides in zip(names, job_overrides, strict=True)
        ]
        jobs: dict[str, Job] = {}
        exact = None
        for composed, overrides in zip(self.composed(full, outcome), job_overrides, strict=True):
            if composed is None:
                continue
            config, labels, _ = composed
            name = labels["inference"]
            shown = name if Counter(names)[name] <= 1 else shlex.join(overrides)
            try:
                jobs[shown] = check_job(make_job(config, labels))
                if exact is None and name == self.exact:
                    exact = shown
            except ConfigError as error:
                outcome.errors.append(f"{sentence(error)} ({shlex.join(overrides)})")
        if exact is None:
            raise ConfigError(
                f"hydra.launcher.exact={self.exact} is not a method of this sweep: add it to inference=..., or name another."
            )
        fitted = fit(jobs, exact, self.num_datasets, self.probes, outcome)
        if exact in fitted:
            faults = report.report(fitted, exact=exact, alpha=self.alpha, table=self.table, figure=self.figure)
            outcome.errors += faults
        return [launcher.returned(overrides, None) for overrides in job_overrides]


def fit(
    jobs: Mapping[str, Any], exact: str, num_datasets: int, probes: Sequence[int], outcome: Outcome
) -> dict[str, Any]:
    """Fit each job's method to data sets of the target that all jobs share. A method that cannot be fitted is an error.

    Raises
    ------
    ConfigError
        If the jobs do not have the same posterior, or calibration does not support it.
    """
    from bdlbench.evaluation.calibration import calibrate, simulate
    from bdlbench.runs.progress import make_progress
    from bdlbench.sampling.devices import computing_in

    first = jobs[exact]
    for name, job in jobs.items():
        fault = _fault(job, first)
        if fault:
            raise ConfigError(f"{fault} ({name})")
    progress, fitted = make_progress(first.config["progress"]), {}
    with computing_in(first.precision):
        data = first.dataset
        simulated = simulate(
            first.program,
            first.numbers,
            data.train.x,
            data.test.x,
            num_datasets=num_datasets,
            probes=probes,
            seed=first.seed,
        )
        for name, job in jobs.items():
            try:
                fitted[name] = calibrate(job.program, job.numbers, simulated, num_chains=job.num_chains)
            except ConfigError as error:
                outcome.errors.append(f"{sentence(error)} ({name})")
                continue
            done = fitted[name]
            progress.note(
                f"{name}: {num_datasets} fits in {done.seconds:.1f} s, and {done.compile_seconds:.1f} s to compile"
            )
    return fitted


def _fault(job: Any, first: Any) -> str | None:
    """What keeps a job out of a calibration with the first one, in one sentence."""
    data = job.dataset
    if job.target_id != first.target_id or job.precision != first.precision or job.seed != first.seed:
        return "all methods must sample the same posterior with one precision and one seed: sweep options of inference only."
    if data.task != "regression" or data.train.y.ndim != 1:
        return f"data={data.name}: calibration is for regression with one target: choose another set."
    if data.test is None:
        return f"data={data.name} has no test rows, at which calibration draws new targets: choose another set."
    if data.validation is not None:
        return "data.validation_fraction: calibration draws no validation rows: set it to 0."
    if job.parent is not None:
        return "warm_start: calibration starts every fit anew: set it to null."
    return None


def _method(overrides: Sequence[str]) -> str:
    """The option of ``inference`` that the overrides of a job choose; empty if it is the default."""
    return next((one.split("=", 1)[1] for one in overrides if one.startswith("inference=")), "")
