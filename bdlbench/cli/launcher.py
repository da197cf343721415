"""The Hydra launcher that runs the jobs of a sweep as lanes, and a sweeper that composes each job only once."""

import atexit
import copy
import functools
import itertools
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bdlbench.options import at_least, coerce
from bdlbench.runs.executors import make_executor
from bdlbench.runs.outcome import Outcome, sentence

OUTCOME: list[Outcome] = []
"""The outcome that receives the results of a sweep. The command adds its own outcome here before Hydra starts."""


@functools.cache
def scratch() -> str:
    """Return a temporary folder of this process that only its user can read, for the files that Hydra always writes."""
    folder = tempfile.mkdtemp(prefix="bdlbench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# It is registered here with the plugin, so that the worker processes of any launcher have it too.
OmegaConf.register_new_resolver("bdlbench.scratch", scratch, replace=True)


def collect(returns: Iterable[JobReturn]) -> None:
    """Add the outcomes that jobs of another launcher returned, possibly from other processes."""
    for returned in returns:
        if isinstance(returned.return_value, Outcome) and OUTCOME:
            OUTCOME[-1].add(returned.return_value)


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper without its test composition of each job, which takes 0.1 s for each job."""

    def __init__(self, max_batch_size: int | None, params: Mapping[str, str] | None) -> None:
        # Hydra executes the modules of plugins again while it searches for plugins, which breaks the parent's super().
        self.max_batch_size, self.params = max_batch_size, dict(params or {})
        self.overrides = None
        self.batch_index = 0
        self.hydra_context = self.config = self.launcher = None

    def sweep(self, arguments: list[str]) -> Any:
        """Run Hydra's own sweep, and add the outcomes that jobs of other launchers return."""
        returns = super().sweep(arguments)
        collect(itertools.chain.from_iterable(returns))
        return returns

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: the launcher composes each job and reports the jobs that cannot be composed."""


class LanesLauncher(Launcher):
    """Takes all jobs of a multirun, skips runs that the store has, and runs jobs with equal programs as lanes.

    Parameters
    ----------
    max_lanes : int
        The largest number of lanes (jobs x chains) in one program.
    executor : str
        The name of the executor that computes the batches of lanes, see :mod:`bdlbench.runs.executors`.
    processes, slurm, ray : mapping
        The options of the executor of that name.
    """

    def __init__(self, max_lanes: int, executor: str, **options: DictConfig) -> None:
        max_lanes = coerce("hydra.launcher.max_lanes", max_lanes, int)
        at_least("hydra.launcher", 1, max_lanes=max_lanes)
        self.max_lanes, self.executor = max_lanes, executor
        self.options = {name: OmegaConf.to_container(given, resolve=True) for name, given in options.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's context and configuration. Hydra calls this once for each command."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, add records and errors to the outcome of the command, and return the record of each job."""
        from bdlbench.runs.sweep import run_sweep

        outcome = OUTCOME[-1] if OUTCOME else Outcome()
        executor = make_executor(self.executor, self.options.get(self.executor, {}))  # type: ignore[arg-type]
        jobs = self.composed(job_overrides, outcome)
        records = run_sweep(
            [job for job in jobs if job is not None], outcome, max_lanes=self.max_lanes, executor=executor
        )
        done = iter(records)
        return [
            returned(overrides, None if job is None else next(done))
            for overrides, job in zip(job_overrides, jobs, strict=True)
        ]

    def composed(
        self, job_overrides: Sequence[Sequence[str]], outcome: Outcome
    ) -> list[tuple[dict[str, Any], dict[str, str], str] | None]:
        """Configuration, labels and overrides of each job; None with an error message for one that cannot be composed."""
        composer = Composer(self.context.config_loader, self.config)
        jobs: list[tuple[dict[str, Any], dict[str, str], str] | None] = []
        for overrides in job_overrides:
            try:
                jobs.append((*composer.compose(list(overrides)), shlex.join(overrides)))
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                outcome.errors.append(f"{sentence(error)} ({shlex.join(overrides)})")
                jobs.append(None)
        return jobs


def returned(overrides: Sequence[str], record: Mapping[str, Any] | None) -> JobReturn:
    """What Hydra wants back of a job."""
    result = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    result.return_value = record
    return result


class Composer:
    """Composes the jobs of a sweep. Hydra composes each choice of groups once; other values are then set directly.

    Hydra takes about 0.1 s for a job. It also composes each job with an addition, a deletion or an interpolation.
    """

    def __init__(self, loader: Any, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.bases: dict[tuple[str, ...], tuple[dict[str, Any], dict[str, str], bool]] = {}
        self.groups: dict[str, bool] = {}

    def compose(self, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the resolved configuration of one job and the labels of its groups."""
        parsed = self.parser.parse_overrides(overrides)
        choices = tuple(o.input_line or "" for o in parsed if self.is_group(o))
        values = [o for o in parsed if not self.is_group(o)]
        if all(_is_plain(o) for o in values):
            if choices not in self.bases:
                self.bases[choices] = self.load(list(choices))
            config, labels, interpolates = self.bases[choices]
            if not interpolates:
                config = copy.deepcopy(config)
                if all(_set(config, o.key_or_group, o.value()) for o in values):
                    return config, labels
        return self.load(overrides)[:2]

    def load(self, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str], bool]:
        """Compose a job with Hydra. Return configuration, labels, and whether the configuration has interpolations."""
        from bdlbench.runs import configuration

        configuration.check_tuned(overrides, self.loader.get_group_options("tuned"))
        config = self.loader.load_sweep_config(self.master, overrides)
        choices = dict(config.hydra.runtime.choices)
        config = configuration.without_hydra(config)
        return _plain(config), configuration.labels_of(choices), "${" in OmegaConf.to_yaml(config)

    def is_group(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        name = override.key_or_group
        if name not in self.groups:
            self.groups[name] = bool(self.loader.get_group_options(name))
        return self.groups[name]


def _is_plain(override: Override) -> bool:
    """Whether an override changes an existing value to one fixed value, without an interpolation."""
    line = override.input_line or ""
    return override.type is OverrideType.CHANGE and not override.is_sweep_override() and "${" not in line


def _plain(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as dicts and lists. Required values may be missing; make_job reports them."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=False)  # type: ignore[return-value]


def _set(config: dict[str, Any], path: str, value: Any) -> bool:
    """Set a value at a dotted path as Hydra does, and return True.

    If the entry does not exist, change nothing and return False. Hydra then composes the job and reports the fault.
    """
    *parents, last = path.split(".")
    node: Any = config
    try:
        for key in parents:
            node = node[_index(node, key)]
        at = _index(node, last)
        node[at] = _merged(node[at], value)
    except LookupError:
        return False
    return True


def _index(node: Any, key: str) -> str | int:
    """Return the index or key of a node that a component of a dotted path names. Raise LookupError if there is none."""
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return int(key)
    if isinstance(node, dict) and key in node:
        return key
    raise LookupError(key)


def _merged(old: Any, new: Any) -> Any:
    """Merge as OmegaConf does: mappings entry by entry, any other value is replaced.

    Raises KeyError for a key that is not in ``old``.
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old[key], value) for key, value in new.items()}
