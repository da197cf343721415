"""Tuning with Optuna: trials are asked for in batches, and the runs of a batch become lanes of one program."""

import itertools
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bdlbench.cli.launcher import collect
from bdlbench.errors import ConfigError
from bdlbench.options import at_least, coerce
from bdlbench.runs import configuration
from bdlbench.runs.executors.base import required, was_lost
from bdlbench.runs.outcome import Outcome

SECTION = "hydra.sweeper"
DIRECTIONS = ("minimize", "maximize")


class OptunaSweeper(Sweeper):
    """Searches the options that are given as sweeps: ``choice()``, ``range()``, ``interval()``, ``tag(log, ...)``.

    The sampler has a seed and runs are reproducible bit for bit. Therefore the same command asks for the same trials
    again and finds their finished runs in the store. It continues an interrupted search, with or without a storage of
    Optuna.

    Parameters
    ----------
    n_trials : int
        The total number of trials, including those in the storage.
    n_jobs : int
        The number of trials that are asked for together, before any of their values is known.
    metric : str or list
        The objective as a dotted key of the record, such as ``metrics.lppd``; a list for several objectives.
    direction : str or list
        ``maximize`` or ``minimize``, for each metric.
    mean_over : mapping or None
        Options that are not searched. The objective is the mean over their values, for example
        ``{data.split: range(5)}``.
    seed : int
        The seed of the sampler.
    sampler : mapping or None
        ``_target_`` and arguments of a sampler of Optuna. None means TPE.
    storage, study_name : str or None
        A database of Optuna, such as ``sqlite:///tuning.db``, and the name of the study in it.
    params : mapping or None
        Options to search, as on the command line.
    """

    def __init__(
        self,
        n_trials: Any,
        n_jobs: Any,
        metric: Any,
        direction: Any,
        mean_over: Mapping[str, str] | None,
        seed: Any,
        sampler: Mapping[str, Any] | None,
        storage: str | None,
        study_name: str | None,
        params: Mapping[str, str] | None,
    ) -> None:
        whole = {"n_trials": n_trials, "n_jobs": n_jobs, "seed": seed}
        n_trials, n_jobs, seed = (coerce(f"{SECTION}.{name}", value, int) for name, value in whole.items())
        at_least(SECTION, 1, n_trials=n_trials, n_jobs=n_jobs)
        at_least(SECTION, 0, seed=seed)
        self.metrics = [metric] if isinstance(metric, str) else list(metric or [])
        self.directions = [direction] if isinstance(direction, str) else list(direction or [])
        if not self.metrics or len(self.metrics) != len(self.directions):
            raise ConfigError(f"{SECTION}.metric and direction must name one direction for each metric.")
        if not set(self.directions) <= set(DIRECTIONS):
            raise ConfigError(f"{SECTION}.direction={direction!r} is unknown: use {' or '.join(DIRECTIONS)}.")
        if storage is not None and study_name is None:
            raise ConfigError(f"{SECTION}.study_name is required with a storage: without a name nothing is continued.")
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.mean_over, self.params = dict(mean_over or {}), dict(params or {})
        self.sampler: Any = sampler
        if isinstance(sampler, DictConfig):
            self.sampler = OmegaConf.to_container(sampler, resolve=True)
        self.storage, self.study_name = storage, study_name

    launcher: Any
    loader: Any

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher, and store Hydra's loader and configuration. Hydra calls this once for each command."""
        from hydra.core.plugins import Plugins

        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.loader, self.config = hydra_context.config_loader, config
        self.parser = OverridesParser.create(config_loader=self.loader)

    def sweep(self, arguments: list[str]) -> Any:
        """Ask for trials, run them and tell Optuna their values, until there are ``n_trials``. Return the study."""
        overrides = self._parsed({**self.params})
        overrides += self.parser.parse_overrides(arguments)
        space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        if not space:
            raise ConfigError(
                f"{SECTION}: nothing to search: give an option as a sweep, as 'a.b=tag(log, interval(1e-6, 1e-3))'."
            )
        means = [[f"{o.get_key_element()}={v}" for v in values_of(o)] for o in self._parsed(self.mean_over)]
        beside = [list(one) for one in itertools.product(*means)]
        study = self._study()
        optuna = required("optuna", "tuning")
        broken_off = unfinished(study, set(space))
        launched = lost = 0
        while left := max(0, self.n_trials - lost - len(study.get_trials(deepcopy=False, states=ended()))):
            trials = broken_off[: min(self.n_jobs, left)]
            del broken_off[: len(trials)]
            asked = [study.ask(space) for _ in range(min(self.n_jobs, left) - len(trials))]
            trials += [(trial.number, trial.params) for trial in asked]
            jobs = [
                [*fixed, *(f"{name}={value}" for name, value in params.items()), *more]
                for _, params in trials
                for more in beside
            ]
            if launched == 0:
                self._check_metrics(jobs[0])
            returned = self.launcher.launch(jobs, initial_job_idx=launched)
            collect(returned)
            returns = iter(returned)
            launched += len(jobs)
            for trial_number, _ in trials:
                records = [record_of(next(returns).return_value) for _ in beside]
                if only_lost(records):  # the trial stays open, and the same command tries it again
                    lost += 1
                    continue
                values = self._objective(records)
                state = optuna.trial.TrialState.FAIL if values is None else None
                study.tell(trial_number, values, state=state)
        self._report(study, optuna)
        return study

    def _parsed(self, options: Mapping[str, Any]) -> list[Override]:
        return self.parser.parse_overrides([f"{name}={value}" for name, value in options.items()])

    def _study(self) -> Any:
        optuna = required("optuna", "tuning")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=self.storage, study_name=self.study_name, directions=self.directions, load_if_exists=True
        )
        # A study that continues needs another seed, because the same seed would give the same trials again.
        seed = self.seed + len(study.get_trials(deepcopy=False))
        if self.sampler is not None:
            study.sampler = configuration.call({**self.sampler, "seed": seed}, f"{SECTION}.sampler", partial=False)
            return study
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=self.n_jobs > 1)
        return study

    def _check_metrics(self, job: Sequence[str]) -> None:
        """Raise ConfigError before anything runs if no record will have a metric."""
        from bdlbench.metrics.diagnostics import CHAIN_DIAGNOSTICS

        try:
            own = list(self.loader.load_sweep_config(self.config, list(job)).metrics)
        except (HydraException, OmegaConfBaseException):
            return  # the launcher reports what is wrong with the job
        known = [*own, *CHAIN_DIAGNOSTICS, "psis_khat", "standardized", "shifted", "ood"]
        for metric in self.metrics:
            first, _, rest = metric.partition(".")
            if first == "metrics" and rest.split(".")[0] not in known:
                raise ConfigError(
                    f"{SECTION}.metric={metric} will not be in the records: there are "
                    f"{', '.join(f'metrics.{name}' for name in own)} and diagnostics such as metrics.ess_bulk_min."
                )

    def _objective(self, records: Sequence[Mapping[str, Any] | None]) -> list[float] | None:
        """Return the mean of each metric over the runs, or None if a run is not complete or lacks a finite value."""
        if any(record is None or record["status"] != "complete" for record in records):
            return None
        means = []
        for metric in self.metrics:
            found = [number(record, metric) for record in records if record is not None]
            if any(value is None or not math.isfinite(value) for value in found):
                return None
            means.append(math.fsum(value for value in found if value is not None) / len(found))
        return means

    def _report(self, study: Any, optuna: Any) -> None:
        trials = study.get_trials(deepcopy=False)
        state = optuna.trial.TrialState
        failed, lost = (sum(trial.state == each for trial in trials) for each in (state.FAIL, state.RUNNING))
        again = f"{lost} lost with their workers, which the same command tries again" if lost else ""
        if failed + lost == len(trials):
            reasons = "the runs' reasons stand above" + f"; {again}" * bool(lost)
            raise ConfigError(f"{SECTION}: none of {len(trials)} trials gave a value: {reasons}.")
        best = study.best_trials if len(self.metrics) > 1 else [study.best_trial]
        for trial in best:
            values = "  ".join(f"{name}={value:.6g}" for name, value in zip(self.metrics, trial.values, strict=True))
            options = " ".join(f"{name}={value}" for name, value in trial.params.items())
            without = f"{failed} without a value" + f", {again}" * bool(lost)
            print(f"Best of {len(trials)} trials ({without}): {values}\n  {options}", file=sys.stderr)


def only_lost(records: Sequence[Mapping[str, Any] | None]) -> bool:
    """Whether all runs of a trial that are not complete were lost with their workers, and there is at least one."""
    left = [record for record in records if record is None or record["status"] != "complete"]
    return bool(left) and all(record is not None and was_lost(record) for record in left)


def ended() -> tuple[Any, ...]:
    """Return the states of trials that have ended."""
    state = required("optuna", "tuning").trial.TrialState
    return state.COMPLETE, state.FAIL


def unfinished(study: Any, names: set[str]) -> list[tuple[int, dict[str, Any]]]:
    """Return the number and the options of each trial that an interrupted command has left open. They are run first.

    A trial that does not have exactly the options ``names`` is marked as failed. Only one command at a time may work on
    a study.
    """
    state = required("optuna", "tuning").trial.TrialState
    left = []
    for trial in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
        if set(trial.params) == names:
            left.append((trial.number, dict(trial.params)))
        else:
            study.tell(trial.number, state=state.FAIL)
    return left


def distribution(override: Override) -> Any:
    """Return the distribution of Optuna for an option that is given as a sweep of Hydra.

    Raises
    ------
    ConfigError
        If Optuna refuses the bounds.
    """
    distributions = required("optuna", "tuning").distributions
    value: Any = override.value()
    name = override.get_key_element()
    log = "log" in getattr(value, "tags", set())
    try:
        if isinstance(value, IntervalSweep):
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            kind = distributions.IntDistribution if whole else distributions.FloatDistribution
            return kind(value.start, value.end, log=log)
        if override.is_range_sweep():
            points = sorted(override.sweep_iterator())  # type: ignore[type-var]
            whole = all(isinstance(point, int) for point in points)
            kind = distributions.IntDistribution if whole else distributions.FloatDistribution
            step: Any = points[1] - points[0] if len(points) > 1 else 1  # type: ignore[operator]
            return kind(points[0], points[-1], log=log, step=None if log and not whole else 1 if log else step)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))


def values_of(override: Override) -> list[str]:
    """Return the values of an option over which the objective is averaged. Raise ConfigError for an interval."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{SECTION}.mean_over.{override.get_key_element()} must be a list of values: use range() or choice()."
        )
    return list(override.sweep_string_iterator())


def record_of(returned: Any) -> Mapping[str, Any] | None:
    """Return the record of a job from what a launcher returned: our launcher gives the record, others an outcome."""
    if isinstance(returned, Outcome):
        return returned.records[0] if returned.records else None
    return returned


def number(record: Mapping[str, Any], path: str) -> float | None:
    """Return a number of a record by its dotted key, or None if the entry is null.

    Raises
    ------
    ConfigError
        If the record has no such entry, or it is not a number.
    """
    node: Any = record
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            there = ", ".join(f"metrics.{name}" for name in record["metrics"])
            raise ConfigError(f"{SECTION}.metric={path} is not in the record: there are {there}.")
        node = node[key]
    if node is not None and (isinstance(node, bool) or not isinstance(node, int | float)):
        raise ConfigError(f"{SECTION}.metric={path} is no number.")
    return node
